"""Progress of a verb, counted in bytes from many threads, told to one callback."""

import sys
import threading

from tensorkeep.store.reports import Progress, ProgressCallback


class ByteProgress:
    """Counts bytes of a step and tells the callback; does nothing where there is none. Thread safe."""

    def __init__(self, callback: ProgressCallback | None, step: str, total_bytes: int) -> None:
        self._callback = callback
        self._step = step
        self._total_bytes = total_bytes
        self._done_bytes = 0
        self._lock = threading.Lock()

    def count(self, size_bytes: int) -> None:
        """Add bytes that are done."""
        if self._callback is None:
            return
        with self._lock:
            self._done_bytes += size_bytes
            self._callback(Progress(self._step, self._done_bytes, self._total_bytes))


class StderrProgress:
    """A plain progress line on standard error, for ``progress=True`` in Python; the command line draws its own bars."""

    def __init__(self) -> None:
        self._last_percent = -1

    def __call__(self, progress: Progress) -> None:
        """Write the line when another percent is done."""
        percent = 100 * progress.done_bytes // max(1, progress.total_bytes)
        if percent != self._last_percent:
            self._last_percent = percent
            end = "\n" if progress.done_bytes >= progress.total_bytes else ""
            sys.stderr.write(f"\r{progress.step}: {percent:3d} % of {progress.total_bytes / 1e6:,.1f} MB{end}")
            sys.stderr.flush()


def progress_callback(progress: "bool | ProgressCallback | None") -> ProgressCallback | None:
    """Return the callback that a verb's ``progress`` argument asks for."""
    if progress is None or progress is False:
        return None
    return StderrProgress() if progress is True else progress
