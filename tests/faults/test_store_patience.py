"""A push bears with a device that says that its trouble passes, with one device only, and gives up in bounded time."""

from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest

from tensorkeep.devices import MemoryDevice, forget_memory
from tensorkeep.errors import NotEnoughCopies, Unavailable
from tensorkeep.runtime import ManualClock, Runtime
from tensorkeep.store.patience import POLICY, put_patiently
from tensorkeep.store.reports import Progress
from tensorkeep.store.store import Store
from tensorkeep.testing.devices import FaultyDevice, RecordingDevice
from tests.faults.store_world import (
    MIB,
    MODEL,
    FaultyFleet,
    World,
    assert_clean,
    assert_loads,
    assert_no_orphans,
    small_weights,
    weights,
)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path, devices=1, replicas=1)
    yield world
    world.end()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def fleet() -> FaultyFleet:
    return FaultyFleet()


def begin(world: World, fleet: FaultyFleet, clock: ManualClock) -> Store:
    world.create().push(small_weights(0), MODEL, part_size=MIB, tag="v0")
    store = world.open(opener=fleet.open, runtime=Runtime(clock=clock))
    store.status()  # opens the device
    return store


def busy(message: str) -> Unavailable:
    return Unavailable(message, passing=True)


@pytest.mark.parametrize("kind", ["parts/", "manifests/", "checks/", "versions/", "journal/"])
@pytest.mark.parametrize("after", [False, True], ids=["refused", "answer lost"])
def test_a_push_outlasts_passing_trouble_of_its_only_device(
    world: World, fleet: FaultyFleet, clock: ManualClock, kind: str, *, after: bool
) -> None:
    store = begin(world, fleet, clock)
    for call in (1, 2, 3):
        fleet.by_name["d0"].fail("put", busy, matching=lambda name: name.startswith(kind), on_call=call, after=after)
    version = store.push(weights(1), MODEL, part_size=MIB)
    assert version.report is not None
    assert not version.report.warnings
    assert 0.5 < clock.monotonic_s() < POLICY.total_s
    assert_loads(store, MODEL, weights(1))
    fresh = world.open()
    assert_clean(fresh)
    if kind != "journal/":  # a second entry under another name is whole, and trimmed with the first
        assert_no_orphans(world, fresh)


def test_a_push_gives_up_on_trouble_that_does_not_pass(world: World, fleet: FaultyFleet, clock: ManualClock) -> None:
    store = begin(world, fleet, clock)
    fleet.by_name["d0"].fail("put", busy)
    with pytest.raises(NotEnoughCopies, match="scripted fault"):
        store.push(weights(1), MODEL, part_size=MIB)
    assert POLICY.total_s / 2 < clock.monotonic_s() <= 2 * POLICY.total_s
    fleet.by_name["d0"].heal()
    store.push(weights(1), MODEL, part_size=MIB)
    assert_loads(store, MODEL, weights(1))


def test_a_push_that_is_given_up_waits_no_longer(world: World, fleet: FaultyFleet) -> None:
    pausing = Event()

    class Slow(ManualClock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            pausing.set()
            Event().wait(0.05)  # for the other thread to see its error and give up

    def interrupt(progress: Progress) -> None:
        if progress.step == "push" and progress.done_bytes:
            assert pausing.wait(60)
            raise KeyboardInterrupt

    clock = Slow()
    store = begin(world, fleet, clock)
    fleet.by_name["d0"].fail("put", busy)
    with pytest.raises(KeyboardInterrupt):
        store.push({**weights(1), **small_weights(1)}, MODEL, part_size=MIB, progress=interrupt)
    assert clock.monotonic_s() < POLICY.total_s / 2


def test_nobody_waits_for_a_disk(world: World, fleet: FaultyFleet, clock: ManualClock) -> None:
    store = begin(world, fleet, clock)
    fleet.by_name["d0"].fail("put", Unavailable, on_call=1)
    with pytest.raises(NotEnoughCopies):
        store.push(weights(1), MODEL, part_size=MIB)
    assert clock.monotonic_s() == 0


def test_every_try_has_a_name_of_its_own(clock: ManualClock) -> None:
    forget_memory("patience")
    recorder = RecordingDevice(MemoryDevice("patience"))
    faulty = FaultyDevice(recorder)
    for call in (1, 2):
        faulty.fail("put", busy, on_call=call, after=True)
    names = iter(["journal/a", "journal/b", "journal/c", "journal/d"])
    put_patiently(faulty, lambda: next(names), [b"x"], runtime=Runtime(clock=clock))
    assert [call.name for call in recorder.calls] == ["journal/a", "journal/b", "journal/c"]
