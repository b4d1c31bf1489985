"""What stores answered, judged without a store."""

import pytest

from tensorkeep.devices.conformance.judging import (
    Answer,
    CreateRound,
    create_flag,
    judge_bytes,
    judge_clock,
    judge_listing,
    judge_overwrites,
    judge_range,
    judge_range_beyond,
    judge_torn_upload,
    quantile_us,
    swap_flag,
)
from tensorkeep.records.conformance import CompareAndSwap, ConditionalCreate

DATA = bytes(range(100))


def told(status: int, body: bytes = b"", content_range: str = "") -> Answer:
    return Answer(status, {"content-range": content_range} if content_range else {}, body)


@pytest.mark.parametrize(
    ("start", "end", "answer"),
    [
        (0, 10, told(206, DATA[:10], "bytes 0-9/100")),
        (40, 60, told(206, DATA[40:60], "bytes 40-59/*")),
        (90, 120, told(206, DATA[90:], "bytes 90-99/100")),
    ],
)
def test_a_range_that_is_what_was_asked_for_is_right(start: int, end: int, answer: Answer) -> None:
    assert judge_range(start, end, answer, DATA) is None


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (told(200, DATA), "ignores ranges"),
        (told(200, DATA[10:20], "bytes 10-19/100"), "as if it were all"),
        (told(416), "has no ranges"),
        (told(206, DATA[10:20], "bytes 0-9/100"), "tells of 'bytes 0-9/100'"),
        (told(206, DATA[10:20]), "no Content-Range"),
        (told(206, DATA[10:20], "bytes 10-19/99"), "99"),
        (told(206, DATA[11:21], "bytes 10-19/100"), "others"),
        (told(206, DATA[10:19], "bytes 10-19/100"), "9 bytes"),
        (told(206, DATA[10:], "bytes 10-19/100"), "90 bytes"),
    ],
)
def test_a_range_that_is_not_is_refused_with_the_reason(answer: Answer, problem: str) -> None:
    found = judge_range(10, 20, answer, DATA)
    assert found is not None
    assert problem in found


def test_beyond_the_end_there_are_no_bytes() -> None:
    assert judge_range_beyond(told(416)) is None
    assert judge_range_beyond(told(206, b"")) is None
    assert judge_range_beyond(told(404)) is None
    assert "beyond the end" in (judge_range_beyond(told(206, b"x", "bytes 100-100/100")) or "")
    assert "beyond the end" in (judge_range_beyond(told(200, DATA)) or "")


def test_bytes_that_differ_are_told_from_bytes_that_lack() -> None:
    assert judge_bytes("an object", DATA, DATA) is None
    assert "as 99" in (judge_bytes("an object", DATA, DATA[:99]) or "")
    assert "other bytes" in (judge_bytes("an object", DATA, DATA[::-1]) or "")


def test_a_listing_is_what_is_there_each_once() -> None:
    assert judge_listing(["a", "b"], ["b", "a"]) is None
    assert judge_listing([], []) is None
    assert "1 of 2 objects that are there: b is missing" in (judge_listing(["a", "b"], ["a"]) or "")
    assert "lists c" in (judge_listing(["a"], ["a", "c"]) or "")
    assert "twice" in (judge_listing(["a", "b"], ["a", "b", "a"]) or "")


def test_an_overwritten_object_is_old_or_new_and_never_absent_or_mixed() -> None:
    assert judge_overwrites([b"old", b"new"], [b"old", b"old", b"new"]) is None
    assert "half overwritten" in (judge_overwrites([b"old", b"new"], [b"old", b"nld"]) or "")
    assert "loses" in (judge_overwrites([b"old", b"new"], [b"old", None]) or "")


def test_an_upload_that_broke_off_leaves_what_was_there() -> None:
    assert judge_torn_upload(5, 10, None, None) is None
    assert judge_torn_upload(5, 10, b"old", b"old") is None
    assert "truncated object: an upload that broke off after 5 of 10 bytes left one made of 5 bytes" in (
        judge_torn_upload(5, 10, b"12345", None) or ""
    )
    assert "overwritten with 5 bytes" in (judge_torn_upload(5, 10, b"12345", b"old") or "")
    assert "loses" in (judge_torn_upload(5, 10, None, b"old") or "")


@pytest.mark.parametrize("sign", [1, -1])
def test_a_clock_may_be_off_by_a_quarter_of_an_hour(sign: int) -> None:
    assert judge_clock(sign * 14 * 60) is None
    problem = judge_clock(sign * 40 * 60)
    assert problem is not None
    assert f"40 minutes {'ahead of' if sign > 0 else 'behind'} this machine's" in problem


@pytest.mark.parametrize(
    ("second", "rounds", "flag"),
    [
        (told(412), [(1, True)] * 8, "exact"),
        (None, [(1, True)], "exact"),
        (told(409), [(1, True)] * 8, "exact"),
        (told(412), [(1, True), (5, True)], "racy"),
        (told(412), [(0, False)], "racy"),
        (told(412), [(1, False)], "racy"),
        (told(200), [(16, True)] * 8, "ignored"),
        (told(501), [(16, True)], "unsupported"),
    ],
)
def test_creates_that_must_not_replace(
    second: Answer | None, rounds: list[tuple[int, bool]], flag: ConditionalCreate
) -> None:
    assert create_flag(second, [CreateRound(*each) for each in rounds]) == flag


@pytest.mark.parametrize(
    ("right", "stale", "winners", "flag"),
    [
        (200, 412, 1, "exact"),
        (200, 412, 3, "racy"),
        (412, 412, 0, "broken"),
        (200, 200, 16, "ignored"),
        (501, 501, 0, "unsupported"),
    ],
)
def test_writes_over_a_known_state(right: int, stale: int, winners: int, flag: CompareAndSwap) -> None:
    assert swap_flag(told(right), told(stale), winners) == flag


def test_quantiles_are_durations_that_occurred() -> None:
    seconds = [0.004, 0.001, 0.003, 0.002]
    assert quantile_us(seconds, 0.5) == 2000
    assert quantile_us(seconds, 0.99) == 4000
    assert quantile_us([0.001], 0.5) == 1000
