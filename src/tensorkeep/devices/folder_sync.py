"""Group commit for folders: many threads ask that their entries be durable, one of them does the fsyncs for all.

A round takes every folder that is dirty when it starts. A caller may return only when a round that **started after its
call** has ended well: a round under way may have passed its folder before its entry was there.
"""

import threading
from collections.abc import Callable, Iterable


class FolderSync:
    """Which folders have entries that may not be durable, and the rounds that make them so. Thread safe.

    Args:
        sync: makes one folder's entries durable, or raises. It decides whether it may be called again for a folder for
            which it failed: a folder whose round failed stays dirty.
    """

    def __init__(self, sync: Callable[[str], None]) -> None:
        self._sync = sync
        self._changed = threading.Condition()
        self._dirty: set[str] = set()
        self._started = 0
        self._completed = 0
        self._running = False

    def mark(self, folders: Iterable[str]) -> None:
        """Note that entries of these folders changed. Call it after the change, never before."""
        with self._changed:
            self._dirty.update(folders)

    def flush(self) -> None:
        """Return when every folder marked before, by any thread, is durable. Raises what ``sync`` raised."""
        with self._changed:
            wanted = self._started + 1
            while self._running and self._completed < wanted:
                self._changed.wait()
            if self._completed >= wanted:
                return
            # Nobody runs a round: this thread does, for all who wait. A failed round leaves the others waiting for a
            # later one, so each of them comes here in turn and gets the error itself.
            self._running = True
            self._started += 1
            number, batch = self._started, self._dirty
            self._dirty = set()
        self._run_round(number, batch)

    def _run_round(self, number: int, batch: set[str]) -> None:
        done = False
        try:
            for folder in sorted(batch):
                self._sync(folder)
            done = True
        finally:
            with self._changed:
                self._running = False
                if done:
                    self._completed = number
                else:
                    self._dirty |= batch
                self._changed.notify_all()
