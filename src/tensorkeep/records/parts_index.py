"""The index of a file that was split into part files: ``NAME.parts.json``, canonical JSON that ends with a seal.

The parts are the raw bytes of the file, cut at ``floor(i * size / N)``; the index says which they are, where they were put,
and what each and the whole must be. It comes from anywhere, so nothing in it is believed before it is checked: names are
plain file names, the parts cover the file exactly, and the seal fits.

Source: ``docs/split-join.md``.
"""

from collections.abc import Iterator

import msgspec

from tensorkeep.errors import Format, InvalidInput
from tensorkeep.records.digest import parse_digest
from tensorkeep.records.json_text import decode_canonical, encode_canonical
from tensorkeep.records.layout import MIB
from tensorkeep.records.sealing import seal, unseal

PARTS_FORMAT = 1
INDEX_SUFFIX = ".parts.json"
PARTS_LIMIT = 10_000
INDEX_LIMIT_BYTES = 16 * MIB
"""A larger file is no index: it is not read, so that memory stays bounded."""

_SEAL = "index_blake3"
_SIZE_LIMIT_BYTES = 2**63 - 1


class PartEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A part file: bytes ``[start, start + size_bytes)`` of the whole; ``folder`` is relative to the index's, or absolute."""

    name: str
    folder: str
    start: int
    size_bytes: int
    blake3: str
    sha256: str


class PartsIndex(msgspec.Struct, frozen=True, kw_only=True):
    """A split file: its name, size and digests in hex, and its parts in order. Written without the seal."""

    name: str
    size_bytes: int
    blake3: str
    sha256: str
    parts: tuple[PartEntry, ...]
    format: int = PARTS_FORMAT


class _Head(msgspec.Struct):
    format: int


def index_name(name: str) -> str:
    """Return the name of a file's index."""
    return name + INDEX_SUFFIX


def part_name(name: str, number: int, count: int) -> str:
    """Return the name of part ``number`` (from 1) of ``count``, padded with zeros so that the names sort."""
    return f"{name}.part-{number:0{len(str(count))}}-of-{count}"


def iter_cuts(size_bytes: int, count: int) -> Iterator[tuple[int, int]]:
    """Yield (start, length) of each part: cut at ``floor(i * size / count)``."""
    for number in range(count):
        start = number * size_bytes // count
        yield start, (number + 1) * size_bytes // count - start


def encode_index(index: PartsIndex) -> bytes:
    """Return the bytes of an index file.

    Raises:
        InvalidInput: a name is not valid Unicode, or the index is over `INDEX_LIMIT_BYTES`.
    """
    data = seal(encode_canonical(index), _SEAL)
    if len(data) > INDEX_LIMIT_BYTES:
        raise InvalidInput(f"the index of {index.name} would be over 16 MiB: make fewer parts, or use shorter names")
    return data


def decode_index(data: bytes, *, what: str) -> PartsIndex:
    """Return the index that these bytes hold; ``what`` names it in errors.

    Raises:
        Integrity: the seal does not fit the rest, or there is none.
        Format: a newer format, or an index that contradicts itself.
    """
    body = unseal(data, _SEAL, what=what, advice="; each folder of parts has a copy", path=what)
    # The version alone first: a newer format may have other fields, and its user must be told to upgrade.
    newest = decode_canonical(body, _Head, what=what)
    if newest.format != PARTS_FORMAT:
        raise Format(
            f"{what} has format {newest.format}, this tensorkeep knows {PARTS_FORMAT}: upgrade tensorkeep",
            path=what,
            format=newest.format,
        )
    index = decode_canonical(body, PartsIndex, what=what)
    problem = _find_problem(index)
    if problem:
        raise Format(f"{what} {problem}: it was not written by a split", path=what)
    return index


def _find_problem(index: PartsIndex) -> str | None:
    if not 1 <= len(index.parts) <= PARTS_LIMIT:
        return f"has {len(index.parts)} parts, not 1 to {PARTS_LIMIT}"
    if not 0 <= index.size_bytes <= _SIZE_LIMIT_BYTES:
        return f"has the size {index.size_bytes}"
    for name in (index.name, *(part.name for part in index.parts)):
        if not _is_file_name(name):
            return f"has {name!r} where a file name should be"
    if len({part.name for part in index.parts}) < len(index.parts):
        return "names two parts alike"
    end = 0
    for part in index.parts:
        if part.start != end or part.size_bytes < 0:
            return f"has a gap or an overlap at {part.name!r}"
        if not part.folder or "\0" in part.folder:
            return f"has the folder {part.folder!r}"
        end += part.size_bytes
    if end != index.size_bytes:
        return f"has parts of {end} bytes for a file of {index.size_bytes}"
    for blake, sha in ((index.blake3, index.sha256), *((part.blake3, part.sha256) for part in index.parts)):
        parse_digest(blake, what="BLAKE3")
        parse_digest(sha, what="SHA-256")
    return None


def _is_file_name(name: str) -> bool:
    return name not in {"", ".", ".."} and "/" not in name and "\0" not in name
