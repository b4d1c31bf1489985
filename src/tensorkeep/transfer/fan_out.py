"""One pass over bytes for many takers: each chunk is read once and handed to every taker while the next is read.

A taker (a hasher, a writer) sees all chunks in order: it has a lane of its own, a pool of one worker. At most `_DEPTH` chunks
are alive, so that memory is bounded whatever the slowest taker does.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

from tensorkeep.records.layout import MIB
from tensorkeep.runtime import WorkerPool, Workers
from tensorkeep.transfer.memory import allocate

CHUNK_BYTES = 4 * MIB
_DEPTH = 6

Fill = Callable[[int, memoryview], None]
"""Fills a buffer with the bytes from an offset of the run."""

Taker = Callable[[memoryview, int], None]
"""Takes the next bytes of a run and their offset in it; the bytes are only there until it returns."""


class Hasher(Protocol):
    """Any hash object of ``hashlib`` or blake3."""

    def update(self, data: memoryview, /) -> object:
        """Take the next bytes."""


class FanOut:
    """Lanes that take chunks in order. Not thread safe: one thread sends."""

    def __init__(self, lanes: Sequence[WorkerPool]) -> None:
        self._lanes = lanes
        self._busy: deque[tuple[memoryview | None, list[Future[Any]]]] = deque()
        self._free: list[memoryview] = []
        self._made = 0

    def send(self, size_bytes: int, fill: Fill, takers: Sequence[Taker | None]) -> None:
        """Read a run in chunks and hand each to the taker of each lane (None: nothing); returns when all is read.

        Raises:
            BaseException: what ``fill`` or a taker of an earlier chunk raised.
        """
        for offset in range(0, size_bytes, CHUNK_BYTES):
            buffer = self._take_buffer(min(size_bytes, CHUNK_BYTES))
            view = buffer[: min(CHUNK_BYTES, size_bytes - offset)]
            try:
                fill(offset, view)
            except BaseException:
                self._free.append(buffer)
                raise
            tasks = [lane.submit(taker, view, offset) for lane, taker in zip(self._lanes, takers, strict=True) if taker]
            self._busy.append((buffer, tasks))

    def queue(self, lane: int, task: Callable[[], None]) -> None:
        """Run something in a lane, after all that was sent to it before."""
        self._busy.append((None, [self._lanes[lane].submit(task)]))

    def drain(self) -> None:
        """Return when every lane has taken everything; raises what a taker raised."""
        while self._busy:
            self._wait_oldest()

    def _take_buffer(self, wanted_bytes: int) -> memoryview:
        while True:
            while self._free:
                buffer = self._free.pop()
                if len(buffer) >= wanted_bytes:
                    return buffer
                self._made -= 1  # of a smaller run before
            if self._made < _DEPTH:
                self._made += 1
                return allocate(wanted_bytes)
            self._wait_oldest()

    def _wait_oldest(self) -> None:
        buffer, tasks = self._busy.popleft()
        for task in tasks:
            task.result()
        if buffer is not None:
            self._free.append(buffer)


@contextmanager
def open_fan_out(workers: Workers, lanes: Sequence[str]) -> Iterator[FanOut]:
    """Give a `FanOut` with a lane for each name; left by an error, what is queued is dropped."""
    with ExitStack() as pools:
        yield FanOut([pools.enter_context(workers.open_pool(1, name)) for name in lanes])


def feed(*hashers: Hasher) -> Taker:
    """Return a taker that feeds hashers, one after the other while the bytes are in the cache."""

    def take(data: memoryview, offset: int) -> None:  # noqa: ARG001 - lanes keep the order
        for hasher in hashers:
            hasher.update(data)

    return take
