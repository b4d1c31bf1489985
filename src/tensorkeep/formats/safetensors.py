"""The safetensors format: eight bytes of header length, a JSON header, and the tensors' bytes without gaps.

The header is read strictly, because a store keeps it for years and other loaders must agree on what it says: whatever the
safetensors library refuses is refused, and so is what its specification forbids though the library lets it pass
(duplicate names, unknown fields, a header that does not start with ``{``), and a shape that no array library can hold.

Source: https://github.com/huggingface/safetensors (README, "Format"; ``tensor.rs``), compared with version 0.8.0.
"""

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from tensorkeep.errors import Format
from tensorkeep.formats.protocol import ByteSource, FileStructure, TensorLayout
from tensorkeep.records.dtype import DTYPES

SAFETENSORS = "safetensors"
"""The format's name in manifests."""

HEADER_LIMIT_BYTES = 100_000_000
"""Most bytes of a header that the library reads, without the eight of its length."""

LENGTH_BYTES = 8
METADATA_KEY = "__metadata__"

MAX_RANK = 64
"""Most dimensions that numpy and torch can hold."""

_MAX_BITS = 1 << 63
"""No tensor may have this many bits: sizes in bytes and in elements then fit a signed 64-bit integer everywhere."""


class SafetensorsReader:
    """Reads the structure of ``*.safetensors`` files. Only the header is read: at most 100 MB."""

    name = SAFETENSORS

    def claims(self, path: str) -> bool:
        """Return whether the path ends with ``.safetensors``, in any case."""
        return path.lower().endswith(".safetensors")

    def read_structure(self, path: str, source: ByteSource) -> FileStructure:  # noqa: ARG002 - the header has all names
        """Return the tensors of a file, ordered by start; starts count from the file's first byte.

        Raises:
            Format: the file breaks a rule; the message says which, and of which tensor.
            InvalidInput: the source ended early (it shrank).
        """
        header = _read_header(source)
        data_start = LENGTH_BYTES + len(header)
        fields = _split_header(header)
        if METADATA_KEY in fields:
            _read_texts(fields.pop(METADATA_KEY))
        tensors = [_read_tensor(name, raw, data_start) for name, raw in fields.items()]
        tensors.sort(key=_position)
        _check_cover(tensors, data_start, source.size_bytes)
        return FileStructure(SAFETENSORS, tuple(tensors))

    def read_metadata(self, path: str, source: ByteSource) -> Mapping[str, Any]:  # noqa: ARG002 - the header has all keys
        """Return the texts of ``__metadata__``, in the file's order.

        Raises:
            Format: the header is not JSON, or its metadata no map of texts.
        """
        fields = _split_header(_read_header(source))
        return _read_texts(fields[METADATA_KEY]) if METADATA_KEY in fields else {}


class _Info(msgspec.Struct, forbid_unknown_fields=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class _Key:
    """A key of a JSON object that equals only itself, so that a decoded dict keeps duplicates."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


def _make_key(_type: type[Any], text: Any) -> _Key:
    return _Key(text)


_FIELDS = msgspec.json.Decoder(dict[_Key, msgspec.Raw], dec_hook=_make_key)
_METADATA = msgspec.json.Decoder(dict[_Key, str], dec_hook=_make_key)
_INFO = msgspec.json.Decoder(_Info)
_DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def _read_header(source: ByteSource) -> bytes:
    size = source.size_bytes
    if size < LENGTH_BYTES:
        raise Format(
            f"it has {size} bytes, and a safetensors file starts with {LENGTH_BYTES} that give its header's length"
        )
    length = int.from_bytes(source.read(0, LENGTH_BYTES), "little")
    if length > HEADER_LIMIT_BYTES:
        raise Format(f"its header says that it has {length} bytes; the limit is {HEADER_LIMIT_BYTES}")
    if length > size - LENGTH_BYTES:
        raise Format(f"its header says that it has {length} bytes, and the file ends after {size - LENGTH_BYTES}")
    header = source.read(LENGTH_BYTES, length)
    if not header.startswith(b"{"):
        raise Format(f"its header starts with {header[:1]!r} instead of '{{'")
    return header


def _split_header(header: bytes) -> dict[str, msgspec.Raw]:
    """Return the header's fields, undecoded: decoding them one at a time lets an error name its tensor."""
    try:
        if not header.isascii():  # the decoder below does not look into what it leaves undecoded
            header.decode("utf-8")
        pairs = _FIELDS.decode(header)
    except _DECODE_ERRORS as error:
        raise Format(f"its header is not a JSON object: {error}") from error
    fields = {key.text: raw for key, raw in pairs.items()}
    if len(fields) != len(pairs):
        raise Format(f"its header names {_first_duplicate(pairs)!r} twice")
    return fields


def _read_texts(raw: msgspec.Raw) -> dict[str, str]:
    try:
        pairs = _METADATA.decode(raw)
    except _DECODE_ERRORS as error:
        raise Format(f"its {METADATA_KEY} is not a map of texts to texts: {error}") from error
    texts = {key.text: value for key, value in pairs.items()}
    if len(texts) != len(pairs):
        raise Format(f"its {METADATA_KEY} names {_first_duplicate(pairs)!r} twice")
    return texts


def _first_duplicate(pairs: dict[_Key, Any]) -> str:
    seen: set[str] = set()
    return next(key.text for key in pairs if key.text in seen or seen.add(key.text))  # type: ignore[func-returns-value]


def _read_tensor(name: str, raw: msgspec.Raw, data_start: int) -> TensorLayout:
    """Return one tensor, with every rule holding that concerns it alone."""
    try:
        info = _INFO.decode(raw)
    except _DECODE_ERRORS as error:
        raise _broken(name, f"is not exactly a dtype, a shape and two data_offsets: {error}") from error
    if (dtype := DTYPES.get(info.dtype)) is None:
        raise _broken(name, f"has the unknown dtype {info.dtype!r}; known are {', '.join(DTYPES)}")
    text = bytes(raw)
    # The three fields are there, no other is, and no known dtype holds a colon: a fourth colon is a field given twice.
    if text.count(b":") != 3:
        raise _broken(name, "has a field twice")
    if b"-" in text:  # no known dtype holds a minus sign, so a number does; the library refuses -0 too
        raise _broken(name, f"has a negative number in shape {list(info.shape)} or data_offsets")
    begin, end = info.data_offsets
    bits = _count_bits(name, info.shape, dtype.bits)
    if begin > end:
        raise _broken(name, f"ends at {end}, before its start at {begin}")
    if bits != (end - begin) * 8:
        raise _broken(
            name,
            f"has {bits} bits by its shape {list(info.shape)} and dtype {info.dtype}, and {end - begin} bytes by its offsets",
        )
    return TensorLayout(name, info.dtype, info.shape, None, data_start + begin, end - begin)


def _count_bits(name: str, shape: tuple[int, ...], bits: int) -> int:
    """Return the bits of a tensor. Dimensions of zero do not excuse the others: no array has that shape."""
    if len(shape) > MAX_RANK:
        raise _broken(name, f"has {len(shape)} dimensions; the limit is {MAX_RANK}")
    if math.prod(size for size in shape if size) * bits >= _MAX_BITS:
        raise _broken(name, f"has a shape whose product overflows: {list(shape)}")
    return math.prod(shape) * bits


def _position(tensor: TensorLayout) -> tuple[int, int, str]:
    return tensor.start, tensor.length, tensor.name


def _check_cover(tensors: list[TensorLayout], data_start: int, size: int) -> None:
    """Return if the tensors, ordered by start, follow each other from the header to the end of the file."""
    covered = data_start
    for tensor in tensors:
        if tensor.start != covered:
            problem = "leaves a hole before it" if tensor.start > covered else "overlaps the tensor before it"
            expected, found = covered - data_start, tensor.start - data_start
            raise _broken(tensor.name, f"{problem}: it starts at {found} of the data, where {expected} is next")
        covered += tensor.length
        if covered > size:
            raise _broken(tensor.name, f"ends at byte {covered}, and the file at {size}: an incomplete download?")
    if covered != size:
        raise Format(f"its last tensor ends at byte {covered}, and the file at {size}: bytes that no tensor owns")


def _broken(name: str, problem: str) -> Format:
    return Format(f"tensor {name!r} {problem}", tensor=name)
