"""A policy that is changed later: versions owe it, their parts get its form, and nothing is given up before that."""

import dataclasses
from collections import Counter
from pathlib import Path

import pytest

import tensorkeep
from tensorkeep.errors import InvalidInput, NotFound, PermissionDenied, Unavailable
from tensorkeep.store.store import Store
from tests.faults.store_world import (
    MIB,
    MODEL,
    Hooks,
    World,
    assert_clean,
    assert_loads,
    assert_no_orphans,
    locations,
    weights,
)

OTHER = "acme/other"
BIG = 4 * MIB


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A store with two versions of a model, two copies of each part, on six devices."""
    world = World(tmp_path, devices=6)
    store = world.create()
    store.push(weights(0), MODEL, part_size=BIG, tag="v0")
    store.push(weights(1), MODEL, part_size=BIG, tag="v1")
    return world


def forms(store: Store) -> Counter[str]:
    """Return how many parts have which rows that count, e.g. ``2 raw`` or ``6 ec-4-2``."""
    of_part: dict[bytes, list[str]] = {}
    for row in locations(store):
        if row.key.kind.value == "part" and row.state in ("live", "stored"):
            of_part.setdefault(row.key.digest, []).append(row.form)
    return Counter(" ".join(f"{n} {form}" for form, n in sorted(Counter(each).items())) for each in of_part.values())


def assert_right(world: World, *, losses: int) -> None:
    """Assert that everything loads and is clean, also without any ``losses`` devices that were chosen here."""
    store = world.open()
    for turn in (0, 1):
        assert_loads(store, f"{MODEL}@v{turn}", weights(turn))
    assert_clean(store)
    assert store.status().short == ()
    for name in world.names[:losses]:
        world.unmount(name)
    away = world.open()
    for turn in (0, 1):
        assert_loads(away, f"{MODEL}@v{turn}", weights(turn))
    for name in world.names[:losses]:
        world.mount(name)


def test_copies_become_fragments_on_as_many_devices_as_there_are_and_copies_again(world: World) -> None:
    store = world.open()
    parts = sum(forms(store).values())
    small = forms(store)["2 raw"]
    assert small == parts
    asked = store.set_policy(MODEL, ec="4+2", dry_run=True)
    assert (asked.dry_run, asked.versions, asked.given_up) == (True, 2, 0)
    assert forms(store)["2 raw"] == parts
    assert store.model(f"{MODEL}@v0").version.policy == "replicas=2"

    report = store.set_policy(MODEL, ec="4+2")
    assert (report.old, report.new, report.versions, report.failed) == (None, "ec=4+2", 2, ())
    assert report.converted == asked.converted
    assert report.given_up_bytes > 0
    held = forms(store)
    assert set(held) == {"6 ec-4-2", "3 raw"}  # parts under 1 MiB are kept whole
    assert held["6 ec-4-2"] > 0
    assert {store.model(f"{MODEL}@v{turn}").version.policy for turn in (0, 1)} == {"ec=4+2"}
    assert_right(world, losses=2)
    assert_no_orphans(world, store)

    again = store.set_policy(MODEL, ec="4+2")
    assert (again.versions, again.converted, again.written_bytes, again.given_up) == (0, 0, 0, 0)
    back = store.set_policy(MODEL, replicas=2)
    assert (back.old, back.failed) == ("ec=4+2", ())
    assert set(forms(store)) == {"2 raw"}
    assert_right(world, losses=1)
    assert_no_orphans(world, store)


def test_more_copies_are_made_and_fewer_given_up(world: World) -> None:
    store = world.open()
    more = store.set_policy(MODEL, replicas=4)
    assert more.failed == ()
    assert set(forms(store)) == {"4 raw"}
    fewer = store.set_policy(MODEL, replicas=1)
    assert (fewer.written_bytes, fewer.converted) == (0, 0)
    assert set(forms(store)) == {"1 raw"}
    assert_right(world, losses=0)
    assert store.push(weights(2), MODEL, part_size=BIG).policy == "replicas=1"


def test_parts_of_which_another_model_asks_more_stay_as_they_are(world: World) -> None:
    store = world.open()
    store.push(weights(0), OTHER, part_size=BIG, ec="4+2")
    before = forms(store)
    report = store.set_policy(MODEL, replicas=1)
    assert report.shared > 0
    assert report.failed == ()
    assert store.status().short == ()
    after = forms(store)
    assert after["1 raw"] > 0
    assert sum(before.values()) == sum(after.values())
    assert_right(world, losses=0)


def test_the_catalog_is_rebuilt_with_the_policies_that_were_set_last(world: World) -> None:
    world.open().set_policy(MODEL, ec="4+2")
    world.open().set_policy(None, replicas=3)
    world.lose_catalog()
    tensorkeep.rebuild_catalog(world.location)
    store = world.open()
    table = store.policies()
    assert table.store == "replicas=3"
    assert [(each.model, each.own, each.owed) for each in table.models] == [(MODEL, "ec=4+2", {"ec=4+2": 2})]
    assert_right(world, losses=2)


def test_the_stores_policy_is_that_of_later_pushes_of_models_without_one(world: World) -> None:
    store = world.open()
    report = store.set_policy(None, replicas=3)
    assert (report.model, report.old, report.new, report.versions) == (None, "replicas=2", "replicas=3", 0)
    assert set(forms(store)) == {"2 raw"}
    assert store.push(weights(3), "acme/new", part_size=BIG).policy == "replicas=3"


def test_what_the_devices_cannot_keep_is_refused_before_anything_owes_it(world: World) -> None:
    store = world.open()
    with pytest.raises(InvalidInput, match="needs 7 devices"):
        store.set_policy(MODEL, ec="5+2")
    world.unmount("d5")
    with pytest.raises(Unavailable, match="needs 6 devices that can be written, and d5 can't be now"):
        world.open().set_policy(MODEL, ec="4+2")
    with pytest.raises(InvalidInput, match="give replicas or ec"):
        store.set_policy(MODEL)
    with pytest.raises(NotFound):
        store.set_policy("acme/none", replicas=2)
    assert store.policies().models[0].owed == {"replicas=2": 2}
    assert {store.model(f"{MODEL}@v{turn}").version.policy for turn in (0, 1)} == {"replicas=2"}


def test_a_read_only_store_changes_no_policy(world: World) -> None:
    store = Store(dataclasses.replace(world.open()._context, read_only=True))
    with pytest.raises(PermissionDenied, match="can't be written"):
        store.set_policy(MODEL, replicas=1)
    assert store.set_policy(MODEL, replicas=1, dry_run=True).versions == 2


def test_a_push_beside_a_conversion_is_whole(world: World) -> None:
    hooks = Hooks()
    converting = world.open(failpoints=hooks)

    def in_the_middle() -> None:
        world.open().push(weights(2), MODEL, part_size=BIG, tag="v2")

    hooks.on["policy.converted"] = in_the_middle
    assert converting.set_policy(MODEL, ec="4+2").failed == ()
    store = world.open()
    assert_loads(store, f"{MODEL}@v2", weights(2))
    assert store.set_policy(MODEL, ec="4+2").failed == ()
    assert set(forms(store)) <= {"6 ec-4-2", "3 raw"}
    assert_right(world, losses=2)


def test_a_device_that_is_damaged_meanwhile_costs_no_bytes(world: World) -> None:
    """The negative control of add, then remove: what is not there in the new form keeps its old copies."""
    hooks = Hooks()
    converting = world.open(failpoints=hooks)

    def lose_what_was_written() -> None:
        catalog = converting._context.catalog
        written = [row for row in locations(converting) if row.fragment is not None]
        assert written
        catalog.record_checked(good=(), bad=[row.id for row in written])

    hooks.on["policy.converted"] = lose_what_was_written
    report = converting.set_policy(MODEL, ec="4+2")
    assert report.failed
    store = world.open()
    for turn in (0, 1):
        assert_loads(store, f"{MODEL}@v{turn}", weights(turn))
