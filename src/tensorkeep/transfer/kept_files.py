"""Files of parts that stay open, their length kept by the system, from when they were laid until they are verified.

To open each again, to find out whether it is still the same and to have the system keep its length takes longer, with many threads, than to
verify a part of some MiB. Of the descriptors that a process may have, all loads together keep a quarter open.
"""

import os
import resource
import threading

from tensorkeep.devices.protocol import OpenFile

_DESCRIPTORS = "/proc/self/fd"
_USUAL_MOST_DESCRIPTORS = 1 << 16


class KeptFiles:
    """Files by part. Filled by one thread, used by any.

    Args:
        most: how many at most.
    """

    def __init__(self, most: int) -> None:
        self._granted = _descriptors.take(most)
        self._files: dict[int, OpenFile] = {}

    def keep(self, part: int, opened: OpenFile, size_bytes: int) -> None:
        """Keep a file, if there is room and the system keeps its length."""
        if len(self._files) < self._granted and opened.keep_length(size_bytes):
            self._files[part] = opened

    def get(self, part: int) -> OpenFile | None:
        """Return the file of a part that is kept."""
        return self._files.get(part)

    def close(self) -> None:
        """Let go of them. Who uses one meanwhile keeps it open until then."""
        self._files.clear()
        granted, self._granted = self._granted, 0
        if granted:
            _descriptors.give(granted)

    def __del__(self) -> None:
        self.close()


class _DescriptorRoom:
    """How many descriptors all loads of this process may keep open. Thread safe."""

    def __init__(self) -> None:
        self._taken = 0
        self._lock = threading.RLock()  # what is collected meanwhile gives back in the same thread

    def take(self, wanted: int) -> int:
        """Return how many of so many may be kept: a quarter of those that are free, and of all, at most."""
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = _USUAL_MOST_DESCRIPTORS if most == resource.RLIM_INFINITY else most
        try:
            opened = len(os.listdir(_DESCRIPTORS))
        except OSError:
            opened = most
        with self._lock:
            granted = max(min((most - opened) // 4, most // 4 - self._taken, wanted), 0)
            self._taken += granted
        return granted

    def give(self, granted: int) -> None:
        """Take so many back."""
        with self._lock:
            self._taken -= granted


_descriptors = _DescriptorRoom()
