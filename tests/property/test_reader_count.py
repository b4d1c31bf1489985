"""The number of readers of a remote device: in bounds whatever happens, and where the device is fastest."""

import heapq
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorkeep.transfer.reader_count import (
    HIGHEST,
    LOWEST,
    START,
    ReaderCount,
    remember_readers,
    remembered_readers,
)

SIZE = 8 << 20


def simulate(
    count: ReaderCount, rate: Callable[[int], float], *, reads: int = 2000, noise: float = 0.0, seed: int = 0
) -> list[int]:
    """Run reads against a device whose whole rate depends on how many are under way; return the settled numbers."""
    chosen = random.Random(seed)
    now, running, settled = 0.0, list[tuple[float, float]](), list[int]()
    while len(settled) < reads:
        while len(running) < count.readers:
            share = rate(count.readers) / count.readers
            seconds = SIZE / share * chosen.uniform(1 - noise, 1 + noise)
            heapq.heappush(running, (now + seconds, now))
        now, began = heapq.heappop(running)
        count.read_ended(SIZE, began, now, 0)
        settled.append(count.settled)
    return settled


@given(
    st.integers(-5, 100),
    st.lists(
        st.tuples(st.integers(0, SIZE), st.floats(0, 10, allow_nan=False), st.booleans()), min_size=1, max_size=400
    ),
)
def test_the_number_stays_within_its_bounds(start: int, reads: list[tuple[int, float, bool]]) -> None:
    count, now, throttled = ReaderCount(start), 0.0, 0
    for size, seconds, busy in reads:
        throttled += busy
        count.read_ended(size, now, now + seconds, throttled)
        now += seconds
        assert LOWEST <= count.readers <= HIGHEST
        assert LOWEST <= count.settled <= HIGHEST


@pytest.mark.parametrize("knee", [2, 3, 6, 12, 30, 64])
@pytest.mark.parametrize("seed", range(5))
def test_it_climbs_to_where_more_bring_nothing_more(knee: int, seed: int) -> None:
    def rate(readers: int) -> float:
        return 50e6 * min(readers, knee)

    settled = simulate(ReaderCount(), rate, noise=0.02, seed=seed)[-500:]
    assert sum(rate(each) for each in settled) / len(settled) > 0.85 * rate(knee)
    assert sum(settled) / len(settled) < max(2.2 * knee, LOWEST + 1)


def test_it_goes_down_where_fewer_are_faster() -> None:
    settled = simulate(ReaderCount(32), lambda readers: 400e6 / readers**0.3)
    assert settled[-1] == LOWEST


def test_it_finds_the_new_best_when_the_device_changes() -> None:
    count = ReaderCount()
    simulate(count, lambda readers: 50e6 * min(readers, 4))
    assert count.settled <= 8
    settled = simulate(count, lambda readers: 20e6 * min(readers, 40))
    assert settled[-1] >= 30


def test_a_device_that_asks_for_fewer_requests_gets_half_at_once() -> None:
    count = ReaderCount(32)
    count.read_ended(SIZE, 0.0, 1.0, 0)
    before = count.readers
    count.read_ended(SIZE, 0.0, 1.1, 1)
    assert count.readers == before // 2
    count.read_ended(SIZE, 0.0, 1.2, 1)
    assert count.readers == before // 2, "once for each time that it asks"
    for ask in range(2, 20):
        count.read_ended(SIZE, 0.0, 1.0 + ask, ask)
    assert count.readers == LOWEST


def test_what_was_found_is_where_the_next_load_begins() -> None:
    assert remembered_readers("s3://never-read") == START
    remember_readers("s3://read", 17)
    assert remembered_readers("s3://read") == 17
