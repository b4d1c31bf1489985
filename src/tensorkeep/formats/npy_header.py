"""The header of an npy file: eight bytes of magic and version, a length, and a Python dict of three keys as text.

numpy evaluates that text; here it is split into tokens and read by a parser that knows literals only: strings, whole
numbers, True and False, tuples, lists and dicts. Nothing is looked up, called or executed, depth and length are bounded,
and spellings that numpy never writes (a key twice, ``True`` as a size) are refused.

Source: ``numpy.lib.format`` (versions 1.0, 2.0 and 3.0 of the format).
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from tensorkeep.errors import Format
from tensorkeep.formats.protocol import ByteSource

MAGIC = b"\x93NUMPY"
"""What every npy file starts with."""

HEADER_LIMIT_BYTES = 0xFFFF
"""Most bytes of a header's text: all that version 1.0 can have. numpy reads 10,000, and more where pickles are allowed."""

MAX_RANK = 64
"""Most dimensions that numpy can hold."""

_DEPTH_LIMIT = 32  # records of records: numpy's own limit
_FIRST_BYTES = 128  # a header is padded to a multiple of 64, and most have 128 bytes: one read
_VERSION_3 = b"\3\0"
_LENGTH_BYTES = {b"\1\0": 2, b"\2\0": 4, _VERSION_3: 4}  # of the header's length, by version
_KEYS = {"descr", "fortran_order", "shape"}
_TOKEN = re.compile(
    r"""[ \t\r\n\f]*(?:(?P<text>[ub]?'(?:[^'\\\n]|\\.)*'|[ub]?"(?:[^"\\\n]|\\.)*")|(?P<number>-?(?:0|[1-9][0-9]{0,18}))(?![\w.])"""
    r"""|(?P<long>-?(?:0|[1-9][0-9]{0,18}))L\b|(?P<word>True|False)\b|(?P<mark>[][(){},:]))"""
)
_WORDS = {"True": True, "False": False}
_CLOSING = {"(": ")", "[": "]", "{": "}"}


class NpyHeader(NamedTuple):
    """What a header says. ``descr`` is a dtype string, or None for records; the data start at byte ``data_start``."""

    descr: str | None
    fortran_order: bool
    shape: tuple[int, ...]
    data_start: int


def read_header(source: ByteSource) -> NpyHeader:
    """Return what the header of an npy file, or of an npz member, says.

    Raises:
        Format: it is no npy file, or its header is not exactly what numpy writes.
        InvalidInput: the source ended early (it shrank).
    """
    size = source.size_bytes
    start = source.read(0, min(size, _FIRST_BYTES))
    if not start.startswith(MAGIC):
        raise Format(f"it starts with {start[: len(MAGIC)]!r}, and an npy file with {MAGIC!r}")
    version = start[len(MAGIC) : len(MAGIC) + 2]
    length_bytes = _LENGTH_BYTES.get(version)
    if length_bytes is None:
        raise Format(f"it is of version {'.'.join(map(str, version))} of the npy format; known are 1.0, 2.0 and 3.0")
    text_start = len(MAGIC) + 2 + length_bytes
    length = int.from_bytes(start[len(MAGIC) + 2 : text_start], "little")
    if text_start + length > size:
        raise Format(f"its header says that it has {length} bytes, and the file ends after {size}")
    if length > HEADER_LIMIT_BYTES:
        raise Format(f"its header says that it has {length} bytes; the limit is {HEADER_LIMIT_BYTES}")
    text = start[text_start : text_start + length]
    if len(text) < length:
        text += source.read(len(start), text_start + length - len(start))
    return NpyHeader(*_read_fields(_decode(text, version), python2=version != _VERSION_3), text_start + length)


def _decode(text: bytes, version: bytes) -> str:
    try:
        return text.decode("utf-8" if version == _VERSION_3 else "latin-1")
    except UnicodeDecodeError as error:
        raise Format(f"its header is not UTF-8: {error}") from error


@lru_cache(maxsize=64)  # the experts of an archive of 60,000 arrays have a few headers among them: 2.6 s become 1.3
def _read_fields(text: str, *, python2: bool) -> tuple[str | None, bool, tuple[int, ...]]:
    """Return descr (None for records), fortran_order and shape."""
    fields = parse_literal(text, python2=python2)
    if not isinstance(fields, dict) or set(fields) != _KEYS:
        raise Format(f"its header is not a dict of exactly descr, fortran_order and shape: {_quote(text)}")
    descr, fortran_order, shape = fields["descr"], fields["fortran_order"], fields["shape"]
    if not isinstance(descr, (str, list, tuple)):
        raise Format(f"its header has the descr {_quote(repr(descr))}")
    if not isinstance(fortran_order, bool):
        raise Format(f"its header has the fortran_order {_quote(repr(fortran_order))}")
    if not isinstance(shape, tuple) or len(shape) > MAX_RANK:
        raise Format(f"its header has no shape of at most {MAX_RANK} dimensions: {_quote(repr(shape))}")
    if any(type(size) is not int or size < 0 for size in shape):
        raise Format(f"its header has the shape {_quote(repr(shape))}")
    return descr if isinstance(descr, str) else None, fortran_order, shape


def parse_literal(text: str, *, python2: bool = False) -> Any:
    """Return the value of a Python literal of strings, whole numbers, True, False, tuples, lists and dicts of strings.

    ``python2``: whole numbers may end with ``L``, as in files that numpy wrote there.

    Raises:
        Format: it is anything else, or nested too deeply.
    """
    tokens = _tokens(text, python2=python2)
    value = _parse(tokens, *next(tokens), _DEPTH_LIMIT)
    kind, word = next(tokens)
    if kind != "end":
        raise _unexpected(word)
    return value


_Token = tuple[str, str]


def _tokens(text: str, *, python2: bool) -> Iterator[_Token]:
    """Yield kind and text of each token, then ``("end", "")``."""
    at = 0
    end = len(text.rstrip(" \t\r\n\f"))
    while at < end:
        match = _TOKEN.match(text, at, end)
        if match is None or match.lastgroup is None or (match.lastgroup == "long" and not python2):
            raise _unexpected(text[at:end].lstrip())
        at = match.end()
        yield match.lastgroup, match[match.lastgroup]
    yield "end", ""


def _parse(tokens: Iterator[_Token], kind: str, word: str, depth: int) -> Any:
    """Return the value that begins with a token that was taken already."""
    if kind == "text":
        return word.lstrip("ub")[1:-1]  # escapes stay as they are: no dtype string has any
    if kind in ("number", "long"):
        return int(word)
    if kind == "word":
        return _WORDS[word]
    if word not in _CLOSING:  # another mark, or the end
        raise _unexpected(word)
    if depth == 0:
        raise Format(f"its header is nested more than {_DEPTH_LIMIT} deep")
    items, comma = _parse_items(tokens, word, depth - 1)
    if word == "{":
        return _as_dict(items)
    if word == "(":
        return items[0] if len(items) == 1 and not comma else tuple(items)
    return items


def _parse_items(tokens: Iterator[_Token], opening: str, depth: int) -> tuple[list[Any], bool]:
    """Return what stands up to the closing mark, and whether a comma ends it. Items of a dict are pairs."""
    items: list[Any] = []
    comma = False
    for kind, word in tokens:
        if word == _CLOSING[opening] and kind == "mark":
            return items, comma
        if items and not comma:
            if word != "," or kind != "mark":
                raise _unexpected(word)
            comma = True
            continue
        item = _parse(tokens, kind, word, depth)
        if opening == "{":
            _take(tokens, ":")
            item = (item, _parse(tokens, *next(tokens), depth))
        items.append(item)
        comma = False
    raise _unexpected("")


def _take(tokens: Iterator[_Token], mark: str) -> None:
    kind, word = next(tokens)
    if kind != "mark" or word != mark:
        raise _unexpected(word)


def _as_dict(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    if not all(isinstance(key, str) for key, _ in pairs) or len({key for key, _ in pairs}) != len(pairs):
        raise Format("its header has a key twice, or one that is no text")
    return dict(pairs)


def _unexpected(rest: str) -> Format:
    return Format(
        f"its header is not a literal of texts, whole numbers and truths: at {_quote(rest) if rest else 'its end'}"
    )


def _quote(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "…")
