"""A device that is drained: read until it is empty, its copies made elsewhere first, then removed; and killed devices meanwhile."""

import json
from pathlib import Path

import pytest

import tensorkeep
from tensorkeep.cli.main import main
from tensorkeep.errors import Conflict, InvalidInput, NotFound
from tests.faults.store_world import (
    GIB,
    MIB,
    MODEL,
    Hooks,
    World,
    assert_clean,
    assert_loads,
    assert_no_orphans,
    locations,
    usable,
    weights,
)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A store with two copies of a version on four devices."""
    world = World(tmp_path, devices=4)
    world.create().push(weights(0), MODEL, part_size=MIB, tag="v0")
    return world


def assert_two_copies(world: World, *, off: str) -> None:
    store = world.open()
    ids = {device.facts.name: device.facts.id for device in store.devices.list()}
    held = usable(store)
    assert {len(devices - {ids[off]}) for devices in held.values()} == {2}
    assert_loads(store, f"{MODEL}@v0", weights(0))
    assert_clean(store)


def test_a_drained_device_is_empty_and_every_copy_is_elsewhere(world: World) -> None:
    store = world.open()
    held = [row for row in locations(store) if row.device == store.devices.list()[1].facts.id]
    report = store.devices.drain("d1", grace_s=0)
    assert report.empty
    assert report.repaired == report.given_up == report.deleted == len(held)
    assert (report.left, report.waiting, report.held) == ((), 0, 0)
    assert [path for path in world.files("d1") if "parts" in path.parts or "manifests" in path.parts] == []
    assert_two_copies(world, off="d1")
    removed = store.devices.remove("d1")
    assert removed.state == "removed"
    assert store.status().ok
    with pytest.raises(InvalidInput, match="removed already"):
        store.devices.drain("d1")
    with pytest.raises(InvalidInput, match="marked removed already"):
        store.devices.lost("d1")
    assert_no_orphans(world, store)


def test_what_was_given_up_waits_for_the_grace_and_loads_go_on(world: World) -> None:
    store = world.open()
    before = world.objects()
    model = store.model(f"{MODEL}@v0")
    report = store.devices.drain("d1")
    assert not report.empty
    assert (report.held, report.deleted) == (0, 0)
    assert report.waiting == report.given_up > 0
    assert before <= world.objects()
    assert sorted(model.load()) == sorted(weights(0))
    with pytest.raises(Conflict, match="still holds") as failure:
        store.devices.remove("d1")
    assert failure.value.facts["reason"] == "filled_device"
    again = store.devices.drain("d1", grace_s=0)
    assert (again.repaired, again.empty) == (0, True)
    store.devices.remove("d1")
    assert_two_copies(world, off="d1")


def test_a_draining_device_is_read_and_takes_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, devices=2, replicas=1)
    store = world.create()
    store.push(weights(0), MODEL, part_size=MIB, tag="v0")
    hooks = Hooks()
    draining = world.open(failpoints=hooks)
    loaded = []

    def in_the_middle() -> None:
        other = world.open()
        other.push(weights(1), MODEL, part_size=MIB, tag="v1")
        loaded.append(sorted(other.model(f"{MODEL}@v0").load()))
        assert next(d for d in other.devices.list() if d.facts.name == "d0").facts.state == "draining"

    hooks.on["drain.begun"] = in_the_middle
    report = draining.devices.drain("d0", grace_s=0)
    assert report.empty
    assert loaded == [sorted(weights(0))]
    fresh = world.open()
    assert_loads(fresh, f"{MODEL}@v0", weights(0))
    assert_loads(fresh, f"{MODEL}@v1", weights(1))
    assert_clean(fresh)
    assert [path for path in world.files("d0") if "parts" in path.parts] == []


def test_a_drain_that_would_leave_too_few_devices_is_refused_before_anything_changes(world: World) -> None:
    store = world.open()
    store.devices.lost("d3")
    store.repair()
    store.devices.drain("d2", grace_s=0)
    with pytest.raises(InvalidInput, match="without device d1 the others can't keep"):
        store.devices.drain("d1")
    assert {d.facts.name: d.facts.state for d in store.devices.list()}["d1"] == "active"
    with pytest.raises(NotFound):
        store.devices.drain("d9")
    with pytest.raises(InvalidInput, match="is in use: run `tensorkeep device drain d0` first"):
        store.devices.remove("d0")


def test_a_drain_can_be_called_off(world: World) -> None:
    store = world.open()
    store.devices.drain("d1")
    with pytest.raises(InvalidInput, match="does not drain"):
        store.devices.undrain("d2")
    assert store.devices.undrain("d1").state == "active"
    store.push(weights(2), MODEL, part_size=MIB)
    assert_clean(store)
    assert store.status().ok


def test_a_device_lost_in_a_drain_takes_nothing_with_it(world: World) -> None:
    hooks = Hooks()
    store = world.open(failpoints=hooks)
    # Between the copies and their being given up, the device with the new ones goes.
    hooks.on["repair.recorded"] = lambda: world.unmount("d2")
    report = store.devices.drain("d1", grace_s=0)
    del hooks.on["repair.recorded"]
    assert not report.empty  # what only d2 has besides stays on d1
    fresh = world.open()
    assert_loads(fresh, f"{MODEL}@v0", weights(0))
    fresh.devices.lost("d2")
    assert_loads(fresh, f"{MODEL}@v0", weights(0))
    again = fresh.devices.drain("d1", grace_s=0)
    assert again.empty
    assert_loads(fresh, f"{MODEL}@v0", weights(0))
    assert fresh.verify().problems == ()
    assert {len(devices) for devices in usable(fresh).values()} == {2}


def test_a_draining_device_that_is_away_keeps_its_rows(world: World) -> None:
    store = world.open()
    store.devices.drain("d1")
    world.unmount("d1")
    report = store.devices.drain("d1", grace_s=0)
    assert not report.empty
    assert report.waiting > 0
    world.mount("d1")
    assert store.devices.drain("d1", grace_s=0).empty
    assert_two_copies(world, off="d1")


def test_fragments_are_drained_too(tmp_path: Path) -> None:
    with tensorkeep.init(tmp_path / "store", ec="2+1") as store:
        for number in range(4):
            store.devices.add(f"d{number}", str(tmp_path / f"d{number}"), bandwidth=GIB, capacity=GIB)
        store.push(weights(0), MODEL, part_size=2 * MIB, tag="v0")
        report = store.devices.drain("d0", grace_s=0)
        assert report.empty
        assert report.repaired > 0
        store.devices.remove("d0")
        assert store.verify().problems == ()
        assert store.status().ok
        assert_loads(store, f"{MODEL}@v0", weights(0))


def test_a_rebuilt_catalog_knows_that_a_device_drains_or_was_removed(world: World) -> None:
    store = world.open()
    store.devices.drain("d1", grace_s=0)
    store.devices.remove("d1")
    store.devices.drain("d0")
    world.lose_catalog()
    tensorkeep.rebuild_catalog(world.location)
    fresh = world.open()
    assert {d.facts.name: d.facts.state for d in fresh.devices.list()} == {
        "d0": "draining",
        "d1": "removed",
        "d2": "active",
        "d3": "active",
    }
    assert fresh.devices.drain("d0", grace_s=0).empty
    assert_loads(fresh, f"{MODEL}@v0", weights(0))
    assert_clean(fresh)


def test_the_commands_drain_and_remove(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--store", str(world.location)]
    assert main([*place, "device", "drain", "d1"]) == 0
    assert "run it again after the grace" in capsys.readouterr().out
    assert main([*place, "device", "remove", "d1"]) == 5
    assert "still holds" in capsys.readouterr().err
    assert main([*place, "device", "drain", "d1", "--cancel"]) == 0
    assert main([*place, "device", "drain", "d1", "--grace", "0", "--json"]) == 0
    capsys.readouterr()
    assert main([*place, "device", "ls"]) == 0
    assert "draining" in capsys.readouterr().out
    assert main([*place, "device", "remove", "d1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "removed"
