"""SQLite: how its files are opened, made durable, checked, and how its errors are told.

``journal_mode=TRUNCATE, synchronous=FULL``: DELETE with FULL lost acknowledged commits in 24 of 24 power cuts, and WAL below
SQLite 3.51.3 has the WAL-reset corruption. A pooled connection is used again only by the process that made it and only while
the path still names the file that it opened: a catalog that was rebuilt and replaced is never written through an old handle.
"""

import errno
import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Dialect, create_engine, event, text
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.pool import NullPool, QueuePool

from tensorkeep.catalog.database import BYTES_OF_HEX, MODE, Database
from tensorkeep.errors import (
    Capacity,
    Conflict,
    Integrity,
    Internal,
    InvalidInput,
    NotFound,
    PermissionDenied,
    TensorkeepError,
    Unavailable,
)

URL_PREFIX = "sqlite:///"
BUSY_TIMEOUT_S = 30.0

_REMEDY = "run `tensorkeep rebuild-catalog`, which reads everything back from the devices"
_IDENTITY = "tensorkeep_identity"
_COMPILED: dict[Any, Any] = {}
"""Statements as SQLite spells them, for every catalog that this process opens."""

_LOOKED_AT: dict[tuple[int, int], int] = {}
"""Descriptors of catalogs that SQLite could not read; see `_disk_error`."""

_LOOKING = threading.Lock()

_COMPANIONS = ("-journal", "-wal", "-shm")


def parse_url(url: str) -> str:
    """Return the absolute path in ``sqlite:////abs/path/catalog.sqlite``.

    Raises:
        InvalidInput: another scheme, or no absolute path.
    """
    if not url.startswith(URL_PREFIX):
        scheme = url.partition(":")[0]
        raise InvalidInput(f"catalogs of the kind {scheme!r} are not known here: use sqlite:////absolute/path", url=url)
    path = url[len(URL_PREFIX) :]
    if not path.startswith("/") or "\0" in path:
        raise InvalidInput(f"{url!r} has no absolute path: write sqlite:////absolute/path/catalog.sqlite", url=url)
    return path


def open_database(path: str, *, read_only: bool, busy_timeout_s: float = BUSY_TIMEOUT_S) -> Database:
    """Return the database in a file that exists; nothing of its content is read yet.

    Raises:
        NotFound: there is no such file.
        PermissionDenied: it can't be read.
        InvalidInput: it is no regular file.
    """
    _check_file(path)

    def connect() -> sqlite3.Connection:
        mode = "ro" if read_only else "rw"
        connection = sqlite3.connect(
            f"file:{quote(os.fsencode(path))}?mode={mode}",
            uri=True,
            timeout=busy_timeout_s,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            _configure(connection, read_only=read_only)
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    # The pool has no upper bound: a thread waits for the database's lock, never for a connection.
    engine = create_engine(
        "sqlite://",
        creator=connect,
        poolclass=QueuePool,
        pool_size=8,
        max_overflow=-1,
        execution_options={"compiled_cache": _COMPILED},
    )
    engine.dialect = _dialect()
    event.listen(engine, "begin", _begin)
    event.listen(engine, "connect", lambda _connection, record: record.info.update({_IDENTITY: _identity(path)}))

    def check_out(_connection: Any, record: Any, _proxy: Any) -> None:
        if record.info.get(_IDENTITY) != _identity(path):
            raise DisconnectionError(f"{path} is another file now, or this is another process")

    event.listen(engine, "checkout", check_out)
    return Database(engine=engine, name=path, read_only=read_only, translate=translate_error)


@cache
def _dialect() -> Dialect:
    """Return the dialect of all engines: what is compiled is kept for one, and to compile takes as long as to run it."""
    engine = create_engine("sqlite://", poolclass=NullPool)
    with engine.connect():  # which finds out what this SQLite can do
        return engine.dialect


def translate_error(error: BaseException, path: str) -> TensorkeepError:
    """Return the error of ours that says what SQLite's means for the caller."""
    code = getattr(error, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF
    said = f"{error} ({getattr(error, 'sqlite_errorname', type(error).__name__)})"
    if code == sqlite3.SQLITE_READONLY_DBMOVED:
        return Conflict(f"the catalog {path} was rebuilt meanwhile, and nothing was changed: try again", path=path)
    match primary:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return Unavailable(f"the catalog {path} is locked by another process for too long: try again", path=path)
        case sqlite3.SQLITE_FULL:
            return Capacity(f"no room for the catalog {path}: free space on its disk; nothing was changed", path=path)
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
            return PermissionDenied(f"the catalog {path} can't be written: {said}", path=path)
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return _disk_error(path) or Integrity(f"the catalog {path} is damaged: {said}; {_REMEDY}", path=path)
        case sqlite3.SQLITE_CANTOPEN:
            return _cannot_open(path, said)
        case sqlite3.SQLITE_IOERR:
            return Unavailable(f"the disk of the catalog {path} reports an error: {said}", path=path)
    if "no such table" in str(error) or "no such column" in str(error) or "decode" in str(error).lower():
        return Integrity(f"the catalog {path} is damaged or no catalog: {said}; {_REMEDY}", path=path)
    return Internal(f"the catalog {path} refused a statement: {said}", path=path)


def translate_os_error(error: OSError, path: str) -> TensorkeepError:
    """Return the error of ours that says what the system's means for a catalog file."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Capacity(f"no room for the catalog {path}: free space on its disk", path=path)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionDenied(f"the catalog {path} can't be written: {error.strerror}", path=path)
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotFound(f"the folder of the catalog {path} does not exist: make it first", path=path)
    return Unavailable(f"the disk of the catalog {path} reports an error: {error.strerror}", path=path)


def find_damage(connection: Connection) -> list[str]:
    """Return what SQLite's own checks find; nothing where pages, indexes and foreign keys are whole."""
    try:
        lines = [row[0] for row in connection.execute(text("PRAGMA integrity_check"))]
        problems = [line for line in lines if line != "ok"]
        for table, row, parent, _ in connection.execute(text("PRAGMA foreign_key_check")):
            problems.append(f"row {row} of {table} names a row of {parent} that does not exist")
    except DBAPIError as error:
        return [f"the database can't be checked: {error.orig}"]
    return problems


def refuse_companions(path: str) -> None:
    """Return if no journal is left of a catalog of this name that is gone.

    Raises:
        Integrity: one is: SQLite would play it back into whatever gets the name.
    """
    for suffix in _COMPANIONS:
        try:
            size = os.stat(path + suffix).st_size
        except FileNotFoundError:
            continue
        if size:
            raise Integrity(
                f"{path}{suffix} is left of a catalog that is gone: put the catalog back, or {_REMEDY}", path=path
            )


@contextmanager
def without_writers(path: str) -> Iterator[None]:
    """Keep every transaction out of a catalog while its file is replaced; a file that is no database has none.

    Without this, a transaction under way could leave its rollback journal beside the new file. One that begins later finds
    that its file has moved and fails (SQLITE_READONLY_DBMOVED).

    Raises:
        Unavailable: another process has held its lock for too long.
    """
    with ExitStack() as stack:
        try:
            connection = sqlite3.connect(
                f"file:{quote(os.fsencode(path))}?mode=rw", uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None
            )
            stack.callback(connection.close)
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise translate_error(error, path) from error
        yield


def remove_companions(path: str) -> None:
    """Remove journals that belong to another file of this name: SQLite would roll them back into the new one."""
    for suffix in _COMPANIONS:
        try:
            os.unlink(path + suffix)
        except FileNotFoundError:
            continue


def _configure(connection: sqlite3.Connection, *, read_only: bool) -> None:
    connection.create_function(BYTES_OF_HEX, 1, bytes.fromhex, deterministic=True)
    connection.execute("PRAGMA foreign_keys=ON")
    if read_only:
        connection.execute("PRAGMA query_only=ON")
    else:
        connection.execute("PRAGMA journal_mode=TRUNCATE")
        connection.execute("PRAGMA synchronous=FULL")


def _begin(connection: Connection) -> None:
    # The driver's own BEGIN is off (isolation_level None): it would begin deferred, and only before the first write.
    mode = connection.get_execution_options().get(MODE, "read")
    connection.exec_driver_sql("BEGIN" if mode in {"look", "read"} else "BEGIN IMMEDIATE")


def _identity(path: str) -> tuple[int, int, int]:
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"the catalog {path} is gone: {_REMEDY}", path=path) from error
    except OSError as error:
        raise translate_os_error(error, path) from error
    return os.getpid(), found.st_dev, found.st_ino


def _check_file(path: str) -> None:
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"there is no catalog {path}: {_REMEDY}", path=path) from error
    except PermissionError as error:
        raise PermissionDenied(f"the catalog {path} can't be reached: {error}", path=path) from error
    except OSError as error:
        raise translate_os_error(error, path) from error
    if not stat.S_ISREG(found.st_mode):
        raise InvalidInput(f"the catalog {path} is no regular file", path=path)


def _cannot_open(path: str, said: str) -> TensorkeepError:
    if (error := _disk_error(path)) is not None:
        return error
    return PermissionDenied(f"the catalog {path}, or the journal beside it, can't be opened: {said}", path=path)


def _disk_error(path: str) -> TensorkeepError | None:
    """Return why the file itself can't be read: SQLite calls much of it by other names; None: it can.

    The descriptors that read are never closed: that would take away all locks that SQLite has on the file in this process.
    Source: https://www.sqlite.org/howtocorrupt.html, 2.2.
    """
    try:
        found = os.stat(path)
        file = found.st_dev, found.st_ino
        with _LOOKING:
            if file not in _LOOKED_AT:
                _LOOKED_AT[file] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        os.pread(_LOOKED_AT[file], 1, 0)
    except (FileNotFoundError, NotADirectoryError):
        return NotFound(f"the catalog {path} is gone: {_REMEDY}", path=path)
    except PermissionError:
        return None
    except OSError as error:
        return translate_os_error(error, path)
    return None
