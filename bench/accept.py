"""Acceptance lines that time something: each figure beside its bar, and a non-zero exit where one is not reached.

python bench/accept.py [--model small] [--rounds 5]
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `bench` is found when this is run as a file

from bench.catalog import catalog_figures
from bench.figures import Figure
from bench.mixed_devices import mixed_device_figures
from bench.push_bars import push_figures
from bench.remote import remote_figures
from bench.rounds import Contender, measure
from bench.structure import structure_figures
from bench.work import get_model, new_store, remove

MODEL = "bench/model"
RATE_LIMIT = 40_000_000
DEVICES = 3


def striping(rounds: int) -> Figure:
    """Return rate(3 devices) / (3 · rate(1 device)) of loads from devices of equal limited rate."""
    source = get_model("tiny")
    models = {}
    for devices in (1, DEVICES):
        store = new_store(f"accept-{devices}", devices=devices, rate_limit=RATE_LIMIT)
        store.push(source, MODEL, part_size=1 << 20)
        models[devices] = store.model(MODEL)
    timings = measure([Contender(str(count), model.load) for count, model in models.items()], rounds=rounds)
    efficiency = timings["1"].median / (DEVICES * timings[str(DEVICES)].median)
    return Figure(f"load from {DEVICES} devices: rate / ({DEVICES} · rate of one)", efficiency, 0.9, "", at_least=True)


def main() -> None:
    """Measure all figures, print them, exit with 1 where one misses its bar."""
    parser = argparse.ArgumentParser(description="hold figures to their bars")
    parser.add_argument("--model", default="small")
    parser.add_argument("--rounds", type=int, default=5)
    words = parser.parse_args()
    source = get_model(words.model)
    figures = [
        *push_figures(source, words.rounds),
        striping(words.rounds),
        *mixed_device_figures(source, words.rounds),
        *remote_figures(words.rounds, model=words.model),
        *structure_figures(words.rounds),
        *catalog_figures(words.rounds),
    ]
    for name in ("accept-1", f"accept-{DEVICES}"):
        remove(name)
    table = Table("figure", "measured", "bar", "")
    for figure in figures:
        sign = "≥" if figure.at_least else "≤"
        bar = "none yet" if figure.bar is None else f"{sign} {figure.bar:.2f} {figure.unit}"
        verdict = "holds" if figure.holds else "MISSED"
        table.add_row(
            figure.question, f"{figure.value:.2f} {figure.unit}", bar, "measured" if figure.bar is None else verdict
        )
    Console(width=100).print(table)
    sys.exit(not all(figure.holds for figure in figures))


if __name__ == "__main__":
    main()
