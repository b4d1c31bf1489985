"""System calls that fail on purpose, for `tensorkeep.devices.LocalDevice`."""

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from tensorkeep.devices.system_calls import SystemCalls


@dataclass(slots=True)
class _Failure:
    call: str
    number: int
    on_call: int | None
    seen: int = 0


class FaultySystem(SystemCalls):
    """The real calls, except for those that a test makes fail, and at most ``step_bytes`` per read or write.

    Fsyncs of files and of folders are counted apart: the calls are named ``fsync`` and ``fsync_folder``. Thread safe.

    Args:
        step_bytes: the most that one vector call moves, as Linux may do with any; None: no limit of ours.
    """

    def __init__(self, *, step_bytes: int | None = None) -> None:
        self._step_bytes = step_bytes
        self._lock = threading.Lock()
        self._failures: list[_Failure] = []
        self.counts: dict[str, int] = {}

    def fail(self, call: str, number: int, *, on_call: int | None = None) -> None:
        """Make a call raise ``OSError`` with an errno: on the n-th call from now (from 1), or (None) each time."""
        with self._lock:
            self._failures.append(_Failure(call, number, on_call))

    def close(self, descriptor: int) -> None:
        """Close, then perhaps fail: a failed close has closed."""
        super().close(descriptor)
        self._hit("close")

    def allocate(self, descriptor: int, size_bytes: int) -> None:
        """Reserve, or fail."""
        self._hit("allocate")
        super().allocate(descriptor, size_bytes)

    def pwritev(self, descriptor: int, views: Sequence[memoryview], offset: int) -> int:
        """Write a little, or fail."""
        self._hit("pwritev")
        return super().pwritev(descriptor, self._step(views), offset)

    def keep_length(self, descriptor: int) -> None:
        """Take a lease, or fail."""
        self._hit("keep_length")
        super().keep_length(descriptor)

    def preadv(self, descriptor: int, views: Sequence[memoryview], offset: int) -> int:
        """Read a little, or fail."""
        self._hit("preadv")
        return super().preadv(descriptor, self._step(views), offset)

    def pread(self, descriptor: int, size_bytes: int, offset: int) -> bytes:
        """Read a little, or fail."""
        self._hit("pread")
        return super().pread(descriptor, min(size_bytes, self._step_bytes or size_bytes), offset)

    def fsync(self, descriptor: int) -> None:
        """Fsync, or fail."""
        self._hit("fsync_folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "fsync")
        super().fsync(descriptor)

    def link(self, source: str, target: str) -> None:
        """Link, or fail."""
        self._hit("link")
        super().link(source, target)

    def rename_new(self, source: str, target: str) -> None:
        """Rename, or fail."""
        self._hit("rename_new")
        super().rename_new(source, target)

    def unlink(self, path: str) -> None:
        """Unlink, or fail."""
        self._hit("unlink")
        super().unlink(path)

    def _hit(self, call: str) -> None:
        with self._lock:
            self.counts[call] = self.counts.get(call, 0) + 1
            for failure in self._failures:
                if failure.call == call:
                    failure.seen += 1
                    if failure.on_call in (None, failure.seen):
                        raise OSError(failure.number, os.strerror(failure.number))

    def _step(self, views: Sequence[memoryview]) -> Sequence[memoryview]:
        return views if self._step_bytes is None else [views[0][: self._step_bytes]]
