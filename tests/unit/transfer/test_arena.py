"""One piece of memory that buffers are cut from: none overlap, all come back, and who waits gets his turn."""

import random

import numpy as np
import pytest

from tensorkeep.errors import Internal
from tensorkeep.runtime import ThreadWorkers
from tensorkeep.transfer.arena import Arena, Lease

PAGE = 4096


def address(lease: Lease) -> int:
    return int(np.frombuffer(lease.data, dtype=np.uint8).ctypes.data)


def test_buffers_have_the_size_asked_for_start_at_a_page_and_never_overlap() -> None:
    arena = Arena(64 * PAGE)
    chance = random.Random(3)
    held: list[tuple[Lease, int]] = []
    for step in range(2000):
        size = chance.choice([1, PAGE - 1, PAGE, PAGE + 1, 7 * PAGE])
        lease = arena.try_take(size)
        if lease is None:
            given, mark = held.pop(chance.randrange(len(held)))
            assert set(bytes(given.data)) == {mark}, "somebody wrote into this buffer"
            arena.give_back(given)
            continue
        assert lease.data.nbytes == size
        assert address(lease) % PAGE == 0
        lease.data[:] = bytes([step % 255 + 1]) * size
        held.append((lease, step % 255 + 1))


def test_what_was_given_back_is_given_out_again() -> None:
    arena = Arena(8 * PAGE)
    first, second = arena.take(5 * PAGE), arena.take(3 * PAGE)
    assert arena.try_take(1) is None
    arena.give_back(first)
    arena.give_back(second)
    assert address(arena.take(8 * PAGE)) == address(first)


def test_the_memory_may_end_within_a_page() -> None:
    arena = Arena(PAGE + 10)
    assert arena.take(PAGE + 10).data.nbytes == PAGE + 10
    assert arena.try_take(1) is None


def test_more_than_the_whole_is_refused_at_once() -> None:
    with pytest.raises(Internal, match="4097"):
        Arena(PAGE).take(PAGE + 1)


def test_who_waits_for_a_long_run_gets_it_though_others_take_short_ones() -> None:
    arena = Arena(16 * PAGE)
    held = [arena.take(PAGE) for _ in range(16)]

    def take_and_give(size: int) -> int:
        for _ in range(200):
            arena.give_back(arena.take(size))
        return size

    with ThreadWorkers().open_pool(6, "takers") as pool:
        takers = [pool.submit(take_and_give, size) for size in (16 * PAGE, 9 * PAGE, PAGE, PAGE, 2 * PAGE, PAGE)]
        for lease in held:
            arena.give_back(lease)
        assert [taker.result() for taker in takers] == [16 * PAGE, 9 * PAGE, PAGE, PAGE, 2 * PAGE, PAGE]
