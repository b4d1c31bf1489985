"""``kill -9`` before every statement of a transaction on PostgreSQL: all or nothing, nothing stays locked, and pushes go on.

A child process does a verb and is killed before the n-th statement of its transactions that write, BEGIN and COMMIT included; n grows
until the child gets to the end. One store lives through all of it: its process, this one, goes on with it after every kill.
"""

import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Connection, Engine, event

from tensorkeep.catalog.access import open_catalog
from tensorkeep.catalog.database import MODE
from tensorkeep.catalog.postgres import LOCK_TIMEOUT_S
from tensorkeep.catalog.sql import SqlCatalog
from tensorkeep.errors import AlreadyExists, Unavailable
from tensorkeep.runtime import Runtime
from tensorkeep.store.store import Store
from tests.faults.store_world import MODEL, Arrays, World, assert_clean, assert_loads, assert_no_orphans

KILLED = -signal.SIGKILL
DOOMED = "acme/doomed"
EVERY = 1000  # transactions


class StopBefore:
    """Failpoints, and a watch on an engine: sends this process a signal before the n-th statement of the transactions that write.

    It begins to count when the failpoint ``begin_at`` is hit, or at once, and counts so many transactions.
    """

    def __init__(self, number: int, begin_at: str | None, transactions: int, how: int = signal.SIGKILL) -> None:
        self._left = number
        self._begin_at = begin_at
        self._transactions = transactions if begin_at is None else 0
        self._most = transactions
        self._how = how

    def hit(self, name: str) -> None:
        """Begin to count if it is time."""
        if name == self._begin_at:
            self._transactions = self._most

    def watch(self, engine: Engine) -> None:
        """Count what an engine does."""
        event.listen(engine, "before_cursor_execute", lambda connection, *_: self._count(connection))
        event.listen(engine, "commit", self._commit)

    def _count(self, connection: Connection) -> bool:
        counted = self._transactions > 0 and connection.get_execution_options().get(MODE) == "write"
        self._left -= counted
        if counted and self._left == 0:
            os.kill(os.getpid(), self._how)
        return counted

    def _commit(self, connection: Connection) -> None:
        self._transactions -= self._count(connection)


def fork(world: World, verb: Callable[[Store], Any], stop: StopBefore) -> int:
    """Begin a verb in a child process, and return who that is."""
    child = os.fork()
    if child:
        return child
    status = 2
    try:
        store = world.open(failpoints=stop)
        stop.watch(engine_of(store))
        verb(store)
        status = 0
    except BaseException:  # noqa: BLE001 - a forked child must never get out of here
        traceback.print_exc()
    finally:
        os._exit(status)


def engine_of(store: Store) -> Engine:
    catalog = store._context.catalog
    assert isinstance(catalog, SqlCatalog)
    return catalog._db.engine


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def each_kill(
    world: World,
    verb: Callable[[int], Callable[[Store], Any]],
    begin_at: str | None,
    transactions: int,
    *,
    step: int = 1,
) -> Iterator[tuple[int, bool]]:
    """Have ``verb(n)`` done in a child that is killed before its n-th statement; yield n, and whether it got to its end: the last.

    ``step``: how many statements further the next kill is.
    """
    for number in range(1, 500, step):
        status = ended(fork(world, verb(number), StopBefore(number, begin_at, transactions)))
        assert status in (0, KILLED)
        yield number, status == 0
        if status == 0:
            return
    pytest.fail("it does not end")


def arrays_of(number: int) -> Arrays:
    return {"shared": np.arange(500), "own": np.full(99, number)}


def tags_of(store: Store) -> dict[str, str]:
    return {tag: entry.version.id for entry in store.log(MODEL) if entry.version for tag in entry.version.tags}


@pytest.fixture
def world(tmp_path: Path, database: str) -> Iterator[World]:
    world = World(tmp_path, devices=1, replicas=1, database=database)
    world.create().push(arrays_of(0), MODEL, tag="v0")
    yield world
    world.end()


@pytest.fixture
def store(world: World) -> Store:
    return world.open()


def push_goes_on(store: Store, number: int) -> bool:
    """Push a version, soon: no lock of the process that was killed is waited for. Return whether it was not there yet."""
    began_s = time.monotonic()
    version = store.push(arrays_of(number), MODEL, tag=f"v{number}")
    assert time.monotonic() - began_s < LOCK_TIMEOUT_S / 2, "it had to wait for a lock"
    assert version.report is not None
    return version.report.created


def check_pushes(world: World, store: Store, begin_at: str | None, transactions: int) -> int:
    """Have a push killed before each statement, and return how many there were."""

    def push(number: int) -> Callable[[Store], Any]:
        return lambda store: store.push(arrays_of(number), MODEL, tag=f"v{number}")

    catalog = store._context.catalog
    seq, before = catalog.info().last_seq, tags_of(store)
    last = 0
    for number, acknowledged in each_kill(world, push, begin_at, transactions):
        found = tags_of(store)
        present = f"v{number}" in found
        assert present or not acknowledged
        assert catalog.info().last_seq == seq + present
        assert {tag: version for tag, version in found.items() if tag != f"v{number}"} == before
        if present:
            assert_loads(store, f"{MODEL}@v{number}", arrays_of(number))
        assert catalog.check() == []
        assert push_goes_on(store, number) == (not present)
        seq, before, last = seq + 1, tags_of(store), number
        assert catalog.info().last_seq == seq
        assert list(before) == [f"v{turn}" for turn in range(number, -1, -1)]
    assert_clean(store)
    for number in range(last + 1):
        assert_loads(store, f"{MODEL}@v{number}", arrays_of(number))
    assert_no_orphans(world, store)
    return last - 1


def test_a_push_killed_before_each_statement_of_its_commit_is_all_or_nothing(world: World, store: Store) -> None:
    assert check_pushes(world, store, "push.before_commit", 1) > 20


@pytest.mark.soak
def test_a_push_killed_before_each_statement_that_writes_is_all_or_nothing(world: World, store: Store) -> None:
    assert check_pushes(world, store, None, EVERY) > 60


def test_a_tag_killed_before_each_statement_of_its_transaction_is_all_or_nothing(world: World, store: Store) -> None:
    catalog = store._context.catalog
    for number, acknowledged in each_kill(world, lambda number: lambda store: store.tag(MODEL, f"t{number}"), None, 1):
        head = store.model(MODEL).version.id
        seq, found = catalog.info().last_seq, tags_of(store)
        present = f"t{number}" in found
        assert present or not acknowledged
        assert found.get(f"t{number}", head) == head
        assert catalog.check() == []
        with pytest.raises(AlreadyExists) if present else nullcontext():
            store.tag(MODEL, f"t{number}")
        assert tags_of(store) == {**found, f"t{number}": head}
        assert catalog.info().last_seq == seq + (not present)
        assert push_goes_on(store, number)
    assert number > 10
    assert_clean(store)
    assert_no_orphans(world, store)


@pytest.mark.parametrize("step", [8, pytest.param(1, marks=pytest.mark.soak)])
def test_a_gc_killed_before_a_statement_that_condemns_or_drops_loses_nothing(
    world: World, store: Store, step: int
) -> None:
    def make_garbage(number: int) -> Callable[[Store], Any]:
        store.push(arrays_of(number), DOOMED)
        store.rm_model(DOOMED)
        return lambda store: store.gc(grace_s=0, max_fraction=None)

    for number, _ in each_kill(world, make_garbage, None, 2, step=step):
        assert store._context.catalog.check() == []
        assert push_goes_on(store, number)  # it needs what is being collected
        assert_loads(store, f"{MODEL}@v{number}", arrays_of(number))
    assert number > 20
    assert_clean(store)
    for turn in range(1, number + 1, step):
        assert_loads(store, f"{MODEL}@v{turn}", arrays_of(turn))
    assert_no_orphans(world, store)


def test_a_push_that_stands_still_in_its_commit_holds_locks_until_it_is_killed(
    world: World, store: Store, database: str
) -> None:
    """What the others see gone is there: without the kill, others wait."""
    impatient = open_catalog(database, runtime=Runtime(), busy_timeout_s=0.3)
    stop = StopBefore(20, "push.before_commit", 1, signal.SIGSTOP)
    child = fork(world, lambda store: store.push(arrays_of(1), MODEL), stop)
    assert os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1])
    try:
        now = store._context.runtime.clock.now()
        with pytest.raises(Unavailable, match="lock timeout"):
            impatient.set_policy(None, "replicas=2", heads=(), now=now)
    finally:
        os.kill(child, signal.SIGKILL)
    assert ended(child) == KILLED
    impatient.set_policy(None, "replicas=2", heads=(), now=now)
    impatient.set_policy(None, "replicas=1", heads=(), now=now)
    impatient.close()
    assert push_goes_on(store, 1)
