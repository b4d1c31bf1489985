"""Writes the tables of `docs/performance.md` from a result, so that no figure is typed by hand.

    scripts/bench.sh document RESULT.json

Each table stands between ``<!-- table: KEY -->`` and ``<!-- end of table -->``; a table that the result has not is left as it
is. Plots go to ``docs/performance/``, and the result beside them, for later runs to be compared with.
"""

import argparse
import re
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `bench` is found when this is run as a file

from bench.columns import plot_name
from bench.results import DOCUMENTED, Result, Table, read_result
from bench.run import draw
from bench.tables import as_markdown
from bench.work import ROOT

DOCUMENT = ROOT / "docs" / "performance.md"
_PLACE = re.compile(r"(?<=<!-- table: )(?P<key>\S+) -->\n.*?<!-- end of table -->", re.DOTALL)


def write_tables(text: str, result: Result) -> str:
    """Return a document with the tables of a result in their places.

    Raises:
        ValueError: the result has a table that the document has no place for.
    """
    places = {found["key"] for found in _PLACE.finditer(text)}
    if homeless := [table.key for table in result.tables if table.key not in places]:
        raise ValueError(f"the document has no place for {', '.join(homeless)}: write `<!-- table: {homeless[0]} -->`")

    def fill(found: re.Match[str]) -> str:
        table = result.table(found["key"])
        return found[0] if table is None else f"{table.key} -->\n{as_section(table, result)}\n<!-- end of table -->"

    return _PLACE.sub(fill, text)


def as_section(table: Table, result: Result) -> str:
    """Return a table with what made it and where."""
    machine = result.machine
    rounds = f"{result.rounds} alternating rounds, " if any("seconds" in row.figures for row in table.rows) else ""
    facts = (
        f"{result.time[:10]}, commit {result.commit}, model `{result.model}`, {rounds}{machine['cores']} cores "
        f"({machine['processor']}), {machine['memory']}, Linux {machine['kernel']}, {machine['disk'].split()[-1]}; "
        f"load of the machine before: {machine['load_before']}"
    )
    plot = f"![{table.title}]({DOCUMENTED.parent.name}/{plot_name(table.key)})"
    return f"{as_markdown(table)}\n\n`{table.command}`: {facts}.\n\n{plot}"


def main() -> None:
    """Write the tables of the result that the command line names."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench.sh document", description="write the tables of docs/performance.md from a result"
    )
    parser.add_argument("result", type=Path, metavar="RESULT.json")
    words = parser.parse_args()
    try:
        result = read_result(words.result)
        text = write_tables(DOCUMENT.read_text("utf-8"), result)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    DOCUMENT.write_text(text, "utf-8")
    DOCUMENTED.parent.mkdir(parents=True, exist_ok=True)
    if words.result.resolve() != DOCUMENTED.resolve():
        shutil.copyfile(words.result, DOCUMENTED)
    draw(DOCUMENTED, DOCUMENTED.parent)
    print(f"written: {DOCUMENT.relative_to(ROOT)}, {DOCUMENTED.parent.relative_to(ROOT)}/")


if __name__ == "__main__":
    main()
