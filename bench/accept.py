"""Acceptance lines that time something: each figure beside its bar, and a non-zero exit where one is not reached.

python bench/accept.py [--model small] [--rounds 5]
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `bench` is found when this is run as a file

import tensorkeep
from bench.figures import Figure
from bench.mixed_devices import mixed_device_figures
from bench.rounds import Contender, copy_and_sync, make_warm, measure
from bench.structure import structure_figures
from bench.work import WORK, get_model, new_store, remove

MODEL = "bench/model"
RATE_LIMIT = 40_000_000
DEVICES = 3


def push_against_copy(source: Path, rounds: int) -> Figure:
    """Return the time of a push into a new store over that of ``cp -r`` and sync."""

    def prepare_push() -> None:
        new_store("accept").close()
        make_warm(source)

    def push() -> None:
        with tensorkeep.open(WORK / "accept") as store:
            store.push(source, MODEL)

    def prepare_copy() -> None:
        remove("copy")
        make_warm(source)

    timings = measure(
        [
            Contender("push", push, prepare_push),
            Contender("copy", lambda: copy_and_sync(source, WORK / "copy"), prepare_copy),
        ],
        rounds=rounds,
    )
    remove("copy")
    ratio = timings["push"].median / timings["copy"].median
    # No bar yet: the catalog's small transactions wait for the parts' bytes on the same disk, which is still to be mended.
    return Figure("push of a new model / cp -r + sync", ratio, None, "times")


def unchanged_push(source: Path, rounds: int) -> Figure:
    """Return the seconds of pushing what is already there."""
    with new_store("accept") as store:
        store.push(source, MODEL)
        time.sleep(2.5)  # the stat cache distrusts files under two seconds old
        store.push(source, MODEL)
        timings = measure([Contender("push", lambda: store.push(source, MODEL))], rounds=rounds)
    return Figure("push of an unchanged model", timings["push"].median, 1.0, "s")


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


def start_of_the_command_line(rounds: int) -> Figure:
    """Return the seconds of ``tensorkeep --help``."""
    command = [str(Path(sys.executable).with_name("tensorkeep")), "--help"]
    seconds = []
    for _ in range(2 * rounds):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
        seconds.append(time.perf_counter() - start)
    return Figure("tensorkeep --help", statistics.median(seconds), 0.5, "s")


def main() -> None:
    """Measure all figures, print them, exit with 1 where one misses its bar."""
    parser = argparse.ArgumentParser(description="hold figures to their bars")
    parser.add_argument("--model", default="small")
    parser.add_argument("--rounds", type=int, default=5)
    words = parser.parse_args()
    source = get_model(words.model)
    figures = [
        start_of_the_command_line(words.rounds),
        push_against_copy(source, words.rounds),
        unchanged_push(source, words.rounds),
        striping(words.rounds),
        *mixed_device_figures(source, words.rounds),
        *structure_figures(words.rounds),
    ]
    for name in ("accept", "accept-1", f"accept-{DEVICES}"):
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
