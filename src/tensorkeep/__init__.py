"""tensorkeep: a distributed store for large AI models.

Open a store, push a folder, load it back from all devices at once, every byte verified::

    import tensorkeep

    store = tensorkeep.open()
    store.push("./llama", "acme/llama", tag="v1")
    arrays = store.model("acme/llama@v1").load()

This module is the whole public API and a door: only here and in the command line is the environment read. Imports are lazy:
``import tensorkeep`` costs nothing until something is used.
"""

import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensorkeep._version import __version__
from tensorkeep.errors import (
    AlreadyExists,
    Capacity,
    Conflict,
    Format,
    Integrity,
    Internal,
    InvalidInput,
    NotEnoughCopies,
    NotFound,
    PermissionDenied,
    TensorkeepError,
    Unavailable,
)

if TYPE_CHECKING:
    from tensorkeep.planning.shards import Shard
    from tensorkeep.runtime import Runtime
    from tensorkeep.store.join_file import JoinReport
    from tensorkeep.store.model import Model
    from tensorkeep.store.reports import (
        Diff,
        GcReport,
        PrefetchReport,
        ProgressCallback,
        PushForecast,
        RebuildReport,
        StatusReport,
        VerifyReport,
        Version,
    )
    from tensorkeep.store.split_file import SplitReport
    from tensorkeep.store.store import DeviceCollection, Store
    from tensorkeep.store.tensor_handle import TensorHandle
    from tensorkeep.transfer.report import LoadPlan, LoadReport

__all__ = [
    "AlreadyExists",
    "Capacity",
    "Conflict",
    "ConformanceReport",
    "DeviceCollection",
    "Diff",
    "Format",
    "GcReport",
    "Integrity",
    "Internal",
    "InvalidInput",
    "JoinReport",
    "LoadPlan",
    "LoadReport",
    "Model",
    "NotEnoughCopies",
    "NotFound",
    "PermissionDenied",
    "PrefetchReport",
    "PushForecast",
    "RebuildReport",
    "Shard",
    "SplitReport",
    "StatusReport",
    "Store",
    "TensorHandle",
    "TensorkeepError",
    "Unavailable",
    "VerifyReport",
    "Version",
    "__version__",
    "init",
    "join_file",
    "open",
    "rebuild_catalog",
    "split_file",
]

_LAZY = {
    "ConformanceReport": "tensorkeep.records.conformance_report",
    "DeviceCollection": "tensorkeep.store.store",
    "Diff": "tensorkeep.store.reports",
    "GcReport": "tensorkeep.store.reports",
    "JoinReport": "tensorkeep.store.join_file",
    "LoadPlan": "tensorkeep.transfer.report",
    "LoadReport": "tensorkeep.transfer.report",
    "Model": "tensorkeep.store.model",
    "PrefetchReport": "tensorkeep.store.reports",
    "PushForecast": "tensorkeep.store.reports",
    "RebuildReport": "tensorkeep.store.reports",
    "Shard": "tensorkeep.planning.shards",
    "SplitReport": "tensorkeep.store.split_file",
    "StatusReport": "tensorkeep.store.reports",
    "Store": "tensorkeep.store.store",
    "TensorHandle": "tensorkeep.store.tensor_handle",
    "VerifyReport": "tensorkeep.store.reports",
    "Version": "tensorkeep.store.reports",
}


def open(  # noqa: A001 - the name that the API fixed: tensorkeep.open
    location: "str | os.PathLike[str] | None" = None, *, runtime: "Runtime | None" = None
) -> "Store":
    """Return the store at a location; a new one where the folder is missing or empty.

    Args:
        location: a folder, or ``postgresql://user@host/database``. None: ``TENSORKEEP_STORE`` of the environment, then
            ``~/.tensorkeep``.
        runtime: clock, randomness, workers and failpoints, for tests.

    Raises:
        InvalidInput: the folder is not empty and no store; or the node's configuration (`store.node_config`) is wrong.
        NotFound: the store's catalog is gone; `rebuild_catalog` brings it back. Or a database holds no store; `init` makes one.
    """
    from tensorkeep.runtime import system_runtime  # noqa: PLC0415 - imports are lazy
    from tensorkeep.store.node_config import open_node_cache  # noqa: PLC0415
    from tensorkeep.store.opening import open_store  # noqa: PLC0415
    from tensorkeep.store.store import Store  # noqa: PLC0415

    runtime = runtime or system_runtime()
    cache = open_node_cache(os.environ, runtime)
    context = open_store(_location(location), runtime=runtime, cache_root=_cache_root(), user=_user(), node_cache=cache)
    return Store(context)


def init(
    location: "str | os.PathLike[str] | None" = None,
    *,
    replicas: int | None = None,
    ec: str | None = None,
    runtime: "Runtime | None" = None,
) -> "Store":
    """Make a store with a default redundancy and return it.

    Args:
        location: as in `open`.
        replicas: whole copies of each part, 1 if None.
        ec: erasure coding ``K+M``: K data and M parity fragments of each part, on as many devices.
        runtime: as in `open`.

    Raises:
        AlreadyExists: there is a store already.
        InvalidInput: the folder is not empty, or the redundancy makes no sense.
    """
    from tensorkeep.runtime import system_runtime  # noqa: PLC0415 - imports are lazy
    from tensorkeep.store.node_config import open_node_cache  # noqa: PLC0415
    from tensorkeep.store.opening import open_store  # noqa: PLC0415
    from tensorkeep.store.push_target import make_policy  # noqa: PLC0415
    from tensorkeep.store.store import Store  # noqa: PLC0415

    runtime = runtime or system_runtime()
    context = open_store(
        _location(location),
        runtime=runtime,
        cache_root=_cache_root(),
        user=_user(),
        node_cache=open_node_cache(os.environ, runtime),
        policy=make_policy(replicas, ec),
        exist_ok=False,
    )
    return Store(context)


def rebuild_catalog(
    location: "str | os.PathLike[str] | None" = None,
    *,
    sources: Sequence[str] = (),
    force: bool = False,
    runtime: "Runtime | None" = None,
) -> "RebuildReport":
    """Make a store's lost, damaged or outdated catalog anew from its devices, and return what it holds.

    Args:
        location: as in `open`.
        sources: URLs of devices; one is enough, the journal names the others. Empty: those that the store's folder remembers.
        force: also where the catalog is whole and up to date, and where so many devices are away that they alone may hold
            acknowledged changes.
        runtime: as in `open`.

    Raises:
        NotFound: no device can be read.
        AlreadyExists: there is nothing to rebuild.
        NotEnoughCopies: too many devices are away; or the rebuilt catalog is in its place, but its entry not on enough devices.
    """
    from tensorkeep.runtime import system_runtime  # noqa: PLC0415 - imports are lazy
    from tensorkeep.store.rebuild import rebuild_catalog as rebuild  # noqa: PLC0415

    return rebuild(_location(location), sources=sources, force=force, runtime=runtime or system_runtime(), user=_user())


def split_file(
    path: "str | os.PathLike[str]",
    *,
    parts: int,
    to: "str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None" = None,
    force: bool = False,
    progress: "bool | ProgressCallback | None" = None,
    runtime: "Runtime | None" = None,
) -> "SplitReport":
    """Split a file into part files and an index of them, and return what was made. No store is needed, nor made.

    The parts are the file's bytes, cut at ``floor(i * size / parts)``, in ``NAME.part-1-of-4`` and so on; the index is
    ``NAME.parts.json`` beside the file, with a copy in each folder of parts. One pass, in bounded memory; what is there
    when this returns is durable.

    Args:
        path: a regular file, followed through links.
        parts: how many, from 1 to 10,000 and at most one for each byte; an empty file makes one.
        to: folders for the parts, made where they are missing; part i goes to folder i modulo their number. None: beside
            the file.
        force: replace files of the same names.
        progress: True for a line on standard error, or a callback.
        runtime: as in `open`.

    Raises:
        NotFound: there is no such file.
        InvalidInput: it is not a regular file or changed meanwhile, the number makes no sense, a folder is given twice.
        AlreadyExists: a part or an index is there already.
        Capacity: the parts don't fit; nothing was written then.
        PermissionDenied: the file can't be read, or a folder not be written.
    """
    from tensorkeep.runtime import system_runtime  # noqa: PLC0415 - imports are lazy
    from tensorkeep.store import split_file as module  # noqa: PLC0415

    return module.split_file(
        path, parts=parts, to=to, force=force, progress=progress, runtime=runtime or system_runtime()
    )


def join_file(
    index: "str | os.PathLike[str]",
    path: "str | os.PathLike[str] | None" = None,
    *,
    sources: "str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None" = None,
    force: bool = False,
    progress: "bool | ProgressCallback | None" = None,
    runtime: "Runtime | None" = None,
) -> "JoinReport":
    """Make a file again from the parts that `split_file` wrote, and return what was read.

    Every part and the whole are verified before the file appears under its name. Parts are looked for where the index says,
    beside the index, and in ``sources``; where one copy is bad, the next is read.

    Args:
        index: ``NAME.parts.json``, or one of its copies.
        path: the file to make; None: under its old name beside the index.
        sources: more folders to look for parts in.
        force: replace a file of that name.
        progress: as in `split_file`.
        runtime: as in `open`.

    Raises:
        Integrity: parts are damaged, swapped or of another split (the message names each, ``facts["problems"]`` has them as
            values), or the index is damaged.
        NotFound: parts are missing, or there is no index.
        Format: the index is of a newer format.
        AlreadyExists: there is such a file already.
        Capacity: the file does not fit.
    """
    from tensorkeep.runtime import system_runtime  # noqa: PLC0415 - imports are lazy
    from tensorkeep.store import join_file as module  # noqa: PLC0415

    return module.join_file(
        index, path, sources=sources, force=force, progress=progress, runtime=runtime or system_runtime()
    )


def __getattr__(name: str) -> Any:
    """Return a public class, imported when it is first asked for."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _location(location: "str | os.PathLike[str] | None") -> Path | str:
    from tensorkeep.store.places import find_location  # noqa: PLC0415 - imports are lazy

    return find_location(location, os.environ)


def _cache_root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tensorkeep"


def _user() -> str:
    import getpass  # noqa: PLC0415 - imports are lazy

    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""
