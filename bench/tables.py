"""A table of figures as text: for a terminal, and as Markdown for the documents. Both show the same cells."""

import statistics

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from bench.columns import COLUMNS, written
from bench.results import Row, Table


def headings(table: Table) -> list[str]:
    """Return what stands above the cells."""
    names = ["contender" if _reference(table) else ""]
    for key in table.columns():
        names.append(COLUMNS[key].heading)
        if key == "seconds":
            names += ["fastest - slowest"] + (["GB/s"] if table.size_bytes else [])
            names += ["time / ours"] if _reference(table) else []
    return names


def cells(table: Table, row: Row) -> list[str]:
    """Return a row as texts: medians of rounds; where there are several, seconds with the fastest and the slowest."""
    texts = [row.name]
    reference = _reference(table)
    for key in table.columns():
        values = row.figures.get(key, [])
        texts.append(written(key, statistics.median(values)) if values else "")
        if key == "seconds":
            texts += _beside_seconds(table, values)
            texts += ([f"{row.median(key) / reference.median(key):.2f}"] if values else [""]) if reference else []
    return texts


def show(table: Table, console: Console) -> None:
    """Print a table."""
    shown = RichTable(title=_title(table))
    for number, heading in enumerate(headings(table)):
        shown.add_column(heading, justify="right" if number else "left", overflow="fold")
    for row in table.rows:
        shown.add_row(
            *map(escape, cells(table, row)),
            style="bold" if row.kind == "ours" else "dim" if row.kind == "ceiling" else "",
        )
    console.print(shown)
    for line in [*table.notes, *(f"left out: {name}: {reason}" for name, reason in table.failures.items())]:
        console.print(line, style="yellow", markup=False)


def as_markdown(table: Table) -> str:
    """Return a table as Markdown, ours in bold."""
    names = headings(table)
    lines = [f"**{_title(table)}**", "", f"| {' | '.join(names)} |", f"|---{'|--:' * (len(names) - 1)}|"]
    for row in table.rows:
        texts = cells(table, row)
        if row.kind == "ours":
            texts[0] = f"**{texts[0]}**"
        lines.append(f"| {' | '.join(texts)} |")
    lines += [f"\n{note}" for note in table.notes]
    if table.failures:
        reasons = "; ".join(f"{name} ({reason})" for name, reason in table.failures.items())
        lines.append(f"\nLeft out: {reasons}.")
    return "\n".join(lines)


def _title(table: Table) -> str:
    return f"{table.title}; {table.size_bytes / 1e9:.2f} GB" if table.size_bytes else table.title


def _reference(table: Table) -> Row | None:
    """Return the row that others are compared with: the first of ours, where there are others."""
    if all(row.kind == "ours" for row in table.rows):
        return None
    return next((row for row in table.rows if row.kind == "ours" and "seconds" in row.figures), None)


def _beside_seconds(table: Table, values: list[float]) -> list[str]:
    spread = f"{min(values):.2f} - {max(values):.2f}" if values else ""
    rate = f"{table.size_bytes / statistics.median(values) / 1e9:.2f}" if values else ""
    return [spread, rate] if table.size_bytes else [spread]
