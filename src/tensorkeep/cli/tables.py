"""Tables and facts for people. ``rich`` is imported only when something is printed, never for ``--help``."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

_UNLIMITED_WIDTH = 10_000
"""Columns of a pipe or a file: lines are never cut where a program reads them."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Labels and values, one pair a line; pairs whose value is None are left out."""

    pairs: Sequence[tuple[str, str | None]]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under headings. A heading that starts with ``>`` is of numbers, aligned to the right."""

    headings: Sequence[str]
    rows: Iterable[Sequence[str]]
    empty: str = "nothing"


Block = Facts | Table | str


def print_blocks(blocks: Iterable[Block], stream: TextIO) -> None:
    """Print blocks with an empty line between them; colours and width are the terminal's (NO_COLOR, COLUMNS)."""
    console = _console(stream)
    for number, block in enumerate(blocks):
        if number:
            console.print()
        if isinstance(block, str):
            console.print(printable(block, lines=True), soft_wrap=True)
        elif isinstance(block, Facts):
            _print_facts(block, console)
        else:
            _print_table(block, console)


def printable(text: str, *, lines: bool = False) -> str:
    """Return a text with control characters and lone surrogates escaped: a file name must not drive the terminal.

    ``lines`` keeps line ends.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or (lines and c == "\n") else repr(c)[1:-1] for c in text)


def _console(stream: TextIO) -> "Console":
    from rich.console import Console

    width = None if stream.isatty() or os.environ.get("COLUMNS", "").isdigit() else _UNLIMITED_WIDTH
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False)


def _print_facts(facts: Facts, console: "Console") -> None:
    shown = [(label, value) for label, value in facts.pairs if value is not None]
    width = max((len(label) for label, _ in shown), default=0)
    for label, value in shown:
        console.print(f"{label.ljust(width)}  {printable(value)}", soft_wrap=True)


def _print_table(table: Table, console: "Console") -> None:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False, show_edge=False)
    for heading in table.headings:
        right = heading.startswith(">")
        drawn.add_column(
            heading.removeprefix(">"), justify="right" if right else "left", overflow="fold", no_wrap=right
        )
    for row in table.rows:
        drawn.add_row(*(Text(printable(cell)) for cell in row))
    if not drawn.row_count:
        console.print(table.empty)
        return
    with console.capture() as captured:
        console.print(drawn)
    for line in captured.get().splitlines():  # rich fills the last column with spaces
        console.file.write(line.rstrip() + "\n")
