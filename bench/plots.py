# mypy: disable-error-code="import-not-found,import-untyped"
"""One plot for each table of a result, as SVG with its text as text: small enough to lie in the repository.

    .bench/contenders/bin/python bench/plots.py RESULT.json FOLDER

Run by the contenders' Python, which has matplotlib; reads the JSON as it is.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `bench` is found when this is run as a file

from matplotlib import pyplot as plt

from bench.columns import COLUMNS, plot_name

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tensorkeep",  # the same figures, the same bytes
    "font.size": 9,
}
COLOURS = {"ours": "#1f6feb", "other": "#8b949e", "ceiling": "#d0d7de"}
FIRST = ("efficiency", "seconds", "stored_bytes", "read_over_needed", "p50_ms")


def draw_table(table: dict[str, Any], path: Path) -> None:
    """Draw the medians of a table's first figure as bars, with the fastest and the slowest round."""
    key = next(key for key in FIRST if any(key in row["figures"] for row in table["rows"]))
    column = COLUMNS[key]
    rows = [row for row in table["rows"] if key in row["figures"]][::-1]
    rounds = [[value / column.scale for value in row["figures"][key]] for row in rows]
    medians = [statistics.median(values) for values in rounds]
    spread = [
        [middle - min(values) for middle, values in zip(medians, rounds, strict=True)],
        [max(values) - middle for middle, values in zip(medians, rounds, strict=True)],
    ]
    figure, axes = plt.subplots(figsize=(7.5, 0.9 + 0.3 * len(rows)), layout="constrained")
    axes.barh(
        [row["name"] for row in rows],
        medians,
        xerr=spread,
        color=[COLOURS[row["kind"]] for row in rows],
        error_kw={"elinewidth": 0.8, "ecolor": "#57606a"},
    )
    axes.set_title(table["title"], loc="left", fontsize=10)
    axes.set_xlabel(column.heading)
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Draw all tables of a result."""
    result, folder = json.loads(Path(sys.argv[1]).read_text("utf-8")), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    plt.switch_backend("svg")
    plt.rcParams.update(STYLE)
    for table in result["tables"]:
        if table["rows"]:
            draw_table(table, folder / plot_name(table["key"]))


if __name__ == "__main__":
    main()
