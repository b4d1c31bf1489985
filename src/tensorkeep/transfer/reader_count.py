"""How many reads of a remote device run at once: a climb to where more of them bring nothing more.

Nobody knows beforehand: a store on the other side of the world needs dozens of reads under way, one on the same machine gets
slower with each. The rate of a window of reads is compared with that of the one before: more readers must earn their place,
fewer need only lose nothing. A store that asks for fewer requests gets half at once. Decisions only: no clock, no I/O; what was
found is remembered for the process, by device.
"""

import threading
from typing import Literal

START = 4
LOWEST, HIGHEST = 2, 64

_GAIN = 1.08
"""What more readers must bring: less is noise, and each costs the store and this machine."""

_LOSS = 0.96
"""What fewer readers may lose."""

_COLLAPSE = 0.6
"""A rate this far under what the same readers had: something else has changed, so that all is to be measured again."""

_REST_WINDOWS = 8

_remembered: dict[str, int] = {}
_remembered_lock = threading.Lock()


def remembered_readers(url: str) -> int:
    """Return how many readers a device went best with in this process; where it was not read yet, a few."""
    with _remembered_lock:
        return _remembered.get(url, START)


def remember_readers(url: str, readers: int) -> None:
    """Begin the next load from a device with that many readers."""
    with _remembered_lock:
        _remembered[url] = readers


class ReaderCount:
    """The number of readers of one device during a load. Fed in the order in which reads end; not thread safe.

    Args:
        readers: to begin with.
        throttled: how often the device has asked for fewer requests before.
    """

    def __init__(self, readers: int = START, *, throttled: int = 0) -> None:
        self.settled = _bounded(readers)
        self.readers = self.settled
        self._probe: Literal["none", "more", "fewer"] = "none"
        self._next_probe: Literal["more", "fewer"] = "more"
        self._rate: float | None = None
        self._rest = 0
        self._throttled = throttled
        self._since_s: float | None = None
        self._reads = self._bytes = self._skipped = 0

    def read_ended(self, size_bytes: int, started_s: float, ended_s: float, throttled: int) -> None:
        """Take note of a read.

        Args:
            size_bytes: that it brought.
            started_s: when it was begun.
            ended_s: when it was over; never before that of the read noted last, but for what threads make of it.
            throttled: how often the device has asked for fewer requests, ever.
        """
        if throttled > self._throttled:
            self._throttled = throttled
            self._settle(self.readers // 2)
            self._rate = None
        if self._since_s is None:
            self._since_s = started_s
        self._reads += 1
        self._bytes += size_bytes
        # The reads under way when the number changed belong to the number before.
        if self._reads == self._skipped:
            self._since_s, self._bytes = ended_s, 0
        if self._reads >= self._skipped + 2 * self.readers and ended_s > self._since_s:
            self._window_ended(self._bytes / (ended_s - self._since_s))
            self._begin(ended_s)

    def _begin(self, at_s: float | None) -> None:
        self._since_s, self._reads, self._bytes = at_s, 0, 0
        self._skipped = self.readers if self._probe != "none" else 0

    def _window_ended(self, rate: float) -> None:
        if self._rate is None:
            self._rate = rate
            self._try()
        elif self._probe == "more":
            self._judge(rate, better=rate >= self._rate * _GAIN)
        elif self._probe == "fewer":
            self._judge(rate, better=rate >= self._rate * _LOSS)
        elif rate < self._rate * _COLLAPSE:
            self._rate = None
        else:
            self._rate += (rate - self._rate) / 4
            self._rest -= 1
            if self._rest <= 0:
                self._try()

    def _try(self) -> None:
        self._probe = self._next_probe
        self.readers = _bounded(self.settled * 3 // 2 if self._probe == "more" else self.settled * 2 // 3)
        if self.readers == self.settled:  # at a bound already
            self._turn()

    def _judge(self, rate: float, *, better: bool) -> None:
        if not better:
            self.readers = self.settled
            self._turn()
            return
        self.settled, self._rate = self.readers, rate
        self._try()

    def _turn(self) -> None:
        """Stay for a while, then try the other way."""
        self._next_probe = "fewer" if self._next_probe == "more" else "more"
        self._probe, self._rest = "none", _REST_WINDOWS

    def _settle(self, readers: int) -> None:
        self.settled = self.readers = _bounded(readers)
        self._probe, self._next_probe, self._rest = "none", "more", 2 * _REST_WINDOWS
        self._begin(None)


def _bounded(readers: int) -> int:
    return max(LOWEST, min(readers, HIGHEST))
