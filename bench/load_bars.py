"""What a load from local devices promises in time and memory (issue lines of `make bench-accept`), each figure beside its bar.

Times are ratios within the tables of `bench.loading`; memory is that of processes of their own.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from bench.figures import Figure
from bench.loading import (
    LOADERS,
    MAPPED,
    MODEL,
    PASSED_OVER,
    RAW_READ,
    TENSORIZER,
    UNVERIFIED,
    VERIFIED,
    load_tables,
    size_of_weights,
)
from bench.results import Options, Table
from bench.rounds import alternate, make_warm
from bench.work import WORK, new_store, remove
from bench.workers import doing, ours, running

PROCESSES = 4
STORE = "load-bars"
PRIVATE_BYTES = 64 << 20
BUFFER_BYTES = 256 << 20
LIMIT_BYTES = 64 << 20
OPEN_MS = 20.0


def load_figures(source: Path, model: str, rounds: int) -> list[Figure]:
    """Return the figures of time, warm and cold, and of memory; leaves nothing behind."""
    # Cold, the disk's own rate swings by a quarter from second to second, and warm, files lie in the page cache in pieces that change between rounds: more of them.
    warm, cold = load_tables(Options(model, 2 * rounds + 1))
    with new_store(STORE) as store:
        store.push(source, MODEL)
    figures = [*_warm(warm), _open(4 * rounds + 1), *_cold(cold), *_mapped_memory(source), *_read_memory(source)]
    remove(STORE)
    return figures


def _warm(table: Table) -> list[Figure]:
    verified, off = _seconds(table, VERIFIED), _seconds(table, UNVERIFIED)
    name, seconds = _fastest(table, {loader.name for loader in LOADERS if loader.copies} - {TENSORIZER})
    return [
        Figure(
            f"load, warm, verified: rate / {name}, the fastest that copies files in use",
            seconds / verified,
            4.0,
            "",
            at_least=True,
        ),
        Figure(
            f"the same: rate / {TENSORIZER}, which copies files of its own",
            _seconds(table, TENSORIZER) / verified,
            1.0,
            "",
            at_least=True,
        ),
        Figure(f"the same: time / {PASSED_OVER}", verified / _seconds(table, PASSED_OVER), 1.0, ""),
        Figure(
            f"the same, verify=off: time beyond {MAPPED}, opening the store and its files",
            (off - _seconds(table, MAPPED)) * 1000,
            OPEN_MS,
            "ms",
        ),
    ]


def _cold(table: Table) -> list[Figure]:
    verified = _seconds(table, VERIFIED)
    name, seconds = _fastest(table, {loader.name for loader in LOADERS})
    return [
        Figure(f"load, cold, verified: rate / {name}, the fastest", seconds / verified, 1.0, "", at_least=True),
        Figure(f"the same: rate / {RAW_READ}", _seconds(table, RAW_READ) / verified, 0.85, "", at_least=True),
    ]


def _seconds(table: Table, name: str) -> float:
    row = table.row(name)
    if row is None:
        raise RuntimeError(f"{table.key}: {name} was left out: {table.failures.get(name)}")
    return row.median("seconds")


def _fastest(table: Table, names: set[str]) -> tuple[str, float]:
    """Return the fastest of the rows of these names, and its seconds."""
    return min(
        ((row.name, row.median("seconds")) for row in table.rows if row.name in names), key=lambda found: found[1]
    )


def _open(rounds: int) -> Figure:
    worker = ours()
    with running(worker):
        worker.ask("lay", store=WORK / STORE)
        turn = doing(worker, "lay", partial(make_warm, WORK / STORE), {"store": WORK / STORE})
        [timing] = alternate([turn], rounds=rounds).values()
    return Figure("open a store and lay out all of a model, verify=off", timing.median * 1000, OPEN_MS, "ms")


def _mapped_memory(source: Path) -> list[Figure]:
    """Return what one process that loads has written, and what several that load the same together take in all."""
    workers = [ours(f"process {number}") for number in range(PROCESSES)]
    with running(*workers):
        before = [worker.ask("weigh")["facts"] for worker in workers]
        with ThreadPoolExecutor(PROCESSES) as pool:
            list(pool.map(lambda each: each.ask("keep", store=WORK / STORE), workers))
        after = [worker.ask("weigh")["facts"] for worker in workers]
    size = size_of_weights(source)
    grown = [{kind: new[kind] - old[kind] for kind in new} for new, old in zip(after, before, strict=True)]
    return [
        Figure(
            "private memory that a mapped load adds, the worst of four processes",
            max(each["written"] for each in grown) / 2**20,
            PRIVATE_BYTES / 2**20,
            "MiB",
        ),
        Figure(
            f"memory of {PROCESSES} processes that load {size / 2**20:.0f} MiB together",
            sum(each["share"] for each in grown) / 2**20,
            (size + PROCESSES * PRIVATE_BYTES) / 2**20,
            "MiB",
        ),
    ]


def _read_memory(source: Path) -> list[Figure]:
    """Return how much more than the model a load into memory takes at its peak, in a process that loads for the first time."""
    figures = []
    for limit, bar in ((None, BUFFER_BYTES), (LIMIT_BYTES, LIMIT_BYTES)):
        worker = ours()
        with running(worker):
            answer = worker.ask("load", store=WORK / STORE, verify="blocks", mode="read", memory_limit=limit)
        more = (answer["peak_bytes"] - size_of_weights(source)) / 2**20
        given = f"memory_limit={limit >> 20} MiB" if limit else "without a limit given"
        figures.append(Figure(f"peak of mode=read beyond the model, {given}", more, bar / 2**20, "MiB"))
    return figures
