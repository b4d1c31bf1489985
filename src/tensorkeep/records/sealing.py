"""A seal: the last field of a JSON object is the BLAKE3-256 of all that stands before it.

It is for records that lie about as files, where nothing else says what their bytes should be: a torn, damaged or edited one
is never believed. The seal takes the place of the closing brace, and a line end follows.
"""

from typing import Any

from tensorkeep.errors import Integrity
from tensorkeep.records.digest import blake3_256


def seal(body: bytes, field: str) -> bytes:
    """Return the bytes of a sealed record; ``body`` is the canonical JSON of an object with at least one field."""
    return body[:-1] + _mark(field) + blake3_256(body).hex().encode() + b'"}\n'


def unseal(data: bytes, field: str, *, what: str, advice: str = "", **facts: Any) -> bytes:
    """Return the body of a sealed record; ``what`` names it in errors, ``advice`` ends their message.

    Raises:
        Integrity: there is no seal, or it does not fit the rest.
    """
    text = data.rstrip(b"\n")
    head, found, tail = text.rpartition(_mark(field))
    if not found or not tail.endswith(b'"}') or data != text + b"\n":
        raise Integrity(f"{what} has no seal: it is damaged or not ours{advice}", **facts)
    body = head + b"}"
    if blake3_256(body).hex().encode() != tail[:-2]:
        raise Integrity(f"{what} is damaged: its checksum does not fit{advice}", **facts)
    return body


def _mark(field: str) -> bytes:
    return b',"%s":"' % field.encode()
