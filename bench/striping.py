"""Load from several devices of equal limited rate: the claim is L = max L_i, so D devices load D times as fast as one.

efficiency = rate(D) / (D · rate(1)), of the same model in one run; 1.0 is the claim.
"""

import statistics
from pathlib import Path

from bench.figures import Figure
from bench.loading import MODEL, fresh_memory, read_all, size_of_weights, weights
from bench.results import Options, Row, Table
from bench.rounds import Contender, measure, size_of
from bench.work import get_model, new_store, remove

DEVICES = (1, 2, 3, 4, 8)
BAR = 0.95
SECONDS_OF_ONE = 4.0
PART_BYTES = 1 << 20


def striping_tables(options: Options) -> list[Table]:
    """Return the table ``devices``: `tiny` from 1, 2, 3, 4 and 8 throttled devices."""
    source = get_model("tiny")
    rate = int(size_of(source) / SECONDS_OF_ONE)
    models, stores = {}, []
    for count in DEVICES:
        store = new_store(f"striping-{count}", devices=count, rate_limit=rate)
        store.push(source, MODEL, part_size=PART_BYTES)
        stores.append(store)
        models[count] = store.model(MODEL)
    slowest: dict[int, list[float]] = {count: [] for count in DEVICES}

    def load(count: int) -> None:
        models[count].load()
        report = models[count].report
        assert report is not None
        slowest[count].append(report.slowest_seconds)

    contenders = [Contender(str(count), lambda count=count: load(count)) for count in DEVICES]  # type: ignore[misc]
    timings = measure(contenders, rounds=options.rounds)
    for store in stores:
        store.close()
    for count in DEVICES:
        remove(f"striping-{count}")
    one = timings["1"].median
    rows = [
        Row(
            f"{count} device{'s' if count > 1 else ''}",
            "ours",
            {
                "seconds": timings[str(count)].seconds,
                "slowest_seconds": [statistics.median(slowest[count])],
                "efficiency": [one / (count * seconds) for seconds in timings[str(count)].seconds],
            },
        )
        for count in DEVICES
    ]
    title = f"Load of `tiny` from devices limited to {rate / 1e6:.0f} MB/s each"
    return [Table("devices", title, "scripts/bench.sh run devices", rows, size_bytes=size_of(source))]


def striping_figures(source: Path, rounds: int) -> list[Figure]:
    """Return the efficiency of each number of devices, and how small the rate of one is beside what this machine reads."""
    [table] = striping_tables(Options("tiny", rounds))
    ceiling = measure([Contender("read", lambda: read_all(weights(source), fresh_memory(source)))], rounds=rounds)
    rate = table.size_bytes / SECONDS_OF_ONE
    share = rate / (size_of_weights(source) / ceiling["read"].median)
    return [
        Figure("striping: rate of one device / local read ceiling", share, 1 / 16, ""),
        *(
            Figure(f"load from {row.name}: rate / (n · rate of one)", row.median("efficiency"), BAR, "", at_least=True)
            for row in table.rows[1:]
        ),
    ]
