"""Looking devices through: what is missing, damaged or unknown is found, and a scrub that is cut off goes on."""

import json
from pathlib import Path

import pytest

import tensorkeep
from tensorkeep.cli.main import main
from tensorkeep.devices.protocol import Device
from tensorkeep.errors import Conflict, NotFound, Unavailable
from tensorkeep.records.device import DeviceFacts
from tensorkeep.records.digest import blake3_256
from tensorkeep.records.naming import ObjectKind, PartName, physical_name
from tensorkeep.runtime import Runtime, SeededRandomness
from tensorkeep.store import scrub as scrubbing
from tensorkeep.store.checking import check_copy
from tensorkeep.store.fleet import open_by_facts
from tensorkeep.store.reports import Problem
from tensorkeep.store.store import Store
from tensorkeep.testing.devices import FaultyDevice
from tests.faults.store_world import (
    GIB,
    MIB,
    MODEL,
    Hooks,
    World,
    assert_clean,
    assert_loads,
    assert_no_orphans,
    device_path,
    flip,
    locations,
    weights,
)

LATE = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A store with two copies of a version on three devices."""
    world = World(tmp_path)
    world.create().push(weights(0), MODEL, part_size=MIB, tag="v0")
    return world


def found(problems: tuple[Problem, ...]) -> set[tuple[str, str | None, str]]:
    return {(problem.kind, problem.device, problem.object) for problem in problems}


def names_of(store: Store) -> dict[str, str]:
    return store._context.fleet.names()


@pytest.mark.parametrize("deep", [False, True])
def test_a_whole_store_is_found_whole(world: World, deep: bool) -> None:
    store = world.open()
    report = store.scrub(deep=deep)
    assert report.ok
    assert [device.device for device in report.devices] == ["d0", "d1", "d2"]
    assert sum(device.objects for device in report.devices) == len(locations(store))
    assert report.bytes == (sum(row.length for row in locations(store)) if deep else 0)
    assert {(device.bad, device.orphans, device.complete) for device in report.devices} == {(0, 0, True)}


def test_a_light_scrub_finds_what_is_missing_or_has_another_size(world: World) -> None:
    store = world.open()
    names = names_of(store)
    rows = {kind: next(row for row in locations(store) if row.key.kind is kind) for kind in ObjectKind}
    expected = set()
    for kind, row in rows.items():
        path = device_path(store, row)
        if kind in (ObjectKind.PART, ObjectKind.VERSION):
            path.unlink()
            expected.add(("missing", names[row.device], row.name))
        else:
            path.chmod(0o644)
            path.write_bytes(path.read_bytes() + b"x")
            expected.add(("corrupt", names[row.device], row.name))
    report = store.scrub()
    assert not report.ok
    assert found(report.problems) == expected
    assert {row.id for row in locations(store) if row.state == "bad"} == {row.id for row in rows.values()}
    assert found(store.scrub().problems) == expected
    assert store.repair().ok
    store.gc(grace_s=0, max_fraction=None)
    assert store.scrub().ok
    assert_clean(store)


def test_a_deep_scrub_finds_every_flipped_bit_and_a_light_one_none(world: World) -> None:
    store = world.open()
    names, chance = names_of(store), SeededRandomness(1)
    expected = set()
    seen = set()
    for row in locations(store):
        if row.key in seen:
            continue  # of each object one copy
        seen.add(row.key)
        flip(device_path(store, row), int(row.length * chance.uniform()), 1 << int(8 * chance.uniform()))
        expected.add(("corrupt", names[row.device], row.name))
    assert store.scrub().ok
    report = store.scrub(deep=True)
    assert found(report.problems) == expected
    assert not store.scrub().problems  # a listing shows no bytes: it finds nothing wrong
    assert {row.state for row in locations(store)} == {"bad", "live"}  # nor does it make anything good
    repaired = store.repair()
    assert (repaired.ok, repaired.repaired) == (True, len(expected))
    store.gc(grace_s=0, max_fraction=None)
    assert store.scrub(deep=True).ok
    assert_loads(store, f"{MODEL}@v0", weights(0))


def test_a_copy_that_turns_good_again_is_good_after_a_deep_scrub(world: World) -> None:
    store = world.open()
    row = locations(store)[0]
    flip(device_path(store, row), 1, 2)
    assert not store.scrub(deep=True).ok
    flip(device_path(store, row), 1, 2)
    assert store.scrub(deep=True).ok
    assert {row.state for row in locations(store)} == {"live"}


@pytest.mark.parametrize("deep", [False, True])
def test_a_scrub_that_is_cut_off_goes_on(world: World, monkeypatch: pytest.MonkeyPatch, deep: bool) -> None:
    monkeypatch.setattr(scrubbing, "_PAGE", 3)
    total = sum(row.length for row in locations(world.open()))

    class Killed(BaseException):
        pass

    def cut() -> None:
        if hooks.hits["scrub.page_recorded"] == (2 if deep else 60):
            raise Killed

    hooks = Hooks(scrub__page_recorded=cut)
    with pytest.raises(Killed):
        world.open(failpoints=hooks).scrub(deep=deep)
    states = {state.device: state for state in world.open()._context.catalog.list_scrubs()}
    assert any(state.after for state in states.values())
    done = sum(state.bytes for state in states.values() if state.after)  # a device that was through begins anew
    store = world.open()
    report = store.scrub(deep=deep)
    assert report.ok
    if deep:
        assert 0 < done < total
        assert report.bytes == total - done
    assert sum(device.objects for device in report.devices) == len(locations(store))
    states = {state.device: state for state in store._context.catalog.list_scrubs()}
    assert {(state.after, state.ended_at is not None) for state in states.values()} == {(0, True)}
    again = store.scrub(deep=deep, devices=["d1"])
    assert [device.device for device in again.devices] == ["d1"]


def test_restart_begins_anew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrubbing, "_PAGE", 2)
    store = world.open()
    total = sum(row.length for row in locations(store))
    assert store._context.catalog.list_scrubs() == []
    store.scrub(deep=True)
    first = store._context.catalog.list_on(store.devices.list()[0].facts.id, after=0, limit=2)[-1].id
    state = store._context.catalog.list_scrubs()[0]
    store._context.catalog.record_scrub(
        type(state)(device=state.device, depth="deep", after=first, begun_at=state.begun_at), good=(), bad=()
    )
    assert store.scrub(deep=True, restart=True).bytes == total


def test_a_scrub_keeps_to_a_rate_on_each_device(world: World) -> None:
    store = world.open()
    most = max(device.bytes for device in store.devices.list())
    report = store.scrub(deep=True, rate_limit=most)
    assert report.ok
    assert report.seconds > 0.9


def test_a_device_that_is_away_is_told_and_nothing_on_it_is_marked(world: World) -> None:
    store = world.open()
    world.unmount("d1")
    for deep in (False, True):
        report = store.scrub(deep=deep)
        assert {problem.kind for problem in report.problems} == {"unreachable"}
        assert {problem.device for problem in report.problems} == {"d1"}
        assert not report.ok
    assert {row.state for row in locations(store)} == {"live"}
    world.mount("d1")
    assert store.scrub(deep=True).ok


def test_a_device_that_fails_in_mid_scrub_marks_nothing_and_the_next_scrub_goes_on_there(world: World) -> None:
    faulty: dict[str, FaultyDevice] = {}

    def opener(facts: DeviceFacts, runtime: Runtime) -> Device:
        device = open_by_facts(facts, runtime)
        if facts.name == "d1":
            device = faulty.setdefault("d1", FaultyDevice(device))
        return device

    store = world.open(opener=opener)
    store.status()
    faulty["d1"].fail("read_into", Unavailable)
    report = store.scrub(deep=True)
    assert {(p.kind, p.device) for p in report.problems} == {("unreachable", "d1")}
    assert {device.device: device.complete for device in report.devices} == {"d0": True, "d1": False, "d2": True}
    assert {row.state for row in locations(store)} == {"live"}
    assert world.open().scrub(deep=True).ok


def test_one_object_that_cannot_be_read_is_bad_and_does_not_stop_the_scrub(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrubbing, "_PAGE", 4)
    faulty: dict[str, FaultyDevice] = {}

    def opener(facts: DeviceFacts, runtime: Runtime) -> Device:
        return faulty.setdefault(facts.name, FaultyDevice(open_by_facts(facts, runtime)))

    store = world.open(opener=opener)
    names = names_of(store)
    row = locations(store)[0]
    store.status()
    faulty[names[row.device]].fail("read_into", Unavailable, matching=lambda name: name == row.name)
    report = store.scrub(deep=True)
    assert found(report.problems) == {("corrupt", names[row.device], row.name)}
    assert {device.complete for device in report.devices} == {True}
    assert [each.id for each in locations(store) if each.state == "bad"] == [row.id]
    assert store.repair().ok
    assert_loads(world.open(), f"{MODEL}@v0", weights(0))


def test_what_gc_takes_away_meanwhile_is_not_missing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    store = world.open()
    store.push(weights(1), MODEL, part_size=MIB, tag="v1")
    check = check_copy
    done: list[bool] = []

    def remove_first(*arguments: object, **words: object) -> None:
        if not done:
            done.append(True)
            other = world.open()
            other.delete_tag(MODEL, "v0")
            other.rm(f"{MODEL}@{other.log(MODEL)[1].id}")
            assert other.gc(grace_s=0, max_fraction=None).deleted > 0
        check(*arguments, **words)  # type: ignore[arg-type]

    monkeypatch.setattr(scrubbing, "check_copy", remove_first)
    assert store.scrub(deep=True).problems == ()


def test_an_unknown_device_is_refused(world: World) -> None:
    with pytest.raises(NotFound, match="no device 'd7' in use"):
        world.open().scrub(devices=["d7"])


def late_put(world: World, device: str, content: bytes = b"late") -> str:
    """Put an object as a request does that lands long after everybody has given it up."""
    name = physical_name(PartName(blake3_256(content), LATE))
    path = world.place(device) / name
    path.write_bytes(content)
    return name


def test_an_object_that_nothing_tells_of_is_noted_and_deleted_by_gc_after_its_grace(world: World) -> None:
    store = world.open()
    name = late_put(world, "d2")
    foreign = world.place("d2") / "parts" / "00" / "somebody's file"
    foreign.write_text("not ours")
    assert store.scrub(deep=True).ok  # which does not list
    report = store.scrub()
    assert report.ok
    assert {device.device: device.orphans for device in report.devices} == {"d0": 0, "d1": 0, "d2": 1}
    assert sum(device.orphans for device in store.scrub().devices) == 0  # known by now
    assert store.gc(max_fraction=None).swept_orphans == 0  # the grace
    assert (world.place("d2") / name).exists()
    collected = store.gc(grace_s=0, max_fraction=None)
    assert (collected.swept_orphans, collected.deleted) == (1, 0)
    assert not (world.place("d2") / name).exists()
    assert foreign.exists()
    foreign.unlink()
    assert_no_orphans(world, store)
    assert_clean(store)


def test_what_a_push_under_way_has_written_is_no_orphan(world: World) -> None:
    hooks = Hooks()
    counts: list[int] = []

    def look() -> None:
        if len(counts) < 8:
            counts.append(sum(device.orphans for device in world.open().scrub().devices))

    hooks.on |= {"push.part_written": look, "push.part_flushed": look, "push.before_commit": look}
    world.open(failpoints=hooks).push(weights(1), MODEL, part_size=MIB, tag="v1")
    assert len(counts) >= 5
    assert set(counts) == {0}
    store = world.open()
    assert store.gc(grace_s=0, max_fraction=None).swept_orphans == 0
    assert_loads(store, f"{MODEL}@v1", weights(1))


def test_an_old_catalog_notes_no_orphans_of_what_it_does_not_know(world: World) -> None:
    copy = world.keep_copy()
    world.open().push(weights(1), MODEL, part_size=MIB, tag="v1")
    world.put_back(copy)
    with pytest.raises(Conflict) as failure:
        world.open().scrub()
    assert failure.value.facts["reason"] == "stale_catalog"


def test_an_orphan_on_a_device_that_is_away_waits(world: World) -> None:
    store = world.open()
    name = late_put(world, "d2")
    store.scrub()
    world.unmount("d2")
    report = store.gc(grace_s=0, max_fraction=None)
    assert (report.swept_orphans, report.unreachable) == (0, ("d2",))
    world.mount("d2")
    assert store.gc(grace_s=0, max_fraction=None).swept_orphans == 1
    assert not (world.place("d2") / name).exists()


def test_damaged_fragments_are_found_and_made_anew(tmp_path: Path) -> None:
    with tensorkeep.init(tmp_path / "store", ec="2+1") as store:
        for number in range(4):
            store.devices.add(f"d{number}", str(tmp_path / f"d{number}"), bandwidth=GIB, capacity=GIB)
        store.push(weights(0), MODEL, part_size=2 * MIB, tag="v0")
        rows = [row for row in locations(store) if row.fragment is not None]
        names, chance, seen, expected = names_of(store), SeededRandomness(2), set(), set()
        for row in rows:
            if row.key not in seen:
                seen.add(row.key)
                size = device_path(store, row).stat().st_size  # the footer too
                flip(device_path(store, row), int(size * chance.uniform()), 0x80)
                expected.add(("corrupt", names[row.device], row.name))
        report = store.scrub(deep=True)
        assert found(report.problems) == expected
        assert store.repair().ok
        store.gc(grace_s=0, max_fraction=None)
        assert store.scrub(deep=True).ok
        assert_loads(store, f"{MODEL}@v0", weights(0))


def flip_scrub_repair(world: World, seed: int, flips: int) -> None:
    """Flip single bits, at most one copy of an object at a time; find each by a deep scrub, repair it, and read it back."""
    store, chance, done = world.open(), SeededRandomness(seed), 0
    while done < flips:
        by_key = {}
        for row in locations(store):
            if row.key not in by_key or chance.uniform() < 0.5:
                by_key[row.key] = row
        victims = list(by_key.values())[: flips - done]
        for row in victims:
            flip(device_path(store, row), int(row.length * chance.uniform()), 1 << int(8 * chance.uniform()))
        report = store.scrub(deep=True)
        names = names_of(store)
        assert found(report.problems) == {("corrupt", names[row.device], row.name) for row in victims}
        repaired = store.repair()
        assert (repaired.ok, repaired.repaired) == (True, len(victims))
        store.gc(grace_s=0, max_fraction=None)
        done += len(victims)
    assert_clean(store)
    assert_loads(store, f"{MODEL}@v0", weights(0))


def test_each_of_100_flipped_bits_is_found_and_repaired(world: World) -> None:
    flip_scrub_repair(world, 5, 100)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_each_of_1000_flipped_bits_is_found_and_repaired(world: World) -> None:
    flip_scrub_repair(world, 6, 1000)


def test_the_command_scrubs(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--store", str(world.location)]
    assert main([*place, "scrub"]) == 0
    assert "all good" in capsys.readouterr().out
    store = world.open()
    flip(device_path(store, locations(store)[0]), 0, 1)
    assert main([*place, "scrub", "--deep", "--json"]) == 6
    document = json.loads(capsys.readouterr().out)
    assert (document["ok"], sum(len(device["problems"]) for device in document["devices"])) == (False, 1)
    assert main([*place, "scrub", "--deep", "--device", "d1"]) in (0, 6)
