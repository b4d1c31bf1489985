"""A PostgreSQL server that is silent and keeps its connections: verbs wait and go on with it; new connections are given up in time.

Its processes are stopped. So the kernel still takes what is sent to it, and connections that are asked for: only nobody answers.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import event, text

import tensorkeep
from tensorkeep.catalog import postgres_watch, retrying
from tensorkeep.catalog.retrying import PATIENCE_S
from tensorkeep.catalog.sql import SqlCatalog
from tensorkeep.errors import Unavailable
from tensorkeep.store.store import Store
from tests.engines.postgres import Postgres
from tests.engines.servers import children_of
from tests.faults.store_world import MODEL, Arrays, Hooks, World, assert_clean, assert_loads

pytestmark = pytest.mark.postgres

CONNECT_S = 2
"""After which a connection is given up: the URL says so; without that it is 10."""

SLACK_S = 20.0
"""More than a loaded machine takes for all else that a verb does."""


@contextmanager
def silence(server: Postgres) -> Iterator[None]:
    """Stop a server's processes for a while."""
    stopped = [server.server.pid]
    os.kill(server.server.pid, signal.SIGSTOP)  # first: then it has no more children
    try:
        for child in children_of(server.server.pid):
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGSTOP)
                stopped.append(child)
        yield
    finally:
        for pid in reversed(stopped):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres.running() as server:
        yield server


@pytest.fixture
def world(tmp_path: Path, server: Postgres) -> Iterator[World]:
    url = f"{server.make_database()}?connect_timeout={CONNECT_S}"
    world = World(tmp_path, devices=1, replicas=1, database=url)
    world.create().push(arrays_of(0), MODEL, tag="v0")
    yield world
    world.end()


def arrays_of(turn: int) -> Arrays:
    return {"shared": np.arange(500), "own": np.full(99, turn)}


def push(store: Store) -> None:
    store.push(arrays_of(1), MODEL, tag="v1")


def tag(store: Store) -> None:
    store.tag(MODEL, "silent")


def load(store: Store) -> None:
    assert_loads(store, f"{MODEL}@v0", arrays_of(0))


def collect(store: Store) -> None:
    store.gc(grace_s=0, max_fraction=None)


VERBS = [push, tag, load, collect]


@contextmanager
def waiting_verb(server: Postgres, world: World, verb: Callable[[Store], None]) -> Iterator[Callable[[float], Any]]:
    """Have a verb done by a store whose server falls silent: before a push's commit, or before the verb's first question.

    Yields what waits so many seconds for its end. The server is silent until the block ends.
    """
    asked = threading.Event()
    with ExitStack() as stack:
        silent = ExitStack()
        hooks = Hooks(push__before_commit=lambda: silent.enter_context(silence(server)))
        store = world.open(failpoints=hooks)
        store.status()  # it has connections
        pool = stack.enter_context(ThreadPoolExecutor(1))
        stack.enter_context(silent)  # after which the pool waits for the verb
        if verb is not push:
            silent.enter_context(silence(server))
        catalog = store._context.catalog
        assert isinstance(catalog, SqlCatalog)
        event.listen(
            catalog._db.engine,
            "before_cursor_execute",
            lambda *_: asked.set() if verb is not push or hooks.hits.get("push.before_commit") else None,
        )
        verbing = pool.submit(verb, store)
        while not asked.wait(0.1):
            assert not verbing.done(), verbing.exception()
        yield lambda limit_s: verbing.result(limit_s)


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_goes_on_when_the_server_does(server: Postgres, world: World, verb: Callable[[Store], None]) -> None:
    with waiting_verb(server, world, verb) as wait, pytest.raises(TimeoutError):
        wait(0.5)
    with world.open() as store:
        found = {tag for entry in store.log(MODEL) if entry.version for tag in entry.version.tags}
        assert found == {"v0"} | ({"v1"} if verb is push else {"silent"} if verb is tag else set())
        assert store._context.catalog.check() == []
        assert_clean(store)


@pytest.mark.parametrize("begin", [tensorkeep.open, tensorkeep.init])
def test_a_store_at_a_silent_server_is_not_opened_nor_made(
    server: Postgres, world: World, begin: Callable[[str], Store]
) -> None:
    assert world.database is not None
    shown = world.database.partition("?")[0]
    began_s = time.monotonic()
    with silence(server), pytest.raises(Unavailable, match="does not answer") as told:
        begin(world.database)
    assert time.monotonic() - began_s < CONNECT_S + SLACK_S
    assert shown in str(told.value)


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_at_a_server_that_stays_silent_is_unavailable_in_time(
    server: Postgres, world: World, verb: Callable[[Store], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_watch, "ASK_AFTER_S", 1.0)
    monkeypatch.setattr(retrying, "PATIENCE_S", 1.0)
    assert world.database is not None
    with waiting_verb(server, world, verb) as wait, pytest.raises(Unavailable) as told:
        wait(2 * (1.0 + 2 * CONNECT_S) + SLACK_S)  # twice: a push ends its session too
    assert world.database.partition("?")[0] in str(told.value)
    monkeypatch.undo()
    with world.open() as store:
        verb(store)
        assert store._context.catalog.check() == []
        assert_clean(store)


def test_a_statement_that_is_only_slow_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_watch, "ASK_AFTER_S", 0.2)
    catalog = world.open()._context.catalog
    assert isinstance(catalog, SqlCatalog)
    with catalog._db.look() as connection:
        began_s = time.monotonic()
        assert connection.execute(text("SELECT 7 FROM pg_sleep(1.5)")).scalar_one() == 7
        assert time.monotonic() - began_s > 1.4


@pytest.mark.soak
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_that_needs_a_new_connection_of_a_silent_server_is_unavailable_in_time(
    server: Postgres, world: World, verb: Callable[[Store], None]
) -> None:
    store = world.open()
    catalog = store._context.catalog
    assert isinstance(catalog, SqlCatalog)
    catalog._db.close()
    began_s = time.monotonic()
    with silence(server), pytest.raises(Unavailable, match="does not answer"):
        verb(store)
    assert time.monotonic() - began_s < PATIENCE_S + CONNECT_S + SLACK_S
    verb(store)
