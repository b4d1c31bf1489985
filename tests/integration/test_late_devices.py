"""Devices that are late or hang: the load ends by other copies, in time, with the right bits, whatever comes late."""

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from tensorkeep import Unavailable
from tensorkeep.devices.forwarding import ForwardingDevice
from tensorkeep.devices.protocol import Device
from tensorkeep.records.device import DeviceFacts
from tensorkeep.runtime import Runtime
from tensorkeep.store.fleet import open_by_facts
from tensorkeep.store.model import Model
from tensorkeep.transfer import lateness
from tests.faults.store_world import MIB, MODEL, Arrays, World


class LateDevice(ForwardingDevice):
    """Waits before each read; flips what it gives after that, where it is told to."""

    def __init__(self, inner: Device) -> None:
        super().__init__(inner)
        self.go_on = threading.Event()
        self.wait_s: float | None = 0.0
        self.flips = False
        self.ended = 0

    def read_into(self, name: str, offset: int, buffers: Sequence[memoryview]) -> None:
        """Wait, read, and flip a bit."""
        if name.startswith("parts/") and self.wait_s != 0.0:
            self.go_on.wait(self.wait_s)
        super().read_into(name, offset, buffers)
        if self.flips and name.startswith("parts/"):
            for buffer in buffers:
                buffer[0] ^= 0xFF
        self.ended += 1


class Fleet:
    """Opens every device late, once."""

    def __init__(self) -> None:
        self.by_name: dict[str, LateDevice] = {}

    def open(self, facts: DeviceFacts, runtime: Runtime) -> Device:
        """Return the device's wrapper."""
        return self.by_name.setdefault(facts.name, LateDevice(open_by_facts(facts, runtime)))


def weights() -> Arrays:
    chance = np.random.default_rng(0)
    return {f"layers.{n}.w": chance.standard_normal((1024, 1024), np.float32) for n in range(12)}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path / "world", devices=2, replicas=2)
    world.create().push(weights(), MODEL, part_size=2 * MIB)
    yield world
    world.end()


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    fleet = Fleet()
    yield fleet
    for device in fleet.by_name.values():
        device.go_on.set()


def opened(world: World, fleet: Fleet) -> Model:
    """Return the model once all devices have been opened by a load."""
    model = world.open(opener=fleet.open).model(MODEL)
    model.load()
    for device in fleet.by_name.values():
        device.ended = 0
    return model


def assert_right(found: Arrays) -> None:
    for name, array in weights().items():
        assert found[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("verify", ["blocks", "digest", "off"])
@pytest.mark.parametrize("mode", ["auto", "read"])
def test_one_late_device_of_two_is_not_waited_for(world: World, fleet: Fleet, mode: str, verify: str) -> None:
    model = opened(world, fleet)
    fleet.by_name["d0"].wait_s = None
    loaded = model.load(mode=mode, verify=verify, deadline_s=30)  # type: ignore[arg-type]
    assert_right(loaded)
    assert model.report is not None
    mapped_unread = mode == "auto" and verify == "off"
    assert model.report.hedged > 0 or mapped_unread
    assert not model.report.damaged


def test_what_comes_late_and_wrong_changes_nothing(world: World, fleet: Fleet) -> None:
    """The worst a device can do: hang, let the load end by the other copy, and then write something else."""
    model = opened(world, fleet)
    late = fleet.by_name["d0"]
    late.wait_s, late.flips = None, True
    into = {name: np.zeros_like(array) for name, array in weights().items()}
    model.load(into=into, verify="off", deadline_s=30)
    assert_right(into)
    ended = late.ended
    late.go_on.set()
    give_up = time.monotonic() + 20
    while late.ended == ended and time.monotonic() < give_up:
        time.sleep(0.01)
    assert late.ended > ended
    time.sleep(0.2)
    assert_right(into)


def test_a_load_past_its_deadline_writes_nothing_afterwards(world: World, fleet: Fleet) -> None:
    model = opened(world, fleet)
    for device in fleet.by_name.values():
        device.wait_s = None
    into = {name: np.zeros_like(array) for name, array in weights().items()}
    with pytest.raises(Unavailable, match=r"deadline of 1 s with \d+ reads to go, waiting for \d+ of device d"):
        model.load(into=into, deadline_s=1)
    for device in fleet.by_name.values():
        device.go_on.set()
    give_up = time.monotonic() + 20
    while not all(device.ended for device in fleet.by_name.values()) and time.monotonic() < give_up:
        time.sleep(0.01)
    time.sleep(0.2)
    assert all(not array.any() for array in into.values())


def test_threads_that_hang_do_not_outlive_their_read(world: World, fleet: Fleet) -> None:
    model = opened(world, fleet)
    before = threading.active_count()
    fleet.by_name["d1"].wait_s = None
    assert_right(model.load(mode="read", deadline_s=30))
    assert threading.active_count() > before
    fleet.by_name["d1"].go_on.set()
    give_up = time.monotonic() + 20
    while threading.active_count() > before and time.monotonic() < give_up:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_both_devices_a_little_slow_are_simply_waited_for(
    world: World, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lateness, "LATE_S", 60.0)  # this machine may stall too
    model = opened(world, fleet)
    for device in fleet.by_name.values():
        device.wait_s = 0.02
    assert_right(model.load(mode="read"))
    assert model.report is not None
    assert model.report.hedged == 0


def test_a_long_check_that_goes_on_is_not_late(tmp_path: Path, fleet: Fleet) -> None:
    """Each window of a check is well in time, all of it together is not."""
    array = np.random.default_rng(0).standard_normal((8 << 20) // 4, np.float32)
    world = World(tmp_path / "world", devices=2, replicas=2)
    world.create().push({"w": array}, MODEL, part_size=16 * MIB)
    model = opened(world, fleet)
    for device in fleet.by_name.values():
        device.wait_s = 1.2  # four windows: 4.8 s
    assert model.load()["w"].tobytes() == array.tobytes()
    assert model.report is not None
    assert model.report.mapped_bytes == array.nbytes
    assert model.report.hedged == 0
    world.end()
