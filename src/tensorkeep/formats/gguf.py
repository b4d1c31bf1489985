"""GGUF, the format of llama.cpp: a header of typed metadata and tensor infos, then the tensors, each aligned.

Versions 2 and 3, little-endian, are read; a file of another version, of the other byte order, or with a type of tensor that
is not known here is a valid file whose tensors can't be named: opaque. A file that breaks the rules is refused. A quantised
tensor keeps its type in its dtype, ``GGUF:Q4_K``, and loads as the bytes of its blocks, row by row, like the gguf package's
``ReaderTensor.data``. That package maps a file and believes its counts, so the header is read here.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; ``ggml/src/gguf.cpp`` of llama.cpp.
"""

import math
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from tensorkeep.errors import Format
from tensorkeep.formats.gguf_header import MAX_ENTRIES, UINT32, Cursor, ValueReader, iter_keys, skip_value
from tensorkeep.formats.opaque import opaque_structure
from tensorkeep.formats.protocol import ByteSource, FileStructure, TensorLayout
from tensorkeep.records.dtype import GGUF_PREFIX, get_dtype, packed_shape

GGUF = "gguf"
"""The format's name in manifests."""

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMS = 4
DEFAULT_ALIGNMENT = 32
ALIGNMENT_KEY = "general.alignment"
SPLIT_PREFIX = "split."

_PLAIN = {0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}
_QUANTISED = {
    2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K",
    14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip

TENSOR_TYPES: dict[int, str] = _PLAIN | {number: f"{GGUF_PREFIX}{name}" for number, name in _QUANTISED.items()}
"""The dtype of each type of tensor, by GGUF's number of it."""

_MAX_BITS = 1 << 63
"""No tensor may have this many bits: sizes in bytes and in elements then fit a signed 64-bit integer everywhere."""

_COUNTS = struct.Struct("<QQ")
_LEAST_INFO_BYTES = 24
_INFOS = [struct.Struct(f"<{dims}QIQ") for dims in range(MAX_DIMS + 1)]
"""What follows a tensor's number of dimensions: their sizes, its type, its offset."""


def is_gguf(path: str) -> bool:
    """Return whether a file of this path should be GGUF, by its name."""
    return path.lower().endswith(".gguf")


class GgufReader:
    """Reads the structure and the metadata of ``*.gguf`` files. Only the header is read, through a window."""

    name = GGUF

    def claims(self, path: str) -> bool:
        """Return whether the path ends with ``.gguf``, in any case."""
        return is_gguf(path)

    def read_structure(self, path: str, source: ByteSource) -> FileStructure:  # noqa: ARG002 - the header has all names
        """Return the tensors of a file, ordered by start, shapes in numpy's order.

        Raises:
            Format: the file breaks a rule; the message says which, and of which key or tensor.
            InvalidInput: the source ended early (it shrank).
        """
        header = _read_header(source)
        if isinstance(header, str):
            return opaque_structure(header)
        infos, data_start = header.infos, header.data_start
        for info in infos:
            if info.type not in TENSOR_TYPES:
                return opaque_structure(
                    f"its tensor {info.name!r} has the type {info.type} of GGUF, which is not known here"
                )
        tensors = [_layout(info, data_start, header.alignment, source.size_bytes) for info in infos]
        tensors.sort(key=_position)
        _check_overlap(tensors)
        return FileStructure(GGUF, tuple(tensors))

    def read_metadata(self, path: str, source: ByteSource) -> Mapping[str, Any]:  # noqa: ARG002 - the file has no others
        """Return all keys and values in the file's order; arrays are lists. Bytes of texts that are not UTF-8 are escaped.

        Raises:
            Format: the file breaks a rule, or has too many values.
        """
        cursor = Cursor(source)
        opening = _read_opening(cursor)
        if isinstance(opening, str):
            raise Format(opening)
        values = ValueReader(cursor)
        return {key: values.read(kind) for key, kind in iter_keys(cursor, opening.keys)}


class SplitInfo(NamedTuple):
    """Which piece of a split model a file is: ``number`` of ``pieces``, from 0; ``tensors`` of the whole model, if it says."""

    number: int
    pieces: int
    tensors: int | None


def read_split(source: ByteSource) -> SplitInfo | None:
    """Return what a file's metadata says of its being a piece of a split model, or None.

    Raises:
        Format: the file breaks a rule.
    """
    header = _read_header(source)
    if isinstance(header, str):
        return None
    number, pieces, tensors = (header.split.get(f"{SPLIT_PREFIX}{key}") for key in ("no", "count", "tensors.count"))
    return None if number is None or pieces is None else SplitInfo(number, pieces, tensors)


class _Opening(NamedTuple):
    tensors: int
    keys: int


class _Info(NamedTuple):
    name: str
    dims: tuple[int, ...]
    type: int
    offset: int


class _Header(NamedTuple):
    infos: list[_Info]
    alignment: int
    data_start: int
    split: dict[str, int]


def _read_header(source: ByteSource) -> _Header | str:
    """Return the header without its values, or in half a sentence why a valid file can't be read."""
    cursor = Cursor(source)
    opening = _read_opening(cursor)
    if isinstance(opening, str):
        return opening
    alignment = DEFAULT_ALIGNMENT
    split: dict[str, int] = {}
    values = ValueReader(cursor)
    for key, kind in iter_keys(cursor, opening.keys):
        if key == ALIGNMENT_KEY:
            if kind != UINT32:
                raise cursor.broken(f"has a value of type {kind}; it is a UINT32, type {UINT32}")
            alignment = _check_alignment(cursor, values.read(kind))
        elif key.startswith(SPLIT_PREFIX) and kind in _INTEGERS:
            split[key] = values.read(kind)
        else:
            skip_value(cursor, kind)
    infos = _read_infos(cursor, opening.tensors)
    return _Header(infos, alignment, cursor.position + -cursor.position % alignment, split)


_INTEGERS = (0, 1, 2, 3, 4, 5, 10, 11)


def _read_opening(cursor: Cursor) -> _Opening | str:
    """Return how many tensors and keys a file has, or in half a sentence why a valid file can't be read."""
    magic = cursor.take(len(MAGIC))
    if magic != MAGIC:
        raise cursor.broken(f"starts with {magic!r} instead of {MAGIC!r}")
    version = cursor.u32()
    if version == 0:
        raise cursor.broken("says that it is of version 0, which there is not")
    if version & 0xFFFF == 0:  # so llama.cpp tells the other byte order
        return "it is big-endian GGUF"
    if version not in VERSIONS:
        return f"it is of version {version} of GGUF; known are {VERSIONS[0]} and {VERSIONS[1]}"
    tensors, keys = cursor.unpack(_COUNTS)
    cursor.check_count(tensors, _LEAST_INFO_BYTES, "tensors")
    return _Opening(tensors, keys)


def _check_alignment(cursor: Cursor, alignment: int) -> int:
    if alignment == 0 or alignment & (alignment - 1):
        raise cursor.broken(f"is {alignment}, which is no power of two")
    return alignment


def _read_infos(cursor: Cursor, count: int) -> list[_Info]:
    cursor.check_count(count, _LEAST_INFO_BYTES, "tensors")
    if count > MAX_ENTRIES:
        raise cursor.broken(f"has {count} tensors; the limit is {MAX_ENTRIES}")
    infos: list[_Info] = []
    names: set[str] = set()
    for _ in range(count):
        name = cursor.name()
        cursor.inside = "tensor", name
        if name in names:
            raise cursor.broken("is there twice")
        names.add(name)
        dims = cursor.u32()
        if dims > MAX_DIMS:
            raise cursor.broken(f"has {dims} dimensions; the limit is {MAX_DIMS}")
        *sizes, kind, offset = cursor.unpack(_INFOS[dims])
        infos.append(_Info(name, tuple(sizes), kind, offset))
    return infos


def _layout(info: _Info, data_start: int, alignment: int, size_bytes: int) -> TensorLayout:
    """Return one tensor, with every rule holding that concerns it alone."""
    dtype = get_dtype(name := TENSOR_TYPES[info.type])
    shape = info.dims[::-1]
    # Sizes of zero do not excuse the others: no array has that shape.
    if math.prod(size for size in shape if size) * dtype.bits >= _MAX_BITS:
        raise _broken(info.name, f"has a shape whose product overflows: {list(shape)}")
    try:
        packed = packed_shape(shape, dtype)
    except Format as error:
        raise _broken(info.name, f"of type {name} is broken: {error.message}") from error
    length = math.prod(packed) * dtype.numpy.itemsize
    if info.offset % alignment:
        raise _broken(info.name, f"starts at {info.offset} of the data, which is no multiple of {alignment}")
    start = data_start + info.offset
    if start + length > size_bytes:
        raise _broken(
            info.name, f"ends at byte {start + length}, and the file at {size_bytes}: an incomplete download?"
        )
    return TensorLayout(info.name, name, shape, None, start, length)


def _position(tensor: TensorLayout) -> tuple[int, int, str]:
    return tensor.start, tensor.length, tensor.name


def _check_overlap(tensors: list[TensorLayout]) -> None:
    """Return if no two tensors, ordered by start, share a byte."""
    end, last = 0, ""
    for tensor in tensors:
        if tensor.length and tensor.start < end:
            raise _broken(tensor.name, f"overlaps {last!r}: it starts at byte {tensor.start}, before {end}")
        if tensor.length:
            end, last = tensor.start + tensor.length, tensor.name


def _broken(name: str, problem: str) -> Format:
    return Format(f"tensor {name!r} {problem}", tensor=name)
