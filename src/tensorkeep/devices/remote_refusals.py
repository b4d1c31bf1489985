"""What a remote store's refusals mean: absent, not allowed, busy, or broken, and for how long.

By the status and by the error code that S3, Google and Azure put into the body or a header (never its message, which
repeats what was signed). "Can't tell" is never "absent": a 404 that does not come from the store's own object lookup, of a
proxy or for a missing bucket, is `Unavailable`.
"""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from tensorkeep.devices.remote_answers import Head

MAX_ERROR_BYTES = 64 << 10
"""How much of an error's body is read at most."""

SKEW_S = 300
"""Clocks that differ by more are named as a likely reason: signatures allow 15 minutes."""

BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that a later try may not see. Source: RFC 9110, RFC 6585, RFC 8470, and what S3's own clients try again."""

THROTTLED = frozenset({429, 503})
"""Of these, the ones that ask for fewer requests."""

_BUSY_CODES = frozenset({"RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable", "OperationAborted"})
_ABSENT_CODES = frozenset({"NoSuchKey", "BlobNotFound", "NoSuchObject", "not_found"})
_EXPIRED_CODES = frozenset({"ExpiredToken", "TokenRefreshRequired", "InvalidToken", "AuthenticationFailed"})
_CODE = re.compile(rb"<Code>([A-Za-z0-9_.]{1,64})</Code>")
_JSON_CODE = re.compile(rb'"code"\s*:\s*"([A-Za-z0-9_.]{1,64})"')
_SECONDS = re.compile(r"[0-9]{1,9}\Z")
_CONTROL = re.compile(r"[^A-Za-z0-9.:\[\]_-]")


class Refusal(NamedTuple):
    """An answer that brings no object: its status, and the store's own code for it where it gave one.

    ``retry_after_s`` is how long the server asks to wait; ``skew_s`` how far this machine's clock is ahead of the server's.
    """

    status: int
    code: str | None
    empty: bool
    retry_after_s: float | None
    skew_s: float | None
    redirected_to: str | None

    @property
    def busy(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in BUSY or self.code in _BUSY_CODES

    @property
    def throttled(self) -> bool:
        """Whether the store asks for fewer requests."""
        return self.status in THROTTLED or self.code == "SlowDown"

    @property
    def forbidden(self) -> bool:
        """Whether the right to read was refused: it may have run out."""
        return self.status in (401, 403) or self.code in _EXPIRED_CODES

    @property
    def absent(self) -> bool:
        """Whether the store says that it looked for the object and has none."""
        return self.status == 404 and (self.code in _ABSENT_CODES or (self.code is None and self.empty))

    @property
    def clock_hint(self) -> str:
        """What is wrong with this machine's clock; "" where nothing is known."""
        if self.skew_s is None or abs(self.skew_s) <= SKEW_S:
            return ""
        side = "ahead of" if self.skew_s > 0 else "behind"
        return f"this machine's clock is {abs(self.skew_s):.0f} s {side} the store's"

    def __str__(self) -> str:
        """Return status and code."""
        return f"status {self.status}" + (f" {self.code}" if self.code else "")


def read_refusal(head: Head, body: bytes, now: datetime) -> Refusal:
    """Return what an answer without an object says.

    Args:
        head: of the answer.
        body: the first bytes of its body.
        now: this machine's time, aware.
    """
    found = _CODE.search(body) or _JSON_CODE.search(body)
    code = found[1].decode("ascii") if found else head.headers.get("x-ms-error-code")
    if code is not None:
        code = _CONTROL.sub("", code)[:64]
    date = _parse_date(head.headers.get("date", ""))
    return Refusal(
        status=head.status,
        code=code,
        empty=not body.strip(),
        retry_after_s=parse_retry_after(head.headers.get("retry-after", ""), now),
        skew_s=None if date is None else (now - date).total_seconds(),
        redirected_to=_host_of(head.headers.get("location", "")) if 300 <= head.status < 400 else None,
    )


def parse_retry_after(value: str, now: datetime) -> float | None:
    """Return the seconds that a ``Retry-After`` header asks for, 0 or more; None where it asks for nothing clear."""
    if _SECONDS.match(value):
        return float(value)
    date = _parse_date(value)
    return None if date is None else max(0.0, (date - now).total_seconds())


def _parse_date(value: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _host_of(location: str) -> str:
    """Return the host that a redirect names, without path and query: they may carry a signature."""
    rest = location.partition("://")[2] or location
    return (
        _CONTROL.sub("", re.split(r"[/?#]", rest.rpartition("@")[2] if "@" in rest.split("/")[0] else rest)[0])[:100]
        or "no host"
    )
