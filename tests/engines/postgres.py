"""PostgreSQL: a cluster of its own with data checksums, durable commits, on a port and a socket folder of its own.

What it acknowledges it keeps (``fsync`` and ``synchronous_commit`` stay on: tests kill it). Root may not run PostgreSQL, so it
runs as the user ``postgres`` then, and as whoever tests otherwise. A start takes some two seconds.
"""

import os
import shutil
import signal
from pathlib import Path

from tests.engines.servers import HOST, Engine, EngineError, Life, Server, children_of, free_ports, run, wait_until_gone

_SUPERUSER = "postgres"
_INSTALLED = Path("/usr/lib/postgresql")

_CONFIG = """
listen_addresses = '{host}'
port = {port}
unix_socket_directories = '{folder}'
fsync = on
synchronous_commit = on
full_page_writes = on
# xdist workers and what they start share it
max_connections = 500
shared_buffers = 128MB
log_min_messages = warning
autovacuum_naptime = 5s
"""


def find_binaries() -> Path | None:
    """Return the folder with the programs of the newest PostgreSQL of this machine, or None."""
    found = sorted(_INSTALLED.glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    if found:
        return found[-1].parent
    path = shutil.which("initdb")
    return None if path is None else Path(path).resolve().parent


class Postgres(Engine):
    """A running PostgreSQL server."""

    NAME = "postgres"

    def __init__(self, life: Life | None = None, *, data: Path | None = None) -> None:
        """Make and start one; ``data``: a folder to be made for what it keeps, None: one in its own."""
        self._data = data
        super().__init__(life)

    @classmethod
    def is_installed(cls) -> bool:
        return find_binaries() is not None

    def url(self, database: str = _SUPERUSER) -> str:
        """Return the URL of a database."""
        return database_url(self.port, database)

    def make_database(self, name: str | None = None) -> str:
        """Make an empty database and return its URL."""
        self._made += 1
        return make_database(self.port, name or f"made{os.getpid()}_{self._made}")

    def start(self, *, limit_s: float = 60) -> None:
        """Start the server and return when it answers; after a kill it recovers first."""
        self.server.start()
        self.server.wait_until(lambda: answers(self.port), limit_s=limit_s)

    def kill_postmaster(self) -> None:
        """Kill the server with -9; return when its children, which notice by themselves, are gone too."""
        children = children_of(self.server.pid)
        self.server.kill(signal.SIGKILL)
        wait_until_gone(children)

    def _start_all(self) -> None:
        [self.port] = free_ports(1)
        self._user = _SUPERUSER if os.geteuid() == 0 else None
        self._made = 0
        self.server = self._make()
        self.start()

    def _make(self) -> Server:
        binaries = find_binaries()
        if binaries is None:
            raise EngineError("PostgreSQL is not installed: run scripts/setup.sh dev as root")
        data = self._data or self.folder / "data"
        data.mkdir(mode=0o700)
        if self._user is not None:
            for path in (data, self.folder):
                shutil.chown(path, self._user)
        run(
            *(binaries / "initdb", "-D", data, "-k", "-A", "trust", "-U", _SUPERUSER, "--no-sync"),
            *("-E", "UTF8", "--locale=C"),
            user=self._user,
        )
        with (data / "postgresql.conf").open("a") as config:
            config.write(_CONFIG.format(host=HOST, port=self.port, folder=self.folder))
        argv = [str(binaries / "postgres"), "-D", str(data)]
        # Told to quit, it removes its shared memory.
        return Server("postgres", argv, life=self.life, stop_signal=signal.SIGQUIT, user=self._user)


def database_url(port: int, database: str) -> str:
    """Return the URL of a database of the server at a port."""
    return f"postgresql://{_SUPERUSER}@{HOST}:{port}/{database}"


def make_database(port: int, name: str) -> str:
    """Make an empty database at the server at a port and return its URL."""
    import psycopg
    from psycopg.sql import SQL, Identifier

    with psycopg.connect(database_url(port, _SUPERUSER), autocommit=True) as connection:
        connection.execute(SQL("CREATE DATABASE {} TEMPLATE template0").format(Identifier(name)))
    return database_url(port, name)


def drop_database(port: int, name: str) -> None:
    """Remove a database with all its connections."""
    import psycopg
    from psycopg.sql import SQL, Identifier

    with psycopg.connect(database_url(port, _SUPERUSER), autocommit=True) as connection:
        connection.execute(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(name)))


def answers(port: int) -> bool:
    """Return whether the server at a port lets one in."""
    import psycopg

    try:
        with psycopg.connect(database_url(port, _SUPERUSER), connect_timeout=2):
            return True
    except psycopg.OperationalError:
        return False
