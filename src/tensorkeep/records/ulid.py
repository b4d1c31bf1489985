"""Ulids: 26 characters that sort by creation time and never repeat; ids of stores, devices, models and uploads.

Source: https://github.com/ulid/spec (48 bits of milliseconds, 80 random bits, Crockford's base 32).
"""

import re
from datetime import UTC, datetime

from tensorkeep.errors import Format

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}\Z")

RANDOM_BYTES = 10


def make_ulid(moment: datetime, random: bytes) -> str:
    """Return the ulid of a moment and 10 random bytes."""
    milliseconds = int(moment.timestamp() * 1000) & ((1 << 48) - 1)
    number = milliseconds << 80 | int.from_bytes(random, "big")
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))


def is_ulid(text: str) -> bool:
    """Return whether a text is an upper-case ulid."""
    return bool(_ULID.match(text))


def parse_ulid(text: str, *, what: str = "ulid") -> str:
    """Return the text if it is a ulid.

    Raises:
        Format: it is not.
    """
    if not is_ulid(text):
        raise Format(f"{what} {text!r} is not a ulid (26 characters of Crockford's base 32)", value=text)
    return text


def ulid_time(ulid: str) -> datetime:
    """Return the moment in a ulid, UTC.

    Raises:
        Format: it lies past the year 9999 (48 bits reach to 10889).
    """
    milliseconds = 0
    for character in ulid[:10]:
        milliseconds = milliseconds << 5 | _ALPHABET.index(character)
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC)
    except ValueError as error:
        raise Format(f"the time in ulid {ulid!r} is past the year 9999", value=ulid) from error
