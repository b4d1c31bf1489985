"""Transactions on a database, and the few choices that differ between SQLite and PostgreSQL.

On SQLite a writing transaction is ``BEGIN IMMEDIATE``: it has the whole database to itself, so no row needs a lock. On
PostgreSQL (READ COMMITTED) `lock_parts` takes the rows, and what it protects is decided in a later statement. There, a
transaction that lost a race or its connection is run again as a whole (`retrying`).
"""

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Insert,
    LargeBinary,
    Select,
    Table,
    Text,
    any_,
    bindparam,
    func,
    literal_column,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.types import UserDefinedType

from tensorkeep.catalog import schema
from tensorkeep.catalog.retrying import Attempt, NoRetries, Retries
from tensorkeep.errors import PermissionDenied, TensorkeepError
from tensorkeep.runtime import Failpoints

CHUNK = 5000
"""Most values in one statement: SQLite takes 32,766, PostgreSQL 65,535."""

_GIVEN = "given"

BYTES_OF_HEX = "tensorkeep_bytes"
"""Name of the function that every connection to SQLite has beside SQLite's own: the bytes of hex digits (``unhex`` came with 3.41)."""

_POSTGRES = postgresql.dialect()  # type: ignore[no-untyped-call]  # it has no types

MODE = "tensorkeep_mode"
"""Execution option of connections: what the transaction is for, see `Mode`."""

Mode = Literal["look", "read", "write", "alone"]
"""read: sees one moment; look: the same of what may be no catalog. write: may write; alone: one at a time, to make a catalog."""

Answer = TypeVar("Answer")


class _ArrayText(UserDefinedType[str]):
    """A PostgreSQL array that is sent as text: the driver's own way looks at each value thrice."""

    cache_ok = True
    render_bind_cast = True

    def __init__(self, element: str) -> None:
        self.element = element

    def get_col_spec(self, **_: Any) -> str:
        """Return its name in SQL."""
        return f"{self.element}[]"


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
    retries: Retries = field(default_factory=NoRetries)

    def reading(self, step: Callable[[Connection], Answer]) -> Answer:
        """Return what a step reads, in a transaction of its own."""

        def attempt(_: Attempt) -> Answer:
            with self._begin("read") as connection:
                return step(connection)

        return self._repeated(attempt)

    def writing(self, step: Callable[[Connection], Answer], *, repeatable: bool = True) -> Answer:
        """Return what a step did, in a transaction of its own; the step is run again where the transaction was undone.

        Args:
            step: all of the transaction.
            repeatable: whether the step may be run again where nobody knows if the transaction has happened, because the
                connection was lost in the COMMIT. False: the server is asked.

        Raises:
            PermissionDenied: the catalog was opened to be read.
        """
        self._refuse_read_only()

        def attempt(state: Attempt) -> Answer:
            with self._begin("write") as connection:
                if not repeatable:
                    state.number = self.retries.transaction_number(connection)
                answer = step(connection)
                state.answer, state.committing = answer, True
            return answer

        return self._repeated(attempt, repeatable=repeatable)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Yield a connection in a transaction that sees one moment of the database; it is not run again."""
        with self._translated(), self._begin("read") as connection:
            yield connection

    @contextmanager
    def look(self) -> Iterator[Connection]:
        """Yield a connection as `read` does, to something that may be no catalog."""
        with self._translated(), self._begin("look") as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Yield a connection in a transaction that may write; it commits when left, or rolls back on any error.

        Raises:
            PermissionDenied: the catalog was opened to be read.
        """
        self._refuse_read_only()
        with self._translated(), self._begin("write") as connection:
            yield connection

    @contextmanager
    def alone(self) -> Iterator[Connection]:
        """Yield a connection in a transaction that makes, migrates or replaces the catalog: one at a time.

        Raises:
            PermissionDenied: the catalog was opened to be read.
        """
        self._refuse_read_only()
        with self._translated(), self._begin("alone") as connection:
            yield connection

    def close(self) -> None:
        """Give back all connections."""
        self.engine.dispose()

    def _repeated(self, attempt: Callable[[Attempt], Answer], *, repeatable: bool = True) -> Answer:
        with self._translated():
            return self.retries.run(attempt, repeatable=repeatable, connect=lambda: self._begin("look"))

    @contextmanager
    def _begin(self, mode: Mode) -> Iterator[Connection]:
        with self.engine.connect().execution_options(**{MODE: mode}) as connection, connection.begin():
            yield connection

    def _refuse_read_only(self) -> None:
        if self.read_only:
            raise PermissionDenied(f"the catalog {self.name} was opened read-only: nothing can be changed")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise self.translate(error.orig or error, self.name) from error
        except (sqlite3.Error, PoolTimeout) as error:
            raise self.translate(error, self.name) from error


def among(connection: Connection, column: ColumnElement[Any], values: Sequence[Any]) -> ColumnElement[bool]:
    """Return the condition that a column is one of these values.

    On PostgreSQL they travel as one array: a statement of 5,000 parameters takes longer to spell than to run.
    """
    if connection.dialect.name == "sqlite":
        return column.in_(values)
    return column == any_(bindparam(None, _array_text(values), type_=_array_of(column), unique=True))


def among_given(dialect: str, column: ColumnElement[Any]) -> ColumnElement[bool]:
    """Return the same condition for values that come with each execution, by `given`: such a statement is built once.

    To build one and to find it among those compiled takes SQLAlchemy longer than SQLite takes to run it. There the values come as one
    JSON array: to spell a parameter for each takes longer than to find their rows.
    """
    if dialect == "sqlite":
        value = func.json_each(bindparam(_GIVEN, type_=Text())).table_valued("value").c.value
        return column.in_(select(getattr(func, BYTES_OF_HEX)(value) if isinstance(column.type, LargeBinary) else value))
    return column == any_(bindparam(_GIVEN, type_=_array_of(column)))


def given(connection: Connection, values: Sequence[Any]) -> dict[str, Any]:
    """Return the parameter with the values for `among_given`."""
    return {_GIVEN: (_json_text if connection.dialect.name == "sqlite" else _array_text)(values)}


def _json_text(values: Sequence[Any]) -> str:
    """Return numbers, bytes or texts, all of one kind, as a JSON array; bytes as hex digits."""
    if values and isinstance(values[0], bytes):
        return '["' + '","'.join([value.hex() for value in values]) + '"]'
    return json.dumps(list(values))


def _array_of(column: ColumnElement[Any]) -> _ArrayText:
    return _ArrayText(_POSTGRES.type_compiler_instance.process(column.type))


def _array_text(values: Sequence[Any]) -> str:
    """Return numbers, bytes or texts, all of one kind, as PostgreSQL spells an array of them."""
    if values and isinstance(values[0], bytes):
        return "{" + ",".join([f'"\\\\x{value.hex()}"' for value in values]) + "}"
    if values and isinstance(values[0], str):
        escaped = [value.replace("\\", "\\\\").replace('"', '\\"') for value in values]
        return "{" + ",".join([f'"{value}"' for value in escaped]) + "}"
    return "{" + ",".join(map(str, values)) + "}"


def found_any(query: Select[Any]) -> ColumnElement[bool]:
    """Return the condition that a correlated query finds a row, by one probe for each row asked about.

    PostgreSQL may answer EXISTS by reading the other table whole, where it thinks that small; a subquery with a limit it can't.
    """
    return query.limit(literal_column("1")).scalar_subquery().is_not(None)


def locks_rows(connection: Connection) -> bool:
    """Return whether a transaction has to lock rows: on SQLite ``BEGIN IMMEDIATE`` has locked everything."""
    return connection.dialect.name != "sqlite"


def lock_parts(connection: Connection, part_ids: Sequence[int], *, exclusive: bool) -> list[int]:
    """Lock the rows of these objects until the transaction ends, in id order: shared to refer to them, exclusively to condemn.

    Returns those that are still there. What the lock protects is read in a later statement. (Tried on PostgreSQL 15: one
    ``UPDATE … WHERE NOT EXISTS``, and ``FOR UPDATE`` on the location row, both lost data.)
    """
    if not locks_rows(connection):
        return sorted(part_ids)
    locked: list[int] = []
    for chunk in chunks(sorted(part_ids)):
        condition = among_given(connection.dialect.name, schema.parts.c.id)
        statement = lock_statement(condition, exclusive=exclusive)
        locked += connection.execute(statement, given(connection, chunk)).scalars().all()
    return locked


def lock_parts_of(connection: Connection, locations: Sequence[int]) -> list[int]:
    """Lock the objects of these location rows exclusively, in id order; return their ids."""
    return lock_parts(connection, find_parts_of(connection, locations), exclusive=True)


def find_parts_of(connection: Connection, locations: Sequence[int]) -> list[int]:
    """Return the ids of the objects of these location rows."""
    query = _select_parts_of(connection.dialect.name)
    found: set[int] = set()
    for chunk in chunks(locations):
        found.update(connection.execute(query, given(connection, chunk)).scalars())
    return sorted(found)


@cache
def _select_parts_of(dialect: str) -> Select[int]:
    table = schema.locations
    return select(table.c.part_id).where(among_given(dialect, table.c.id)).distinct()


def lock_statement(condition: ColumnElement[bool], *, exclusive: bool) -> Select[int]:
    """Return the statement that locks the objects' rows that meet a condition in id order, where rows are locked at all."""
    column = schema.parts.c.id
    return select(column).where(condition).order_by(column).with_for_update(read=not exclusive)


def insert_missing(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert the rows whose unique columns are not taken yet; others stay as they are."""
    if rows:
        connection.execute(_insert_untaken(connection.dialect.name, table), list(rows))


@cache
def _insert_untaken(dialect: str, table: Table) -> Insert:
    made = sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)
    return made.on_conflict_do_nothing()


def chunks(values: Sequence[Any], size: int = CHUNK) -> Iterator[Sequence[Any]]:
    """Yield runs of at most ``size`` values, in order."""
    for start in range(0, len(values), size):
        yield values[start : start + size]
