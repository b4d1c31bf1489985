"""``kill -9`` at every step of a repair, a drain, a rebalance and a change of policy: nothing is lost, and running it again ends what was begun."""

import signal
from collections.abc import Iterator, Mapping

import pytest

from tensorkeep.records.naming import ObjectKind
from tensorkeep.runtime import FAILPOINTS
from tensorkeep.store.store import Store
from tests.faults.store_driver import Driver
from tests.faults.store_world import (
    MIB,
    MODEL,
    World,
    assert_clean,
    assert_loads,
    assert_no_orphans,
    device_path,
    locations,
    usable,
    weights,
)

KILLED = -signal.SIGKILL

WRITING = {"push.staged": (1,), "push.part_written": (1, 4), "push.part_flushed": (1,), "push.part_recorded": (1,)}
REPAIR = {
    "repair.begun": (1,),
    "repair.planned": (1,),
    **WRITING,
    "repair.written": (1,),
    "repair.recorded": (1,),
    "repair.done": (1,),
}
DRAIN = {
    "journal.written": (1,),
    "drain.begun": (1,),
    "push.part_flushed": (1,),
    "repair.recorded": (1,),
    "drain.retired": (1,),
    "gc.deleted": (1,),
    "gc.flushed": (1,),
    "gc.dropped": (1,),
    "drain.deleted": (1,),
    "drain.done": (1,),
}
REBALANCE = {
    "rebalance.planned": (1,),
    "push.staged": (1,),
    "push.part_written": (1, 2),
    "push.part_flushed": (1,),
    "push.part_recorded": (1,),
    "rebalance.copied": (1,),
    "rebalance.retired": (1,),
    "rebalance.done": (1,),
    "gc.condemned": (1,),
}


POLICY = {
    "journal.written": (1,),
    "policy.set": (1,),
    "repair.planned": (1,),
    "push.staged": (1,),
    "push.part_written": (1, 2),
    "repair.written": (1,),
    "policy.converted": (1,),
    "policy.given_up": (1,),
    "policy.done": (1,),
}
SCRUB = {"scrub.page_recorded": (1, 3)}


def steps(table: Mapping[str, tuple[int, ...]]) -> list[tuple[str, int]]:
    return [(name, number) for name, numbers in table.items() for number in numbers]


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    with Driver() as driver:
        yield driver


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A store with two copies on four devices, which every test leaves whole."""
    world = World(tmp_path_factory.mktemp("upkeep"), devices=4)
    world.create().push(weights(0), MODEL, part_size=MIB, tag="v0")
    world.close()
    yield world
    world.end()


def run(driver: Driver, world: World, verb: str, **job: object) -> int:
    return driver.run(verb=verb, folder=str(world.folder), **job)


def assert_right(world: World, *, counting_off: tuple[str, ...] = ()) -> Store:
    """Assert that all loads, that what counts is good, and that each object has its two copies."""
    store = world.open()
    assert_loads(store, f"{MODEL}@v0", weights(0))
    off = {device.facts.id for device in store.devices.list() if device.facts.name in counting_off}
    assert {len(devices - off) for devices in usable(store).values()} == {2}
    assert_clean(store)
    return store


def test_every_failpoint_is_killed_at() -> None:
    mine = ("scrub.", "repair.", "drain.", "rebalance.", "policy.")
    assert {name for name in {*REPAIR, *DRAIN, *REBALANCE, *POLICY, *SCRUB} if name.startswith(mine)} == {
        name for name in FAILPOINTS if name.startswith(mine)
    }


@pytest.mark.parametrize(("name", "number"), steps(SCRUB))
def test_a_scrub_killed_at_a_step_goes_on(driver: Driver, world: World, name: str, number: int) -> None:
    assert run(driver, world, "scrub", kill=name, number=number) == KILLED
    store = world.open()
    assert store.scrub(deep=True).ok
    assert_right(world)
    world.close()


@pytest.mark.parametrize(("name", "number"), steps(REPAIR))
def test_a_repair_killed_at_a_step_is_ended_by_the_next(driver: Driver, world: World, name: str, number: int) -> None:
    store = world.open()
    fullest = max(store.devices.list(), key=lambda device: device.objects).facts.id
    rows = [row for row in locations(store) if row.device == fullest]
    assert len(rows) > 3
    for row in rows:
        device_path(store, row).unlink()
    assert not store.verify().ok
    world.close()
    assert run(driver, world, "repair", kill=name, number=number) == KILLED
    fresh = world.open()
    assert_loads(fresh, f"{MODEL}@v0", weights(0))
    world.close()
    assert run(driver, world, "repair") == 0
    store = world.open()
    store.gc(grace_s=0, max_fraction=None)
    assert store.repair(dry_run=True).ok
    store = assert_right(world)
    store.rebalance()
    assert_no_orphans(world, store)
    world.close()


@pytest.mark.parametrize(("name", "number"), steps(DRAIN))
def test_a_drain_killed_at_a_step_is_ended_by_the_next(driver: Driver, world: World, name: str, number: int) -> None:
    assert run(driver, world, "drain", device="d1", kill=name, number=number) == KILLED
    assert_loads(world.open(), f"{MODEL}@v0", weights(0))
    world.close()
    assert run(driver, world, "drain", device="d1") == 0
    store = world.open()
    ids = {device.facts.name: device.facts.id for device in store.devices.list()}
    assert store._context.catalog.list_on(ids["d1"], after=0, limit=9) == []
    assert_right(world, counting_off=("d1",))
    store.devices.undrain("d1")
    store.rebalance()
    assert_no_orphans(world, store)
    world.close()


@pytest.mark.parametrize(("name", "number"), steps(REBALANCE))
def test_a_rebalance_killed_at_a_step_is_ended_by_the_next(
    driver: Driver, world: World, name: str, number: int
) -> None:
    store = world.open()
    assert store.devices.drain("d2", grace_s=0).empty
    store.devices.undrain("d2")
    assert store.rebalance(dry_run=True).moved >= 2
    world.close()
    assert run(driver, world, "rebalance", kill=name, number=number) == KILLED
    assert_loads(world.open(), f"{MODEL}@v0", weights(0))
    world.close()
    assert run(driver, world, "rebalance") == 0
    store = assert_right(world)
    assert store.rebalance(dry_run=True).moved <= 1  # parts are large beside what a device holds here
    assert_no_orphans(world, store)
    world.close()


@pytest.mark.parametrize(("name", "number"), steps(POLICY))
def test_a_change_of_policy_killed_at_a_step_is_ended_by_the_next(
    driver: Driver, world: World, name: str, number: int
) -> None:
    assert run(driver, world, "policy", ec="2+1", kill=name, number=number) == KILLED
    assert_loads(world.open(), f"{MODEL}@v0", weights(0))
    world.close()
    assert run(driver, world, "policy", ec="2+1") == 0
    store = world.open()
    assert_loads(store, f"{MODEL}@v0", weights(0))
    assert {row.form for row in locations(store) if row.key.kind is ObjectKind.PART} == {"raw", "ec-2-1"}
    assert store.status().short == ()
    assert store.set_policy(MODEL, replicas=2).failed == ()
    store.gc(grace_s=0, max_fraction=None)
    assert {row.form for row in locations(store)} == {"raw"}
    assert_no_orphans(world, store)
    assert_right(world)
    world.close()
