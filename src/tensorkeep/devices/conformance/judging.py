"""What the probes saw, judged: pure functions, so that each wrong answer of a store can be tried without one.

A judgement returns what is wrong, as the end of a sentence that begins with the place, or None; a flag returns its value.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from tensorkeep.records.conformance import CompareAndSwap, ConditionalCreate

CLOCK_LIMIT_S = 15 * 60
"""S3 refuses signatures that are further off (RequestTimeTooSkewed)."""

UNSUPPORTED = frozenset({400, 405, 501})
"""Statuses of stores that do not have what was asked for."""


class Answer(NamedTuple):
    """What a store answered: ``headers`` by names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def ok(self) -> bool:
        """Whether it did what was asked."""
        return 200 <= self.status < 300


class CreateRound(NamedTuple):
    """One name that many writers created at once: how many were told that they did, and whether one of them did."""

    winners: int
    kept_a_winner: bool


def judge_bytes(what: str, expected: bytes, found: bytes) -> str | None:
    """Return what is wrong with an object that was read back."""
    if found == expected:
        return None
    if len(found) != len(expected):
        return f"gives back {what} of {len(expected):,} bytes as {len(found):,}"
    return f"gives back {what} of {len(expected):,} bytes with other bytes"


def judge_range(start: int, end: int, answer: Answer, expected: bytes) -> str | None:
    """Return what is wrong with the answer to ``Range: bytes=start-(end-1)``; a range past the end is cut off there.

    Args:
        start: of the range, inside the object.
        end: after its last byte; may lie past the object's end.
        answer: the store's.
        expected: the whole object.
    """
    size = len(expected)
    wanted = expected[start:end]
    asked = f"bytes {start}-{end - 1} of {size}"
    if answer.status == 200:
        kind = "answers a range as if it were all" if answer.body == wanted else "ignores ranges"
        return f"{kind}: asked for {asked} it answers 200, not 206, and {len(answer.body):,} bytes"
    if answer.status != 206:
        return f"has no ranges: asked for {asked} it answers {answer.status}"
    told = answer.headers.get("content-range", "")
    right = f"bytes {start}-{start + len(wanted) - 1}/{size}"
    if told.strip().lower() not in (right, right.rpartition("/")[0] + "/*"):
        return f"answers a range wrongly: asked for {asked} it tells of {told or 'no Content-Range'!r}, not {right!r}"
    if answer.body != wanted:
        return f"answers a range wrongly: asked for {asked} it gives {len(answer.body):,} bytes that are others"
    return None


def judge_range_beyond(answer: Answer) -> str | None:
    """Return what is wrong with the answer to a range that begins where the object ends."""
    if answer.ok and answer.body:
        return f"answers a range beyond the end with {answer.status} and {len(answer.body):,} bytes"
    return None


def judge_listing(expected: Collection[str], found: Sequence[str]) -> str | None:
    """Return what is wrong with a listing that was begun after all these names were written."""
    missing = sorted(set(expected) - set(found))
    more = sorted(set(found) - set(expected))
    if missing:
        return f"lists {len(expected) - len(missing):,} of {len(expected):,} objects that are there: {missing[0]} is missing"
    if more:
        return f"lists {more[0]}, which is not there"
    if len(found) != len(set(found)):
        return "lists an object twice"
    return None


def judge_overwrites(values: Collection[bytes], seen: Iterable[bytes | None]) -> str | None:
    """Return what is wrong with what was read of one object while it was overwritten with these values."""
    for found in seen:
        if found is None:
            return "loses an object for a moment while it is overwritten"
        if found not in values:
            return f"shows an object that is half overwritten ({len(found):,} bytes)"
    return None


def judge_torn_upload(sent: int, promised: int, found: bytes | None, old: bytes | None) -> str | None:
    """Return what is wrong with an object after an upload that broke off.

    Args:
        sent: bytes that were sent.
        promised: bytes that the upload was to have.
        found: what is there now, None where nothing is.
        old: what was there before.
    """
    if found == old:
        return None
    if found is None:
        return "loses an object when an upload that should replace it breaks off"
    kind = "overwritten with" if old is not None else "made of"
    return (
        f"shows a truncated object: an upload that broke off after {sent:,} of {promised:,} bytes left one {kind} "
        f"{len(found):,} bytes"
    )


def judge_clock(offset_s: float) -> str | None:
    """Return what is wrong with a store's clock; ``offset_s`` is how far it is ahead."""
    if abs(offset_s) <= CLOCK_LIMIT_S:
        return None
    way = "ahead of" if offset_s > 0 else "behind"
    return (
        f"has a clock {abs(offset_s) / 60:.0f} minutes {way} this machine's, and signatures are refused from "
        f"{CLOCK_LIMIT_S // 60} minutes on: set the clocks"
    )


def create_flag(second: Answer | None, rounds: Sequence[CreateRound]) -> ConditionalCreate:
    """Return what writes that must not replace are worth.

    Args:
        second: the answer to one over an object that is there; None where a device's own call refused it.
        rounds: of many writers at once.
    """
    if second is not None and second.status in UNSUPPORTED:
        return "unsupported"
    if second is not None and second.ok:
        return "ignored"
    return "exact" if all(each.winners == 1 and each.kept_a_winner for each in rounds) else "racy"


def swap_flag(right: Answer, stale: Answer, winners: int) -> CompareAndSwap:
    """Return what writes over a known state are worth.

    Args:
        right: the answer to one that names the present state.
        stale: the answer to one that names an older state.
        winners: of many that name the present state at once.
    """
    if right.status in UNSUPPORTED or stale.status in UNSUPPORTED:
        return "unsupported"
    if stale.ok:
        return "ignored"
    if not right.ok:
        return "broken"
    return "exact" if winners == 1 else "racy"


def quantile_us(seconds: Sequence[float], share: float) -> int:
    """Return the shortest of some durations that a share of them do not exceed, in microseconds."""
    ordered = sorted(seconds)
    return round(ordered[max(0, math.ceil(share * len(ordered)) - 1)] * 1e6)
