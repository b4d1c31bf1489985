"""Copies that are durable, but on a device that must still be shown to be the one it was when it was chosen.

A disk may have been swapped, or a newer catalog may have taken the store over, since a device's identity was last read. So it
is read again after copies became durable, and only then are they recorded as stored. One reading answers for every copy that
was durable before it began: a push reads each device's identity about once a second and before it commits, not once for each
batch, which on an object store is a request.
"""

import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tensorkeep.catalog.protocol import Location
from tensorkeep.errors import TensorkeepError
from tensorkeep.runtime import Clock

_INTERVAL_S = 1.0
"""What was written since the last reading must be written again where the next one fails, or the push is killed."""


class Confirmed(NamedTuple):
    """Copies whose device was asked once more, and why they don't count (None where they do)."""

    device: str
    copies: Sequence[Location]
    error: TensorkeepError | None


class Confirmations:
    """The copies of one push that wait for this. Thread safe.

    Args:
        check: reads the identity of the device with this id; raises where it is not the device that it was.
        clock: says when it is time.
    """

    def __init__(self, check: Callable[[str], None], clock: Clock) -> None:
        self._check = check
        self._clock = clock
        self._lock = threading.Lock()
        self._begun_s = clock.monotonic_s()
        self._last_s: dict[str, float] = {}
        self._waiting: dict[str, list[Location]] = {}

    def add(self, device: str, copies: Sequence[Location]) -> None:
        """Take copies that are durable on a device."""
        with self._lock:
            self._waiting.setdefault(device, []).extend(copies)

    def is_due(self, device: str) -> bool:
        """Whether a device was not asked for a while."""
        with self._lock:
            return self._clock.monotonic_s() - self._last_s.get(device, self._begun_s) >= _INTERVAL_S

    def confirm(self, device: str) -> Confirmed:
        """Confirm all copies on a device that were added before this was called."""
        with self._lock:
            copies = self._waiting.pop(device, [])
            self._last_s[device] = self._clock.monotonic_s()
        try:
            if copies:
                self._check(device)
        except TensorkeepError as error:
            return Confirmed(device, copies, error)
        return Confirmed(device, copies, None)

    def waiting(self) -> list[str]:
        """Return the devices with copies that wait."""
        with self._lock:
            return [device for device, copies in self._waiting.items() if copies]
