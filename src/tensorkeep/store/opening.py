"""Finding, making and opening stores. A store is a folder with a catalog; `StoreNote` beside it helps when the catalog is lost."""

import errno
import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from tensorkeep.catalog.access import create_catalog, open_catalog
from tensorkeep.catalog.protocol import Catalog
from tensorkeep.errors import (
    AlreadyExists,
    Capacity,
    InvalidInput,
    NotFound,
    PermissionDenied,
    TensorkeepError,
    Unavailable,
)
from tensorkeep.records.layout import JOURNAL_SNAPSHOT_EVERY
from tensorkeep.records.redundancy import ErasureCoded, Policy, Replicas
from tensorkeep.runtime import Runtime
from tensorkeep.store.context import StoreContext
from tensorkeep.store.fleet import DeviceOpener, Fleet, open_by_facts
from tensorkeep.store.journal import new_ulid
from tensorkeep.store.places import CATALOG_FILE, NOTE_FILE

_NOTE_FORMAT = 1
_UNFINISHED_CATALOG = re.compile(rf"{re.escape(CATALOG_FILE)}\.[0-9A-Z]{{26}}\.new(-journal)?\Z")


class StoreNote(msgspec.Struct, frozen=True, kw_only=True):
    """What helps to rebuild a lost catalog: the store's id and where its devices were. A hint, never the truth."""

    format: int = _NOTE_FORMAT
    store: str
    devices: tuple[str, ...] = ()


def catalog_url(folder: Path) -> str:
    """Return the URL of a folder's catalog."""
    return f"sqlite:///{folder / CATALOG_FILE}"


def open_folder(
    folder: Path,
    *,
    runtime: Runtime,
    cache_root: Path | None,
    user: str,
    policy: Policy | None = None,
    create: bool = True,
    exist_ok: bool = True,
    opener: DeviceOpener = open_by_facts,
    snapshot_every: int = JOURNAL_SNAPSHOT_EVERY,
) -> StoreContext:
    """Return the store in a folder; one is made where the folder is missing or empty.

    ``opener`` and ``snapshot_every`` (entries between two snapshots of the journal) are for tests: other devices than the
    catalog's rows describe, and a history that is trimmed soon.

    Raises:
        AlreadyExists: there is one and ``exist_ok`` is False.
        InvalidInput: the folder is not empty and no store.
        NotFound: the store's catalog is lost (remedy: rebuild-catalog), or there is none and ``create`` is False.
    """
    if (folder / CATALOG_FILE).exists():
        if not exist_ok:
            raise AlreadyExists(f"{folder} is a store already: open it, or choose another folder", store=str(folder))
    elif create:
        with _translated(folder):
            _create_folder_store(folder, policy or Replicas(1), runtime)
    else:
        raise NotFound(f"{folder} is no store: `tensorkeep init` makes one", store=str(folder))
    read_only = not os.access(folder, os.W_OK) or not os.access(folder / CATALOG_FILE, os.W_OK)
    catalog = open_catalog(catalog_url(folder), runtime=runtime, read_only=read_only, snapshot_every=snapshot_every)
    cache = cache_root / catalog.info().store if cache_root else None
    fleet = Fleet(catalog, runtime=runtime, opener=opener)
    return StoreContext(catalog, fleet, runtime, folder, cache, read_only=read_only, user=user)


def write_note(folder: Path, catalog: Catalog) -> None:
    """Write the note beside the catalog; a failure is no error, because it is a hint."""
    devices = tuple(facts.url for facts in catalog.list_devices() if facts.state == "active")
    note = StoreNote(store=catalog.info().store, devices=devices)
    temporary = folder / f".{NOTE_FILE}.{os.getpid()}"
    try:
        temporary.write_bytes(msgspec.json.encode(note) + b"\n")
        temporary.replace(folder / NOTE_FILE)
    except OSError:
        temporary.unlink(missing_ok=True)


def find_note(folder: Path) -> StoreNote | None:
    """Return the note of a store's folder, or None where there is none that can be read."""
    try:
        return msgspec.json.decode((folder / NOTE_FILE).read_bytes(), type=StoreNote)
    except (OSError, msgspec.DecodeError):
        return None


@contextmanager
def folder_lock(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold a folder's lock: two processes that make or rebuild one store take turns. Shared ones hold it together."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def locked_folder(folder: Path, *, shared: bool) -> Iterator[None]:
    """Hold a folder's lock as `folder_lock` does, and translate what the system says against it."""
    with ExitStack() as stack:
        with _translated(folder):
            stack.enter_context(folder_lock(folder, shared=shared))
        yield


def _create_folder_store(folder: Path, policy: Policy, runtime: Runtime) -> None:
    if isinstance(policy, ErasureCoded):
        raise InvalidInput(f"{policy}: this version writes whole copies only; use --replicas {policy.losses + 1}")
    if folder.exists() and not folder.is_dir():
        raise InvalidInput(f"{folder} is a file, not a store's folder", store=str(folder))
    _make_folder(folder)
    with folder_lock(folder):
        if (folder / CATALOG_FILE).exists():
            return
        _check_empty(folder, [entry.name for entry in folder.iterdir()])
        catalog = create_catalog(catalog_url(folder), store=new_ulid(runtime), policy=str(policy), runtime=runtime)
        write_note(folder, catalog)
        catalog.close()


def _make_folder(folder: Path) -> None:
    """Make a folder and what leads to it, durably: what is stored in it must not hang on an entry that a power cut takes."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _check_empty(folder: Path, names: Sequence[str]) -> None:
    # What a killed creation left behind: a half-made catalog under another name, and a note that has not got its own.
    left = [name for name in names if not (_UNFINISHED_CATALOG.match(name) or name.startswith(f".{NOTE_FILE}."))]
    if not left:
        return
    if NOTE_FILE in left or "devices" in left or any(CATALOG_FILE in name for name in left):
        raise NotFound(
            f"the catalog of the store {folder} is gone: run `tensorkeep --store {folder} rebuild-catalog`",
            store=str(folder),
        )
    raise InvalidInput(f"{folder} is not empty and is no store: name another folder", store=str(folder))


@contextmanager
def _translated(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise translate_folder_error(error, folder) from error


def translate_folder_error(error: OSError, folder: Path) -> TensorkeepError:
    """Return our error for what the system says of a store's folder."""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionDenied(f"{folder} can't be written: {error.strerror}", store=str(folder))
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Capacity(f"no room for the store at {folder}: {error.strerror}", store=str(folder))
    if error.errno in (errno.ENOTDIR, errno.ENAMETOOLONG, errno.EEXIST, errno.ELOOP):
        return InvalidInput(f"{folder} can't be a store's folder: {error.strerror}", store=str(folder))
    return Unavailable(f"{folder}: {error.strerror}", store=str(folder))
