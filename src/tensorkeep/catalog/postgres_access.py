"""Making, opening and replacing the catalog in a PostgreSQL database. Each store has a schema of its own.

Whatever else lies in the database stays untouched: a schema that holds anything but a catalog is refused. A catalog appears
whole or not at all: its tables and first rows come in one transaction, and makers take turns by an advisory lock. A rebuild
renames the old schema and makes a new one in one transaction too.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy import Connection, text

from tensorkeep.catalog.database import Database
from tensorkeep.catalog.migrating import fence, has_table
from tensorkeep.catalog.postgres import LOCK_TIMEOUT_S, connect, import_driver, lock_key, open_database
from tensorkeep.catalog.postgres_errors import PostgresErrors
from tensorkeep.catalog.postgres_url import PostgresUrl
from tensorkeep.catalog.schema import alembic_version
from tensorkeep.catalog.schema import store as store_table
from tensorkeep.errors import AlreadyExists, InvalidInput, NotFound, PermissionDenied, TensorkeepError, Unavailable
from tensorkeep.records.ulid import RANDOM_BYTES, make_ulid
from tensorkeep.runtime import Runtime

# The holder of a lock is idle for as long as it needs it; the setting came with PostgreSQL 14.
_KEEP_IDLE = "SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'idle_session_timeout'"

_TABLES = (alembic_version.name, store_table.name)


def find_in_database(url: PostgresUrl, runtime: Runtime) -> bool:
    """Return whether a catalog, whole or damaged, is where a URL says.

    Raises:
        InvalidInput: something else is there.
        Unavailable: the server does not answer.
    """
    database = open_database(url, runtime=runtime)
    try:
        with database.look() as connection:
            return _has_catalog(connection, url)
    finally:
        database.close()


def open_in_database(
    url: PostgresUrl, runtime: Runtime, *, read_only: bool = False, busy_timeout_s: float = LOCK_TIMEOUT_S
) -> Database:
    """Return the database of a catalog that exists.

    Raises:
        NotFound: there is none.
        InvalidInput: something else is there.
    """
    database = open_database(url, runtime=runtime, read_only=read_only, lock_timeout_s=busy_timeout_s)
    try:
        _require_catalog(database, url)
    except TensorkeepError:
        database.close()
        raise
    return database


def _require_catalog(database: Database, url: PostgresUrl) -> None:
    with database.look() as connection:
        if not _has_catalog(connection, url):
            raise NotFound(f"there is no store at {url.shown}: `tensorkeep init` makes one", store=url.shown)


def may_write(url: PostgresUrl, runtime: Runtime) -> bool:
    """Return whether the role may change a catalog that exists, and the server takes changes at all."""
    query = text(
        "SELECT has_table_privilege('store', 'UPDATE') AND NOT pg_is_in_recovery() "
        "AND current_setting('default_transaction_read_only') = 'off'"
    )
    database = open_database(url, runtime=runtime)
    try:
        with database.look() as connection:
            return bool(connection.execute(query).scalar_one())
    finally:
        database.close()


def create_in_database(url: PostgresUrl, runtime: Runtime, fill: Callable[[Connection], object]) -> None:
    """Make a catalog where a URL says, all of it or nothing.

    Raises:
        AlreadyExists: there is one.
        InvalidInput: something else is there.
    """
    database = open_database(url, runtime=runtime)
    try:
        with database.alone() as connection:
            if _has_catalog(connection, url):
                raise AlreadyExists(f"{url.shown} is a store already: open it, or name another schema", store=url.shown)
            _make_schema(connection, url.schema)
            fill(connection)
    finally:
        database.close()


def replace_in_database(url: PostgresUrl, runtime: Runtime, fill: Callable[[Connection], object]) -> str | None:
    """Make a catalog in the place of what a URL names, in one transaction; return the name that the old schema has now."""
    database = open_database(url, runtime=runtime)
    replaced = None
    try:
        with database.alone() as connection:
            if _has_catalog(connection, url):
                ulid = make_ulid(runtime.clock.now(), runtime.randomness.random_bytes(RANDOM_BYTES))
                replaced = f"{url.schema}_replaced_{ulid.lower()}"
                if has_table(connection, store_table.name):
                    fence(connection)
                connection.execute(text(f'ALTER SCHEMA "{url.schema}" RENAME TO "{replaced}"'))
            _make_schema(connection, url.schema)
            fill(connection)
            runtime.failpoints.hit("rebuild.catalog_written")
    finally:
        database.close()
    return replaced


@contextmanager
def database_lock(url: PostgresUrl, *, shared: bool) -> Iterator[Callable[[], None]]:
    """Hold a store's lock on a session of its own, so that it outlives transactions; the server frees it with the session.

    Yields what asks whether the session, and so the lock, is still there.

    Raises:
        Unavailable: the server does not answer.
    """
    driver = import_driver()
    errors = PostgresErrors(driver)
    try:
        session = connect(url, driver)
    except driver.Error as error:
        raise errors.translate(error, url.shown) from error
    try:
        function = "pg_advisory_lock_shared" if shared else "pg_advisory_lock"
        try:
            session.execute(_KEEP_IDLE)
            session.execute(f"SELECT {function}(%s)", [lock_key(url, "store")])
        except driver.Error as error:
            raise errors.translate(error, url.shown) from error

        def check() -> None:
            try:
                session.execute("SELECT 1")
            except driver.Error as error:
                raise Unavailable(
                    f"the session that held the lock of the store {url.shown} was lost: another process may have it now; "
                    "try again",
                    store=url.shown,
                    reason="lock_lost",
                ) from error

        yield check
    finally:
        session.close()


def _make_schema(connection: Connection, name: str) -> None:
    # Asked first: IF NOT EXISTS wants the right to make schemas also where one is there.
    if connection.execute(text("SELECT to_regnamespace(:name)"), {"name": f'"{name}"'}).scalar() is None:
        connection.execute(text(f'CREATE SCHEMA "{name}"'))


def _has_catalog(connection: Connection, url: PostgresUrl) -> bool:
    names = _relations(connection, url.schema)
    if any(name in names for name in _TABLES):
        _check_usage(connection, url)
        return True
    if names:
        raise InvalidInput(
            f"the schema {url.schema!r} of {url.shown} holds other tables ({', '.join(names[:5])}): "
            "name a schema of the store's own with ?schema=",
            store=url.shown,
            schema=url.schema,
        )
    return False


def _check_usage(connection: Connection, url: PostgresUrl) -> None:
    # Without it, its tables look as if they were not there.
    query = text("SELECT has_schema_privilege(:name, 'USAGE')")
    if not connection.execute(query, {"name": url.schema}).scalar_one():
        raise PermissionDenied(
            f"the role may not use the schema {url.schema!r} of {url.shown}: its owner can GRANT USAGE ON SCHEMA "
            f"{url.schema} to it",
            store=url.shown,
            schema=url.schema,
        )


def _relations(connection: Connection, schema: str) -> Sequence[str]:
    query = text(
        "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = :schema AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') ORDER BY c.relname"
    )
    return connection.execute(query, {"schema": schema}).scalars().all()
