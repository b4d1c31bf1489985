"""``kill -9`` at every named step and at random moments: nothing stored is lost, and doing it again sends only what is missing."""

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import tensorkeep
from tensorkeep.errors import AlreadyExists
from tensorkeep.runtime import FAILPOINTS, SeededRandomness
from tensorkeep.store.store import Store
from tests.faults.store_driver import Driver
from tests.faults.store_world import (
    MIB,
    MODEL,
    Arrays,
    World,
    assert_clean,
    assert_loads,
    assert_no_orphans,
    usable,
    weights,
    write_source,
)

KILLED = -signal.SIGKILL
SNAPSHOT_EVERY = 1  # so that each push takes a snapshot, and trims what is older

# Which hits of each name kill; names that are hit many times get an early one and a late one.
PUSH = {
    "push.scanned": (1,),
    "push.planned": (1,),
    "push.session_begun": (1,),
    "push.staged": (1, 2),
    "push.part_written": (1, 8),
    "push.part_flushed": (1, 5),
    "push.part_recorded": (1, 2),
    "push.metadata_staged": (1,),
    "push.metadata_written": (1,),
    "push.before_commit": (1,),
    "push.committed": (1,),
    "push.done": (1,),
    "commit.begun": (1,),
    "commit.locked": (1,),
    "commit.version_inserted": (1,),
    "commit.ref_moved": (1,),
    "commit.journaled": (1,),
    "journal.written": (1, 3),
    "journal.flushed": (1, 3),
    "journal.recorded": (1, 3),
    "journal.trimmed": (1,),
}
GC = {
    "gc.condemned": (1,),
    "gc.deleted": (1, 2),
    "gc.flushed": (1, 2),
    "gc.dropped": (1, 2),
    "gc.tmp_swept": (1,),
}
REBUILD = {
    "rebuild.epoch_raised": (1,),
    "rebuild.journal_read": (1,),
    "rebuild.listed": (1,),
    "rebuild.catalog_written": (1,),
    "rebuild.catalog_installed": (1,),
    "journal.written": (1,),
    "journal.flushed": (2,),
    "journal.recorded": (3,),
    "journal.trimmed": (1,),
}
COMMITTED = {name for name in PUSH if name.startswith("journal.")} | {"push.committed", "push.done"}


def steps(table: Mapping[str, tuple[int, ...]]) -> list[tuple[str, int]]:
    return [(name, number) for name, numbers in table.items() for number in numbers]


class Life:
    """A store that lives through kill after kill: `begin` leaves one version in it, tagged ``old``, and the next one's source."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder, snapshot_every=SNAPSHOT_EVERY)
        self.source = folder / "source"
        self.turn = 0
        self.whole = True
        self.world.create().push(write_source(self.source, weights(0)), MODEL, part_size=MIB)

    @property
    def old(self) -> Arrays:
        return weights(self.turn - 1)

    @property
    def new(self) -> Arrays:
        return weights(self.turn)

    def begin(self) -> Store:
        """Return the store with one version only."""
        self.whole = False
        self.world.close()
        store = self.world.open()
        head = store.model(MODEL).version
        for entry in store.log(MODEL):
            for tag in entry.version.tags if entry.version else ():
                store.delete_tag(MODEL, tag)
            if entry.version and entry.id != head.id:
                store.rm(f"{MODEL}@{entry.id}")
        store.gc(grace_s=0, max_fraction=None)
        store.tag(MODEL, "old")
        self.turn += 1
        write_source(self.source, self.new)
        return store

    def run(self, driver: Driver, verb: str, **job: Any) -> int:
        """Do something in another process, and return how that ended."""
        return driver.run(verb=verb, **{"source": str(self.source), **self.job(), **job})

    def job(self) -> dict[str, Any]:
        return {"folder": str(self.world.folder), "snapshot_every": SNAPSHOT_EVERY}


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    with Driver() as driver:
        yield driver


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Life]]:
    lives: list[Life] = []
    yield lives
    for life in lives:
        life.world.end()


@pytest.fixture
def life(lives: list[Life], tmp_path_factory: pytest.TempPathFactory) -> Life:
    """The store of the last test where that one found it whole, else a new one: most of the time goes into making one."""
    if not lives or not lives[-1].whole:
        lives.append(Life(tmp_path_factory.mktemp("life")))
    return lives[-1]


def test_every_failpoint_is_killed_at() -> None:
    # Those of single files are killed at in test_split_kill.py, those that move copies in test_upkeep_kill.py.
    elsewhere = ("split.", "join.", "scrub.", "repair.", "drain.", "rebalance.", "policy.")
    assert {*PUSH, *GC, *REBUILD} == {name for name in FAILPOINTS if not name.startswith(elsewhere)}


@pytest.mark.parametrize(("name", "number"), steps(PUSH))
def test_a_push_killed_at_a_step_loses_nothing_and_is_resumed(
    driver: Driver, life: Life, name: str, number: int
) -> None:
    life.begin()
    assert life.run(driver, "push", kill=name, number=number) == KILLED
    check_resumed(life, committed=name in COMMITTED)


@pytest.mark.parametrize("moment", range(10))
def test_a_push_killed_at_a_random_moment_loses_nothing_and_is_resumed(driver: Driver, life: Life, moment: int) -> None:
    kill_at_a_random_moment(driver, life, moment)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_a_push_killed_at_one_of_fifty_moments_loses_nothing_and_is_resumed(driver: Driver, life: Life) -> None:
    for moment in range(10, 60):
        kill_at_a_random_moment(driver, life, moment)


@pytest.mark.parametrize("name", ["push.staged", "push.part_written", "push.part_recorded", "push.before_commit"])
def test_a_push_that_is_stopped_while_everything_it_wrote_is_collected_is_whole_in_the_end(
    driver: Driver, life: Life, name: str
) -> None:
    """Its process stands still past every lease: a grace of 0 spares nobody."""
    store, world = life.begin(), life.world
    driver.start(verb="push", source=str(life.source), kill=name, how=signal.SIGSTOP, **life.job())
    try:
        wait_until_stopped(driver.pid)
        collected = store.gc(grace_s=0, max_fraction=None)
        assert collected.condemned == collected.deleted > 0
    finally:
        os.kill(driver.pid, signal.SIGCONT)
    status, _ = driver.finish()
    fresh = world.open()
    assert_loads(fresh, f"{MODEL}@old", life.old)
    assert_clean(fresh)
    if status:  # it ended with a typed error: run again, as a user does
        assert life.run(driver, "push") == 0
    assert_loads(world.open(), MODEL, life.new)
    assert_no_orphans(world, fresh)
    assert_nothing_unfinished(world)
    assert_clean(fresh)
    life.whole = True


def wait_until_stopped(pid: int) -> None:
    end_s = time.monotonic() + 60
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < end_s, "it does not get there"
        time.sleep(0.01)


@pytest.mark.parametrize(("name", "number"), steps(GC))
def test_a_gc_killed_at_a_step_loses_nothing_and_is_finished_by_the_next(
    driver: Driver, life: Life, name: str, number: int
) -> None:
    store, world = life.begin(), life.world
    newer = store.push(life.source, MODEL, part_size=MIB)
    store.branch(MODEL, "main", to="old")
    store.rm(f"{MODEL}@{newer.id}")
    # A push that was killed leaves what gc has to sweep as well.
    other = write_source(world.folder / "other", weights(1000 + life.turn))
    assert life.run(driver, "push", source=str(other), kill="push.part_written") == KILLED
    assert life.run(driver, "gc", kill=name, number=number) == KILLED

    fresh = world.open()
    assert_clean(fresh)
    assert_loads(fresh, f"{MODEL}@old", life.old)
    assert_no_orphans(world, fresh)
    assert_nothing_unfinished(world)
    again = fresh.push(life.source, MODEL, part_size=MIB)
    assert again.report is not None
    assert newer.report is not None
    assert again.report.new_parts == newer.report.new_parts
    assert_loads(fresh, MODEL, life.new)
    life.whole = True


@pytest.mark.parametrize("lost", [True, False], ids=["catalog lost", "catalog there"])
@pytest.mark.parametrize(("name", "number"), steps(REBUILD))
def test_a_rebuild_killed_at_a_step_is_done_by_running_it_again(
    driver: Driver, life: Life, name: str, number: int, lost: bool
) -> None:
    store, world = life.begin(), life.world
    store.push(life.source, MODEL, part_size=MIB, tag="new")
    before = store.log(MODEL)
    if lost:
        world.lose_catalog()
    assert life.run(driver, "rebuild", kill=name, number=number, force=True) == KILLED
    try:
        tensorkeep.rebuild_catalog(world.location)
    except AlreadyExists:
        # The new catalog is in its place and whole: only its journal is not everywhere yet, which any verb makes good.
        assert name == "rebuild.catalog_installed" or name.startswith("journal.")

    fresh = world.open()
    assert fresh.log(MODEL) == before
    assert_loads(fresh, f"{MODEL}@old", life.old)
    assert_loads(fresh, f"{MODEL}@new", life.new)
    fresh.tag(MODEL, "after")
    assert_clean(fresh)
    assert_journal_everywhere(fresh)
    assert_no_orphans(world, fresh)
    assert_clean(fresh)
    assert [path.name for path in world.location.iterdir() if "rebuilt" in path.name] == []
    life.whole = True


def check_resumed(life: Life, *, committed: bool | None) -> None:
    """Assert what must hold after a push was killed, and that the same push then ends what that one began.

    ``committed`` says whether the killed one had committed; None: nobody knows.
    """
    world = life.world
    store = world.open()
    assert_clean(store)
    assert_loads(store, f"{MODEL}@old", life.old)
    old = store.model(f"{MODEL}@old").version.id
    head = store.model(MODEL).version.id
    if committed is not None:
        assert (head != old) == committed
    assert_loads(store, MODEL, life.old if head == old else life.new)

    held = usable(store)
    version = store.push(life.source, MODEL, part_size=MIB)
    assert version.report is not None
    assert version.report.created == (head == old)
    owed = store._context.catalog.version_objects(version.id)
    assert version.report.new_bytes == sum(size for key, size in owed if not held.get(key))
    assert version.report.written_bytes == sum(size * max(0, 2 - len(held.get(key, ()))) for key, size in owed)

    assert version.branches == ("main",)
    assert [entry.id for entry in store.log(MODEL)][:2] == [version.id, old]
    assert_loads(store, MODEL, life.new)
    assert_journal_everywhere(store)
    assert_clean(world.open())
    assert_no_orphans(world, world.open())
    assert_nothing_unfinished(world)
    # What was acknowledged is on the devices, not only in the catalog.
    world.lose_catalog()
    tensorkeep.rebuild_catalog(world.location)
    rebuilt = world.open()
    assert [entry.id for entry in rebuilt.log(MODEL)][:2] == [version.id, old]
    assert_clean(rebuilt)
    assert_loads(rebuilt, f"{MODEL}@old", life.old)
    assert_loads(rebuilt, MODEL, life.new)
    life.whole = True


def kill_at_a_random_moment(driver: Driver, life: Life, moment: int) -> None:
    life.begin()
    driver.start(verb="push", source=str(life.source), **life.job())
    # Such a push takes about 0.15 s: some are killed before they begin, some are done before they are killed.
    until = time.monotonic() + 0.2 * SeededRandomness(moment).uniform()
    while time.monotonic() < until:
        os.sched_yield()
    with suppress(ProcessLookupError):
        os.kill(driver.pid, signal.SIGKILL)
    ended, _ = driver.finish()
    assert ended in (0, KILLED)
    check_resumed(life, committed=True if ended == 0 else None)


def assert_nothing_unfinished(world: World) -> None:
    assert [str(path) for name in world.names for path in (world.place(name) / "tmp").iterdir()] == []


def assert_journal_everywhere(store: Store) -> None:
    assert {device.journal_behind for device in store.status().devices} == {0}
