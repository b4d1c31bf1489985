"""One piece of memory that many buffers are cut from and given back to, so that a push touches the same pages again and again.

Fresh memory has to be faulted in and zeroed by the kernel: 0.3 CPU seconds of a push of 2.2 GB. Buffers start at a page, which
direct writes ask for.
"""

import threading
from dataclasses import dataclass

from tensorkeep.errors import Internal
from tensorkeep.transfer.memory import HUGE_PAGE_BYTES, allocate

_PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Lease:
    """A buffer of an arena, of the size that was asked for; its content is undefined. It is given back once, by `Arena.give_back`."""

    data: memoryview
    start: int
    end: int


class Arena:
    """Memory of a fixed size, given out in runs of pages, first fit. Thread safe.

    Args:
        size_bytes: of the whole; also the largest buffer there can be.
    """

    def __init__(self, size_bytes: int) -> None:
        self._memory = allocate(max(size_bytes, HUGE_PAGE_BYTES))[:size_bytes]  # from there on it starts at a page
        self._changed = threading.Condition()
        self._turn = threading.Lock()
        self._taken: list[Lease] = []  # by start

    def try_take(self, size_bytes: int) -> Lease | None:
        """Return a buffer, or None where no run is free that is long enough, or others wait for one."""
        if not self._turn.acquire(blocking=False):
            return None
        try:
            with self._changed:
                return self._find(size_bytes)
        finally:
            self._turn.release()

    def take(self, size_bytes: int) -> Lease:
        """Return a buffer, once there is room. Who waits must hold no buffer that only he gives back: else nobody moves."""
        with self._turn, self._changed:  # one waits at a time, so that small requests do not starve a large one
            while (lease := self._find(size_bytes)) is None:
                self._changed.wait()
            return lease

    def give_back(self, lease: Lease) -> None:
        """Let others have a buffer; its data is not touched afterwards."""
        with self._changed:
            self._taken.remove(lease)
            self._changed.notify_all()

    def _find(self, size_bytes: int) -> Lease | None:
        if size_bytes > len(self._memory):
            raise Internal(f"a buffer of {size_bytes} bytes was asked of an arena of {len(self._memory)}")
        start = 0
        for at, taken in enumerate([*self._taken, None]):
            limit = taken.start if taken is not None else len(self._memory)
            if start + size_bytes <= limit:
                end = min(start + -(-max(size_bytes, 1) // _PAGE_BYTES) * _PAGE_BYTES, limit)
                lease = Lease(self._memory[start : start + size_bytes], start, end)
                self._taken.insert(at, lease)
                return lease
            start = taken.end if taken is not None else start
        return None
