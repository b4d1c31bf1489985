"""One of two copies on a device that answers each read late: how long a load takes, beside the same load without that device."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import tensorkeep
from bench.figures import Figure
from bench.rounds import Contender, measure
from bench.work import remove
from tensorkeep.devices.forwarding import ForwardingDevice
from tensorkeep.devices.protocol import Device
from tensorkeep.errors import Unavailable
from tensorkeep.records.device import DeviceFacts
from tensorkeep.records.redundancy import Replicas
from tensorkeep.runtime import Runtime
from tensorkeep.store.fleet import DeviceOpener, open_by_facts
from tensorkeep.store.opening import open_store
from tensorkeep.store.store import Store
from tensorkeep.transfer.left_reads import has_left_reads

T = TypeVar("T")
NAME, MODEL, LATE = "late", "bench/model", "d0"
LATE_S = 2.0


class _LateDevice(ForwardingDevice):
    LETS_MAP = False

    def around(self, method: str, name: str, call: Callable[[], T]) -> T:
        time.sleep(LATE_S)
        return super().around(method, name, call)


def late_device_figures(source: Path, rounds: int) -> list[Figure]:
    """Return the time of a load with a late device over that of the load with the device down; both read, in one process."""
    folder = remove(NAME)
    with tensorkeep.init(folder / "store", replicas=2) as store:
        for name in (LATE, "d1"):
            store.devices.add(name, str(folder / name), bandwidth=10**9)
        store.push(source, MODEL)
    with _opened(folder, _open_late) as late, _opened(folder, _refuse) as down:
        models = {"late": late.model(MODEL), "down": down.model(MODEL)}
        url = next(each.facts.url for each in late.devices.list() if each.facts.name == LATE)
        contenders = [
            Contender("late", lambda: models["late"].load(mode="read"), lambda: _wait_until_forgotten(url)),
            Contender("down", lambda: models["down"].load(mode="read")),
        ]
        timings = measure(contenders, rounds=2 * rounds + 1)  # fresh memory takes once 0.2 s, once a second
        report = models["late"].report
        assert report is not None
        assert report.hedged
    remove(NAME)
    question = f"load with one of two devices {LATE_S:.0f} s late / with it down"
    return [Figure(question, timings["late"].median / timings["down"].median, 1.5, "")]


def _opened(folder: Path, opener: DeviceOpener) -> Store:
    context = open_store(
        folder / "store",
        runtime=Runtime(),
        cache_root=None,
        user="bench",
        policy=Replicas(2),
        opener=opener,
        snapshot_every=1000,
    )
    return Store(context)


def _open_late(facts: DeviceFacts, runtime: Runtime) -> Device:
    device = open_by_facts(facts, runtime)
    return _LateDevice(device) if facts.name == LATE else device


def _refuse(facts: DeviceFacts, runtime: Runtime) -> Device:
    if facts.name == LATE:
        raise Unavailable(f"device {facts.name} is down", device=facts.name)
    return open_by_facts(facts, runtime)


def _wait_until_forgotten(url: str) -> None:
    """Wait until the reads that the last round left have ended: each round is to find out anew that the device is late."""
    while has_left_reads(url):
        time.sleep(0.05)
