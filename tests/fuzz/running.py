"""Runs a target over inputs: counts what became of them, and stops with the input in hex at the first crash."""

import re
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import NoReturn

from tensorkeep.errors import TensorkeepError

_DETAILS = re.compile(r"'[^']*'|\"[^\"]*\"|[0-9]+")


class Crash(Exception):
    """A target let something else out than a `TensorkeepError`. The text holds the input in hex."""


@dataclass
class Tally:
    """What became of inputs: how many were believed, and for which reasons others were refused."""

    inputs: int = 0
    believed: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    @property
    def commonest(self) -> tuple[str, int]:
        """The reason that refused the most inputs, and how many."""
        return self.refused.most_common(1)[0] if self.refused else ("", 0)


def run_one(target: Callable[[bytes], None], data: bytes, tally: Tally) -> None:
    """Hand a target one input and count what became of it.

    Raises:
        Crash: it was neither believed nor refused by a typed error that can be shown.
    """
    tally.inputs += 1
    try:
        try:
            target(data)
        except TensorkeepError as error:
            shown = error.to_dict()
            tally.refused[_DETAILS.sub("…", shown["message"][:300])[:100]] += 1
            return
    except Exception as error:  # whatever else it is, it is what is looked for
        raise Crash(
            f"crashed with {type(error).__name__}: {str(error)[:300]} on the {len(data)} bytes {data.hex()}"
        ) from error
    tally.believed += 1


def fuzz(target: Callable[[bytes], None], inputs: Iterable[bytes], *, limit_s: float | None = None) -> Tally:
    """Hand a target inputs and return what became of them; ``limit_s`` of computing may each take, where it is given.

    Raises:
        Crash: see `run_one`.
    """
    tally = Tally()
    with _alarm() if limit_s is not None else _no_alarm():
        for data in inputs:
            if limit_s is not None:
                signal.setitimer(signal.ITIMER_VIRTUAL, limit_s)
            run_one(target, data, tally)
    return tally


@contextmanager
def _alarm() -> Iterator[None]:
    before = signal.signal(signal.SIGVTALRM, _too_slow)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@contextmanager
def _no_alarm() -> Iterator[None]:
    yield


def _too_slow(number: int, frame: FrameType | None) -> NoReturn:
    raise TimeoutError("it computes without end")
