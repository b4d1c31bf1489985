"""A device that stops answering while it is asked for many objects is given up, and asked again the next time.

Each request to such a device waits for its deadline, so that whoever goes through all of its objects would wait for each.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from tensorkeep.devices.forwarding import ForwardingDevice
from tensorkeep.devices.protocol import Device
from tensorkeep.errors import Unavailable
from tensorkeep.records.device import DeviceFacts, DeviceIdentity
from tensorkeep.runtime import Runtime
from tensorkeep.store import fleet
from tensorkeep.store.fleet import open_by_facts
from tensorkeep.testing.devices import FaultyDevice
from tensorkeep.transfer.device_queue import GIVE_UP_AFTER
from tests.faults.store_world import MIB, World, assert_clean, locations

T = TypeVar("T")
PARTS = 24


class SilentDevice(ForwardingDevice):
    """Answers until it was asked so often, then nothing more; counts who waits in vain."""

    def __init__(self, inner: Device) -> None:
        super().__init__(inner)
        self.answers_left: float = float("inf")
        self.in_vain = 0
        self._lock = threading.Lock()

    def around(self, method: str, name: str, call: Callable[[], T]) -> T:
        """Return what the call returns, as long as the device answers."""
        with self._lock:
            self.answers_left -= 1
            self.in_vain += self.answers_left < 0
        if self.answers_left < 0:
            raise Unavailable(f"{self.url} did not answer {method} {name!r} in time")
        return call()


def push_many_parts(world: World) -> None:
    world.create().push({f"w{n}": np.full(MIB, n, np.uint8) for n in range(PARTS)}, "m", part_size=MIB)


class Scene:
    """A store of two devices with many objects on each, one of which can fall silent."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder, devices=2, replicas=2)
        push_many_parts(self.world)
        opened: dict[str, SilentDevice] = {}

        def opener(facts: DeviceFacts, runtime: Runtime) -> Device:
            device = open_by_facts(facts, runtime)
            return opened.setdefault("d1", SilentDevice(device)) if facts.name == "d1" else device

        self.store = self.world.open(opener=opener)
        self.store.status()
        self.device: SilentDevice = opened["d1"]

    def count_objects(self) -> int:
        """Return how many objects the device that can fall silent has."""
        names = self.store._context.fleet.names()
        return sum(names[row.device] == "d1" for row in locations(self.store))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.mark.parametrize("asked", [6, 15, 40])
def test_verify_gives_up_a_device_that_answers_no_more(scene: Scene, asked: int) -> None:
    scene.device.answers_left = asked
    report = scene.store.verify()
    assert {(problem.kind, problem.device) for problem in report.problems} <= {
        ("unreachable", "d1"),
        ("identity", "d1"),
    }
    (rest,) = [problem for problem in report.problems if "answers no more" in problem.detail]
    assert 0 < int(rest.object.split()[0]) < scene.count_objects()
    assert scene.device.in_vain < 3 * GIVE_UP_AFTER
    assert {row.state for row in locations(scene.store)} == {"live"}, "nothing was found of it"
    scene.device.answers_left = float("inf")
    assert_clean(scene.store)


@pytest.mark.parametrize("asked", [6, 15, 40])
def test_a_deep_scrub_gives_up_a_device_that_answers_no_more_and_the_next_looks_at_all_of_it(
    scene: Scene, asked: int
) -> None:
    scene.device.answers_left = asked
    report = scene.store.scrub(deep=True)
    assert {device.device: device.complete for device in report.devices} == {"d0": True, "d1": False}
    assert scene.device.in_vain < 3 * GIVE_UP_AFTER
    assert {row.state for row in locations(scene.store)} == {"live"}
    scene.device.answers_left = float("inf")
    again = scene.store.scrub(deep=True)
    assert again.ok
    assert {device.device: device.objects for device in again.devices}["d1"] == scene.count_objects()


def test_objects_that_can_not_be_read_of_a_device_that_answers_are_all_named(tmp_path: Path) -> None:
    world = World(tmp_path, devices=2, replicas=2)
    push_many_parts(world)
    faulty: dict[str, FaultyDevice] = {}

    def opener(facts: DeviceFacts, runtime: Runtime) -> Device:
        return faulty.setdefault(facts.name, FaultyDevice(open_by_facts(facts, runtime)))

    store = world.open(opener=opener)
    store.status()
    faulty["d1"].fail("read_into", Unavailable, matching=lambda name: name.startswith("parts/"))
    problems = store.verify().problems
    names = store._context.fleet.names()
    parts = {row.name for row in locations(store) if names[row.device] == "d1" and row.name.startswith("parts/")}
    assert len(parts) >= PARTS
    assert {problem.object for problem in problems} == parts


def test_a_journal_is_not_asked_for_entry_by_entry_once_its_device_is_silent(scene: Scene) -> None:
    for number in range(30):
        scene.store.tag("m", f"t{number}")
    around = scene.device.around

    def silent_for_the_journal(method: str, name: str, call: Callable[[], T]) -> T:
        if method == "read" and name.startswith("journal/"):
            scene.device.answers_left = 0
        return around(method, name, call)

    scene.device.around = silent_for_the_journal  # type: ignore[method-assign]
    problems = [problem for problem in scene.store.verify().problems if problem.device == "d1"]
    assert ("unreachable", "journal") in {(problem.kind, problem.object) for problem in problems}
    assert 0 < scene.device.in_vain < 3 * GIVE_UP_AFTER


class SlowToFail:
    """A clock that goes forward by itself, and a device that can't be used and takes its time to say so."""

    def __init__(self, takes_s: float) -> None:
        self.now_s = 0.0
        self.takes_s = takes_s
        self.asked = 0


@pytest.mark.parametrize(("takes_s", "asked"), [(0.0, 5), (0.5, 5), (4.0, 1), (60.0, 1)])
def test_who_is_slow_to_say_that_it_cannot_be_used_is_left_alone_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, takes_s: float, asked: int
) -> None:
    world = World(tmp_path, devices=2, replicas=1)
    store = world.create()
    context = store._context
    clock = SlowToFail(takes_s)
    read = fleet._read_identity

    def read_slowly(facts: DeviceFacts, device: Device) -> DeviceIdentity:
        if facts.name == "d1":
            clock.asked += 1
            clock.now_s += clock.takes_s
            raise Unavailable("it is away")
        return read(facts, device)

    monkeypatch.setattr(fleet, "_read_identity", read_slowly)
    monkeypatch.setattr(type(context.runtime.clock), "monotonic_s", lambda _: clock.now_s)
    context.fleet.recheck()
    for _ in range(5):
        assert [member.facts.name for member in context.fleet.members() if not member.readable] == ["d1"]
    assert clock.asked == asked
    clock.now_s += min(takes_s, 10.0) + 0.001
    context.fleet.members()
    assert clock.asked == asked + 1, "it may be back"
    context.fleet.recheck()
    context.fleet.members()
    assert clock.asked == asked + 2, "whoever begins something looks anew"
