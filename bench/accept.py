"""Acceptance lines that time something: each figure beside its bar, and a non-zero exit where one is not reached.

python bench/accept.py [--model small] [--rounds 5] [SECTION ...]

Without a section all are measured. Each figure is printed when it is there, all of them again at the end.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `bench` is found when this is run as a file

from bench.catalog import catalog_figures
from bench.erasure import erasure_figures
from bench.figures import Figure
from bench.gpu import gpu_figures
from bench.late import late_device_figures
from bench.load_bars import load_figures
from bench.mixed_devices import mixed_device_figures
from bench.partial import partial_figures
from bench.push_bars import push_figures
from bench.rebuilding import rebuild_figures
from bench.remote import open_remote_figures, remote_figures
from bench.striping import striping_figures
from bench.structure import structure_figures
from bench.upkeep import upkeep_figures
from bench.work import get_model


def _sections(source: Path, rounds: int, model: str) -> dict[str, Callable[[], Iterable[Figure]]]:
    return {
        "push": lambda: push_figures(source, rounds),
        "load": lambda: load_figures(source, model, rounds),
        "partial": lambda: partial_figures(model),
        "striping": lambda: striping_figures(source, rounds),
        "mixed": lambda: mixed_device_figures(source, rounds),
        "late": lambda: late_device_figures(source, rounds),
        "remote": lambda: remote_figures(rounds, model=model),
        "remote-open": lambda: open_remote_figures(rounds, model=model),
        "erasure": lambda: erasure_figures(source, rounds),
        "upkeep": lambda: upkeep_figures(source, rounds),
        "rebuild": lambda: rebuild_figures(rounds),
        "structure": lambda: structure_figures(rounds),
        "catalog": lambda: catalog_figures(rounds),
        "gpu": lambda: gpu_figures(source, rounds),
    }


def main() -> None:
    """Measure figures, print them, exit with 1 where one misses its bar."""
    parser = argparse.ArgumentParser(description="hold figures to their bars")
    parser.add_argument("--model", default="small")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("sections", nargs="*", help="what to measure; all where none is named")
    words = parser.parse_args()
    sections = _sections(get_model(words.model), words.rounds, words.model)
    if unknown := set(words.sections) - sections.keys():
        parser.error(f"unknown sections {', '.join(sorted(unknown))}: known are {', '.join(sections)}")
    figures: list[Figure] = []
    for name in words.sections or sections:
        for figure in sections[name]():
            figures.append(figure)
            print(*_row(figure), sep=" | ", flush=True)
    table = Table("figure", "measured", "bar", "")
    for figure in figures:
        table.add_row(*_row(figure))
    Console(width=100).print(table)
    sys.exit(not all(figure.holds for figure in figures))


def _row(figure: Figure) -> tuple[str, str, str, str]:
    sign = "≥" if figure.at_least else "≤"
    bar = "none" if figure.bar is None else f"{sign} {figure.bar:.2f} {figure.unit}"
    verdict = "measured" if figure.bar is None else "holds" if figure.holds else "MISSED"
    return figure.question, f"{figure.value:.2f} {figure.unit}", bar, verdict


if __name__ == "__main__":
    main()
