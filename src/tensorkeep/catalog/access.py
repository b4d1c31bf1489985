"""Making and opening catalogs by URL.

A new SQLite catalog appears whole or not at all: it is built under another name in the same folder, made durable, and only
then given its name, which another process may not have taken meanwhile.
"""

import errno
import os
from collections.abc import Callable

from sqlalchemy import Connection, insert

from tensorkeep.catalog import postgres, schema
from tensorkeep.catalog.database import Transaction
from tensorkeep.catalog.migrating import bring_up_to_date, create_schema
from tensorkeep.catalog.postgres_access import create_in_database, open_in_database, replace_in_database
from tensorkeep.catalog.postgres_url import is_postgres_url, parse_postgres_url
from tensorkeep.catalog.protocol import CatalogImage
from tensorkeep.catalog.sql import SqlCatalog
from tensorkeep.catalog.sql_image import load_image
from tensorkeep.catalog.sql_journal import append, read_end
from tensorkeep.catalog.sqlite import (
    BUSY_TIMEOUT_S,
    find_damage,
    open_database,
    parse_url,
    refuse_companions,
    remove_companions,
    translate_os_error,
    without_writers,
)
from tensorkeep.errors import AlreadyExists, TensorkeepError
from tensorkeep.records.history import StoreChanged
from tensorkeep.records.layout import JOURNAL_SNAPSHOT_EVERY
from tensorkeep.records.redundancy import parse_policy
from tensorkeep.records.ulid import RANDOM_BYTES, make_ulid, parse_ulid
from tensorkeep.runtime import Runtime

_NO_POLICY = "replicas=1"


def create_catalog(
    url: str,
    *,
    store: str,
    policy: str,
    runtime: Runtime,
    epoch: int = 1,
    snapshot_every: int = JOURNAL_SNAPSHOT_EVERY,
) -> SqlCatalog:
    """Return a new catalog whose journal says the store's policy, durable on disk. All of it or nothing appears.

    Raises:
        AlreadyExists: there is a file of that name.
        NotFound: the folder does not exist.
        InvalidInput: no policy, or a URL of another kind.
    """
    parse_policy(policy)

    def begin(connection: Connection) -> None:
        tx = Transaction(connection, snapshot_every, runtime.failpoints)
        append(tx, [StoreChanged(old=None, new=policy)], runtime.clock.now())

    if is_postgres_url(url):
        parse_ulid(store, what="store id")
        create_in_database(parse_postgres_url(url), runtime, _filler(store, epoch, policy, begin))
    else:
        _create(url, store=store, epoch=epoch, policy=policy, runtime=runtime, begin=begin)
    return open_catalog(url, runtime=runtime, snapshot_every=snapshot_every)


def create_empty_catalog(
    url: str, *, store: str, runtime: Runtime, snapshot_every: int = JOURNAL_SNAPSHOT_EVERY
) -> SqlCatalog:
    """Return a new catalog without any entry, to be filled by `Catalog.load_image`, which also gives it its epoch.

    Raises:
        AlreadyExists: there is a file of that name.
        NotFound: the folder does not exist.
    """
    if is_postgres_url(url):
        parse_ulid(store, what="store id")
        create_in_database(parse_postgres_url(url), runtime, _filler(store, 0, _NO_POLICY, read_end))
    else:
        _create(url, store=store, epoch=0, policy=_NO_POLICY, runtime=runtime, begin=read_end)
    return open_catalog(url, runtime=runtime, snapshot_every=snapshot_every)


def open_catalog(
    url: str,
    *,
    runtime: Runtime,
    read_only: bool = False,
    snapshot_every: int = JOURNAL_SNAPSHOT_EVERY,
    busy_timeout_s: float = BUSY_TIMEOUT_S,
) -> SqlCatalog:
    """Return a catalog that exists; an older schema is migrated.

    Args:
        url: ``sqlite:////absolute/path``, or ``postgresql://…``.
        runtime: clock and failpoints.
        read_only: every change raises `PermissionDenied`; works on a read-only file system.
        snapshot_every: journal entries between two snapshots.
        busy_timeout_s: how long to wait for another writer before `Unavailable`.

    Raises:
        NotFound: there is no such file.
        Integrity: the file is damaged or no catalog.
        Format: it is of a newer tensorkeep.
    """
    if is_postgres_url(url):
        place = parse_postgres_url(url)
        database = open_in_database(place, runtime, read_only=read_only, busy_timeout_s=busy_timeout_s)
        checker = postgres.find_damage
    else:
        database = open_database(parse_url(url), read_only=read_only, busy_timeout_s=busy_timeout_s)
        checker = find_damage
    try:
        bring_up_to_date(database)
    except TensorkeepError:
        database.close()
        raise
    return SqlCatalog(database, runtime=runtime, snapshot_every=snapshot_every, find_damage=checker)


def replace_catalog(url: str, image: CatalogImage, *, runtime: Runtime) -> str | None:
    """Make a catalog from what the devices told in a PostgreSQL database, in one transaction; return what the old one is called.

    Nothing of the old catalog is lost: its schema is renamed. Transactions under way are waited for, later ones find the new
    one.

    Raises:
        PermissionDenied: the role may not make schemas.
    """
    fill = _filler(image.store, 0, _NO_POLICY, lambda connection: load_image(connection, image, runtime.clock.now()))
    return replace_in_database(parse_postgres_url(url), runtime, fill)


def install_catalog(built: str, final: str) -> None:
    """Put a finished and closed catalog file in the place of another (paths), durably; the old one is gone.

    The old file's rollback journal goes first: SQLite would play it back into the new file. For the same reason no transaction
    may be under way on the old one.

    Raises:
        Unavailable: another process has held the old catalog's lock for too long.
    """
    try:
        with without_writers(final):
            remove_companions(final)
            os.replace(built, final)
        remove_companions(built)
        _sync_folder(os.path.dirname(final))
    except OSError as error:
        raise translate_os_error(error, final) from error


def _create(
    url: str, *, store: str, epoch: int, policy: str, runtime: Runtime, begin: Callable[[Connection], object]
) -> None:
    parse_ulid(store, what="store id")
    path = parse_url(url)
    ulid = make_ulid(runtime.clock.now(), runtime.randomness.random_bytes(RANDOM_BYTES))
    built = f"{path}.{ulid}.new"
    _claim(path, built)
    try:
        database = open_database(built, read_only=False)
        try:
            with database.write() as connection:
                _filler(store, epoch, policy, begin)(connection)
        finally:
            database.close()
        _sync_file(built)
        _publish(built, path)
    except OSError as error:
        raise translate_os_error(error, path) from error
    finally:
        for leftover in (built, f"{built}-journal"):
            if os.path.exists(leftover):
                os.unlink(leftover)


def _claim(path: str, built: str) -> None:
    try:
        if os.path.lexists(path):
            raise AlreadyExists(f"{path} exists: open it, or choose another folder", path=path)
        refuse_companions(path)
        os.close(os.open(built, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    except OSError as error:
        raise translate_os_error(error, path) from error


def _filler(
    store: str, epoch: int, policy: str, begin: Callable[[Connection], object]
) -> Callable[[Connection], object]:
    """Return what makes a new catalog's tables and their first rows."""

    def fill(connection: Connection) -> None:
        create_schema(connection)
        values = {"one": 1, "store": store, "epoch": epoch, "last_seq": 0, "last_snapshot": 0, "policy": policy}
        connection.execute(insert(schema.store).values(**values, head=None))
        begin(connection)

    return fill


def _publish(built: str, path: str) -> None:
    try:
        os.link(built, path)  # unlike a rename, never replaces what another process made meanwhile
    except FileExistsError as error:
        raise AlreadyExists(f"{path} was made by another process meanwhile: open it", path=path) from error
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        os.rename(built, path)  # a file system without hard links
    _sync_folder(os.path.dirname(path))


def _sync_file(path: str) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _sync_folder(path: str) -> None:
    number = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
