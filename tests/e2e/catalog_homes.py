"""Where the catalog of a store lives, and what may happen to it behind the store's back: lost, damaged, replaced by an old copy."""

import contextlib
import shutil
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import LiteralString

import psycopg
from psycopg.sql import SQL, Identifier

from tests.e2e.shelves import unwritable
from tests.engines.postgres import find_binaries
from tests.engines.servers import run
from tests.mounts import read_only_mount


class CatalogHome(ABC):
    """The place of one catalog. ``location`` is what `tensorkeep.init` and ``--store`` are given."""

    location: str | Path
    remembers_devices: bool
    """Whether where the devices are is known when the catalog is lost."""

    @abstractmethod
    def stamp(self, revision: str) -> str:
        """Say that it has another schema; return what it had."""

    @abstractmethod
    def lose(self) -> None:
        """Delete it."""

    @abstractmethod
    def damage(self) -> None:
        """Make it unreadable."""

    @abstractmethod
    def copy_to(self, path: Path) -> None:
        """Write a copy of it, while it may be in use."""

    @abstractmethod
    def replace_by(self, path: Path) -> None:
        """Put a copy back. Nobody may have it open."""

    @abstractmethod
    def read_only(self) -> contextlib.AbstractContextManager[None]:
        """Make it read-only for everybody for a while. Needs root."""

    @abstractmethod
    def forbid_writing(self) -> contextlib.AbstractContextManager[None]:
        """Take away the permission to write for a while; root may have it still."""

    @abstractmethod
    def remove(self) -> None:
        """Leave nothing of it."""


class SqliteHome(CatalogHome):
    """A store's folder with ``catalog.sqlite`` in it."""

    remembers_devices = True

    def __init__(self, folder: Path) -> None:
        self.location: Path = folder / "store"

    def stamp(self, revision: str) -> str:
        with closing(sqlite3.connect(self._file)) as database:
            (before,) = database.execute("SELECT version_num FROM alembic_version").fetchone()
            database.execute("UPDATE alembic_version SET version_num = ?", (revision,))
            database.commit()
        return str(before)

    def lose(self) -> None:
        self._file.unlink()

    def damage(self) -> None:
        self._file.write_bytes(b"\0" * self._file.stat().st_size)

    def copy_to(self, path: Path) -> None:
        shutil.copyfile(self._file, path)

    def replace_by(self, path: Path) -> None:
        shutil.copyfile(path, self._file)

    @contextmanager
    def read_only(self) -> Iterator[None]:
        with read_only_mount(self.location):
            yield

    @contextmanager
    def forbid_writing(self) -> Iterator[None]:
        with unwritable(self.location):
            yield

    def remove(self) -> None:
        """Nothing: it goes with the test's folder."""

    @property
    def _file(self) -> Path:
        return self.location / "catalog.sqlite"


class PostgresHome(CatalogHome):
    """A database of its own."""

    remembers_devices = False

    def __init__(self, url: str, drop: Callable[[], None]) -> None:
        self.location: str = url
        self._drop = drop

    def stamp(self, revision: str) -> str:
        with psycopg.connect(self.location) as connection:
            row = connection.execute("SELECT version_num FROM tensorkeep.alembic_version").fetchone()
            connection.execute("UPDATE tensorkeep.alembic_version SET version_num = %s", (revision,))
        assert row is not None
        return str(row[0])

    def lose(self) -> None:
        with psycopg.connect(self.location) as connection:
            connection.execute("DROP SCHEMA tensorkeep CASCADE")

    def damage(self) -> None:
        with psycopg.connect(self.location) as connection:
            held = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'tensorkeep'").fetchall()
            for (name,) in held:
                if name != "alembic_version":
                    connection.execute(SQL("DROP TABLE {} CASCADE").format(Identifier("tensorkeep", name)))

    def copy_to(self, path: Path) -> None:
        path.write_text(run(_program("pg_dump"), self.location))

    def replace_by(self, path: Path) -> None:
        self.lose()
        run(_program("psql"), "-q", "-v", "ON_ERROR_STOP=1", "-f", path, self.location)

    @contextmanager
    def read_only(self) -> Iterator[None]:
        self._set_read_only("on")
        try:
            yield
        finally:
            self._set_read_only("off")

    forbid_writing = read_only

    def remove(self) -> None:
        self._drop()

    def _set_read_only(self, value: LiteralString) -> None:
        with psycopg.connect(self.location, options="-c default_transaction_read_only=off") as connection:
            name = Identifier(connection.info.dbname)
            connection.execute(SQL("ALTER DATABASE {} SET default_transaction_read_only = {}").format(name, SQL(value)))


def _program(name: str) -> Path:
    binaries = find_binaries()
    assert binaries is not None
    return binaries / name
