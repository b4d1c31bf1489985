"""A store in a folder: a SQLite catalog, a note beside it that helps when the catalog is lost, room for a first device."""

import errno
import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tensorkeep.catalog.access import create_catalog, create_empty_catalog, install_catalog
from tensorkeep.catalog.protocol import Catalog, CatalogImage
from tensorkeep.errors import (
    Capacity,
    InvalidInput,
    NotFound,
    PermissionDenied,
    TensorkeepError,
    Unavailable,
)
from tensorkeep.records.device import is_gone
from tensorkeep.runtime import Runtime
from tensorkeep.store.journal import new_ulid
from tensorkeep.store.place import LockCheck, StoreNote
from tensorkeep.store.places import CATALOG_FILE, LOCAL_DEVICE, NOTE_FILE

_UNFINISHED_CATALOG = re.compile(rf"{re.escape(CATALOG_FILE)}\.[0-9A-Z]{{26}}\.new(-journal)?\Z")


@dataclass(frozen=True, slots=True)
class FolderPlace:
    """A `Place` that is a folder."""

    folder: Path

    @property
    def shown(self) -> str:
        """The folder."""
        return str(self.folder)

    @property
    def catalog_url(self) -> str:
        """The URL of the folder's catalog."""
        return f"sqlite:///{self.folder / CATALOG_FILE}"

    @property
    def made_by_opening(self) -> bool:
        """True: an empty folder is no store that was lost (a note and devices beside the catalog would tell)."""
        return True

    @property
    def first_device(self) -> Path | None:
        """A folder inside the store's."""
        return (self.folder / LOCAL_DEVICE).absolute()

    @contextmanager
    def lock(self, *, shared: bool) -> Iterator[LockCheck]:
        """Hold the folder's lock; the system frees it with the process."""
        with ExitStack() as stack:
            with _translated(self.folder):
                stack.enter_context(_folder_lock(self.folder, shared=shared))
            yield lambda: None  # the system never takes it back

    def has_catalog(self, runtime: Runtime) -> bool:  # noqa: ARG002 - the protocol's
        """Return whether the catalog's file is there."""
        with _translated(self.folder):
            return (self.folder / CATALOG_FILE).exists()

    def may_write(self, runtime: Runtime) -> bool:  # noqa: ARG002 - the protocol's
        """Return whether the folder and the catalog in it can be written: SQLite needs both."""
        return os.access(self.folder, os.W_OK) and os.access(self.folder / CATALOG_FILE, os.W_OK)

    def create(self, store: str, policy: str, runtime: Runtime) -> None:
        """Make a catalog where the folder is missing or empty."""
        folder = self.folder
        with _translated(folder):
            if folder.exists() and not folder.is_dir():
                raise InvalidInput(f"{folder} is a file, not a store's folder", store=str(folder))
            _make_folder(folder)
            with _folder_lock(folder):
                if (folder / CATALOG_FILE).exists():
                    return
                _check_empty(folder, [entry.name for entry in folder.iterdir()])
                catalog = create_catalog(self.catalog_url, store=store, policy=policy, runtime=runtime)
                self.write_note(catalog)
                catalog.close()

    def prepare_rebuild(self) -> None:
        """Make the folder, which holds the lock."""
        with _translated(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def install(self, image: CatalogImage, runtime: Runtime) -> str | None:
        """Write the new catalog aside, then put it in place by one rename; the old one keeps another name."""
        folder = self.folder
        with _translated(folder):
            for left in folder.glob(f".{CATALOG_FILE}.rebuilt-*"):
                left.unlink()  # of a rebuild that was killed: this one holds the folder's lock
            aside = folder / f".{CATALOG_FILE}.rebuilt-{new_ulid(runtime)}"
            catalog = create_empty_catalog(f"sqlite:///{aside}", store=image.store, runtime=runtime)
            catalog.load_image(image, now=runtime.clock.now())
            catalog.close()
            runtime.failpoints.hit("rebuild.catalog_written")
            path = folder / CATALOG_FILE
            replaced = None
            if path.exists():
                replaced = f"{CATALOG_FILE}.replaced-{new_ulid(runtime)}"
                os.link(path, folder / replaced)
            install_catalog(str(aside), str(path))
        return replaced

    def find_note(self) -> StoreNote | None:
        """Return the note in the folder, or None where there is none that can be read."""
        try:
            return msgspec.json.decode((self.folder / NOTE_FILE).read_bytes(), type=StoreNote)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    def write_note(self, catalog: Catalog) -> None:
        """Write the note beside the catalog."""
        devices = tuple(facts.url for facts in catalog.list_devices() if not is_gone(facts))
        note = StoreNote(store=catalog.info().store, devices=devices)
        temporary = self.folder / f".{NOTE_FILE}.{os.getpid()}"
        try:
            temporary.write_bytes(msgspec.json.encode(note) + b"\n")
            temporary.replace(self.folder / NOTE_FILE)
        except OSError:
            temporary.unlink(missing_ok=True)


@contextmanager
def _folder_lock(folder: Path, *, shared: bool = False) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


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
        raise _translate_folder_error(error, folder) from error


def _translate_folder_error(error: OSError, folder: Path) -> TensorkeepError:
    """Return our error for what the system says of a store's folder."""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionDenied(f"{folder} can't be written: {error.strerror}", store=str(folder))
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Capacity(f"no room for the store at {folder}: {error.strerror}", store=str(folder))
    if error.errno in (errno.ENOTDIR, errno.ENAMETOOLONG, errno.EEXIST, errno.ELOOP):
        return InvalidInput(f"{folder} can't be a store's folder: {error.strerror}", store=str(folder))
    return Unavailable(f"{folder}: {error.strerror}", store=str(folder))
