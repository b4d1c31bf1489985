"""Which reader reads which file. A new format is one reader in `READERS`."""

from tensorkeep.errors import Format
from tensorkeep.formats.opaque import OpaqueReader
from tensorkeep.formats.protocol import ByteSource, FileStructure, FormatReader
from tensorkeep.formats.safetensors import SafetensorsReader

_FALLBACK = OpaqueReader()

READERS: tuple[FormatReader, ...] = (SafetensorsReader(), _FALLBACK)
"""All readers; the first that claims a path reads the file. The last claims everything."""


def find_reader(path: str) -> FormatReader:
    """Return the reader that claims a path; every path has one."""
    return next(reader for reader in READERS if reader.claims(path))


def read_structure(path: str, source: ByteSource, *, strict: bool = True) -> FileStructure:
    """Return the structure of a file, by the reader that claims its path.

    With ``strict=False`` a file that breaks its format's rules is opaque instead of an error.

    Raises:
        Format: the file breaks its format's rules; the message names the path, the place, the rule, and the way out.
        InvalidInput: the source ended early (it shrank).
    """
    try:
        return find_reader(path).read_structure(source)
    except Format as error:
        if not strict:
            return _FALLBACK.read_structure(source)
        raise Format(
            f"{path!r} is broken: {error.message}. Fetch or write it again, or use --split size, which stores it as an "
            "opaque file",
            **{**error.facts, "path": path},
        ) from error
