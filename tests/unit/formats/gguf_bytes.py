"""GGUF files made by hand, so that they can also be wrong; those that are right are made by the gguf package elsewhere."""

import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = range(13)
CODES = {
    UINT8: "B", INT8: "b", UINT16: "H", INT16: "h", UINT32: "I", INT32: "i", FLOAT32: "f", BOOL: "?",
    UINT64: "Q", INT64: "q", FLOAT64: "d",
}  # fmt: skip


class Info(NamedTuple):
    """A tensor's entry in a header; ``dims`` as in the file, the fastest first."""

    name: str
    dims: Sequence[int]
    type: int
    offset: int


def text(value: str | bytes) -> bytes:
    """Return a text with its length before it."""
    data = value.encode() if isinstance(value, str) else value
    return len(data).to_bytes(8, "little") + data


def number(kind: int, value: Any) -> bytes:
    """Return a value of a fixed size with its type before it."""
    return struct.pack(f"<I{CODES[kind]}", kind, value)


def string(value: str | bytes) -> bytes:
    """Return a text with its type before it."""
    return struct.pack("<I", STRING) + text(value)


def array(kind: int, items: Sequence[bytes], count: int | None = None) -> bytes:
    """Return an array of encoded items with its type before it; its count may lie."""
    return struct.pack("<IIQ", ARRAY, kind, len(items) if count is None else count) + b"".join(items)


def header(
    keys: Sequence[tuple[str | bytes, bytes]] | Mapping[str, bytes] = (),
    infos: Sequence[Info] = (),
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    key_count: int | None = None,
    tensor_count: int | None = None,
) -> bytes:
    """Return a header of encoded values; its counts may lie."""
    pairs = list(keys.items()) if isinstance(keys, Mapping) else list(keys)
    tensors = len(infos) if tensor_count is None else tensor_count
    head = magic + struct.pack("<IQQ", version, tensors, len(pairs) if key_count is None else key_count)
    return head + b"".join(text(key) + value for key, value in pairs) + b"".join(map(info_bytes, infos))


def info_bytes(info: Info) -> bytes:
    """Return a tensor's entry."""
    sizes = struct.pack(f"<I{len(info.dims)}Q", len(info.dims), *info.dims)
    return text(info.name) + sizes + struct.pack("<IQ", info.type, info.offset)


def whole(head: bytes, data: bytes = b"", *, alignment: int = 32) -> bytes:
    """Return a file: a header, padded to the alignment, and data."""
    return head + bytes(-len(head) % alignment) + data
