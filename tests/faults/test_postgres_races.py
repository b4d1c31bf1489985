"""The locking rule on a real PostgreSQL: transactions interleaved step by step, and what is lost where rows are not locked.

Each interleaving is forced: one transaction stands still at a named step, or just before its COMMIT; the other is begun and
has either ended or waits for a lock (the server says which) before the first goes on. The same with the lock clause switched
off must lose data: else the tests would prove nothing.
"""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, Table, delete, event, func, select, update

from tensorkeep.catalog import database, schema, sql_commit, sql_gc, sql_journal, sql_loose, sql_push
from tensorkeep.catalog.access import create_catalog, open_catalog
from tensorkeep.catalog.protocol import Committed, Needed
from tensorkeep.catalog.sql import SqlCatalog
from tensorkeep.errors import Conflict
from tensorkeep.records.history import VersionFacts
from tensorkeep.runtime import Failpoints, Runtime, ThreadWorkers
from tensorkeep.testing.catalog_fixtures import STORE
from tensorkeep.testing.catalog_scene import Scene, part_key, seeded_runtime

PATIENCE_S = 60.0


class Gate(Failpoints):
    """Stops whoever hits a named step, until told to go on."""

    def __init__(self) -> None:
        self.name = ""
        self.reached, self.free = threading.Event(), threading.Event()

    def hit(self, name: str) -> None:
        if name == self.name:
            self.name = ""
            self.stop()

    def stop(self) -> None:
        self.reached.set()
        assert self.free.wait(PATIENCE_S)


class Race:
    """Two handles of one catalog, as two servers would have them, and a session that watches both."""

    def __init__(self, url: str) -> None:
        self.gate = Gate()
        quiet = seeded_runtime()
        stopping = Runtime(quiet.clock, quiet.randomness, quiet.workers, self.gate)
        self.one = create_catalog(url, store=STORE, policy="replicas=1", runtime=stopping)
        self.other = open_catalog(url, runtime=quiet)
        self.scene = Scene(self.one, stopping)
        self.watcher = psycopg.connect(url.partition("?")[0], autocommit=True)
        self.scene.add_device("a")
        self.model = self.scene.model()

    def close(self) -> None:
        self.gate.free.set()
        self.watcher.close()
        self.one.close()
        self.other.close()

    def stop_before_commit(self, catalog: SqlCatalog) -> None:
        """Stop the next transaction of a handle just before its COMMIT is sent."""
        event.listen(catalog._db.engine, "commit", lambda _: self.gate.stop(), once=True)

    def interleave(self, first: Callable[[], Any], second: Callable[[], Any]) -> tuple[Any, Any]:
        """Begin the first, which stops; begin the second, until it has ended or waits for a lock; let the first go on."""
        with ThreadWorkers().open_pool(2, "race") as pool:
            began = pool.submit(first)
            assert self.gate.reached.wait(PATIENCE_S), began.exception(0)
            followed = pool.submit(second)
            self.wait_until(lambda: followed.done() or self.somebody_waits(), followed)
            self.gate.free.set()
            return answer_of(began), answer_of(followed)

    def somebody_waits(self) -> bool:
        # In this database: other processes of the run have theirs on the same server.
        query = (
            "SELECT pg_sleep(0.01), count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) "
            "WHERE NOT granted AND datname = current_database()"
        )
        row = self.watcher.execute(query).fetchone()
        return row is not None and row[1] > 0

    def wait_until(self, condition: Callable[[], bool], what: Any) -> None:
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end, what

    def prepare(self, *numbers: int, parent: VersionFacts | None = None) -> Any:
        """Store what a version needs, end its session, and return the request of its commit."""
        version = self.scene.version(self.model, parent=parent.id if parent else None)
        parts = [part_key(number) for number in numbers]
        session = self.scene.prepare(self.model, version, parts)
        self.other.end_push(session)
        head = parent.id if parent else None
        return self.scene.commit_request(session, self.model, version, parts, expected_head=head)

    def remove(self, catalog: SqlCatalog, version: VersionFacts) -> None:
        """Remove a version with its model: its last reference."""
        catalog.remove_model(version.model, heads=(), now=self.scene.clock.now())

    def collect(self, catalog: SqlCatalog) -> int:
        now = self.scene.clock.now()
        return catalog.condemn(grace_s=0, dry_run=False, heads=(), now=now).locations


def answer_of(future: "Future[Any]") -> Any:
    error = future.exception(PATIENCE_S)
    return error if error is not None else future.result()


@pytest.fixture
def race(store_urls: Iterator[str]) -> Iterator[Race]:
    race = Race(next(store_urls))
    yield race
    race.close()


@contextmanager
def without_row_locks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Switch off the lock clause: the same statements, in the same order, lock nothing."""
    locking = database.lock_statement
    with monkeypatch.context() as patched:
        patched.setattr(
            database,
            "lock_statement",
            lambda condition, *, exclusive: unlocked(locking(condition, exclusive=exclusive)),
        )
        yield


def unlocked(statement: Any) -> Any:
    statement._for_update_arg = None
    return statement


def commit_then_collect(race: Race) -> tuple[VersionFacts, int]:
    """A collection begins when a commit has counted its copies, and has not committed."""
    request = race.prepare(1, 2)
    race.gate.name = "commit.ref_moved"
    answer, condemned = race.interleave(lambda: race.one.commit(request), lambda: race.collect(race.other))
    assert isinstance(answer, Committed)
    return answer.version, condemned


def test_a_collection_begun_inside_a_commit_spares_what_it_refers_to(race: Race) -> None:
    version, condemned = commit_then_collect(race)
    assert condemned == 0
    assert race.one.count_short([version.id]) == {}


def test_without_row_locks_a_collection_inside_a_commit_takes_what_it_refers_to(
    race: Race, monkeypatch: pytest.MonkeyPatch
) -> None:
    with without_row_locks(monkeypatch):
        version, condemned = commit_then_collect(race)
    assert condemned > 0
    assert race.one.count_short([version.id]) == {version.id: 5}


def collect_then_commit(race: Race) -> Any:
    """A commit begins when a collection has condemned what it needs, and has not committed."""
    request = race.prepare(1, 2)
    race.stop_before_commit(race.other)
    condemned, answer = race.interleave(lambda: race.collect(race.other), lambda: race.one.commit(request))
    assert condemned == 5
    return answer


def test_a_commit_begun_inside_a_collection_is_told_what_it_needs_again(race: Race) -> None:
    answer = collect_then_commit(race)
    assert isinstance(answer, Needed)
    assert len(answer.keys) == 5
    assert race.one.list_models() == []


def test_without_row_locks_a_commit_inside_a_collection_refers_to_what_is_condemned(
    race: Race, monkeypatch: pytest.MonkeyPatch
) -> None:
    with without_row_locks(monkeypatch):
        answer = collect_then_commit(race)
    assert isinstance(answer, Committed)
    assert race.one.count_short([answer.version.id]) == {answer.version.id: 5}


def test_a_collection_counts_what_policies_ask_that_came_while_it_ran(
    race: Race, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part's only copy is found bad right after the commit of the first version: it is short, so its bytes are kept."""
    request = race.prepare(1)
    locking = database.lock_parts

    def commit_before(connection: Connection, part_ids: Sequence[int], *, exclusive: bool) -> list[int]:
        if not race.other.list_models():
            assert isinstance(race.other.commit(request), Committed)
            [row] = race.other.locate([part_key(1)])[part_key(1)]
            race.other.record_checked(good=(), bad=[row.id])
        return locking(connection, part_ids, exclusive=exclusive)

    monkeypatch.setattr(sql_gc, "lock_parts", commit_before)
    assert race.collect(race.one) == 0
    assert [row.state for row in race.one.locate([part_key(1)])[part_key(1)]] == ["bad"]


def collect_while_a_version_goes(race: Race) -> int:
    """A collection has judged a part that two versions had; before it takes the part off the list, the last one is removed."""
    gone, last = (race.scene.push(race.scene.model(f"acme/{name}"), [part_key(1)]) for name in ("a", "b"))
    race.remove(race.one, gone)
    race.gate.name = "gc.judged"
    condemned: int
    condemned, _ = race.interleave(lambda: race.collect(race.one), lambda: race.remove(race.other, last))
    return condemned


def test_a_version_removed_inside_a_collection_is_found_by_the_next(
    race: Race, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take_off(connection: Connection, rows: Sequence[int]) -> None:
        race.gate.hit("gc.judged")
        sql_loose.take_off(connection, rows)

    monkeypatch.setattr(sql_gc, "take_off", take_off)
    # What only the last one had comes later in the list: its metadata goes at once, the part the next time.
    assert collect_while_a_version_goes(race) == 6
    assert race.collect(race.one) == 1
    assert race.one.locate([part_key(1)])[part_key(1)] == []


def test_a_list_emptied_after_judging_hides_a_removal_from_every_collection(
    race: Race, monkeypatch: pytest.MonkeyPatch
) -> None:
    def empty(connection: Connection, _: Sequence[int]) -> None:
        race.gate.hit("gc.judged")
        connection.execute(delete(schema.loose_parts))

    monkeypatch.setattr(sql_gc, "take_off", empty)
    assert collect_while_a_version_goes(race) == 3
    assert race.collect(race.one) == 0
    assert len(race.one.locate([part_key(1)])[part_key(1)]) == 1


def removals_together(race: Race) -> tuple[bool, bool, str]:
    """Two removals of copies begin together: of the two copies of one part, each would condemn the one on its own device."""
    devices = [*race.one.list_devices(), race.scene.add_device("b")]
    version = race.scene.push(race.model, [part_key(1)], policy="replicas=2")
    numbers = {row.device: row.id for row in race.one.locate([part_key(1)])[part_key(1)]}
    assert len(numbers) == 2
    race.stop_before_commit(race.one)
    first, second = race.interleave(
        lambda: race.one._db.writing(lambda connection: remove_copy(connection, numbers[devices[0].id])),
        lambda: race.other._db.writing(lambda connection: remove_copy(connection, numbers[devices[1].id])),
    )
    return first, second, version.id


def remove_copy(connection: Connection, number: int) -> bool:
    """Condemn a copy if another one is left, as the rule says: lock the object, count in a later statement."""
    table = schema.locations
    [part_id] = database.lock_parts_of(connection, [number])
    others = select(func.count()).where(
        table.c.part_id == part_id, table.c.id != number, table.c.state.in_(("live", "stored"))
    )
    if connection.execute(others).scalar_one() == 0:
        return False
    connection.execute(update(table).where(table.c.id == number).values(state="condemned", condemned_at="now"))
    return True


def test_of_two_removals_of_the_last_two_copies_one_is_refused(race: Race) -> None:
    first, second, _ = removals_together(race)
    assert (first, second) == (True, False)
    assert len(race.one.locate([part_key(1)])[part_key(1)]) == 1


def test_without_row_locks_two_removals_take_the_last_two_copies(race: Race, monkeypatch: pytest.MonkeyPatch) -> None:
    with without_row_locks(monkeypatch):
        first, second, _ = removals_together(race)
    assert (first, second) == (True, True)
    assert race.one.locate([part_key(1)])[part_key(1)] == []


def test_two_pushes_of_one_new_part_share_its_row_and_both_commit(race: Race) -> None:
    sessions = [race.scene.begin(), race.scene.begin()]
    requests = [[race.scene.request(part_key(number)) for number in order] for order in ((1, 2, 3), (3, 2, 1))]
    race.stop_before_commit(race.one)
    one, other = race.interleave(
        lambda: race.one.stage(sessions[0], requests[0]), lambda: race.other.stage(sessions[1], requests[1])
    )
    assert [len(staging.staged) for staging in (*one, *other)] == [1] * 6
    assert len({row.id for staging in (*one, *other) for row in staging.staged}) == 6
    with race.one._db.read() as connection:
        assert connection.execute(select(func.count()).select_from(schema.parts)).scalar() == 3


def test_what_exists_is_answered_without_waiting_for_a_collection_and_the_commit_asks_for_it_again(race: Race) -> None:
    request = race.prepare(1, 2)
    session = race.scene.begin()
    wanted = [race.scene.request(part_key(number)) for number in (1, 2)]
    race.stop_before_commit(race.other)
    answered_while_it_stood: list[bool] = []

    def ask() -> Any:
        answers = race.one.stage(session, wanted)
        answered_while_it_stood.append(not race.gate.free.is_set())
        return answers

    condemned, answers = race.interleave(lambda: race.collect(race.other), ask)
    assert condemned == 5
    assert answered_while_it_stood == [True]
    assert [(len(answer.existing), len(answer.staged), answer.missing) for answer in answers] == [(1, 0, 0)] * 2
    needed = race.one.commit(request)
    assert isinstance(needed, Needed)
    assert {part_key(1), part_key(2)} <= {*needed.keys}
    assert [len(answer.staged) for answer in race.one.stage(session, wanted)] == [1, 1]


def test_a_push_whose_new_part_came_and_went_while_it_looked_is_run_again(
    race: Race, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, inserting, times = race.scene.begin(), database.insert_missing, itertools.count()

    def find_taken_first(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
        if next(times):  # the first time another push has the row, and a collection drops it a moment later
            inserting(connection, table, rows)

    monkeypatch.setattr(sql_push, "insert_missing", find_taken_first)
    [answer] = race.one.stage(session, [race.scene.request(part_key(1))])
    assert (len(answer.staged), next(times)) == (1, 2)


def moves_together(race: Race) -> tuple[Any, Any]:
    base = race.scene.push(race.model, [part_key(1)])
    requests = [race.prepare(number, parent=base) for number in (2, 3)]
    race.gate.name = "commit.ref_moved"
    return race.interleave(lambda: race.one.commit(requests[0]), lambda: race.other.commit(requests[1]))


def test_of_two_commits_onto_one_head_the_second_is_refused(race: Race) -> None:
    first, second = moves_together(race)
    assert isinstance(first, Committed)
    assert isinstance(second, Conflict)
    assert race.one.get_version(race.model.id, "main") == first.version
    assert race.one.check() == []


def test_without_the_stores_row_locked_one_of_two_moves_of_a_branch_is_lost(
    race: Race, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = sql_journal.read_end
    monkeypatch.setattr(sql_commit, "read_end", lambda connection, *, lock=False: reading(connection))
    first, second = moves_together(race)
    assert isinstance(first, Committed)
    assert isinstance(second, Committed)
    assert first.version.parent == second.version.parent  # the second never saw the first, whose move it undid
