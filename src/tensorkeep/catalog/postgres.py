"""PostgreSQL: how a server is reached, what is asked of it, and how transactions begin there.

SQLAlchemy's pool over psycopg 3: the statements are SQLAlchemy's already, and psycopg's own pool would start threads that
nobody handed it. A connection is not tried before it is used: BEGIN is the first thing sent, and where it finds a dead one
nothing has happened, so the transaction is run again on a new one (`retrying`). Transactions are READ COMMITTED with row locks
(`database.lock_parts`); those that only read are REPEATABLE READ and so see one moment.

Each transaction begins by locking the table ``store`` in the weakest mode. Whoever replaces or migrates the catalog locks it
in the strongest: so no transaction has one foot in the old catalog and one in the new.
"""

import os
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.pool import QueuePool

from tensorkeep.catalog.database import MODE, Database
from tensorkeep.catalog.postgres_errors import PostgresErrors
from tensorkeep.catalog.postgres_url import PostgresUrl
from tensorkeep.catalog.retrying import ServerRetries
from tensorkeep.errors import InvalidInput
from tensorkeep.records.digest import blake3_256
from tensorkeep.runtime import Runtime

if TYPE_CHECKING:
    import psycopg

LOCK_TIMEOUT_S = 30.0
STATEMENT_TIMEOUT_S = 300.0
_IDLE_TIMEOUT_S = 300.0

_POOLED = 4
_MOST_CONNECTIONS = 32

_OLDEST_SERVER = 130000  # pg_current_xact_id() and pg_xact_status() of xid8

_ENGINES: WeakSet[Engine] = WeakSet()

_DEFAULTS = {
    "connect_timeout": "10",
    "application_name": "tensorkeep",
    # A host that vanished without a word is noticed within a minute.
    "keepalives_idle": "20",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}

_BEGIN = {
    "read": "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; LOCK TABLE store IN ACCESS SHARE MODE",
    "write": "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; LOCK TABLE store IN ACCESS SHARE MODE",
    "look": "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
    "alone": "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SELECT pg_advisory_xact_lock({key})",
}

# One round trip: settings of the session, and what the server is. A session may always ask for more durability.
_SESSION = """
SELECT set_config('search_path', %(search_path)s, false),
       set_config('lock_timeout', %(lock_timeout)s, false),
       set_config('statement_timeout', %(statement_timeout)s, false),
       set_config('idle_in_transaction_session_timeout', %(idle_timeout)s, false),
       set_config('client_encoding', 'UTF8', false),
       set_config('timezone', 'UTC', false),
       CASE WHEN current_setting('synchronous_commit') = 'off' THEN set_config('synchronous_commit', 'on', false)
            ELSE current_setting('synchronous_commit') END AS synchronous_commit,
       current_setting('fsync') AS fsync,
       current_setting('full_page_writes') AS full_page_writes,
       current_setting('server_encoding') AS server_encoding,
       current_setting('server_version_num')::int AS server_version_num
"""


def open_database(
    url: PostgresUrl,
    *,
    runtime: Runtime,
    read_only: bool = False,
    lock_timeout_s: float = LOCK_TIMEOUT_S,
    statement_timeout_s: float = STATEMENT_TIMEOUT_S,
) -> Database:
    """Return the database that a URL names; a first connection is made when it is first used.

    Raises:
        InvalidInput: the extra ``postgres`` is not installed.
    """
    driver = import_driver()
    settings = {
        "search_path": f'"{url.schema}"',
        "lock_timeout": f"{int(lock_timeout_s * 1000)}ms",
        "statement_timeout": f"{int(statement_timeout_s * 1000)}ms",
        "idle_timeout": f"{int(_IDLE_TIMEOUT_S * 1000)}ms",
    }

    def open_session() -> Any:
        session = connect(url, driver)
        try:
            _check_server(session.execute(_SESSION, settings), url)
        except BaseException:
            session.close()
            raise
        return session

    engine = create_engine(
        "postgresql+psycopg://",
        creator=open_session,
        poolclass=QueuePool,
        pool_size=_POOLED,
        max_overflow=_MOST_CONNECTIONS - _POOLED,
        pool_use_lifo=True,  # the last used has the statements prepared and the server's caches warm
        pool_timeout=lock_timeout_s,
        use_native_hstore=False,  # it would be looked for on every connection
    )
    key = lock_key(url, "catalog")

    def begin(connection: Connection) -> None:
        mode = connection.get_execution_options().get(MODE, "look")
        # The driver's own BEGIN is off (autocommit): it could not take the lock in the same round trip.
        connection.exec_driver_sql(_BEGIN[mode].format(key=key), execution_options={"no_parameters": True})

    event.listen(engine, "begin", begin)
    _ENGINES.add(engine)
    errors = PostgresErrors(driver)
    return Database(
        engine=engine,
        name=url.shown,
        read_only=read_only,
        translate=errors.translate,
        retries=ServerRetries(runtime, errors.classify, url.shown),
    )


def _forget_sessions() -> None:
    """Let go of the sessions of the process that this one was forked from, unclosed: it goes on speaking on them."""
    for engine in list(_ENGINES):
        engine.dispose(close=False)


os.register_at_fork(after_in_child=_forget_sessions)


def connect(url: PostgresUrl, driver: Any) -> "psycopg.Connection[Any]":
    """Return a new session of the server, every statement of which commits by itself."""
    from tensorkeep.catalog.postgres_watch import WatchedConnection  # noqa: PLC0415 - as the driver

    words = driver.conninfo.conninfo_to_dict(url.connection)
    return WatchedConnection.connect(**{**_DEFAULTS, **words}, autocommit=True)


def import_driver() -> Any:
    """Return the module psycopg.

    Raises:
        InvalidInput: it is not installed.
    """
    try:
        import psycopg  # noqa: PLC0415 - an extra, and slow to import
    except ImportError as error:
        raise InvalidInput(
            f"catalogs in PostgreSQL need the driver psycopg ({error}): pip install 'tensorkeep[postgres]'"
        ) from error
    return psycopg


def lock_key(url: PostgresUrl, purpose: str) -> int:
    """Return the number of an advisory lock of one store; these are per database, so the schema's name tells stores apart."""
    return int.from_bytes(blake3_256(f"tensorkeep {purpose} {url.schema}".encode())[:8], "little", signed=True)


def find_damage(connection: Connection) -> list[str]:
    """Return what PostgreSQL itself says is wrong: indexes that are not valid. Pages are its own business (data checksums)."""
    query = text(
        "SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
        "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = current_schema() AND NOT i.indisvalid"
    )
    return [f"the index {name} is not valid: REINDEX it" for name in connection.execute(query).scalars()]


def _check_server(cursor: Any, url: PostgresUrl) -> None:
    """Return if the server keeps what it acknowledges.

    Raises:
        InvalidInput: it does not; the message names the setting.
    """
    names = [column.name for column in cursor.description]
    found = dict(zip(names, cursor.fetchone(), strict=True))
    if found["server_version_num"] < _OLDEST_SERVER:
        raise InvalidInput(f"the server of {url.shown} is older than PostgreSQL 13: upgrade it", store=url.shown)
    for setting in ("fsync", "full_page_writes", "synchronous_commit"):
        if found[setting] == "off":
            raise InvalidInput(
                f"the server of {url.shown} has {setting} = off: it would lose acknowledged versions in a power cut. "
                f"Set {setting} = on",
                store=url.shown,
                setting=setting,
            )
    if found["server_encoding"] != "UTF8":
        raise InvalidInput(
            f"the database of {url.shown} has the encoding {found['server_encoding']}: names need UTF8; "
            "make another database (createdb --encoding UTF8 --template template0)",
            store=url.shown,
        )
