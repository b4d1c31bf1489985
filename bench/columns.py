"""What a figure is: its heading, how it is written, whether less of it is better, and how two runs are compared by it.

A result names its figures by the keys of `COLUMNS` only. Standard library only: the program that draws plots reads it too.
"""

from typing import NamedTuple


class Column(NamedTuple):
    """A kind of figure.

    Attributes:
        heading: as tables show it.
        scale: divides the figure before it is written.
        form: a format for the scaled figure.
        less_is_better: None where neither is.
        relative: compared as a ratio to the yardstick of the same run, not as it is: seconds are those of a machine.
        tolerance: how much worse a later run may be, as a share, before `compare` fails; None: it is not compared.
    """

    heading: str
    scale: float = 1.0
    form: str = ".2f"
    less_is_better: bool | None = True
    relative: bool = False
    tolerance: float | None = None


COLUMNS = {
    "seconds": Column("seconds", relative=True, tolerance=0.25),
    "once_seconds": Column("seconds, once"),
    "cpu_seconds": Column("CPU s", relative=True, tolerance=0.25),
    "peak_bytes": Column("peak memory MB", 1e6, ".0f", tolerance=0.25),
    "stored_bytes": Column("stored MB", 1e6, ",.1f", tolerance=0.02),
    "new_bytes": Column("new MB", 1e6, ",.1f", tolerance=0.02),
    "read_over_needed": Column("bytes read / needed", form=".3f", tolerance=0.02),
    "needed_bytes": Column("needed MB", 1e6, ",.2f", None),
    "efficiency": Column("efficiency", less_is_better=False, tolerance=0.05),
    "slowest_seconds": Column("max L_i s", less_is_better=None),
    "p50_ms": Column("p50 ms", relative=True, tolerance=0.5),
    "p99_ms": Column("p99 ms"),
    "have_ms": Column("have of 1,000 ms"),
    "gc_seconds": Column("gc of 100 s"),
    "gc_rows": Column("rows read for it", form=",.0f"),
}


def plot_name(table: str) -> str:
    """Return the file name of a table's plot."""
    return f"{table.replace('/', '-')}.svg"


def written(key: str, value: float) -> str:
    """Return a figure as tables show it."""
    column = COLUMNS[key]
    return f"{value / column.scale:{column.form}}"
