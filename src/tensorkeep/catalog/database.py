"""Transactions on a database, and the few choices that differ between SQLite and PostgreSQL.

On SQLite a writing transaction is ``BEGIN IMMEDIATE``: it has the whole database to itself, so no row needs a lock. On
PostgreSQL (READ COMMITTED) `lock_parts` takes the rows, and what it protects is decided in a later statement.
"""

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Select, Table, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError

from tensorkeep.catalog import schema
from tensorkeep.errors import PermissionDenied, TensorkeepError
from tensorkeep.runtime import Failpoints

CHUNK = 5000
"""Most values in one statement: SQLite takes 32,766, PostgreSQL 65,535."""

WRITES = "tensorkeep_writes"
"""Execution option of connections whose transaction will write."""


@dataclass(frozen=True, slots=True)
class Transaction:
    """One writing transaction and what its steps need from outside."""

    connection: Connection
    snapshot_every: int
    failpoints: Failpoints


@dataclass(frozen=True, slots=True)
class Database:
    """An engine and how its errors are told. ``name`` is what messages call it. Thread safe."""

    engine: Engine
    name: str
    read_only: bool
    translate: Callable[[BaseException, str], TensorkeepError]

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Yield a connection in a transaction that sees one moment of the database."""
        with self._translated(), self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Yield a connection in a transaction that may write; it commits when left, or rolls back on any error.

        Raises:
            PermissionDenied: the catalog was opened to be read.
        """
        if self.read_only:
            raise PermissionDenied(f"the catalog {self.name} was opened read-only: nothing can be changed")
        with self._translated(), self._writing_connection() as connection, connection.begin():
            yield connection

    def close(self) -> None:
        """Give back all connections."""
        self.engine.dispose()

    def _writing_connection(self) -> Connection:
        return self.engine.connect().execution_options(**{WRITES: True})

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise self.translate(error.orig or error, self.name) from error
        except sqlite3.Error as error:
            raise self.translate(error, self.name) from error


def lock_parts(connection: Connection, part_ids: Sequence[int], *, exclusive: bool) -> None:
    """Lock the rows of these objects until the transaction ends, in id order: shared to refer to them, exclusively to condemn.

    What the lock protects is read in a later statement. (Tried on PostgreSQL 15: one ``UPDATE … WHERE NOT EXISTS``, and
    ``FOR UPDATE`` on the location row, both lost data.)
    """
    if connection.dialect.name == "sqlite":
        return  # BEGIN IMMEDIATE has locked everything
    for chunk in chunks(sorted(part_ids)):
        connection.execute(lock_statement(chunk, exclusive=exclusive)).all()


def lock_statement(part_ids: Sequence[int], *, exclusive: bool) -> Select[tuple[int]]:
    """Return the statement that locks these objects' rows in id order, where rows are locked at all."""
    column = schema.parts.c.id
    return select(column).where(column.in_(part_ids)).order_by(column).with_for_update(read=not exclusive)


def insert_missing(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert the rows whose unique columns are not taken yet; others stay as they are."""
    statement: sqlite.Insert | postgresql.Insert
    if connection.dialect.name == "sqlite":
        statement = sqlite.insert(table).on_conflict_do_nothing()
    else:
        statement = postgresql.insert(table).on_conflict_do_nothing()
    if rows:
        connection.execute(statement, list(rows))


def chunks(values: Sequence[Any], size: int = CHUNK) -> Iterator[Sequence[Any]]:
    """Yield runs of at most ``size`` values, in order."""
    for start in range(0, len(values), size):
        yield values[start : start + size]
