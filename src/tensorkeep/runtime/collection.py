"""Python's cyclic garbage collection, kept out of stretches that make very many objects.

The collector looks at all young objects every few hundred allocations, and again and again at the old ones as they grow in number: of
a load of 60,000 tensors that was half of the CPU time, and none of what was made is garbage.
"""

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_pauses = 0
_was_enabled = False


@contextmanager
def collection_paused() -> Iterator[None]:
    """Hold collection while the block runs, in the whole process; for short stretches only. Where it was off it stays so."""
    global _pauses, _was_enabled  # noqa: PLW0603 - the collector is the process's
    with _lock:
        if not _pauses:
            _was_enabled = gc.isenabled()
            gc.disable()
        _pauses += 1
    try:
        yield
    finally:
        with _lock:
            _pauses = max(_pauses - 1, 0)  # none where the block was entered before a fork
            if not _pauses and _was_enabled:
                gc.enable()


def _after_fork() -> None:
    """Let the child go on as if no thread had held collection: those threads are not in it."""
    global _lock, _pauses
    if _pauses and _was_enabled:
        gc.enable()
    _lock, _pauses = threading.Lock(), 0


os.register_at_fork(after_in_child=_after_fork)
