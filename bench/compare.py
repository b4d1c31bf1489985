"""Two runs side by side: what became slower or larger, by more than the rounds spread.

    scripts/bench.sh compare [BEFORE.json AFTER.json] [--tolerance SHARE]

Without names the last two results are compared; where there is one, it with that of the documents. Runs on other machines can
be compared, since seconds count as ratios to the same table's yardstick, round by round: to what `cp` or `pread` took in the
same minute. Only rows of ours count. Exits with 1 where a figure is worse by more than the spread and by more than its tolerance.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from rich.console import Console
from rich.table import Table as RichTable

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `bench` is found when this is run as a file

from bench.columns import COLUMNS
from bench.results import DOCUMENTED, Result, Row, Table, read_result
from bench.work import RESULTS

Verdict = Literal["same", "better", "worse", "FAILED"]


class Change(NamedTuple):
    """A figure in two runs: ``factor`` is how many times worse it became, ``spread`` how far its rounds alone would move it."""

    figure: str
    before: float
    after: float
    factor: float
    spread: float
    tolerance: float

    @property
    def verdict(self) -> Verdict:
        """What to say of it."""
        if self.factor > 1 + self.spread:
            return "FAILED" if self.factor > 1 + self.tolerance else "worse"
        return "better" if self.factor < 1 / (1 + self.spread) else "same"


class Comparable(NamedTuple):
    """A figure as it can be compared between runs: its rounds, as ratios to the yardstick's where it is relative."""

    name: str
    key: str
    rounds: list[float]


def compare(before: Result, after: Result, *, tolerance: float | None = None) -> list[Change]:
    """Return the change of each figure that both runs have, in the order of the later one.

    Args:
        before: the earlier run.
        after: the later one.
        tolerance: how much worse any figure may be, as a share; None: what its column says.

    Raises:
        ValueError: the runs are of different models.
    """
    if before.model != after.model:
        raise ValueError(f"one run is of {before.model}, the other of {after.model}: their figures can't be compared")
    earlier = {figure.name: figure for figure in comparables(before)}
    return [_change(earlier[figure.name], figure, tolerance) for figure in comparables(after) if figure.name in earlier]


def comparables(result: Result) -> Iterator[Comparable]:
    """Yield the figures of our own rows that can be compared."""
    for table in result.tables:
        yardstick = table.row(table.yardstick) if table.yardstick else None
        for row in table.rows:
            if row.kind == "ours":
                yield from _of_row(table, row, yardstick)


def spread_of(rounds: Sequence[float]) -> float:
    """Return half the distance between the quartiles, as a share of the median: 0 where there is one round."""
    if len(rounds) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(rounds, n=4, method="inclusive")
    return (high - low) / 2 / middle if middle else 0.0


def _of_row(table: Table, row: Row, yardstick: Row | None) -> Iterator[Comparable]:
    for key, rounds in row.figures.items():
        column = COLUMNS[key]
        if column.tolerance is None:
            continue
        name = f"{table.key} · {row.name} · {column.heading}"
        if not column.relative:
            yield Comparable(name, key, [value / column.scale for value in rounds])
        elif yardstick is not None and yardstick is not row and key in yardstick.figures:
            ratios = [ours / theirs for ours, theirs in zip(rounds, yardstick.figures[key], strict=False) if theirs > 0]
            if ratios:
                yield Comparable(f"{name} / {yardstick.name}", key, ratios)


def _change(before: Comparable, after: Comparable, tolerance: float | None) -> Change:
    column = COLUMNS[after.key]
    assert column.tolerance is not None
    old, new = statistics.median(before.rounds), statistics.median(after.rounds)
    worse, better = (new, old) if column.less_is_better else (old, new)
    factor = worse / better if better else float(worse > 0) * float("inf") if worse > 0 else 1.0
    return Change(
        after.name,
        old,
        new,
        factor,
        spread_of(before.rounds) + spread_of(after.rounds),
        column.tolerance if tolerance is None else tolerance,
    )


def choose_results(named: Sequence[Path], folder: Path, documented: Path) -> tuple[Path, Path]:
    """Return the two results to compare: those named, or the last two, or that of the documents and the last.

    Raises:
        ValueError: one was named, or there are too few.
    """
    if len(named) == 2:
        return named[0], named[1]
    if named:
        raise ValueError("name two results, or none for the last two")
    found = sorted(folder.glob("20*.json"))
    if len(found) >= 2:
        return found[-2], found[-1]
    if found and documented.exists():
        return documented, found[-1]
    raise ValueError(f"there are no two results in {folder}: run `make bench` first")


def show(changes: Sequence[Change], console: Console) -> None:
    """Print the changes, and name what became worse."""
    table = RichTable("figure", "before", "after", "times worse", "spread", "")
    for change in changes:
        numbers = (f"{change.before:.4g}", f"{change.after:.4g}", f"{change.factor:.2f}", f"± {change.spread:.0%}")
        style = {"worse": "yellow", "FAILED": "bold red", "better": "green", "same": ""}[change.verdict]
        table.add_row(change.figure, *numbers, change.verdict, style=style)
    console.print(table)
    for change in changes:
        if change.verdict in ("worse", "FAILED"):
            limit = (
                f"more than the {change.tolerance:.0%} allowed"
                if change.verdict == "FAILED"
                else "within what is allowed"
            )
            console.print(f"{change.verdict}: {change.figure}: {change.factor:.2f} times, {limit}", markup=False)


def main() -> None:
    """Compare what the command line names."""
    parser = argparse.ArgumentParser(prog="scripts/bench.sh compare", description="compare two results of `make bench`")
    parser.add_argument("results", nargs="*", type=Path, metavar="RESULT.json")
    parser.add_argument("--tolerance", type=float, help="how much worse a figure may be, as a share (default: its own)")
    words = parser.parse_args()
    try:
        paths = choose_results(words.results, RESULTS, DOCUMENTED)
        before, after = map(read_result, paths)
        changes = compare(before, after, tolerance=words.tolerance)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(f"before: {paths[0].name} ({before.commit})\nafter:  {paths[1].name} ({after.commit})", markup=False)
    if differing := {key for key in after.machine if before.machine.get(key) != after.machine[key]}:
        console.print(f"other machine or packages: {', '.join(sorted(differing))}", markup=False)
    show(changes, console)
    sys.exit(any(change.verdict == "FAILED" for change in changes))


if __name__ == "__main__":
    main()
