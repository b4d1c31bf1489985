"""One pass for many takers: every taker gets every byte in order, and memory stays bounded."""

import threading
from collections.abc import Callable

import pytest

from tensorkeep.errors import Capacity, InvalidInput
from tensorkeep.runtime import InlineWorkers, ThreadWorkers, Workers
from tensorkeep.transfer.fan_out import CHUNK_BYTES, FanOut, feed, open_fan_out

SIZES = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 9 * CHUNK_BYTES + 5]


def pattern(offset: int, view: memoryview) -> None:
    """Fill with bytes that tell their offset."""
    for chunk in range(0, len(view), 1 << 20):
        part = view[chunk : chunk + (1 << 20)]
        part[:] = bytes([(offset + chunk) >> 20 & 255]) * len(part)


class Collector:
    def __init__(self) -> None:
        self.seen: list[tuple[int, int, int]] = []

    def __call__(self, data: memoryview, offset: int) -> None:
        self.seen.append((offset, len(data), data[0]))


@pytest.mark.parametrize("workers", [ThreadWorkers(), InlineWorkers()], ids=["threads", "inline"])
@pytest.mark.parametrize("size", SIZES)
def test_every_taker_gets_every_byte_in_order(workers: Workers, size: int) -> None:
    takers = [Collector(), Collector()]
    with open_fan_out(workers, ("one", "none", "two")) as fan_out:
        fan_out.send(size, pattern, [takers[0], None, takers[1]])
        fan_out.drain()
    starts = range(0, size, CHUNK_BYTES)
    expected = [(start, min(CHUNK_BYTES, size - start), start >> 20 & 255) for start in starts]
    assert takers[0].seen == takers[1].seen == expected


def test_runs_of_any_size_follow_each_other() -> None:
    taker = Collector()
    with open_fan_out(ThreadWorkers(), ("one",)) as fan_out:
        for size in (1, 3, CHUNK_BYTES + 1, 2, 2 * CHUNK_BYTES):
            fan_out.send(size, pattern, [taker])
        fan_out.drain()
    assert [length for _, length, _ in taker.seen] == [1, 3, CHUNK_BYTES, 1, 2, CHUNK_BYTES, CHUNK_BYTES]


def test_a_reader_runs_a_bounded_number_of_chunks_ahead_of_the_slowest_taker() -> None:
    six_are_read = threading.Event()
    filled: list[int] = []
    taken: list[int] = []

    def fill(offset: int, view: memoryview) -> None:
        assert len(filled) - len(taken) < 6
        filled.append(offset)
        if len(filled) == 6:
            six_are_read.set()

    def take(data: memoryview, offset: int) -> None:
        assert six_are_read.wait(30)  # it does read ahead
        taken.append(offset)

    with open_fan_out(ThreadWorkers(), ("one",)) as fan_out:
        fan_out.send(20 * CHUNK_BYTES, fill, [take])
        fan_out.drain()
    assert len(filled) == 20


def test_what_is_queued_in_a_lane_runs_after_what_was_sent() -> None:
    order: list[str] = []
    with open_fan_out(ThreadWorkers(), ("one",)) as fan_out:
        fan_out.send(3 * CHUNK_BYTES, pattern, [lambda data, offset: order.append("chunk")])
        fan_out.queue(0, lambda: order.append("queued"))
        fan_out.drain()
    assert order == ["chunk"] * 3 + ["queued"]


def test_an_error_of_a_taker_reaches_the_sender() -> None:
    def fail(data: memoryview, offset: int) -> None:
        raise Capacity("full")

    def send(fan_out: FanOut) -> None:
        fan_out.send(100 * CHUNK_BYTES, lambda offset, view: None, [fail])

    with pytest.raises(Capacity, match="full"), open_fan_out(ThreadWorkers(), ("one",)) as fan_out:
        send(fan_out)


def test_an_error_of_the_reader_is_raised_and_what_was_sent_can_be_drained() -> None:
    def fill(offset: int, view: memoryview) -> None:
        if offset:
            raise InvalidInput("short")

    taker = Collector()
    with open_fan_out(ThreadWorkers(), ("one",)) as fan_out:
        for _ in range(20):  # more often than there are buffers: none is lost
            with pytest.raises(InvalidInput, match="short"):
                fan_out.send(2 * CHUNK_BYTES, fill, [taker])
        fan_out.drain()
    assert len(taker.seen) == 20


def test_hashers_are_fed_one_after_the_other() -> None:
    class Fake:
        def __init__(self) -> None:
            self.data = b""

        def update(self, data: memoryview, /) -> None:
            self.data += bytes(data)

    fakes = [Fake(), Fake()]
    take: Callable[[memoryview, int], None] = feed(*fakes)
    take(memoryview(b"ab"), 0)
    take(memoryview(b"c"), 2)
    assert [fake.data for fake in fakes] == [b"abc", b"abc"]
