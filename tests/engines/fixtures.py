"""The engines as fixtures: each is started when a test first asks, once for a run, whatever the number of its processes.

A run is the pytest process that was started by hand (with xdist: the controller). It owns the engines and ends them when it
ends; their guards do where it can't. Whichever process needs one first starts it, under a lock, and writes down how it is
reached. Tests share the servers and get a database, a bucket or a prefix of their own.
"""

import fcntl
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.engines import postgres as pg
from tests.engines.ceph import Ceph
from tests.engines.servers import EngineError, Life, S3Account, end_all
from tests.engines.swift import Swift

_RUN = pytest.StashKey["Run"]()


@dataclass(frozen=True, slots=True)
class Run:
    """One test run: its first process, and the folder that its processes share."""

    owner: int
    folder: Path

    def engine(self, name: str, start: Callable[[Life], dict[str, Any]]) -> dict[str, Any]:
        """Return the facts of an engine, started by the first process that asks."""
        self.folder.mkdir(mode=0o711, exist_ok=True)
        written = self.folder / f"{name}.json"
        with _lock(self.folder / f"{name}.lock"):
            if not written.exists():
                written.write_text(json.dumps(self._try(name, start)))
            facts: dict[str, Any] = json.loads(written.read_text())
        if "problem" in facts:
            raise EngineError(facts["problem"])
        return facts

    def _try(self, name: str, start: Callable[[Life], dict[str, Any]]) -> dict[str, Any]:
        folder = self.folder / name
        folder.mkdir(mode=0o711)
        try:
            return start(Life(folder, self.owner, self.folder))
        except EngineError as error:
            return {"problem": str(error)}  # the next one need not wait for the same


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def pytest_configure(config: pytest.Config) -> None:
    told = getattr(config, "workerinput", {}).get("tensorkeep_run")
    owner, folder = told or (os.getpid(), f"{tempfile.gettempdir()}/tensorkeep-run-{os.getpid()}")
    config.stash[_RUN] = Run(owner, Path(folder))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a process of xdist which run it belongs to."""
    run = node.config.stash[_RUN]
    node.workerinput["tensorkeep_run"] = run.owner, str(run.folder)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    run = config.stash[_RUN]
    if run.owner == os.getpid():
        end_all(run.folder)


@pytest.fixture(scope="session")
def ceph(pytestconfig: pytest.Config) -> S3Account:
    """The S3 gateway of a Ceph that the run shares; tests that kill it start their own (`tests.engines.ceph.Ceph`)."""
    return S3Account(**pytestconfig.stash[_RUN].engine("ceph", lambda life: Ceph(life).s3.facts()))


@pytest.fixture(scope="session")
def swift(pytestconfig: pytest.Config) -> S3Account:
    """The S3 middleware of an OpenStack Swift that the run shares: the second S3, for `make soak`."""
    return S3Account(**pytestconfig.stash[_RUN].engine("swift", lambda life: Swift(life).s3.facts()))


@pytest.fixture(scope="session")
def ceph_bucket(ceph: S3Account) -> str:
    """A bucket of this process for tests that take a prefix each: making one is slow."""
    return ceph.make_bucket(f"tests-{os.getpid()}")


@dataclass(frozen=True, slots=True)
class PostgresAccount:
    """How a PostgreSQL that the run shares is reached."""

    port: int

    def make_database(self, name: str) -> str:
        """Make an empty database and return its URL."""
        return pg.make_database(self.port, name)

    def drop_database(self, name: str) -> None:
        """Remove a database with all its connections."""
        pg.drop_database(self.port, name)


@pytest.fixture(scope="session")
def postgres_server(pytestconfig: pytest.Config) -> PostgresAccount:
    """The PostgreSQL that the run shares; tests that kill it start their own (`tests.engines.postgres.Postgres`)."""
    return PostgresAccount(**pytestconfig.stash[_RUN].engine("postgres", lambda life: {"port": pg.Postgres(life).port}))


@pytest.fixture(scope="session")
def database_names() -> Iterator[str]:
    """Names of databases that no other process of the run uses."""
    return (f"test_{os.getpid()}_{number}" for number in itertools.count())


@pytest.fixture
def database(postgres_server: PostgresAccount, database_names: Iterator[str]) -> Iterator[str]:
    """The URL of an empty database of the test's own."""
    name = next(database_names)
    yield postgres_server.make_database(name)
    postgres_server.drop_database(name)


@pytest.fixture(scope="session")
def process_database(postgres_server: PostgresAccount, database_names: Iterator[str]) -> Iterator[str]:
    """The URL of a database that the tests of this process share: making one takes longer than most of them."""
    name = next(database_names)
    yield postgres_server.make_database(name)
    postgres_server.drop_database(name)


@pytest.fixture(scope="session")
def store_urls(process_database: str) -> Iterator[str]:
    """URLs of places in PostgreSQL where no store is yet: one schema after the other."""
    return (f"{process_database}?schema=store_{number}" for number in itertools.count())
