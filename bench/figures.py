"""Figures and their bars, as `make bench-accept` prints them."""

from typing import NamedTuple


class Figure(NamedTuple):
    """A measured figure and its bar: at most it, or at least it where ``at_least``; None where nothing is promised."""

    question: str
    value: float
    bar: float | None
    unit: str
    at_least: bool = False

    @property
    def holds(self) -> bool:
        """Whether the bar is reached, where there is one."""
        if self.bar is None:
            return True
        return self.value >= self.bar if self.at_least else self.value <= self.bar
