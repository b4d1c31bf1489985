"""Reads that were left because they hang: whose device is asked last, in every load of this process, until they have ended."""

import threading
from concurrent.futures import Future
from typing import Any

_left: dict[str, int] = {}
_lock = threading.Lock()


def note_left(url: str, read: "Future[Any]") -> None:
    """Remember that a read of the device at a URL goes on alone."""
    with _lock:
        _left[url] = _left.get(url, 0) + 1
    read.add_done_callback(lambda _: _forget(url))


def has_left_reads(url: str) -> bool:
    """Return whether any has not ended yet."""
    return url in _left


def _forget(url: str) -> None:
    with _lock:
        _left[url] -= 1
        if not _left[url]:
            del _left[url]
