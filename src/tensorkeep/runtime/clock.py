"""Clocks: UTC time for records and liveness, monotonic time for durations. No clock decides about safety."""

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """Time, as a process sees it."""

    def now(self) -> datetime:
        """Return the present time, aware, in UTC."""

    def monotonic_s(self) -> float:
        """Return seconds since an arbitrary moment; never goes back."""

    def sleep(self, seconds: float) -> None:
        """Wait that long."""


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """Return the present time, aware, in UTC."""
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        """Return seconds since an arbitrary moment."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait that long."""
        time.sleep(seconds)


class ManualClock:
    """A clock that moves only when told, or when somebody sleeps on it. For tests."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._start = start
        self._passed_s = 0.0

    def now(self) -> datetime:
        """Return the start plus what was slept or advanced."""
        return self._start + timedelta(seconds=self._passed_s)

    def monotonic_s(self) -> float:
        """Return the seconds slept or advanced so far."""
        return self._passed_s

    def sleep(self, seconds: float) -> None:
        """Move the clock forward at once."""
        self._passed_s += max(0.0, seconds)

    def advance(self, seconds: float) -> None:
        """Move the clock forward at once."""
        self._passed_s += seconds
