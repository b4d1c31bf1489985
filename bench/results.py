"""What a run measured, as values and as JSON: tables of rows of figures, and the machine that they hold for.

A figure is a list: one number for each round, in order, or one alone where it needs no rounds. Everything shown, drawn or
compared comes from here.
"""

import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from bench.columns import COLUMNS
from bench.rounds import Timing
from bench.work import RESULTS, ROOT, WORK

FORMAT = 1
DOCUMENTED = ROOT / "docs" / "performance" / "result.json"
"""The result that the documents show."""

Kind = Literal["ours", "other", "ceiling"]


class Options(NamedTuple):
    """What a section is told."""

    model: str
    rounds: int


class Row(msgspec.Struct, frozen=True):
    """One contender's figures, by the keys of `COLUMNS`."""

    name: str
    kind: Kind
    figures: dict[str, list[float]]

    def median(self, key: str) -> float:
        """The median of a figure's rounds."""
        return statistics.median(self.figures[key])


class Table(msgspec.Struct, frozen=True):
    """One question and its answer.

    ``yardstick`` is the row whose seconds the others' are compared with between runs; ``size_bytes`` what was moved, for
    rates, 0 where there is none; ``failures`` who was left out, and why.
    """

    key: str
    title: str
    command: str
    rows: list[Row]
    yardstick: str | None = None
    size_bytes: int = 0
    notes: list[str] = []
    failures: dict[str, str] = {}

    def row(self, name: str) -> Row | None:
        """Return the row of that name, None where it was left out."""
        return next((row for row in self.rows if row.name == name), None)

    def columns(self) -> list[str]:
        """The keys of all figures, in the order of `COLUMNS`."""
        present = {key for row in self.rows for key in row.figures}
        return [key for key in COLUMNS if key in present]


class Result(msgspec.Struct, frozen=True):
    """One run."""

    format: int
    commit: str
    time: str
    model: str
    rounds: int
    machine: dict[str, str]
    tables: list[Table]

    def table(self, key: str) -> Table | None:
        """Return the table of that key, None where it was not measured."""
        return next((table for table in self.tables if table.key == key), None)


def timing_rows(timings: Mapping[str, Timing], kinds: Mapping[str, Kind]) -> list[Row]:
    """Return a row of each timing; a name that ``kinds`` lacks is another's."""
    return [
        Row(
            timing.name,
            kinds.get(timing.name, "other"),
            {
                "seconds": timing.seconds,
                "cpu_seconds": timing.cpu_seconds,
                "peak_bytes": [float(timing.peak_bytes)],
            },
        )
        for timing in timings.values()
    ]


def new_result(options: Options, commit: str, machine: dict[str, str], tables: Sequence[Table]) -> Result:
    """Return a result of now; ``commit`` and ``machine`` are as they were before it was measured."""
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return Result(FORMAT, commit, moment, options.model, options.rounds, machine, list(tables))


def write_result(result: Result, folder: Path = RESULTS) -> Path:
    """Write a result under its time and commit, and return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.time.replace(':', '')}-{result.commit}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    return path


def read_result(path: Path) -> Result:
    """Return a result from its file.

    Raises:
        ValueError: it is no result, or one of a later format.
    """
    try:
        result = msgspec.json.decode(path.read_bytes(), type=Result)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path} is no result of `make bench`: {error}") from error
    if result.format != FORMAT:
        raise ValueError(f"{path} has format {result.format}, this reads {FORMAT}")
    return result


def machine_facts() -> dict[str, str]:
    """Return what the figures depend on: cores, memory, kernel, disk, versions, and how busy the machine was."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = subprocess.run(
        ["df", "--output=source,fstype", str(ROOT)],
        check=True,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    facts = {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{memory / 1e9:.1f} GB",
        "kernel": platform.release(),
        "disk": " ".join(found.stdout.splitlines()[-1].split()),
        "disk_free": f"{shutil.disk_usage(ROOT).free / 1e9:.0f} GB",
        "load_before": f"{os.getloadavg()[0]:.2f}",
        "python": platform.python_version(),
        "tensorkeep": version("tensorkeep"),
    }
    return facts | their_versions()


def their_versions() -> dict[str, str]:
    """Return the versions of the contenders' packages, as installed."""
    packages = next((WORK / "contenders" / "lib").glob("python*/site-packages"), None)
    if packages is None:
        return {}
    wanted = {line.partition("=")[0].partition("[")[0].partition(">")[0] for line in _pins()}
    folders = [path.name.removesuffix(".dist-info").split("-", 1) for path in packages.glob("*.dist-info")]
    return {name: number for name, number in sorted(folders) if name.replace("_", "-") in wanted or name in wanted}


def _pins() -> list[str]:
    lines = (ROOT / "bench" / "contenders.txt").read_text("utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def current_commit() -> str:
    """Return the commit, and whether there are changes on top of it."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    found = subprocess.run(words, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return found.stdout.strip() or "unknown"
