"""Batches onto devices: together where the device takes them so, several at once across a network, each failure told."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from typing_extensions import Buffer

import tensorkeep
from tensorkeep.catalog.protocol import Location, ObjectKey
from tensorkeep.devices import LocalDevice, MemoryDevice, RateLimitedDevice, forget_memory, local_path
from tensorkeep.devices.protocol import Device
from tensorkeep.errors import Capacity, NotEnoughCopies, TensorkeepError, Unavailable
from tensorkeep.records.device import DeviceFacts
from tensorkeep.records.naming import ObjectKind
from tensorkeep.runtime import InlineWorkers, ManualClock, Runtime
from tensorkeep.store.uploads import Upload, Uploader
from tensorkeep.testing.devices import FaultyDevice, RecordingDevice
from tests.faults.store_world import (
    MIB,
    MODEL,
    FaultyFleet,
    World,
    assert_clean,
    assert_loads,
    assert_no_orphans,
    weights,
)

NAMES = [f"parts/{n:02x}/{n:064x}.01JG8KZ5M7Q4W9X2Y3Z4A5B6C8" for n in range(12)]


class Remote(MemoryDevice):
    """Memory that says it lies across a network, and notes how many puts it had at once."""

    put_concurrency = 4

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.crowd = threading.Barrier(self.put_concurrency)
        self.together = True

    def put(self, name: str, data: Sequence[Buffer]) -> None:
        """Wait until as many are here as there shall be, then put."""
        if self.together:
            self.crowd.wait(10)
        super().put(name, data)


def passing(message: str) -> Unavailable:
    return Unavailable(message, passing=True)


def uploads(names: Sequence[str]) -> list[Upload]:
    return [
        Upload(
            [name.encode()],
            Location(
                id=n,
                device="d",
                name=name,
                key=ObjectKey(ObjectKind.PART, bytes(32)),
                size_bytes=len(name),
                form="raw",
                offset=0,
                length=len(name),
                state="staged",
            ),
        )
        for n, name in enumerate(names)
    ]


def run(device: Device, names: Sequence[str] = NAMES, **options: object) -> tuple[list[str], list[str], object]:
    uploader = Uploader({"d": device}, runtime=Runtime(**options))  # type: ignore[arg-type]
    result = uploader.upload("d", uploads(names))
    uploader.close()
    stored, failed = ([upload.location.name for upload in some] for some in (result.stored, result.failed))
    return stored, failed, result.error


def test_a_remote_device_gets_as_many_puts_at_once_as_it_asks_for() -> None:
    forget_memory("remote")
    device = Remote("remote")
    assert run(RateLimitedDevice(device, rate_bytes_per_s=10**12, runtime=Runtime())) == (NAMES, [], None)
    assert {info.name for info in device.iter_objects("")} == set(NAMES)
    device.together = False
    assert run(device, [name.replace("Z4", "Z5") for name in NAMES], workers=InlineWorkers())[1:] == ([], None)


def test_a_put_that_fails_across_a_network_stops_no_other_and_what_is_for_good_is_told_first() -> None:
    forget_memory("remote")
    device = Remote("remote")
    device.together = False
    faulty = FaultyDevice(device)
    faulty.fail("put", Unavailable, matching=lambda name: name == NAMES[3])
    stored, failed, error = run(faulty)
    assert (stored, failed) == ([name for name in NAMES if name != NAMES[3]], [NAMES[3]])
    assert type(error) is Unavailable
    forget_memory("remote")
    faulty = FaultyDevice(Remote("remote"))
    faulty.fail("put", Capacity, matching=lambda name: name == NAMES[7])
    faulty.fail("put", passing)
    stored, failed, error = run(faulty)
    assert (stored, failed) == ([], NAMES)
    assert type(error) is Capacity


def test_a_local_device_that_fails_gets_nothing_more_of_the_batch(tmp_path: Path) -> None:
    device = LocalDevice(str(tmp_path), runtime=Runtime(), url=f"file://{tmp_path}")
    device.prepare()
    log = RecordingDevice(device)
    faulty = FaultyDevice(log)
    faulty.fail("put", Unavailable, on_call=3)
    stored, failed, _error = run(faulty)
    assert (stored, failed) == (NAMES[:2], NAMES[2:])
    assert [call.method for call in log.calls] == ["put", "put", "flush"]
    assert run(device, NAMES[2:]) == (NAMES[2:], [], None)
    assert run(device, [NAMES[11].replace("Z4", "Z5"), NAMES[0], NAMES[1].replace("Z4", "Z5")])[:2] == (
        [NAMES[11].replace("Z4", "Z5")],
        [NAMES[0], NAMES[1].replace("Z4", "Z5")],
    )


def test_nothing_of_a_batch_is_stored_where_its_flush_fails() -> None:
    forget_memory("remote")
    device = Remote("remote")
    device.together = False
    faulty = FaultyDevice(device)
    faulty.fail("flush", Unavailable)
    stored, failed, error = run(faulty)
    assert (stored, failed) == ([], NAMES)
    assert isinstance(error, TensorkeepError)


# -------------------------------------------------------------------- a whole push


class Distant(LocalDevice):
    """A folder that says it lies across a network."""

    put_concurrency = 3


class DistantFleet(FaultyFleet):
    def open(self, facts: DeviceFacts, runtime: Runtime) -> Device:
        """Return the device's wrapper."""
        if facts.name not in self.by_name:
            device = Distant(local_path(facts.url), runtime=runtime, url=facts.url)
            self.by_name[facts.name] = FaultyDevice(device)
        return self.by_name[facts.name]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path, devices=2, replicas=2)
    world.create()
    world.close()
    yield world
    world.end()


def test_puts_that_fail_in_passing_are_sent_again_under_new_names_and_the_push_goes_on(world: World) -> None:
    fleet, clock = DistantFleet(), ManualClock()
    store = world.open(opener=fleet.open, runtime=Runtime(clock=clock))
    store.devices.list()
    lost = fleet.by_name["d1"]
    for call in (1, 4, 5, 9):
        lost.fail("put", passing, matching=lambda name: name.startswith("parts/"), on_call=call, after=call == 4)
    version = store.push(weights(1), MODEL, part_size=MIB)
    assert version.report is not None
    assert version.report.warnings == ()
    assert 0 < clock.monotonic_s() < 60
    assert_loads(store, MODEL, weights(1))
    assert_clean(world.open())
    assert_no_orphans(world, world.open())


def test_a_remote_device_that_never_answers_is_given_up_after_a_few_tries(world: World) -> None:
    fleet, clock = DistantFleet(), ManualClock()
    store = world.open(opener=fleet.open, runtime=Runtime(clock=clock))
    store.devices.list()
    fleet.by_name["d1"].fail("put", passing, matching=lambda name: name.startswith("parts/"))
    with pytest.raises(NotEnoughCopies, match="d1"):
        store.push(weights(1), MODEL, part_size=MIB)
    assert 0 < clock.monotonic_s() < 120
    fleet.by_name["d1"].heal()
    assert isinstance(store.push(weights(1), MODEL, part_size=MIB), tensorkeep.Version)
    assert_clean(world.open())
    assert_no_orphans(world, world.open())
