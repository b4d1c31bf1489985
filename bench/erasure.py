"""Erasure coding: what ``ec=4+2`` takes of devices, how much slower a load is with any two of them away, and the coder's own rate."""

from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import Buffer

import tensorkeep
from bench.figures import Figure
from bench.rounds import Contender, measure
from bench.work import remove
from tensorkeep.codecs.erasure import ErasureCode
from tensorkeep.devices.protocol import Device
from tensorkeep.errors import Unavailable
from tensorkeep.records.device import DeviceFacts
from tensorkeep.records.redundancy import ErasureCoded
from tensorkeep.runtime import Runtime
from tensorkeep.store.fleet import DeviceOpener, open_by_facts
from tensorkeep.store.opening import open_store
from tensorkeep.store.store import Store

NAME, MODEL = "erasure", "bench/model"
CODE = ErasureCoded(4, 2)
DEVICES = tuple(f"d{number}" for number in range(CODE.slots))
FRAGMENT_BYTES = 16 << 20


def erasure_figures(source: Path, rounds: int) -> Iterable[Figure]:
    """Yield the size of a store, the slowest degraded load beside the healthy one, both reading, and rates of the coder."""
    folder = remove(NAME)
    with tensorkeep.init(folder / "store", ec=f"{CODE.data}+{CODE.parity}") as store:
        for name in DEVICES:
            store.devices.add(name, str(folder / name), bandwidth=10**9)
        version = store.push(source, MODEL)
        raw = version.total_bytes
    stored = sum(
        path.stat().st_size for name in DEVICES for path in (folder / name / "parts").rglob("*") if path.is_file()
    )
    yield Figure(f"bytes on devices, {CODE} / bytes of the model", stored / raw, 1.51, "")
    with ExitStack() as stack:
        models = {
            away: stack.enter_context(_opened(folder, away)).model(MODEL)
            for away in [(), *combinations(DEVICES, CODE.parity)]
        }
        turns = [Contender("-".join(away), partial(_load, model)) for away, model in models.items()]
        timings = measure(turns, rounds=rounds)
    healthy = timings[""].median
    worst = max((timings["-".join(away)].median, away) for away in models if away)
    yield Figure(
        f"rate with any two of six devices away, the worst {'-'.join(worst[1])} / healthy, both read",
        healthy / worst[0],
        0.5,
        "",
        at_least=True,
    )
    remove(NAME)
    yield from _coder_figures(rounds)


def _coder_figures(rounds: int) -> Iterable[Figure]:
    chance = np.random.default_rng(0)
    known = {i: chance.bytes(FRAGMENT_BYTES) for i in range(CODE.data)}
    parity = {i: bytearray(FRAGMENT_BYTES) for i in range(CODE.data, CODE.slots)}
    lost = {i: bytearray(FRAGMENT_BYTES) for i in range(CODE.parity)}
    code = ErasureCode(CODE)
    code.restore(known, parity)
    left: dict[int, Buffer] = {**{i: known[i] for i in range(CODE.parity, CODE.data)}, **parity}
    timings = measure(
        [
            Contender("encode", lambda: code.restore(known, {i: bytearray(FRAGMENT_BYTES) for i in parity})),
            Contender("decode", lambda: code.restore(left, lost)),
        ],
        rounds=rounds,
    )
    for name, what in (("encode", "two parity fragments made"), ("decode", "two data fragments restored")):
        rate = CODE.data * FRAGMENT_BYTES / timings[name].median / 1e9
        yield Figure(f"{what}, bytes of the part on one thread", rate, None, "GB/s")


def _load(model: Any) -> Any:
    return model.load(mode="read")


def _opened(folder: Path, away: tuple[str, ...]) -> Store:
    context = open_store(
        folder / "store",
        runtime=Runtime(),
        cache_root=None,
        user="bench",
        policy=None,
        opener=_opener(away),
        snapshot_every=1000,
    )
    return Store(context)


def _opener(away: tuple[str, ...]) -> DeviceOpener:
    def open_device(facts: DeviceFacts, runtime: Runtime) -> Device:
        if facts.name in away:
            raise Unavailable(f"device {facts.name} is down", device=facts.name)
        return open_by_facts(facts, runtime)

    return open_device
