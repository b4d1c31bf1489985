"""What a server says before the body, and whether that is an answer to what was asked.

`parse_head` is strict, because two readings of one head are how bytes get shifted; `check_range` and `check_whole` accept an
answer only where the body is exactly the bytes asked for, told by its own headers. All else is refused with a reason, and is
never asked again until it happens to fit. Pure functions. Source: RFC 9110 (semantics), RFC 9112 (messages).
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

MAX_HEAD_BYTES = 64 << 10

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [^\r\n]*)?\Z")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*?)[ \t]*\Z")
_NUMBER = re.compile(r"[0-9]{1,18}\Z")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})\Z")
_UNSATISFIED = re.compile(r"bytes \*/([0-9]{1,18})\Z")
_SINGLE = frozenset({"content-length", "content-range", "content-encoding", "transfer-encoding", "etag", "location"})


class WrongAnswer(Exception):
    """The server answered something else than what was asked. The text says what, without names or secrets."""


class ShortObject(Exception):
    """The object ends before the bytes that were asked for.

    Attributes:
        size_bytes: how long it is.
    """

    def __init__(self, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self.size_bytes = size_bytes


@dataclass(frozen=True, slots=True)
class Head:
    """Status and headers of an answer; header names in lower case.

    ``keeps_alive`` says whether the connection serves another request afterwards.
    """

    status: int
    headers: dict[str, str]
    keeps_alive: bool


class Body(NamedTuple):
    """What an accepted answer brings: bytes ``[start, start + length)`` of an object of ``total`` bytes."""

    start: int
    length: int
    total: int
    etag: str | None


def parse_head(data: bytes) -> Head:
    """Return the head that these bytes are; they end before the empty line.

    Raises:
        WrongAnswer: they are not HTTP/1, or headers that decide about the body stand twice with different values.
    """
    first, *lines = data.split(b"\r\n")
    status = _STATUS_LINE.match(first)
    if not status:
        raise WrongAnswer("it does not speak HTTP/1")
    headers: dict[str, str] = {}
    for line in lines:
        header = _HEADER.match(line)
        if not header:
            raise WrongAnswer("a header of its answer is malformed")
        name, value = header[1].decode("ascii").lower(), header[2].decode("latin-1")
        if name in headers and headers[name] != value:
            if name in _SINGLE:
                raise WrongAnswer(f"its answer has two different {name}")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    return Head(int(status[2]), headers, _keeps_alive(status[1], headers))


def check_range(head: Head, start: int, end: int) -> Body:
    """Return the body of an answer to ``Range: bytes=start-(end-1)``: exactly these bytes.

    A 200 is taken where it can't be anything else: the range began at 0 and the whole object is exactly as long.

    Raises:
        WrongAnswer: the body is something else, or its length isn't told.
        ShortObject: the object ends before ``end``.
    """
    if head.status == 416:
        raise _unsatisfied(head, end)
    length = _plain_length(head)
    if head.status == 200:
        if start or length != end or "content-range" in head.headers:
            raise WrongAnswer(f"it ignores ranges: bytes {start}-{end - 1} were asked for, it sent status 200")
        return Body(0, length, length, head.headers.get("etag"))
    if head.status != 206:
        raise WrongAnswer(f"it answered a range with status {head.status}")
    found = _CONTENT_RANGE.match(head.headers.get("content-range", ""))
    if not found:
        raise WrongAnswer("its 206 does not say which bytes it sends, of how many (Content-Range)")
    first, last, total = map(int, found.groups())
    if first != start or last >= total or length != last + 1 - first:
        raise WrongAnswer(
            f"bytes {start}-{end - 1} were asked for, it sent {length} bytes as {first}-{last} of {total}"
        )
    if total < end and last + 1 == total:
        raise ShortObject(total)
    if last + 1 != end:
        raise WrongAnswer(f"bytes {start}-{end - 1} were asked for, it sent {first}-{last} of {total}")
    return Body(start, length, total, head.headers.get("etag"))


def check_whole(head: Head) -> Body:
    """Return the body of an answer to a GET without a range: the whole object.

    Raises:
        WrongAnswer: the body is something else, or its length isn't told.
    """
    length = _plain_length(head)
    if head.status != 200 or "content-range" in head.headers:
        raise WrongAnswer(f"the whole object was asked for, it sent status {head.status}")
    return Body(0, length, length, head.headers.get("etag"))


def error_length(head: Head) -> int | None:
    """Return how long the body of an error is; None where only its end tells."""
    value = head.headers.get("content-length", "")
    return int(value) if "transfer-encoding" not in head.headers and _NUMBER.match(value) else None


def _plain_length(head: Head) -> int:
    coding = head.headers.get("content-encoding", "identity")
    if coding.lower() not in ("identity", ""):
        raise WrongAnswer(f"it sent the object in content encoding {coding!r}, which changes its bytes")
    if "transfer-encoding" in head.headers:
        raise WrongAnswer("it sent the object in chunks, without telling its length")
    value = head.headers.get("content-length", "")
    if not _NUMBER.match(value):
        raise WrongAnswer("it does not tell the length of what it sends (Content-Length)")
    return int(value)


def _unsatisfied(head: Head, end: int) -> Exception:
    found = _UNSATISFIED.match(head.headers.get("content-range", ""))
    if found and int(found[1]) >= end:
        return WrongAnswer(f"it refuses a range up to {end} of an object that has {found[1]} bytes as it says itself")
    # Ceph tells no size with its 416.
    return ShortObject(int(found[1]) if found else -1)


def _keeps_alive(minor_version: bytes, headers: dict[str, str]) -> bool:
    options = {option.strip().lower() for option in headers.get("connection", "").split(",")}
    return "close" not in options if minor_version == b"1" else "keep-alive" in options
