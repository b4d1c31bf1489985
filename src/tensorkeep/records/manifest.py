"""The manifest: the structure of a version. Files, tensors, and extents over parts; nothing of devices.

Everything is a byte range of a file: a tensor or a slice resolves to a range of its file, that to extents, those to
ranges of parts. A manifest is stored as canonical JSON under zstd (``zstd -dc manifest | jq`` reads it) and named by the
BLAKE3-256 of its stored bytes. The records that there may be a million of are left out of Python's garbage collection
(``gc=False``): they hold no cycles, and its passes over them took a third of the time to open a 10 TiB model.
"""

from collections.abc import Iterator, Sequence

import msgspec
import zstandard

from tensorkeep.errors import Format, InvalidInput
from tensorkeep.records.json_text import decode_canonical, encode_canonical
from tensorkeep.records.layout import PART_LIMIT_BYTES
from tensorkeep.records.paths import check_paths

MANIFEST_FORMAT = 1
MANIFEST_LIMIT_BYTES = 4 << 30
"""Most bytes that a manifest may unpack to: a bound on hostile input, 1000 times that of a 10 TiB model."""

SMALL_MANIFEST_BYTES = 64 << 20
MANIFEST_LIMIT_RATIO = 1000
"""Over the small size, how many times its stored bytes a manifest may unpack to, so that few bytes can't fill the memory.

Those of models unpack to under 120 times; equal parts in a row to 3,000 times, of which the small size holds four million.
"""

_ZSTD_LEVEL = 9


class Extent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """``length`` bytes of a file that lie in part number ``part`` (of this manifest) from ``start``."""

    part: int
    start: int
    length: int


class Item(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Bytes ``[start, start + length)`` of a file that are no tensor but lie in a pack, and their BLAKE3-256 in hex."""

    start: int
    length: int
    digest: str


class Tensor(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A named array in a file.

    ``shape`` in elements, ``strides`` in elements or None for C order, ``start`` and ``length`` in bytes of the file,
    ``digest`` the BLAKE3-256 of its bytes in hex.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    start: int
    length: int
    digest: str


class File(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a version; ``extents`` cover it exactly, in order. ``sha256`` and ``git_sha1`` are hex."""

    path: str
    size_bytes: int
    format: str
    extents: tuple[Extent, ...]
    tensors: tuple[Tensor, ...]
    items: tuple[Item, ...]
    sha256: str
    git_sha1: str | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The structure of a version.

    ``parts`` are the sizes in bytes of all parts, in order; their digests and block checks lie in the checks object named
    ``checks``. ``split`` and ``part_size`` are what a child version keeps.
    """

    format: int = MANIFEST_FORMAT
    split: str
    part_size: int
    files: tuple[File, ...]
    parts: tuple[int, ...]
    checks: str

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files)

    def iter_tensors(self) -> Iterator[tuple[File, Tensor]]:
        """Yield every tensor with its file, in order."""
        for file in self.files:
            for tensor in file.tensors:
                yield file, tensor


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the stored bytes of a manifest: canonical JSON, zstd with content size.

    Raises:
        InvalidInput: it would unpack to more than `decode_manifest` allows.
    """
    text = encode_canonical(manifest)
    data = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_content_size=True).compress(text)
    if len(text) > _most_unpacked(data):
        raise InvalidInput(
            f"the manifest would unpack from {len(data)} to {len(text)} bytes, over the limit: choose larger parts"
        )
    return data


def decode_manifest(data: bytes) -> Manifest:
    """Return the manifest that these stored bytes hold, with every rule of `check_manifest` holding.

    Raises:
        Format: a newer format, damaged, or breaking a rule.
    """
    try:
        size = zstandard.frame_content_size(data)
        if not 0 <= size <= _most_unpacked(data):
            raise Format(
                f"the manifest says that it unpacks to {size} bytes; of {len(data)} stored the limit is {_most_unpacked(data)}"
            )
        text = zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
    except zstandard.ZstdError as error:
        raise Format(f"the manifest can't be unpacked: {error}") from error
    manifest = _decode_text(text)
    check_manifest(manifest)
    return manifest


def _most_unpacked(data: bytes) -> int:
    return min(MANIFEST_LIMIT_BYTES, max(SMALL_MANIFEST_BYTES, MANIFEST_LIMIT_RATIO * len(data)))


def _decode_text(text: bytes) -> Manifest:
    try:
        manifest = decode_canonical(text, Manifest, what="manifest")
        found = manifest.format
    except Format:  # a newer format may have other fields: say that first
        found = decode_canonical(text, _Head, what="manifest").format
        if found <= MANIFEST_FORMAT:
            raise
    if found > MANIFEST_FORMAT:
        raise Format(f"the manifest has format {found}, this tensorkeep knows {MANIFEST_FORMAT}: upgrade it")
    return manifest


def check_manifest(manifest: Manifest) -> None:
    """Return if every path is safe, every extent lies in its part, and extents cover each file exactly.

    Raises:
        Format: the first broken rule, with the file it is in.
    """
    parts = manifest.parts
    if parts and not (min(parts) > 0 and max(parts) < PART_LIMIT_BYTES):
        index, size = next((i, size) for i, size in enumerate(parts) if not 0 < size < PART_LIMIT_BYTES)
        raise Format(f"part {index} of the manifest has {size} bytes; parts have 1 to {PART_LIMIT_BYTES - 1}")
    check_paths([file.path for file in manifest.files])
    for file in manifest.files:
        _check_file(file, manifest.parts)


def _check_file(file: File, parts: Sequence[int]) -> None:
    covered = 0
    count = len(parts)
    for extent in file.extents:
        part, start, length = extent.part, extent.start, extent.length  # there may be a million: each looked up once
        if not 0 <= part < count or length < 1 or start < 0:
            raise Format(f"an extent of {file.path!r} is out of bounds: {extent}", file=file.path)
        if start + length > parts[part]:
            raise Format(f"an extent of {file.path!r} ends past its part: {extent}", file=file.path)
        covered += length
    if covered != file.size_bytes:
        raise Format(f"extents of {file.path!r} cover {covered} bytes of {file.size_bytes}", file=file.path)
    for tensor in file.tensors:
        if tensor.start < 0 or tensor.length < 0 or tensor.start + tensor.length > file.size_bytes:
            raise Format(f"tensor {tensor.name!r} lies outside its file {file.path!r}", file=file.path)
    for item in file.items:
        if item.start < 0 or item.length < 0 or item.start + item.length > file.size_bytes:
            raise Format(f"an item lies outside its file {file.path!r}: {item}", file=file.path)


class _Head(msgspec.Struct):
    format: int
