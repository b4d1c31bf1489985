"""One load from two disks and an S3-compatible store at once, all limited to the same rate: whether they finish together."""

import statistics

import tensorkeep
from bench.figures import Figure
from bench.rounds import Contender, measure
from bench.work import get_model, remove
from tensorkeep.records.layout import MIB
from tests.engines.servers import S3Account

MODEL = "bench/model"
NAME = "far-and-near"
RATE = 25_000_000
DISKS = ("disk-1", "disk-2")
BUCKET = "bucket"
TOGETHER = "together"


def far_and_near_figures(account: S3Account, bucket: str, rounds: int) -> list[Figure]:
    """Return how far apart the devices of one load end, and its time beside that of the fastest of them alone."""
    source = get_model("tiny")
    folder = remove(NAME)
    models, stores = {}, []
    for name, devices in {TOGETHER: (*DISKS, BUCKET), **{each: (each,) for each in (*DISKS, BUCKET)}}.items():
        store = tensorkeep.init(folder / name)
        stores.append(store)
        for device in devices:
            url = account.device_url(bucket, f"{NAME}-{name}") if device == BUCKET else str(folder / name / device)
            store.devices.add(device, url, bandwidth=RATE, rate_limit=RATE)
        store.push(source, MODEL, part_size=MIB)
        models[name] = store.model(MODEL)
    apart: list[float] = []

    def load(name: str) -> None:
        models[name].load()
        report = models[name].report
        assert report is not None
        if name == TOGETHER:
            seconds = [device.seconds for device in report.devices]
            assert len(seconds) == len(DISKS) + 1
            apart.append(max(seconds) / min(seconds))

    contenders = [Contender(name, lambda name=name: load(name)) for name in models]  # type: ignore[misc]
    timings = measure(contenders, rounds=rounds)
    for store in stores:
        store.close()
    remove(NAME)
    alone = min(timing.median for name, timing in timings.items() if name != TOGETHER)
    return [
        Figure("two disks and S3 in one load: longest / shortest L_i", statistics.median(apart), 1.15, ""),
        Figure("the same: time / the fastest of them alone", timings[TOGETHER].median / alone, 0.5, ""),
    ]
