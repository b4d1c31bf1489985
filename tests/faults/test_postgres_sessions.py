"""Sessions of a real PostgreSQL: after a fork, idle with a lock, and of a role that may not do what it asks."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

import tensorkeep
from tensorkeep.catalog.access import create_catalog
from tensorkeep.catalog.postgres_access import database_lock
from tensorkeep.catalog.postgres_url import parse_postgres_url
from tensorkeep.catalog.sql import SqlCatalog
from tensorkeep.errors import PermissionDenied, Unavailable
from tensorkeep.runtime import Failpoints, Runtime
from tensorkeep.store.fleet import Fleet
from tensorkeep.store.rebuild import rebuild_catalog
from tensorkeep.testing.catalog_fixtures import STORE


@pytest.fixture
def catalog(database: str) -> Iterator[SqlCatalog]:
    made = create_catalog(database, store=STORE, policy="replicas=1", runtime=Runtime())
    yield made
    made.close()


@pytest.fixture
def owner(database: str) -> "Iterator[psycopg.Connection[tuple[object, ...]]]":
    with psycopg.connect(database, autocommit=True) as session:
        yield session


def session_of(catalog: SqlCatalog) -> int:
    with catalog._db.read() as connection:
        session: Any = connection.connection.driver_connection
        number: int = session.info.backend_pid
        return number


def test_a_forked_process_uses_sessions_of_its_own(catalog: SqlCatalog) -> None:
    expected = catalog.info()
    used = session_of(catalog)
    child = os.fork()
    if child == 0:
        status = 2
        try:
            status = int(catalog.info() != expected)
            catalog.close()  # says goodbye on its own sessions only
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert session_of(catalog) == used
    assert catalog.info() == expected


def test_a_lock_outlives_the_time_that_the_server_gives_idle_sessions(
    catalog: SqlCatalog, database: str, owner: "psycopg.Connection[Any]"
) -> None:
    name = owner.info.dbname
    owner.execute(f"ALTER DATABASE {name} SET idle_session_timeout = '2s'")
    held = (
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' "
        "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    with database_lock(parse_postgres_url(database), shared=False):
        owner.execute("SELECT pg_sleep(3)")
        assert owner.execute(held).fetchone() == (1,)


class CutLock(Failpoints):
    """Ends the session that holds a store's lock when a step is reached."""

    def __init__(self, database: str, step: str) -> None:
        self.database, self.step = database, step

    def hit(self, name: str) -> None:
        if name == self.step:
            cut_lock(self.database)


def cut_lock(database: str) -> None:
    query = (
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_locks WHERE locktype = 'advisory' "
        "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    with psycopg.connect(database, autocommit=True) as session:
        assert session.execute(query).fetchall() == [(True,)]


@pytest.fixture
def store(database: str) -> Iterator[tensorkeep.Store]:
    opened = tensorkeep.init(database)
    yield opened
    opened.close()


def test_a_rebuild_that_lost_its_lock_replaces_nothing(store: tensorkeep.Store, database: str, tmp_path: Path) -> None:
    store.devices.add("a", str(tmp_path / "a"))
    epoch = store.status().epoch
    quiet = Runtime()
    cutting = Runtime(quiet.clock, quiet.randomness, quiet.workers, CutLock(database, "rebuild.listed"))
    with pytest.raises(Unavailable, match="lock of the store"):
        rebuild_catalog(database, sources=[str(tmp_path / "a")], force=True, runtime=cutting, user="")
    assert store.status().epoch == epoch


def test_a_collection_that_lost_its_lock_deletes_nothing_more(
    store: tensorkeep.Store, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.devices.add("a", str(tmp_path / "a"))
    store.push({"w": np.arange(1000)}, "acme/llama")
    store.rm_model("acme/llama")
    checking = Fleet.check_epoch

    def cut_then_check(*args: Any) -> None:
        checking(*args)
        cut_lock(database)

    monkeypatch.setattr(Fleet, "check_epoch", cut_then_check)
    before = sorted((tmp_path / "a" / "parts").rglob("*"))
    with pytest.raises(Unavailable, match="lock of the store"):
        store.gc(grace_s=0, max_fraction=None)
    assert sorted((tmp_path / "a" / "parts").rglob("*")) == before


def test_a_role_without_rights_to_the_schema_is_told_so_and_not_to_rebuild(
    catalog: SqlCatalog, database: str, owner: "psycopg.Connection[Any]"
) -> None:
    role = f"outsider_{owner.info.dbname}"
    owner.execute(f"CREATE ROLE {role} LOGIN")
    try:
        with pytest.raises(PermissionDenied, match="GRANT USAGE ON SCHEMA tensorkeep"):
            tensorkeep.open(database.replace("postgres@", f"{role}@"))
    finally:
        owner.execute(f"DROP ROLE {role}")
