"""Results as a run would make them."""

from bench.results import FORMAT, Result, Row, Table

MACHINE = {
    "cores": "2",
    "processor": "A processor",
    "memory": "24.0 GB",
    "kernel": "6.1",
    "disk": "/dev/vda ext4",
    "load_before": "0.10",
}


def timed(name: str, seconds: list[float], *, kind: str = "ours", peak_bytes: float = 1e8) -> Row:
    figures = {"seconds": seconds, "cpu_seconds": [each / 2 for each in seconds], "peak_bytes": [peak_bytes]}
    return Row(name, kind, figures)  # type: ignore[arg-type]


def load_table(ours: list[float], ceiling: list[float]) -> Table:
    return Table(
        key="load/warm",
        title="Load",
        command="scripts/bench.sh run load",
        rows=[timed("tensorkeep", ours), timed("other", [9.0], kind="other"), timed("pread", ceiling, kind="ceiling")],
        yardstick="pread",
        size_bytes=2_000_000_000,
    )


def storage_table(stored: float) -> Table:
    row = Row("tensorkeep", "ours", {"stored_bytes": [stored]})
    return Table("storage", "What versions take", "scripts/bench.sh run storage", [row])


def result(*tables: Table, model: str = "small") -> Result:
    return Result(FORMAT, "abc1234", "2026-01-02T03:04:05Z", model, 5, MACHINE, list(tables))
