"""A run of a part in memory: segments that lie in destinations where they can, in scratch where they can't."""

import threading
from bisect import bisect_right
from collections.abc import Callable

from tensorkeep.planning.read_plan import PartRead, Piece
from tensorkeep.transfer.boxes import DIRECT_BYTES
from tensorkeep.transfer.memory import allocate

_POOLED_BYTES = 256 << 10


class PartImage:
    """Bytes ``[start, end)`` of a part, as consecutive segments of memory."""

    def __init__(self, starts: list[int], segments: list[memoryview]) -> None:
        self._starts = starts
        self._segments = segments

    def views(self, start: int, end: int) -> list[memoryview]:
        """Return the memory of bytes ``[start, end)`` of the part, in order; several views where it is scattered."""
        index = bisect_right(self._starts, start) - 1
        found = []
        while start < end:
            segment, at = self._segments[index], start - self._starts[index]
            view = segment[at : at + end - start]
            found.append(view)
            start += len(view)
            index += 1
        return found


class PassingImage(PartImage):
    """Bytes of a part that are read to be judged and not kept: each run of them lies in the same memory, over the one before."""

    def __init__(self, memory: memoryview) -> None:
        super().__init__([], [])
        self._memory = memory

    def views(self, start: int, end: int) -> list[memoryview]:
        """Return the memory for bytes ``[start, end)``; at most as long as it is."""
        return [self._memory[: end - start]]


class ScratchPool:
    """Scratch memory that is used again, because fresh pages cost as much as reading into them. Thread safe.

    What is in use and what is kept for later stay under the limit together, as long as what is in use does.

    Args:
        limit_bytes: of all buffers.
        allocate: makes one.
        least_bytes: how large buffers are at least, so that those which are dear to make suit every read.
    """

    def __init__(
        self, limit_bytes: int, *, allocate: Callable[[int], memoryview] = allocate, least_bytes: int = 0
    ) -> None:
        self._limit = limit_bytes
        self._allocate = allocate
        self.least_bytes = least_bytes
        self._total = 0
        self._free: list[memoryview] = []
        self._lock = threading.Lock()

    def take(self, size_bytes: int) -> memoryview:
        """Return a buffer of at least that size, of undefined content; give it back with `give`."""
        size_bytes = max(size_bytes, self.least_bytes)
        with self._lock:
            fitting = [i for i, buffer in enumerate(self._free) if len(buffer) >= size_bytes]
            if size_bytes >= _POOLED_BYTES and fitting:
                return self._free.pop(min(fitting, key=lambda i: len(self._free[i])))
            self._total += size_bytes
            while self._free and self._total > self._limit:
                self._total -= len(self._free.pop(0))
        return self._allocate(size_bytes)

    def give(self, buffer: memoryview) -> None:
        """Take a buffer back; nobody may use it any more."""
        with self._lock:
            if len(buffer) >= _POOLED_BYTES and self._total <= self._limit:
                self._free.append(buffer)
            else:
                self._total -= len(buffer)


def lay_out(
    read: PartRead, direct: Callable[[Piece], memoryview | None], scratch: ScratchPool
) -> tuple[PartImage, list[Piece], memoryview]:
    """Return the memory for a read: its image, the pieces that must be copied out of it, and the scratch to give back.

    A piece lies straight in its destination where it is long enough, contiguous there, and no earlier piece holds the same
    bytes; all else, holes and edges of blocks included, lies in one scratch buffer.
    """
    layout: list[tuple[int, int, memoryview | None]] = []
    copied: list[Piece] = []
    position = read.start
    for piece in read.pieces:
        memory = direct(piece) if piece.length >= DIRECT_BYTES and piece.start >= position else None
        if memory is None:
            copied.append(piece)
            continue
        if piece.start > position:
            layout.append((position, piece.start, None))
        position = piece.start + piece.length
        layout.append((piece.start, position, memory))
    if position < read.end:
        layout.append((position, read.end, None))
    holes = sum(end - start for start, end, memory in layout if memory is None)
    buffer = scratch.take(holes) if holes else memoryview(b"")
    used = 0
    segments: list[memoryview] = []
    for start, end, memory in layout:
        if memory is None:
            memory = buffer[used : used + end - start]  # noqa: PLW2901 - the hole's own memory
            used += end - start
        segments.append(memory)
    return PartImage([start for start, _, _ in layout], segments), copied, buffer
