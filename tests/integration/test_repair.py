"""What lacks copies gets them again, on real folders: whole copies and fragments, after losses, flips, and devices that are away."""

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typing_extensions import Buffer

import tensorkeep
from tensorkeep.catalog.protocol import ObjectKey
from tensorkeep.cli.main import main
from tensorkeep.devices.forwarding import ForwardingDevice
from tensorkeep.devices.protocol import Device
from tensorkeep.errors import NotFound, PermissionDenied
from tensorkeep.records.device import DeviceFacts
from tensorkeep.runtime import Runtime, SeededRandomness
from tensorkeep.store import healing
from tensorkeep.store.context import StoreContext
from tensorkeep.store.fleet import open_by_facts
from tensorkeep.store.store import Store
from tensorkeep.store.structure import read_object
from tests.faults.store_world import (
    MIB,
    MODEL,
    World,
    assert_clean,
    assert_loads,
    assert_no_orphans,
    device_path,
    flip,
    locations,
    small_weights,
    usable,
    weights,
)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A store with two copies of two versions on three devices."""
    world = World(tmp_path)
    store = world.create()
    store.push(weights(0), MODEL, part_size=MIB, tag="v0")
    store.push(weights(1), MODEL, part_size=MIB, tag="v1")
    return world


def assert_whole(world: World) -> None:
    store = world.open()
    for turn in (0, 1):
        assert_loads(store, f"{MODEL}@v{turn}", weights(turn))
    assert_clean(store)
    status = store.status()
    assert (status.short, status.warnings) == ((), ())


def test_where_nothing_lacks_copies_nothing_is_written(world: World) -> None:
    store = world.open()
    before = world.objects()
    report = store.repair()
    assert (report.ok, report.short, report.repaired, report.written_bytes) == (True, 0, 0, 0)
    assert world.objects() == before


def test_what_a_lost_device_had_is_made_anew_on_the_others(world: World) -> None:
    store = world.open()
    on_d0 = [row for row in locations(store) if row.device == store.devices.list()[0].facts.id]
    store.devices.lost("d0")
    assert store.status().short
    report = store.repair()
    assert report.ok
    assert report.short == report.repaired == len({row.key for row in on_d0})
    assert report.written_bytes == sum(row.length for row in on_d0)
    assert set(report.device_bytes) <= {"d1", "d2"}
    held = usable(store)
    assert {len(devices) for devices in held.values()} == {2}
    assert_whole(world)
    # What the lost device had is forgotten, as nothing needs it: gc need not reach it.
    store.gc(grace_s=0, max_fraction=None)
    assert store._context.catalog.list_on(on_d0[0].device, after=0, limit=9) == []
    assert {row.state for row in locations(store)} == {"live"}


def test_a_new_device_gets_what_the_lost_one_had(world: World, tmp_path: Path) -> None:
    store = world.open()
    store.devices.lost("d1")
    store.devices.add("d3", str(tmp_path / "d3"), bandwidth=1 << 30)
    report = store.repair()
    assert report.ok
    assert report.device_bytes["d3"] > 0.8 * report.written_bytes
    assert_whole(world)


def test_copies_on_a_device_that_is_away_count(world: World) -> None:
    store = world.open()
    world.unmount("d2")
    before = world.objects()
    report = store.repair()
    assert (report.ok, report.repaired, report.unreachable) == (True, 0, ("d2",))
    assert world.objects() == before
    world.mount("d2")
    assert_whole(world)


def test_a_device_may_be_left_out_without_being_given_up(world: World) -> None:
    store = world.open()
    world.unmount("d2")
    with pytest.raises(NotFound, match="no device 'd9'"):
        store.repair(without=["d9"])
    report = store.repair(without=["D2"])
    assert report.ok
    assert report.repaired > 0
    world.mount("d2")
    assert_whole(world)
    assert max(len(devices) for devices in usable(store).values()) == 3  # it came back: rebalance trims
    trimmed = store.rebalance()
    assert trimmed.trimmed > 0
    assert {len(devices) for devices in usable(store).values()} == {2}
    assert_whole(world)


def test_what_is_lost_is_named_exactly_and_all_else_is_repaired(world: World) -> None:
    store = world.open()
    victim = next(row for row in locations(store) if row.key.kind.value == "part" and row.length > MIB // 2)
    copies = [row for row in locations(store) if row.key == victim.key]
    assert len(copies) == 2
    for row in copies:
        device_path(store, row).unlink()
    store.devices.lost("d0")
    with pytest.raises(tensorkeep.TensorkeepError):
        store.model(f"{MODEL}@v1").load()  # marks what it finds missing
    report = store.repair()
    assert not report.ok
    assert [left.digest for left in report.lost] == [victim.key.digest.hex()]
    [lost] = report.left
    assert (lost.have, lost.owed, lost.kind) == (0, 2, "part")
    manifests = {turn: store.model(f"{MODEL}@v{turn}") for turn in (0, 1)}
    users = {
        f"{MODEL}@{model.version.id[:12]}"
        for model in manifests.values()
        if victim.key in {key for key, _ in store._context.catalog.version_objects(model.version.id)}
    }
    assert set(lost.versions) == users
    assert lost.files
    assert "no good copy" in lost.reason


def test_damaged_copies_are_replaced_and_gc_takes_them_away(world: World) -> None:
    store = world.open()
    chance = SeededRandomness(3)
    victims = {}
    for row in locations(store):
        if row.key not in victims and chance.uniform() < 0.3:
            victims[row.key] = row
            flip(device_path(store, row), int(row.length * chance.uniform()), 0x10)
    assert len(victims) > 5
    found = store.verify()
    assert {problem.object for problem in found.problems if problem.kind == "corrupt"} == {
        row.name for row in victims.values()
    }
    report = store.repair()
    assert (report.ok, report.repaired) == (True, len(victims))
    store.gc(grace_s=0, max_fraction=None)
    assert_whole(world)
    assert not {row.id for row in victims.values()} & {row.id for row in locations(store)}
    assert_no_orphans(world, store)


def test_a_copy_found_damaged_while_it_is_read_is_made_good_in_the_same_run(tmp_path: Path) -> None:
    world = World(tmp_path, devices=5, replicas=3)
    store = world.create()
    store.push(weights(0), MODEL, part_size=MIB)
    store.devices.lost("d0")
    short = [each.key for each in store._context.catalog.list_short(after=0, limit=999)]
    rows = store._context.catalog.locate(short)
    for key in short:
        flip(device_path(store, rows[key][0]), 5, 0x01)  # nobody knows of it, and repair reads it first
    assert store.repair().ok
    store.gc(grace_s=0, max_fraction=None)
    assert_clean(store)
    assert {len(devices) for devices in usable(store).values()} == {3}


def assert_whole_without_d0(world: World) -> None:
    store = world.open()
    store.gc(grace_s=0, max_fraction=None)
    for turn in (0, 1):
        assert_loads(store, f"{MODEL}@v{turn}", weights(turn))
    assert_clean(store)
    assert store.status().short == ()


class Liar(ForwardingDevice):
    """A device that acknowledges parts and keeps other bytes, as a disk with a broken cache does."""

    lying = True

    def put(self, name: str, data: Sequence[Buffer]) -> None:
        if self.lying and name.startswith("parts/"):
            whole = bytearray(b"".join(bytes(each) for each in data))
            whole[len(whole) // 2] ^= 4
            data = [bytes(whole)]
        self.inner.put(name, data)


def test_what_does_not_read_back_does_not_count(world: World, tmp_path: Path) -> None:
    world.open().devices.lost("d0")
    liars: list[Liar] = []

    def opener(facts: DeviceFacts, runtime: Runtime) -> Device:
        device = open_by_facts(facts, runtime)
        if facts.name != "d1":
            return device
        liars.append(Liar(device))
        return liars[-1]

    store = world.open(opener=opener)
    report = store.repair()
    assert not report.ok  # d1 takes nothing after its first lie, and d2 has a copy of most already
    assert_clean_rows_only(world)
    for liar in liars:
        liar.lying = False
    store = world.open()
    assert store.repair().ok
    assert_whole_without_d0(world)


def assert_clean_rows_only(world: World) -> None:
    """Every row that counts is good, whatever lies beside."""
    fresh = world.open()
    assert fresh.verify().problems == tuple(problem for problem in fresh.verify().problems if problem.kind == "short")


def test_the_negative_control_without_reading_back_the_lie_counts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tensorkeep.store.uploads.compare_stored", lambda *_: None)
    world.open().devices.lost("d0")

    def opener(facts: DeviceFacts, runtime: Runtime) -> Device:
        device = open_by_facts(facts, runtime)
        return Liar(device) if facts.name == "d1" else device

    assert world.open(opener=opener).repair().ok
    assert any(problem.kind == "corrupt" for problem in world.open().verify().problems)


def test_the_most_endangered_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, devices=4, replicas=3)
    store = world.create()
    store.push(weights(0), MODEL, part_size=MIB, tag="v0")
    store.devices.lost("d0")
    store.devices.lost("d1")
    counts = Counter(each.have for each in store._context.catalog.list_short(after=0, limit=999))
    assert set(counts) == {1, 2}
    order: list[int] = []
    have = {each.key: each.have for each in store._context.catalog.list_short(after=0, limit=999)}

    def watched(context: StoreContext, key: ObjectKey) -> bytes:
        order.append(have[key])
        return read_object(context, key)

    monkeypatch.setattr(healing, "read_object", watched)
    monkeypatch.setattr(healing, "_WORKERS", 1)
    monkeypatch.setattr(healing, "_BATCH_OBJECTS", 1)
    report = store.repair()
    assert not report.ok  # two devices are too few for three copies
    assert report.lost == ()
    first = order[: len(have)]  # then come those again that still lack a copy
    assert first == sorted(first)
    assert set(first) == {1, 2}
    assert_loads(store, f"{MODEL}@v0", weights(0))


def test_a_store_that_is_only_read_is_not_repaired(world: World) -> None:
    store = world.open()
    reading = Store(dataclasses.replace(store._context, read_only=True))
    with pytest.raises(PermissionDenied, match="nothing is repaired"):
        reading.repair()
    assert reading.repair(dry_run=True).ok


def test_a_dry_run_says_what_lacks_copies_and_writes_nothing(world: World) -> None:
    store = world.open()
    store.devices.lost("d0")
    before = world.objects()
    report = store.repair(dry_run=True)
    assert (report.ok, report.repaired, report.written_bytes) == (False, 0, 0)
    assert report.short == len(report.left) > 0
    assert world.objects() == before
    assert store.repair().short == report.short


def test_a_repair_keeps_to_a_rate(world: World) -> None:
    store = world.open()
    store.devices.lost("d0")
    size = sum(each.size_bytes for each in store._context.catalog.list_short(after=0, limit=999))
    report = store.repair(rate_limit=size)  # all in a second
    assert report.ok
    assert report.seconds > 0.9


def test_a_new_device_gets_copies_of_what_describes_versions(tmp_path: Path) -> None:
    world = World(tmp_path, devices=1, replicas=1)
    store = world.create()
    store.push(small_weights(0), MODEL, part_size=MIB)
    assert {len(devices) for devices in usable(store).values()} == {1}
    store.devices.add("d1", str(world.place("d1")), bandwidth=1 << 30)
    for key, devices in usable(store).items():
        assert len(devices) == (1 if key.kind.value == "part" else 2)


@pytest.fixture
def coded(tmp_path: Path) -> Path:
    """A store of ``ec=4+2`` on six devices with one model."""
    with tensorkeep.init(tmp_path / "store", ec="4+2") as store:
        for number in range(6):
            store.devices.add(f"d{number}", str(tmp_path / f"d{number}"), bandwidth=1 << 30, capacity=1 << 30)
        store.push(fragmented(), "m", part_size=2 * MIB)
    return tmp_path


def fragmented() -> dict[str, np.ndarray[Any, Any]]:
    chance = np.random.default_rng(7)
    return {f"layers.{n}.w": chance.standard_normal((700, 1024 + n), np.float32) for n in range(4)}


def test_two_of_six_lost_are_made_good_on_two_new_devices(coded: Path) -> None:
    with tensorkeep.open(coded / "store") as store:
        for name in ("d1", "d4"):
            store.devices.lost(name)
        for name in ("n0", "n1"):
            store.devices.add(name, str(coded / name), bandwidth=1 << 30, capacity=1 << 30)
        report = store.repair()
        assert report.ok
        assert report.repaired > 0
        assert store.verify().problems == ()
        assert store.status().short == ()
    # Now any two others may go.
    for name in ("d0", "d2"):
        (coded / name).rename(coded / f"{name} is away")
    with tensorkeep.open(coded / "store") as store:
        loaded = store.model("m").load()
        assert all(np.array_equal(loaded[name], array) for name, array in fragmented().items())


def test_three_of_six_lost_are_named_part_by_part(coded: Path) -> None:
    with tensorkeep.open(coded / "store") as store:
        catalog = store._context.catalog
        version = store.model("m").version
        parts = {key for key, _ in catalog.version_objects(version.id) if key.kind.value == "part"}
        lost = {facts.facts.id for facts in store.devices.list() if facts.facts.name in ("d0", "d2", "d5")}
        expected = set()
        for key, rows in catalog.locate(sorted(parts)).items():
            left = [row for row in rows if row.device not in lost]
            whole = any(row.fragment is None for row in left)
            if not whole and len({row.fragment for row in left}) < rows[0].needed:
                expected.add(key.digest.hex())
        assert expected
        for name in ("d0", "d2", "d5"):
            store.devices.lost(name)
        for name in ("n0", "n1", "n2"):
            store.devices.add(name, str(coded / name), bandwidth=1 << 30, capacity=1 << 30)
        report = store.repair()
        assert {each.digest for each in report.lost} == expected
        assert {each.digest for each in report.left} == expected
        assert all(each.versions == (f"default/m@{version.id[:12]}",) for each in report.lost)


def test_the_command_repairs_and_says_what_is_left(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.open().devices.lost("d0")
    place = ["--store", str(world.location)]
    assert main([*place, "repair", "--dry-run"]) == 8
    assert "short of copies" in capsys.readouterr().out
    assert main([*place, "repair", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["repaired"] == document["short"] > 0
    assert document["left"] == []
    assert main([*place, "repair"]) == 0
    assert "nothing lacks copies" in capsys.readouterr().out
