"""Devices that fail, fill up, go away or are mounted read-only under the verbs of a store: others take over, nothing is lost."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import tensorkeep
from tensorkeep.errors import (
    Capacity,
    Integrity,
    NotEnoughCopies,
    NotFound,
    PermissionDenied,
    TensorkeepError,
    Unavailable,
)
from tensorkeep.store.store import Store
from tests.faults.store_world import (
    MIB,
    MODEL,
    FaultyFleet,
    World,
    assert_clean,
    assert_loads,
    assert_no_orphans,
    journal_names,
    locations,
    small_weights,
    usable,
    weights,
)
from tests.mounts import read_only_mount

REFUSALS = [Capacity, Unavailable, PermissionDenied]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.end()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[World]:
    """A store with as many devices as copies: none can take over."""
    world = World(tmp_path, devices=2)
    yield world
    world.end()


@pytest.fixture
def fleet() -> FaultyFleet:
    return FaultyFleet()


def is_part(name: str) -> bool:
    return name.startswith("parts/")


def is_metadata(name: str) -> bool:
    return name.startswith(("manifests/", "checks/", "versions/"))


def is_entry(name: str) -> bool:
    return name.startswith("journal/")


def begin(world: World, fleet: FaultyFleet) -> Store:
    """Return the store with one version, on devices that can be made to fail."""
    world.create().push(small_weights(0), MODEL, part_size=MIB, tag="v0")
    store = world.open(opener=fleet.open)
    store.model(MODEL)  # opens every device
    store.status()
    return store


# ---------------------------------------------------------------------------- push


@pytest.mark.parametrize("error", REFUSALS)
@pytest.mark.parametrize("matching", [is_part, is_metadata], ids=["parts", "metadata"])
def test_another_device_takes_over_what_one_refuses(
    world: World, fleet: FaultyFleet, error: type[TensorkeepError], matching: Callable[[str], bool]
) -> None:
    store = begin(world, fleet)
    fleet.by_name["d1"].fail("put", error, matching=matching)
    version = store.push(weights(1), MODEL, part_size=MIB)
    assert version.report is not None
    assert any("d1" in warning for warning in version.report.warnings)
    fleet.by_name["d1"].heal()
    assert_loads(store, MODEL, weights(1))
    fresh = world.open()
    assert_clean(fresh)
    assert_no_orphans(world, fresh)
    held = usable(fresh)
    owed = fresh._context.catalog.version_objects(version.id)
    assert all(len(held[key]) >= 2 for key, _ in owed)


@pytest.mark.parametrize("on_call", [1, 2, 4])
def test_another_device_takes_over_in_mid_push(world: World, fleet: FaultyFleet, on_call: int) -> None:
    store = begin(world, fleet)
    fleet.by_name["d2"].fail("put", Capacity, matching=is_part, on_call=on_call)
    store.push(weights(1), MODEL, part_size=MIB)
    assert_loads(store, MODEL, weights(1))
    assert_clean(world.open())
    assert_no_orphans(world, world.open())


@pytest.mark.parametrize("error", REFUSALS)
def test_a_put_that_did_its_work_and_lost_its_answer_leaves_only_garbage(
    world: World, fleet: FaultyFleet, error: type[TensorkeepError]
) -> None:
    store = begin(world, fleet)
    fleet.by_name["d0"].fail("put", error, matching=is_part, after=True)
    store.push(weights(1), MODEL, part_size=MIB)
    fleet.by_name["d0"].heal()
    assert_loads(store, MODEL, weights(1))
    assert_clean(world.open())
    assert_no_orphans(world, world.open())


def test_a_device_whose_flush_fails_holds_nothing_that_counts(world: World, fleet: FaultyFleet) -> None:
    store = begin(world, fleet)
    fleet.by_name["d0"].fail("flush", Unavailable)
    device = next(facts.id for facts in store._context.catalog.list_devices() if facts.name == "d0")
    before = {location.id for location in locations(store)}
    store.push(weights(1), MODEL, part_size=MIB)
    new = [location for location in locations(store) if location.id not in before]
    assert new
    assert not any(location.device == device for location in new)
    assert_clean(world.open())


@pytest.mark.parametrize(
    ("error", "raised"), [(Capacity, Capacity), (Unavailable, NotEnoughCopies), (PermissionDenied, NotEnoughCopies)]
)
@pytest.mark.parametrize("matching", [is_part, is_metadata], ids=["parts", "metadata"])
def test_with_too_few_devices_left_a_push_fails_and_nothing_is_lost(
    pair: World,
    fleet: FaultyFleet,
    error: type[TensorkeepError],
    raised: type[TensorkeepError],
    matching: Callable[[str], bool],
) -> None:
    store = begin(pair, fleet)
    fleet.by_name["d1"].fail("put", error, matching=matching)
    with pytest.raises(raised) as caught:
        store.push(weights(1), MODEL, part_size=MIB, tag="v1")
    assert type(caught.value) is raised
    assert "d1" in str(caught.value)
    assert "committed" not in str(caught.value)
    with pytest.raises(NotFound):
        store.model(f"{MODEL}@v1")
    assert_loads(store, MODEL, small_weights(0))
    assert_clean(pair.open())
    fleet.by_name["d1"].heal()
    again = store.push(weights(1), MODEL, part_size=MIB, tag="v1")
    assert_loads(store, f"{MODEL}@v1", weights(1))
    assert store.log(MODEL)[0].id == again.id
    assert_clean(pair.open())
    assert_no_orphans(pair, pair.open())


def test_a_degraded_push_goes_on_with_fewer_copies_and_the_next_one_heals(pair: World, fleet: FaultyFleet) -> None:
    store = begin(pair, fleet)
    pair.unmount("d1")
    with pytest.raises(Unavailable, match="d1"):
        pair.open().push(weights(1), MODEL, part_size=MIB)
    version = pair.open().push(weights(1), MODEL, part_size=MIB, allow_degraded=True)
    assert_loads(pair.open(), MODEL, weights(1))
    pair.mount("d1")
    fresh = pair.open()
    assert {short.version for short in fresh.status().short} == {version.id}
    fresh.push(weights(1), MODEL, part_size=MIB)
    assert pair.open().status().short == ()
    assert_clean(pair.open())
    assert store.log(MODEL)[0].id == version.id


# ------------------------------------------------------------------------- journal


VERBS: dict[str, Callable[[Store], object]] = {
    "push": lambda store: store.push(weights(1), MODEL, part_size=MIB),
    "unchanged push with a tag": lambda store: store.push(small_weights(0), MODEL, part_size=MIB, tag="again"),
    "tag": lambda store: store.tag(MODEL, "again"),
    "branch": lambda store: store.branch(MODEL, "prod", to="v0"),
    "delete tag": lambda store: store.delete_tag(MODEL, "v0"),
    "rm model": lambda store: store.rm_model(MODEL),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("method", ["put", "flush"])
def test_an_entry_on_too_few_devices_is_not_acknowledged_and_the_next_verb_sends_it(
    pair: World, fleet: FaultyFleet, verb: str, method: str
) -> None:
    store = begin(pair, fleet)
    device = fleet.by_name["d1"]
    if method == "put":
        device.fail("put", Unavailable, matching=is_entry)
    else:
        # Flushes of what a push writes go well; the one of the entry is the first after it was put.
        device.fail("put", Unavailable, matching=is_entry, after=True)
    with pytest.raises(NotEnoughCopies, match="committed, not yet on devices") as caught:
        VERBS[verb](store)
    assert "d1" in str(caught.value)
    device.heal()
    behind = {status.facts.name: status.journal_behind for status in store.status().devices}
    assert behind["d0"] == 0
    assert behind["d1"] > 0
    store.push(small_weights(7), "next", part_size=MIB)
    assert {status.journal_behind for status in store.status().devices} == {0}
    assert_clean(pair.open())
    everything = store.models()
    pair.lose_catalog()
    tensorkeep.rebuild_catalog(pair.location)
    assert pair.open().models() == everything
    assert_clean(pair.open())


def test_one_device_of_three_without_the_entry_is_no_failure_and_catches_up(world: World, fleet: FaultyFleet) -> None:
    store = begin(world, fleet)
    fleet.by_name["d1"].fail("put", Unavailable, matching=is_entry)
    store.tag(MODEL, "one")
    store.tag(MODEL, "two")
    behind = {status.facts.name: status.journal_behind for status in store.status().devices}
    assert behind == {"d0": 0, "d1": 2, "d2": 0}
    fleet.by_name["d1"].heal()
    store.tag(MODEL, "three")
    assert {status.journal_behind for status in store.status().devices} == {0}
    assert len({len(journal_names(world, name)) for name in world.names}) == 1
    assert_clean(world.open())


def test_entries_that_could_not_be_trimmed_do_no_harm(tmp_path: Path, fleet: FaultyFleet) -> None:
    world = World(tmp_path, snapshot_every=1)
    store = begin(world, fleet)
    fleet.by_name["d1"].fail("delete", Unavailable, matching=is_entry)
    store.tag(MODEL, "one")
    store.tag(MODEL, "two")
    assert len(journal_names(world, "d1")) > len(journal_names(world, "d0"))
    fleet.by_name["d1"].heal()
    store.tag(MODEL, "three")
    assert len(journal_names(world, "d1")) == len(journal_names(world, "d0"))
    assert_clean(world.open())
    world.end()


# ---------------------------------------------------------------------------- load


@pytest.mark.parametrize("error", [Unavailable, NotFound, Integrity, PermissionDenied])
@pytest.mark.parametrize("method", ["read_into", "read", "size_of"])
def test_a_load_turns_to_other_copies_when_a_device_fails(
    world: World, fleet: FaultyFleet, error: type[TensorkeepError], method: str
) -> None:
    store = begin(world, fleet)
    for name in world.names:
        fleet.by_name[name].fail(method, error)
        assert_loads(store, MODEL, small_weights(0))
        fleet.by_name[name].heal()
    assert_clean(world.open())


def test_a_device_that_fails_in_mid_load_is_replaced(world: World, fleet: FaultyFleet) -> None:
    world.create().push(weights(0), MODEL, part_size=MIB)
    for on_call in (1, 2, 3):
        for name in world.names:
            store = world.open(opener=fleet.open)
            store.status()  # opens every device
            fleet.by_name[name].fail("read_into", Unavailable, on_call=on_call)
            assert_loads(store, MODEL, weights(0))
            fleet.by_name[name].heal()


def test_a_wrong_bit_on_the_way_is_never_in_an_array(world: World, fleet: FaultyFleet) -> None:
    store = begin(world, fleet)
    for name in world.names:
        fleet.by_name[name].flip_bit(is_part, byte=100_000)
        assert_loads(store, MODEL, small_weights(0))
        fleet.by_name[name].heal()
    for name in world.names:
        fleet.by_name[name].flip_bit(is_part, byte=100_000)
    with pytest.raises(Integrity):
        store.model(MODEL).load()
    for name in world.names:
        fleet.by_name[name].heal()
    # What the cable did is no damage: the copies are good again when they were read again.
    assert_clean(world.open())
    assert_loads(store, MODEL, small_weights(0))


def test_a_load_without_any_device_says_which_are_away_and_marks_nothing(world: World, fleet: FaultyFleet) -> None:
    store = begin(world, fleet)
    before = {location.id: location.state for location in locations(store)}
    for name in world.names:
        world.unmount(name)
    with pytest.raises(NotEnoughCopies) as caught:
        store.model(MODEL).load()
    assert sum(name in str(caught.value) for name in world.names) == 2  # those that hold what was asked for first
    for name in world.names:
        world.mount(name)
    assert {location.id: location.state for location in locations(store)} == before
    assert_loads(world.open(), MODEL, small_weights(0))


# ------------------------------------------------------------------------------ gc


def test_gc_keeps_the_rows_of_a_device_that_is_away_and_finishes_later(world: World, fleet: FaultyFleet) -> None:
    store = begin(world, fleet)
    store.push(weights(1), "gone", part_size=MIB)
    store.rm_model("gone")
    world.unmount("d1")
    held = set((world.folder / "d1.aside").rglob("*"))
    report = world.open().gc(grace_s=0, max_fraction=None)
    assert report.unreachable == ("d1",)
    assert report.waiting > 0
    assert set((world.folder / "d1.aside").rglob("*")) == held
    assert not any(path.is_file() for path in world.place("d1").rglob("*"))  # nothing was made in the empty mount point
    world.mount("d1")
    last = world.open().gc(grace_s=0, max_fraction=None)
    assert (last.waiting, last.unreachable) == (0, ())
    assert_no_orphans(world, world.open())
    assert_clean(world.open())


@pytest.mark.parametrize("method", ["delete", "flush", "size_of"])
def test_gc_drops_no_row_of_what_it_could_not_delete(world: World, fleet: FaultyFleet, method: str) -> None:
    store = begin(world, fleet)
    store.push(weights(1), "gone", part_size=MIB)
    store.rm_model("gone")
    fleet.by_name["d0"].fail(method, Unavailable)
    report = store.gc(grace_s=0, max_fraction=None)
    assert report.unreachable == ("d0",)
    assert report.waiting > 0
    fleet.by_name["d0"].heal()
    assert store.gc(grace_s=0, max_fraction=None).waiting == 0
    assert_no_orphans(world, world.open())
    assert_clean(world.open())


def test_a_device_that_is_away_is_never_taken_for_empty(world: World, fleet: FaultyFleet) -> None:
    store = begin(world, fleet)
    objects = world.objects()
    states = {location.id: location.state for location in locations(store)}
    world.unmount("d2")
    fresh = world.open()
    assert_loads(fresh, MODEL, small_weights(0))
    problems = fresh.verify().problems
    assert {problem.device for problem in problems if problem.kind == "unreachable"} == {"d2"}
    fresh.gc(grace_s=0, max_fraction=None)
    fresh.status()
    with pytest.raises(Unavailable):
        fresh.push(weights(1), MODEL, part_size=MIB)
    world.mount("d2")
    assert world.objects() == objects
    assert {location.id: location.state for location in locations(world.open())} == states
    assert_clean(world.open())


def test_two_swapped_disks_are_refused_by_name_and_nothing_is_marked(world: World, fleet: FaultyFleet) -> None:
    store = begin(world, fleet)
    states = {location.id: location.state for location in locations(store)}
    world.close()

    def swap() -> None:
        world.place("d0").rename(world.folder / "swap")
        world.place("d1").rename(world.place("d0"))
        (world.folder / "swap").rename(world.place("d1"))

    swap()
    fresh = world.open()
    with pytest.raises(Unavailable, match="swapped"):
        fresh.push(weights(1), MODEL, part_size=MIB)
    with pytest.raises(TensorkeepError, match=r"swapped|reach"):
        fresh.model(MODEL).load()
    fresh.gc(grace_s=0, max_fraction=None)
    swap()
    assert {location.id: location.state for location in locations(world.open())} == states
    assert_clean(world.open())


# ----------------------------------------------------------------------- read-only


@pytest.mark.root
def test_a_device_that_is_remounted_read_only_is_read_and_others_take_its_share(
    world: World, fleet: FaultyFleet
) -> None:
    store = begin(world, fleet)
    with read_only_mount(world.place("d1")):
        for handle in (store, world.open()):
            assert_loads(handle, MODEL, small_weights(0))
        version = store.push(weights(1), MODEL, part_size=MIB)
        assert version.report is not None
        assert "d1" not in version.report.device_bytes
        assert_loads(world.open(), MODEL, weights(1))
        # Copies of what is removed now wait on the device until it can be written.
        store.push(weights(2), "gone", part_size=MIB)
        store.rm_model("gone")
        assert_clean(world.open())
    store.tag(MODEL, "after")
    assert_no_orphans(world, world.open())
    assert_clean(world.open())
    assert {status.journal_behind for status in world.open().status().devices} == {0}


@pytest.mark.root
def test_a_store_on_a_read_only_mount_is_read_and_says_why_it_is_not_written(world: World, fleet: FaultyFleet) -> None:
    begin(world, fleet)
    world.close()
    with read_only_mount(world.folder):
        store = world.open()
        assert_loads(store, MODEL, small_weights(0))
        assert_clean(store)
        for verb in VERBS.values():
            with pytest.raises(PermissionDenied):
                verb(store)
        with pytest.raises(PermissionDenied):
            store.gc(grace_s=0, max_fraction=None)
        world.close()
    assert_clean(world.open())
