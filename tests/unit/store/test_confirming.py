"""Copies count once their device was shown to be the one that it was: read late, for many at once, and never believed before."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tensorkeep.catalog.protocol import Location, ObjectKey
from tensorkeep.errors import NotEnoughCopies, TensorkeepError, Unavailable
from tensorkeep.records.naming import ObjectKind
from tensorkeep.runtime import ManualClock, Runtime
from tensorkeep.store import push_read
from tensorkeep.store.confirming import Confirmations
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


def copy(number: int) -> Location:
    key = ObjectKey(ObjectKind.PART, bytes(32))
    return Location(
        id=number, device="d", name="n", key=key, size_bytes=1, form="raw", offset=0, length=1, state="staged"
    )


def test_one_reading_answers_for_all_copies_that_were_durable_before_it() -> None:
    asked: list[str] = []
    clock = ManualClock()
    confirmations = Confirmations(asked.append, clock)
    confirmations.add("d", [copy(1)])
    assert not confirmations.is_due("d")
    clock.sleep(1)
    confirmations.add("d", [copy(2), copy(3)])
    assert confirmations.is_due("d")
    assert confirmations.waiting() == ["d"]
    assert confirmations.confirm("d") == ("d", [copy(1), copy(2), copy(3)], None)
    assert (asked, confirmations.waiting(), confirmations.is_due("d")) == (["d"], [], False)
    assert confirmations.confirm("d") == ("d", [], None)
    assert asked == ["d"], "nothing waited, so there was nothing to ask"


def test_a_copy_that_comes_while_the_device_is_asked_waits_for_the_next_reading() -> None:
    def check(device: str) -> None:
        if not late:
            late.append(copy(2))
            confirmations.add(device, late)

    late: list[Location] = []
    confirmations = Confirmations(check, ManualClock())
    confirmations.add("d", [copy(1)])
    assert confirmations.confirm("d").copies == [copy(1)]
    assert confirmations.waiting() == ["d"]
    assert confirmations.confirm("d").copies == [copy(2)]


def test_copies_come_back_with_what_is_wrong_with_their_device() -> None:
    error = Unavailable("another disk")

    def check(_device: str) -> None:
        raise error

    confirmations = Confirmations(check, ManualClock())
    confirmations.add("d", [copy(1)])
    assert confirmations.confirm("d") == ("d", [copy(1)], error)
    assert confirmations.waiting() == []


# -------------------------------------------------------------------- a whole push


class Fleet(FaultyFleet):
    """Faulty devices whose calls are noted."""

    def readings(self, name: str) -> int:
        """How often the identity of a device was read so far."""
        recorder = self.by_name[name].inner
        assert isinstance(recorder, RecordingDevice)
        return sum(call.method == "read_identity" for call in recorder.calls)

    def open(self, facts, runtime):  # type: ignore[no-untyped-def]
        """Return the device's wrapper."""
        fresh = facts.name not in self.by_name
        device = super().open(facts, runtime)
        if fresh:
            self.by_name[facts.name] = device = FaultyDevice(RecordingDevice(device.inner))  # type: ignore[attr-defined]
        return device


class Steps:
    """Failpoints that call back at each batch that is durable, which takes a while."""

    def __init__(self, clock: ManualClock, seconds: float) -> None:
        self.clock = clock
        self.seconds = seconds
        self.batches = 0
        self.then: Callable[[int], None] = lambda _: None

    def hit(self, name: str) -> None:
        """Pass time, and call back with the number of the batch."""
        if name == "push.part_flushed":
            self.batches += 1
            self.clock.sleep(self.seconds)
            self.then(self.batches)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(push_read, "_BATCH_BYTES", MIB)
    world = World(tmp_path, devices=3, replicas=2)
    world.create()
    world.close()
    yield world
    world.end()


@pytest.mark.parametrize("seconds", [0.0, 2.0])
def test_a_push_reads_identities_by_time_not_by_batch(world: World, seconds: float) -> None:
    fleet, clock = Fleet(), ManualClock()
    steps = Steps(clock, seconds)
    store = world.open(opener=fleet.open, runtime=Runtime(clock=clock, failpoints=steps))
    store.devices.list()
    before = fleet.readings("d0")
    store.push(weights(1), MODEL, part_size=MIB)
    assert steps.batches > 12
    readings = fleet.readings("d0") - before
    if seconds:
        assert readings > 5
    else:
        assert readings <= 5  # two when it begins, before the commit, the commit's own, the journal's
    assert_loads(store, MODEL, weights(1))


@pytest.mark.parametrize("seconds", [0.0, 2.0])
@pytest.mark.parametrize("batch", [1, 5])
def test_nothing_that_went_to_another_disk_counts_however_late_that_is_seen(
    world: World, seconds: float, batch: int
) -> None:
    fleet, clock = Fleet(), ManualClock()
    steps = Steps(clock, seconds)

    def swap(number: int) -> None:
        if number == batch:
            world.place("d0").rename(world.folder / "aside")
            shutil.copytree(
                world.place("d1"),
                world.place("d0"),
                ignore=lambda folder, names: names if folder.endswith("tmp") else [],
            )

    steps.then = swap
    store = world.open(opener=fleet.open, runtime=Runtime(clock=clock, failpoints=steps))
    version = store.push(weights(1), MODEL, part_size=MIB)
    assert version.report is not None
    assert any("d0" in warning for warning in version.report.warnings)
    world.close()
    for name in ("d0", "d1"):
        shutil.rmtree(world.place(name))
    (world.folder / "aside").rename(world.place("d0"))  # the right disk again, with what it got before
    assert_loads(world.open(), MODEL, weights(1))


def test_where_too_few_devices_are_left_the_push_commits_nothing(world: World) -> None:
    fleet, clock = Fleet(), ManualClock()
    steps = Steps(clock, 0.0)
    store = world.open(opener=fleet.open, runtime=Runtime(clock=clock, failpoints=steps))
    store.devices.list()

    def lose(number: int) -> None:
        if number == 3:
            for name in ("d0", "d1"):
                fleet.by_name[name].fail("read_identity", Unavailable)

    steps.then = lose
    with pytest.raises(NotEnoughCopies):
        store.push(weights(1), MODEL, part_size=MIB)
    for device in fleet.by_name.values():
        device.heal()
    with pytest.raises(TensorkeepError):
        world.open().model(MODEL)
    assert_loads_after_another_push(world)


def assert_loads_after_another_push(world: World) -> None:
    """Assert that the same push goes through once all is well, and leaves nothing behind."""
    store = world.open()
    store.push(weights(1), MODEL, part_size=MIB)
    assert_loads(store, MODEL, weights(1))
    assert_clean(world.open())
    assert_no_orphans(world, world.open())


@pytest.mark.parametrize("seconds", [0.0, 2.0])
def test_copies_wait_for_a_device_whose_trouble_passes_and_are_not_sent_again(world: World, seconds: float) -> None:
    fleet, clock = Fleet(), ManualClock()
    steps = Steps(clock, seconds)
    store = world.open(opener=fleet.open, runtime=Runtime(clock=clock, failpoints=steps))

    def stumble(number: int) -> None:
        if number == 1:
            for call in (1, 2):
                fleet.by_name["d0"].fail("read_identity", lambda text: Unavailable(text, passing=True), on_call=call)

    steps.then = stumble
    version = store.push(weights(1), MODEL, part_size=MIB)
    assert version.report is not None
    assert version.report.warnings == ()
    metadata = version.report.written_bytes - 2 * version.report.new_bytes
    assert 0 <= metadata < MIB, "no part was written a third time"
    assert_loads(store, MODEL, weights(1))
    assert_clean(world.open())
    assert_no_orphans(world, world.open())


def test_trouble_that_does_not_pass_in_time_is_given_up(world: World) -> None:
    fleet, clock = Fleet(), ManualClock()
    steps = Steps(clock, 0.0)
    store = world.open(opener=fleet.open, runtime=Runtime(clock=clock, failpoints=steps))
    store.devices.list()

    def busy(number: int) -> None:
        if number == 1:
            fleet.by_name["d0"].fail("read_identity", lambda message: Unavailable(message, passing=True))

    steps.then = busy
    version = store.push(weights(1), MODEL, part_size=MIB)
    assert version.report is not None
    assert any("d0" in warning for warning in version.report.warnings)
    assert 0 < clock.monotonic_s() < 120
    world.close()
    for name in ("d0", "d1"):
        shutil.rmtree(world.place(name))
    assert_loads(world.open(), MODEL, weights(1))


def test_copies_that_a_push_of_nothing_new_heals_are_confirmed_or_written_again(world: World) -> None:
    fleet, clock = Fleet(), ManualClock()
    world.open().push(weights(1), MODEL, part_size=MIB)
    for path in world.place("d0").glob("parts/*/*"):
        path.chmod(0o644)
        path.write_bytes(bytes(path.stat().st_size))
    assert not world.open().verify().ok
    steps = Steps(clock, 0.0)
    store = world.open(opener=fleet.open, runtime=Runtime(clock=clock, failpoints=steps))
    store.devices.list()

    def lose(number: int) -> None:
        if number == 1:
            fleet.by_name["d0"].fail("read_identity", Unavailable)

    steps.then = lose
    version = store.push(weights(1), MODEL, part_size=MIB)
    assert version.report is not None
    assert not version.report.created
    assert steps.batches
    world.close()
    for name in ("d0", "d1"):  # their metadata may be what is left of it: no push moved that
        for path in world.place(name).glob("parts/*/*"):
            path.unlink()
    assert_loads(world.open(), MODEL, weights(1))
