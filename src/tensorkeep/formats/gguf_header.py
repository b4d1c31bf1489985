"""The header of a GGUF file, read in order: fixed numbers, texts, and typed values that can nest.

Counts and lengths in the file are claims. Each is compared with the bytes that are left before anything is done about it;
a window of a few MiB slides over the header, so that skipping a vocabulary costs neither its memory nor, for arrays of
numbers, a read. Values are made only when somebody asks for them.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, compared with ``ggml/src/gguf.cpp`` of llama.cpp.
"""

import struct
from collections.abc import Iterator
from typing import Any

from tensorkeep.errors import Format
from tensorkeep.formats.protocol import ByteSource

HEADER_LIMIT_BYTES = 128 << 20
"""Where a header ends at the latest; those of models with 260,000 tokens have 15 MB."""

MAX_ENTRIES = 1 << 20
"""Most keys, most tensors, and most arrays of a file."""

MAX_VALUES = 4 << 20
"""Most values in all arrays of a file that are made for its metadata."""

NAME_LIMIT_BYTES = (1 << 16) - 1
"""Longest key of the specification. Its limit of tensor names, 64, is not kept by all writers."""

MAX_DEPTH = 8
"""Most arrays inside each other; llama.cpp reads one, the specification sets no limit."""

UINT32, BOOL, STRING, ARRAY = 4, 7, 8, 9

_CODES = {0: "B", 1: "b", 2: "H", 3: "h", UINT32: "I", 5: "i", 6: "f", BOOL: "B", 10: "Q", 11: "q", 12: "d"}
_SIZES = {kind: struct.calcsize(f"<{code}") for kind, code in _CODES.items()}
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_ARRAY_HEAD = struct.Struct("<IQ")

_FIRST_WINDOW_BYTES = 64 << 10
_WINDOW_BYTES = 4 << 20


class Cursor:
    """A place in a header that moves on.

    Attributes:
        position: the next byte, from the start of the file.
        inside: what is being read (``key`` or ``tensor``, and its name), for messages.
    """

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._end = min(source.size_bytes, HEADER_LIMIT_BYTES)
        self._window = b""
        self._window_start = 0
        self._next_bytes = _FIRST_WINDOW_BYTES
        self._arrays = 0
        self.position = 0
        self.inside: tuple[str, str] | None = None

    @property
    def left(self) -> int:
        """Bytes that the header can still have."""
        return self._end - self.position

    def take(self, length: int) -> bytes:
        """Return the next bytes."""
        at = self._reach(length)
        self.position += length
        return self._window[at : at + length]

    def unpack(self, shape: struct.Struct) -> tuple[Any, ...]:
        """Return the next fixed numbers."""
        at = self._reach(shape.size)
        self.position += shape.size
        return shape.unpack_from(self._window, at)

    def u32(self) -> int:
        """Return the next 32-bit number."""
        number: int = self.unpack(_U32)[0]
        return number

    def u64(self) -> int:
        """Return the next 64-bit number."""
        number: int = self.unpack(_U64)[0]
        return number

    def name(self) -> str:
        """Return the next text, a key or the name of a tensor."""
        length = self.u64()
        if length > NAME_LIMIT_BYTES:
            raise self.broken(f"is followed by a name of {length} bytes; the limit is {NAME_LIMIT_BYTES}")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.broken(f"is followed by a name that is not UTF-8: {error}") from error

    def skip(self, length: int) -> None:
        """Move over bytes without reading them."""
        if length > self.left:
            raise self._short(length)
        self.position += length

    def skip_strings(self, count: int) -> None:
        """Move over texts, reading only their lengths."""
        self.check_count(count, 8, "texts")
        unpack = _U64.unpack_from
        while count:
            at = self._reach(8)
            window = self._window
            last = len(window) - 8
            while count and at <= last:
                at += 8 + unpack(window, at)[0]
                count -= 1
            self.position = self._window_start
            self.skip(at)

    def count_array(self) -> None:
        """Count one more array: empty ones inside each other cost time, and hardly a byte."""
        self._arrays += 1
        if self._arrays > MAX_ENTRIES:
            raise self.broken(f"has the array after the first {MAX_ENTRIES} of the file, which is the limit")

    def check_count(self, count: int, least_bytes: int, what: str) -> None:
        """Return if the header can have room for that many things of at least so many bytes each."""
        if count * least_bytes > self.left:
            raise self.broken(f"has {count} {what} by its count, and {self.left} bytes are left")

    def broken(self, problem: str) -> Format:
        """Return the error that says what is wrong with what is being read."""
        if self.inside is None:
            return Format(f"its header {problem}")
        kind, name = self.inside
        return Format(f"{kind} {name!r} {problem}", **{kind: name})

    def _reach(self, length: int) -> int:
        """Return where in the window the next bytes lie; read on where they are not in it."""
        at = self.position - self._window_start
        if at + length > len(self._window):
            if length > self.left:
                raise self._short(length)
            size = max(length, min(self._next_bytes, self.left))
            self._window = self._source.read(self.position, size)
            self._window_start = self.position
            self._next_bytes = min(2 * self._next_bytes, _WINDOW_BYTES)
            at = 0
        return at

    def _short(self, length: int) -> Format:
        if self.position + length <= self._source.size_bytes:
            return self.broken(f"goes on past byte {self._end}, where a header ends at the latest")
        return self.broken(f"needs {length} more bytes, and the file ends after {self.left}: an incomplete download?")


def iter_keys(cursor: Cursor, count: int) -> Iterator[tuple[str, int]]:
    """Yield each key with the type of its value, which the caller reads or skips before the next."""
    cursor.check_count(count, 14, "keys")
    if count > MAX_ENTRIES:
        raise cursor.broken(f"has {count} keys; the limit is {MAX_ENTRIES}")
    seen: set[str] = set()
    for _ in range(count):
        key = cursor.name()
        cursor.inside = "key", key
        if not key:
            raise cursor.broken("is empty")
        if key in seen:
            raise cursor.broken("is there twice")
        seen.add(key)
        yield key, cursor.u32()
    cursor.inside = None


def skip_value(cursor: Cursor, kind: int, depth: int = 0) -> None:
    """Move over a value of a type."""
    if kind in _SIZES:
        cursor.skip(_SIZES[kind])
    elif kind == STRING:
        cursor.skip(cursor.u64())
    else:
        items, count = _array_head(cursor, kind, depth)
        if items in _SIZES:
            cursor.skip(count * _SIZES[items])
        elif items == STRING:
            cursor.skip_strings(count)
        else:
            cursor.check_count(count, _ARRAY_HEAD.size, "arrays")
            for _ in range(count):
                skip_value(cursor, items, depth + 1)


class ValueReader:
    """Makes the values of a file, up to a number of them in all."""

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self._values_left = MAX_VALUES

    def read(self, kind: int, depth: int = 0) -> Any:
        """Return a value of a type: a number, a boolean, a text, or a list of them."""
        cursor = self._cursor
        if kind in _SIZES:
            return self._read_numbers(kind, 1)[0]
        if kind == STRING:
            return self._read_text()
        items, count = _array_head(cursor, kind, depth)
        cursor.check_count(count, _least_bytes(items), "values")
        if count > self._values_left:
            raise cursor.broken(f"makes over {MAX_VALUES} values in this file: too many to show")
        self._values_left -= count
        if items in _SIZES:
            return self._read_numbers(items, count)
        if items == STRING:
            return [self._read_text() for _ in range(count)]
        return [self.read(items, depth + 1) for _ in range(count)]

    def _read_numbers(self, kind: int, count: int) -> list[Any]:
        numbers = struct.unpack(f"<{count}{_CODES[kind]}", self._cursor.take(count * _SIZES[kind]))
        return [number != 0 for number in numbers] if kind == BOOL else list(numbers)

    def _read_text(self) -> str:
        # Tokens are often halves of characters in files of old writers.
        return self._cursor.take(self._cursor.u64()).decode("utf-8", errors="backslashreplace")


def _array_head(cursor: Cursor, kind: int, depth: int) -> tuple[int, int]:
    """Return the type and the number of an array's items."""
    if kind != ARRAY:
        raise cursor.broken(f"has a value of the unknown type {kind}")
    if depth == MAX_DEPTH:
        raise cursor.broken(f"has arrays inside each other, more than {MAX_DEPTH} deep")
    cursor.count_array()
    items, count = cursor.unpack(_ARRAY_HEAD)
    if items not in _SIZES and items not in (STRING, ARRAY):
        raise cursor.broken(f"is an array of the unknown type {items}")
    return items, count


def _least_bytes(kind: int) -> int:
    return _SIZES.get(kind, 8 if kind == STRING else _ARRAY_HEAD.size)
