"""Canonical JSON: sorted keys, no spaces, UTF-8, integers only. The same value always gives the same bytes."""

import re
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from tensorkeep.errors import Format, InvalidInput

T = TypeVar("T")

_ENCODER = msgspec.json.Encoder(order="sorted")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z\Z", re.ASCII)


def encode_canonical(value: Any) -> bytes:
    """Return the canonical JSON of a record.

    Raises:
        InvalidInput: a text in it is not valid Unicode (a lone surrogate).
    """
    try:
        return _ENCODER.encode(value)
    except UnicodeEncodeError as error:
        raise InvalidInput(f"the record holds text that is not valid Unicode: {error}") from error


def decode_canonical(data: bytes, into: type[T], *, what: str) -> T:
    """Return the record that these bytes hold.

    Raises:
        Format: not JSON, or not of that shape; ``what`` names it.
    """
    try:
        return msgspec.json.decode(data, type=into)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Format(f"{what} can't be read: {error}", what=what) from error


def format_time(moment: datetime) -> str:
    """Return a moment as ``2026-01-31T23:59:59.000000Z``, always UTC and six digits."""
    # Not strftime: it writes the year 26 with two digits.
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def parse_time(text: str) -> datetime:
    """Return the aware UTC moment that `format_time` wrote.

    Raises:
        Format: the text has another form.
    """
    if not _TIME.match(text):
        raise Format(f"{text!r} is not a time like 2026-01-31T23:59:59.000000Z", value=text)
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
    except ValueError as error:
        raise Format(f"{text!r} is not a time: {error}", value=text) from error
