"""Which reader reads which file: those of this package, then those that other packages registered, then ``opaque``.

A new format here is one reader in `READERS`; a package adds one under the entry point group ``tensorkeep.formats``. What a
foreign reader says is checked: a structure is kept for years, and a wrong one would load wrong tensors.
"""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

import msgspec

from tensorkeep.errors import Format, InvalidInput
from tensorkeep.formats.checking import check_structure
from tensorkeep.formats.gguf import GgufReader
from tensorkeep.formats.hdf5 import Hdf5Reader
from tensorkeep.formats.keras import KerasReader
from tensorkeep.formats.npy import NpyReader
from tensorkeep.formats.npz import NpzReader
from tensorkeep.formats.opaque import OpaqueReader, opaque_structure
from tensorkeep.formats.protocol import ByteSource, FileStructure, FormatReader, MetadataReader
from tensorkeep.formats.pytorch import PyTorchReader
from tensorkeep.formats.safetensors import SafetensorsReader

ENTRY_POINT_GROUP = "tensorkeep.formats"

READERS: tuple[FormatReader, ...] = (
    SafetensorsReader(),
    PyTorchReader(),
    GgufReader(),
    NpyReader(),
    NpzReader(),
    Hdf5Reader(),
    KerasReader(),
)
"""The readers of this package; the first that claims a path reads the file."""

_FALLBACK = OpaqueReader()


def find_reader(path: str) -> FormatReader:
    """Return the reader that claims a path; every path has one."""
    for reader in (*READERS, *foreign_readers()):
        if reader.claims(path):
            return reader
    return _FALLBACK


@cache
def foreign_readers() -> tuple[FormatReader, ...]:
    """Return the readers that other packages registered, by name; looked up once in a process.

    Raises:
        InvalidInput: one can't be imported or is no reader; the message names it and its package.
    """
    return tuple(
        _load_reader(point.name, point.value, point.load)
        for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name)
    )


def _load_reader(name: str, value: str, load: object) -> FormatReader:
    try:
        made: FormatReader = load()()  # type: ignore[operator]
        missing = [part for part in ("name", "claims", "read_structure") if not hasattr(made, part)]
    except (ImportError, AttributeError, TypeError, NameError, SyntaxError, ValueError) as error:
        raise _unusable(name, value, str(error)) from error
    if missing:
        raise _unusable(name, value, f"it has no {missing[0]!r}")
    return made


def _unusable(name: str, value: str, problem: str) -> InvalidInput:
    return InvalidInput(
        f"the format {name!r} ({value}) can't be used: {problem}; mend or uninstall the package that registers it"
    )


def read_structure(path: str, source: ByteSource, *, strict: bool = True) -> FileStructure:
    """Return the structure of a file, by the reader that claims its path.

    With ``strict=False`` a file that breaks its format's rules is opaque instead of an error.

    Raises:
        Format: the file breaks its format's rules, or another package's reader says what can't be; the message names
            the path, the place, the rule, and the way out.
        InvalidInput: the source ended early (it shrank).
    """
    reader = find_reader(path)
    try:
        structure = reader.read_structure(path, source)
    except Format as error:
        if not strict:
            return opaque_structure(f"it is broken: {error.message}")
        raise Format(
            f"{path!r} is broken: {error.message}. Fetch or write it again, or use --split size, which stores it as an "
            "opaque file",
            **{**error.facts, "path": path},
        ) from error
    if reader in (*READERS, _FALLBACK):
        return structure
    try:
        return _believe(reader, path, structure, source.size_bytes)
    except Format:
        if strict:
            raise
        return _FALLBACK.read_structure(path, source)


def _believe(reader: FormatReader, path: str, said: object, size_bytes: int) -> FileStructure:
    """Return what a foreign reader said, once it is known to be a structure that the file can have."""
    try:
        structure = msgspec.json.decode(msgspec.json.encode(said), type=FileStructure)
        check_structure(structure, size_bytes)
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError, Format) as error:
        problem = error.message if isinstance(error, Format) else str(error)
        kind = type(reader)
        raise Format(
            f"the reader {kind.__module__}:{kind.__qualname__} gives {path!r} a structure that can't be: {problem}. Mend "
            "or uninstall the package that it comes from, or use --split size, which stores the file as opaque",
            path=path,
            reader=str(reader.name),
        ) from error
    return structure


def read_metadata(path: str, format_name: str, source: ByteSource) -> Mapping[str, Any] | None:
    """Return what a file of a format says of itself; None where it is of a format that has no metadata, or opaque.

    Raises:
        Format: the file breaks its format's rules, or has more metadata than is read; the message names the path.
    """
    reader = find_reader(path)
    if reader.name != format_name or not isinstance(reader, MetadataReader):
        return None
    try:
        return reader.read_metadata(path, source)
    except Format as error:
        raise Format(
            f"the metadata of {path!r} can't be read: {error.message}", **{**error.facts, "path": path}
        ) from error
