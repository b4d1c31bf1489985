"""The catalog in PostgreSQL with many versions: resolve and plan at a steady rate, what is there already, gc of what was removed.

    python bench/catalog.py [--versions 10000 100000] [--seconds 30]

Starts a PostgreSQL of its own and stops it. `bench.generated` says what the versions are made of. A request opens a version of 300
tensors by name, reads its checks object, finds all its parts and plans their reads. Requests start when they are due, whether
or not earlier ones have ended, and their latency counts from then. As a server should, this process keeps what it imported
and opened before them out of Python's garbage collections (``gc.freeze``): one takes 50 ms else. The cost of gc is that of the
catalog (no bytes are deleted): 100 versions removed, condemned, listed and dropped, in seconds and in rows that the server read.
Prints a table and writes ``bench/results/catalog.json``.
"""

import argparse
import gc
import itertools
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
from rich.console import Console
from rich.table import Table as RichTable

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `bench` is found when this is run as a file

import tensorkeep
from bench.figures import Figure
from bench.generated import (
    BASES,
    METADATA,
    MODELS,
    OWN,
    PART_BYTES,
    PARTS,
    Generated,
    generated_store,
    part_digest,
    part_of,
)
from bench.results import Options, Row, Table
from bench.work import RESULTS
from tensorkeep.catalog.protocol import ObjectKey, ObjectRequest
from tensorkeep.planning.read_plan import ExtentMap, choose_copies, plan_reads
from tensorkeep.records.layout import BLOCK_BYTES
from tensorkeep.records.names import parse_revision
from tensorkeep.records.naming import ObjectKind
from tensorkeep.records.ulid import RANDOM_BYTES, make_ulid
from tensorkeep.store.context import StoreContext
from tensorkeep.store.revisions import get_version
from tensorkeep.store.structure import open_checks, open_manifest, part_table
from tests.engines.postgres import Postgres

SIZES = (10_000, 100_000)
REQUESTS_PER_S = 50
REMOVED = 100
DIGESTS = 1000
_THREADS = 8
_READ_BYTES = 16 << 20
_WARM_REQUESTS = 50

Measured = dict[str, float]


def measure_store(generated: Generated, *, seconds: float, rounds: int) -> Measured:
    """Return what a generated store's catalog gives; versions of it are removed."""
    with tensorkeep.open(generated.url) as store:
        latencies = _open_loop(store._context, seconds)
        having = [_have(store._context, generated, seed) for seed in range(3 * rounds)]
    removals = [_collect(generated, batch) for batch in range(rounds)]
    return {
        "versions": generated.versions,
        "load_average": os.getloadavg()[0],
        "requests": len(latencies),
        "plan_ms_p50": statistics.median(latencies) * 1e3,
        "plan_ms_p99": statistics.quantiles(latencies, n=100)[98] * 1e3,
        "have_ms_p50": statistics.median(having) * 1e3,
        "have_ms_max": max(having) * 1e3,
        **{name: statistics.median(removal[name] for removal in removals) for name in removals[0]},
    }


def _open_loop(context: StoreContext, seconds: float) -> list[float]:
    """Return the latencies of requests that are due at a steady rate, each for a model chosen by a seed."""
    chosen = random.Random(1)
    for _ in range(_WARM_REQUESTS):
        _plan(context, chosen.randrange(MODELS))
    gc.collect()
    gc.freeze()
    first = time.perf_counter() + 0.1

    def request(number: int, model: int) -> float:
        due = first + number / REQUESTS_PER_S
        time.sleep(max(due - time.perf_counter(), 0))
        _plan(context, model)
        return time.perf_counter() - due

    with ThreadPoolExecutor(_THREADS) as pool:
        count = int(seconds * REQUESTS_PER_S)
        return list(pool.map(request, range(count), [chosen.randrange(MODELS) for _ in range(count)]))


def _plan(context: StoreContext, model: int) -> None:
    _, version = get_version(context, parse_revision(f"bench/m{model}"))
    manifest = open_manifest(context, version)
    table = part_table(context, manifest, open_checks(context, version, manifest), range(len(manifest.parts)))
    copies = {part: [source.device for source in found] for part, found in table.sources.items()}
    choice = choose_copies(dict(enumerate(manifest.parts)), copies, table.rates)
    item = itertools.count()
    pieces = [
        piece
        for file in manifest.files
        for extents in [ExtentMap(file.extents)]
        for tensor in file.tensors
        for piece in extents.pieces(tensor.start, tensor.length, next(item))
    ]
    reads = plan_reads(pieces, manifest.parts, max_read_bytes=_READ_BYTES, align=BLOCK_BYTES)
    if len(choice.copies) != PARTS or {read.part for read in reads} != set(range(PARTS)):
        raise RuntimeError(f"bench/m{model} can't be planned whole")


def _have(context: StoreContext, generated: Generated, seed: int) -> float:
    """Ask as a push does which of 1,000 parts are there, half of them of bases, half of single versions; return the seconds."""
    chosen = random.Random(seed)
    numbers = [chosen.randrange(1 + generated.versions // 2, generated.versions) for _ in range(DIGESTS // 2)]
    ids = {part_of(number, chosen.randrange(OWN)) for number in numbers}
    ids |= {*chosen.sample(range(1, 1 + BASES * PARTS), DIGESTS - len(ids))}
    requests = [
        ObjectRequest(
            key=ObjectKey(ObjectKind.PART, part_digest(part)),
            size_bytes=PART_BYTES,
            copies=1,
            candidates=(generated.device,),
            ulid=make_ulid(context.runtime.clock.now(), chosen.randbytes(RANDOM_BYTES)),
        )
        for part in sorted(ids)
    ]
    began = time.perf_counter()
    answers = context.catalog.stage("bench", requests)
    took = time.perf_counter() - began
    if len(answers) != DIGESTS or any(answer.staged for answer in answers):
        raise RuntimeError("parts that are there were staged again")
    return took


def _collect(generated: Generated, batch: int) -> Measured:
    """Remove versions and collect what only they had; return seconds of both and the rows that the server read for gc."""
    with tensorkeep.open(generated.url) as store:
        catalog, now = store._context.catalog, store._context.runtime.clock.now()
        began = time.perf_counter()
        for model, version in generated.removable(REMOVED, batch):
            catalog.remove_version(model, version, heads=(), now=now)
        removing = time.perf_counter() - began
    rows_before = _rows_read(generated.url)
    with tensorkeep.open(generated.url) as store:
        catalog, now = store._context.catalog, store._context.runtime.clock.now()
        began = time.perf_counter()
        found = catalog.condemn(grace_s=0, dry_run=False, heads=(), now=now)
        rows = catalog.list_condemned(grace_s=0, now=now, after=0, limit=10_000)
        catalog.drop([row.id for row in rows])
        collecting = time.perf_counter() - began
    if found.locations != len(rows) or len(rows) != REMOVED * (OWN + len(METADATA)):
        raise RuntimeError(f"gc took {found.locations} rows, {len(rows)} of them were condemned")
    return {"remove_s": removing, "gc_s": collecting, "gc_rows": _rows_read(generated.url) - rows_before}


def _rows_read(url: str) -> int:
    """Return how many rows and index entries the server has read of the catalog; sessions tell when they end."""
    time.sleep(0.5)
    query = """
        SELECT (SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_user_tables)
            + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes)
    """
    with psycopg.connect(url) as connection:
        [count] = connection.execute(query).fetchone() or [0]
        return int(count)


def bench_catalog(sizes: Sequence[int], *, seconds: float, rounds: int) -> list[Measured]:
    """Return what catalogs of these numbers of versions give, one after the other, each new."""
    found = []
    with Postgres.running() as postgres:
        for versions in sizes:
            began = time.perf_counter()
            with generated_store(postgres, versions) as generated:
                made_s = time.perf_counter() - began
                found.append({**measure_store(generated, seconds=seconds, rounds=rounds), "made_s": made_s})
    return found


def catalog_figures(rounds: int) -> list[Figure]:
    """Return the figures of a large catalog beside their bars."""
    small, large = bench_catalog(SIZES, seconds=30, rounds=rounds)
    return _figures(small, large)


def catalog_tables(options: Options) -> list[Table]:
    """Return the table ``catalog``; the model does not matter to it."""
    rows = [
        Row(
            f"{measured['versions']:,.0f} versions of 300 tensors",
            "ours",
            {
                "p50_ms": [measured["plan_ms_p50"]],
                "p99_ms": [measured["plan_ms_p99"]],
                "have_ms": [measured["have_ms_p50"]],
                "gc_seconds": [_spent(measured)],
                "gc_rows": [measured["gc_rows"]],
            },
        )
        for measured in bench_catalog(SIZES, seconds=30, rounds=options.rounds)
    ]
    title = f"Resolve and plan at {REQUESTS_PER_S} requests a second, have(), gc, in PostgreSQL"
    return [Table("catalog", title, "scripts/bench.sh run catalog", rows)]


def _figures(small: Measured, large: Measured) -> list[Figure]:
    size = f"{large['versions']:,.0f} versions of 300 tensors in PostgreSQL"
    removed = f"{REMOVED} removed versions, {large['versions']:,.0f} against {small['versions']:,.0f}"
    return [
        Figure(f"{size}: resolve + plan at {REQUESTS_PER_S}/s, p99", large["plan_ms_p99"], 20, "ms"),
        Figure(f"{size}: have() of {DIGESTS:,} digests, median", large["have_ms_p50"], 30, "ms"),
        Figure(f"removal and gc of {removed}: time", _spent(large) / _spent(small), 2, ""),
        Figure(f"gc of {removed}: rows read", large["gc_rows"] / small["gc_rows"], 2, ""),
    ]


def _spent(measured: Measured) -> float:
    return measured["remove_s"] + measured["gc_s"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="measure a catalog with many versions")
    parser.add_argument("--versions", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    words = parser.parse_args()
    found = bench_catalog(words.versions, seconds=words.seconds, rounds=words.rounds)
    table = RichTable("", *(f"{measured['versions']:,.0f} versions" for measured in found))
    for name in found[0]:
        table.add_row(name, *(f"{measured[name]:,.3f}" for measured in found))
    Console(width=100).print(table)
    RESULTS.mkdir(parents=True, exist_ok=True)
    result = {"version": tensorkeep.__version__, "sizes": found}
    (RESULTS / "catalog.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
