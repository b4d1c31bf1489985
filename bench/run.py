"""Measure, print tables, write one JSON file and a plot for each question: what `make bench` runs.

    scripts/bench.sh run [load push devices …] [--model small] [--rounds 5] [--quick]

Without names all sections run. ``--quick`` is for checking the bench itself: `tiny`, three rounds. Exits with 1 where a
contender had to be left out.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `bench` is found when this is run as a file

from bench.results import Options, Table, current_commit, machine_facts, new_result, read_result, write_result
from bench.tables import show
from bench.work import ROOT
from bench.workers import THEIR_PYTHON

Section = Callable[[Options], list[Table]]

SECTIONS: dict[str, str] = {
    "load": "bench.loading:load_tables",
    "push": "bench.pushing:push_tables",
    "devices": "bench.striping:striping_tables",
    "partial": "bench.partial:partial_tables",
    "storage": "bench.storage:storage_tables",
    "remote": "bench.remote_tables:remote_tables",
    "catalog": "bench.catalog:catalog_tables",
}
"""Section → ``module:function`` of one that takes `Options` and returns tables, in the order in which they run."""


def get_section(name: str) -> Section:
    """Return the function of a section, imported now."""
    module, _, function = SECTIONS[name].partition(":")
    section: Section = getattr(import_module(module), function)
    return section


def draw(path: Path, folder: Path) -> None:
    """Draw the plots of a result into a folder, by the contenders' Python, which has matplotlib."""
    command = [str(THEIR_PYTHON), str(ROOT / "bench" / "plots.py"), str(path), str(folder)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def _measure(names: list[str], options: Options, console: Console) -> Path:
    """Return the file of the result; it is written anew after each section, so that a run that is stopped leaves what it has."""
    commit, facts = current_commit(), machine_facts()  # before: also how busy the machine was
    result = new_result(options, commit, facts, [])
    for name in names:
        for table in get_section(name)(options):
            show(table, console)
            result.tables.append(table)
        path = write_result(result)
    return path


def main() -> None:
    """Run the sections that the command line names."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench.sh run", description="measure push and load, beside what is in use today"
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; none: all")
    parser.add_argument("--model", default="small")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="tiny, 3 rounds: to check the bench itself")
    words = parser.parse_args()
    if unknown := set(words.sections) - SECTIONS.keys():
        parser.error(f"no section is called {', '.join(sorted(unknown))}: there are {', '.join(SECTIONS)}")
    options = Options("tiny", 3) if words.quick else Options(words.model, words.rounds)
    console = Console(width=None if sys.stdout.isatty() else 140)
    path = _measure(words.sections or list(SECTIONS), options, console)
    draw(path, path.with_suffix(""))
    console.print(f"written: {path.relative_to(ROOT)}, plots: {path.with_suffix('').relative_to(ROOT)}/")
    sys.exit(any(table.failures for table in read_result(path).tables))


if __name__ == "__main__":
    main()
