"""Upkeep: how fast a deep scrub reads, and repair and rebalance write, beside what the disk gives at the same moment."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

import tensorkeep
from bench.figures import Figure
from bench.loading import read_all
from bench.push_bars import write_direct
from bench.rounds import Contender, make_cold, measure
from bench.work import WORK, remove
from tensorkeep.store.store import Store

NAME, MODEL, CEILING = "upkeep", "bench/model", "upkeep-ceiling"
DEVICES = ("d0", "d1", "d2")


def upkeep_figures(source: Path, rounds: int) -> Iterable[Figure]:
    """Yield rates of a deep scrub, a repair and a rebalance, each beside its ceiling in alternating rounds."""
    folder = remove(NAME)
    with tensorkeep.init(folder / "store", replicas=2) as store:
        for name in DEVICES:
            store.devices.add(name, str(folder / name), bandwidth=10**9)
        store.push(source, MODEL)
        yield from _scrub_figures(store, folder, rounds)
        yield from _repair_figures(store, folder, rounds)
        yield from _rebalance_figures(store, folder, rounds)
    remove(NAME)


def _scrub_figures(store: Store, folder: Path, rounds: int) -> Iterable[Figure]:
    files = [path for name in DEVICES for path in (folder / name / "parts").rglob("*") if path.is_file()]
    buffers = [np.ones(path.stat().st_size, np.uint8) for path in files]
    size = sum(buffer.nbytes for buffer in buffers)
    read = {"bytes": 0}

    def scrub() -> None:
        report = store.scrub(deep=True)
        assert report.ok
        read["bytes"] = report.bytes

    timings = measure(
        [
            Contender("scrub", scrub, lambda: make_cold(folder)),
            Contender("ceiling", lambda: read_all(files, buffers), lambda: make_cold(folder)),
        ],
        rounds=rounds,
    )
    rate, ceiling = read["bytes"] / timings["scrub"].median, size / timings["ceiling"].median
    yield Figure("deep scrub, cold, three devices on one disk", rate / 1e9, None, "GB/s")
    yield Figure("  rate / ceiling: pread, 4 threads, memory in use", rate / ceiling, None, "")


def _repair_figures(store: Store, folder: Path, rounds: int) -> Iterable[Figure]:
    written: list[int] = []

    def prepare() -> None:
        store.gc(grace_s=0, max_fraction=None)
        for path in (folder / "d0" / "parts").rglob("*"):
            if path.is_file():
                path.unlink()
        store.scrub(devices=["d0"])

    def repair() -> None:
        report = store.repair()
        assert report.ok
        written.append(report.written_bytes)

    yield from _against_writes("repair", repair, prepare, written, rounds)


def _rebalance_figures(store: Store, folder: Path, rounds: int) -> Iterable[Figure]:
    store.devices.add("d3", str(folder / "d3"), bandwidth=10**9)
    moved: list[int] = []

    def prepare() -> None:
        assert store.devices.drain("d3", grace_s=0).empty
        store.devices.undrain("d3")
        store.gc(grace_s=0, max_fraction=None)

    def rebalance() -> None:
        report = store.rebalance()
        assert not report.failed
        moved.append(report.moved_bytes)

    yield from _against_writes("rebalance onto a fourth device", rebalance, prepare, moved, rounds)


def _against_writes(
    what: str, run: Callable[[], None], prepare: Callable[[], None], sizes: list[int], rounds: int
) -> Iterable[Figure]:
    size = 1 << 30
    timings = measure(
        [
            Contender("ours", run, prepare),
            Contender("ceiling", lambda: write_direct(WORK / CEILING, size)),
        ],
        rounds=rounds,
    )
    (WORK / CEILING).unlink()
    rate, ceiling = sizes[-1] / timings["ours"].median, size / timings["ceiling"].median
    yield Figure(f"{what}, read back: bytes written", rate / 1e9, None, "GB/s")
    yield Figure("  rate / ceiling: direct writes + fsync", rate / ceiling, None, "")
