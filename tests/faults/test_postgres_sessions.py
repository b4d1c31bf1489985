"""Sessions of a real PostgreSQL: after a fork, idle with a lock, and of a role that may not do what it asks."""

import os
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

import tensorkeep
from tensorkeep.catalog.access import create_catalog
from tensorkeep.catalog.postgres_access import database_lock
from tensorkeep.catalog.postgres_url import parse_postgres_url
from tensorkeep.catalog.sql import SqlCatalog
from tensorkeep.errors import PermissionDenied
from tensorkeep.runtime import Runtime
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
