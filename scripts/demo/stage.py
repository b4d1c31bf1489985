"""What the demo shows: steps with their checks, commands with what they print, and a table of times at the end.

A step ends the demo at the first check that does not hold: `CheckFailed` names the step and the claim.
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from tensorkeep.cli.progress import progress_bars
from tensorkeep.cli.tables import Table, print_blocks
from tensorkeep.cli.units import human_duration, human_rate, human_size
from tensorkeep.store.reports import Progress

COMMAND = str(Path(sys.executable).with_name("tensorkeep"))


class CheckFailed(Exception):
    """A claim of the demo does not hold."""


@dataclass(slots=True)
class Step:
    """One step: how long it took, and the bytes and seconds of the transfer that its rate is made of."""

    number: int
    title: str
    seconds: float = 0.0
    moved_bytes: int = 0
    moved_seconds: float = 0.0
    checks: list[str] = field(default_factory=list)

    def moved(self, size_bytes: int, seconds: float) -> None:
        """Count a transfer."""
        self.moved_bytes += size_bytes
        self.moved_seconds += seconds


class Stage:
    """Prints the demo, runs the real command line, and holds each claim to the truth."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._console = Console(highlight=False, markup=False, emoji=False)
        self._started_s = time.perf_counter()

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Show a step's title, run it, and show its time and rate."""
        step = Step(len(self.steps) + 1, title)
        self.steps.append(step)
        self._console.print(f"\n{step.number}. {title}", style="bold")
        started_s = time.perf_counter()
        yield step
        step.seconds = time.perf_counter() - started_s
        self._console.print(f"   {human_duration(step.seconds)}{_rate_text(step)}", style="dim")

    def check(self, claim: str, holds: bool, *, found: object = None) -> None:  # noqa: FBT001 - a claim and whether it holds
        """Show a claim that holds.

        Raises:
            CheckFailed: it does not; ``found`` says what was there instead.
        """
        step = self.steps[-1]
        if not holds:
            detail = "" if found is None else f" (found: {found})"
            raise CheckFailed(f"step {step.number}, {step.title}: NOT TRUE: {claim}{detail}")
        step.checks.append(claim)
        self._console.print(f"   ok  {claim}", style="green", soft_wrap=True)

    def say(self, text: str) -> None:
        """Show a sentence."""
        self._console.print(f"   {text}", soft_wrap=True)

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Show a table; a heading that starts with ``>`` is of numbers."""
        self._console.file.flush()
        print_blocks([Table(headings, rows)], sys.stdout)

    def command(self, line: str, *, exit_code: int = 0) -> str:
        """Run ``tensorkeep LINE``, show it and what it prints, and return that, standard error included.

        Raises:
            CheckFailed: it exits with another code than the one expected.
        """
        self._console.print(f"   $ tensorkeep {line}", style="cyan", soft_wrap=True)
        # Captured, so that the demo can read it too; the width must then be told.
        width = {"COLUMNS": str(self._console.width - 5)} if self._console.is_terminal else {}
        result = subprocess.run(
            [COMMAND, *shlex.split(line)],
            env=os.environ | width,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        for shown in result.stdout.splitlines():
            sys.stdout.write(f"     {shown}\n" if shown else "\n")
        sys.stdout.flush()
        if result.returncode != exit_code:
            self.check(f"`tensorkeep {line}` exits with {exit_code}", holds=False, found=result.returncode)
        return result.stdout

    @contextmanager
    def progress(self) -> Iterator[Callable[[Progress], None] | None]:
        """Give a callback that draws bars on a terminal, None elsewhere."""
        with progress_bars(sys.stdout) as callback:
            yield callback

    def finish(self) -> None:
        """Show every step with its time and rate, and how many checks held."""
        self._console.print("\nAll steps", style="bold")
        rows = [
            [str(s.number), s.title, human_duration(s.seconds), *_rate_cells(s), str(len(s.checks))] for s in self.steps
        ]
        self.table(["", "STEP", ">TIME", ">MOVED", ">RATE", ">CHECKS"], rows)
        count = sum(len(step.checks) for step in self.steps)
        seconds = time.perf_counter() - self._started_s
        self._console.print(f"\ndemo: all {count} checks of {len(self.steps)} steps held, {human_duration(seconds)}")


def _rate_cells(step: Step) -> list[str]:
    if not step.moved_bytes:
        return ["", ""]
    return [human_size(step.moved_bytes), human_rate(step.moved_bytes / step.moved_seconds)]


def _rate_text(step: Step) -> str:
    if not step.moved_bytes:
        return ""
    size, rate = _rate_cells(step)
    return f"; moved {size} at {rate}"
