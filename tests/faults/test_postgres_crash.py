"""PostgreSQL killed and connections cut: what was acknowledged is there, what was asked once happened once, nothing hangs."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, event

import tensorkeep
from tensorkeep.catalog.access import create_catalog, open_catalog
from tensorkeep.catalog.protocol import Committed
from tensorkeep.catalog.sql import SqlCatalog
from tensorkeep.errors import InvalidInput, Unavailable
from tensorkeep.runtime import Runtime, ThreadWorkers
from tensorkeep.testing.catalog_fixtures import STORE
from tensorkeep.testing.catalog_scene import Scene, part_key, seeded_runtime
from tests.engines.postgres import Postgres

PATIENCE_S = 120.0
KILLS = 4


class RealTime:
    """A seeded scene whose lost connections are waited for in real time."""

    def __init__(self, url: str) -> None:
        quiet = seeded_runtime()
        self.catalog = create_catalog(url, store=STORE, policy="replicas=1", runtime=quiet)
        self.catalog.close()
        self.catalog = open_catalog(url, runtime=Runtime())
        self.scene = Scene(self.catalog, quiet)
        self.scene.add_device("a")


def test_a_killed_postmaster_loses_no_acknowledged_commit_and_pushes_go_on() -> None:
    with Postgres.running() as server:
        catalog_scene = RealTime(server.make_database("store"))
        catalog, scene = catalog_scene.catalog, catalog_scene.scene
        model = scene.model()
        acknowledged: list[str] = []
        more, enough = threading.Condition(), threading.Event()

        def push_on() -> None:
            number = 0
            while not enough.is_set():
                number += 1
                head = acknowledged[-1] if acknowledged else None
                version = scene.push(model, [part_key(number), part_key(0)], expected_head=head, label=str(number))
                with more:
                    acknowledged.append(version.id)
                    more.notify_all()

        def wait_for(count: int, pushing: "Future[None]") -> None:
            with more:
                reached = more.wait_for(lambda: len(acknowledged) >= count or pushing.done(), PATIENCE_S)
            assert reached, f"hung at {len(acknowledged)} of {count}"
            assert not pushing.done(), pushing.exception()

        with ThreadWorkers().open_pool(1, "pusher") as pool:
            pushing = pool.submit(push_on)
            try:
                for kill in range(KILLS):
                    wait_for(len(acknowledged) + 7 + kill, pushing)
                    server.kill_postmaster()
                    server.start()
                wait_for(len(acknowledged) + 5, pushing)
            finally:
                enough.set()
            pushing.result(PATIENCE_S)
        assert [found.id for found in catalog.list_versions(model.id)] == acknowledged[::-1]
        assert catalog.get_version(model.id, "main").id == acknowledged[-1]
        assert catalog.count_short(acknowledged) == {}
        assert catalog.check() == []
        catalog.close()


@pytest.fixture
def place(store_urls: Iterator[str]) -> Iterator[tuple[str, RealTime]]:
    url = next(store_urls)
    made = RealTime(url)
    yield url, made
    made.catalog.close()


def cut(url: str, pid: int) -> None:
    with psycopg.connect(url.partition("?")[0], autocommit=True) as session:
        session.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])


def cut_at_commit(catalog: SqlCatalog, url: str, *, arrived: bool) -> list[int]:
    """Cut the connection of the next transaction that has changed something: before its COMMIT arrives, or before the answer."""
    cuts: list[int] = []

    def at_commit(connection: Connection) -> None:
        session: Any = connection.connection.driver_connection
        if cuts or session.execute("SELECT pg_current_xact_id_if_assigned()").fetchone() == (None,):
            return
        cuts.append(session.info.backend_pid)
        if arrived:
            session.execute("COMMIT")
        cut(url, cuts[0])

    event.listen(catalog._db.engine, "commit", at_commit)
    return cuts


@pytest.mark.parametrize("arrived", [False, True])
def test_a_commit_whose_answer_is_lost_happens_once(place: tuple[str, RealTime], arrived: bool) -> None:
    url, made = place
    scene, catalog = made.scene, made.catalog
    model = scene.model()
    version = scene.version(model)
    session = scene.prepare(model, version, [part_key(1)])
    request = scene.commit_request(session, model, version, [part_key(1)], tag="v1")
    seq = catalog.info().last_seq
    cuts = cut_at_commit(catalog, url, arrived=arrived)
    answer = catalog.commit(request)
    assert len(cuts) == 1
    assert answer == Committed(version=version, seq=seq + 1)
    assert catalog.info().last_seq == seq + 1
    assert catalog.list_versions(model.id) == [version]
    assert catalog.check() == []


@pytest.mark.parametrize("arrived", [False, True])
def test_a_change_of_a_name_whose_answer_is_lost_happens_once(place: tuple[str, RealTime], arrived: bool) -> None:
    url, made = place
    scene, catalog = made.scene, made.catalog
    model = scene.model()
    version = scene.push(model, [part_key(1)])
    seq = catalog.info().last_seq
    cuts = cut_at_commit(catalog, url, arrived=arrived)
    now = scene.clock.now()
    assert catalog.set_ref(model.id, "tag", "v1", version.id, expected=None, heads=(), now=now) == seq + 1
    assert len(cuts) == 1
    assert catalog.info().last_seq == seq + 1
    assert catalog.get_version(model.id, "v1") == version
    assert catalog.check() == []


def test_idle_connections_that_were_cut_are_found_before_they_are_used(place: tuple[str, RealTime]) -> None:
    url, made = place
    made.catalog.info()
    with psycopg.connect(url.partition("?")[0], autocommit=True) as session:
        cut_all = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'tensorkeep'"
        assert session.execute(cut_all).fetchall()
    assert made.catalog.list_devices() == made.scene.catalog.list_devices()
    made.scene.push(made.scene.model(), [part_key(1)])


def test_a_server_that_is_down_is_unavailable_and_nothing_hangs() -> None:
    with Postgres.running() as server:
        url = server.make_database("store")
        quiet = seeded_runtime()  # its clock jumps when somebody waits
        catalog = create_catalog(url, store=STORE, policy="replicas=1", runtime=quiet)
        server.kill_postmaster()
        with pytest.raises(Unavailable, match="does not answer"):
            catalog.info()
        with pytest.raises(Unavailable, match="does not answer"):
            tensorkeep.open(url)
        server.start()
        assert catalog.info().last_seq == 1
        catalog.close()


def test_a_lock_that_is_held_for_too_long_is_unavailable(place: tuple[str, RealTime]) -> None:
    url, made = place
    impatient = open_catalog(url, runtime=seeded_runtime(), busy_timeout_s=0.2)
    with made.catalog._db.write() as connection:
        connection.exec_driver_sql("SELECT * FROM store FOR UPDATE").all()
        with pytest.raises(Unavailable, match="lock timeout"):
            impatient.set_policy(None, "replicas=2", heads=(), now=made.scene.clock.now())
    impatient.close()


PUSHER = """
import sys
import tensorkeep
import numpy as np
url, name = sys.argv[1:]
with tensorkeep.open(url) as store:
    number = 0
    while number < 4:
        try:
            store.push({"shared": np.arange(300_000) + number, "own": np.full(9, number)}, f"acme/{name}")
        except tensorkeep.Conflict:  # collected again and again meanwhile: push again
            continue
        print(number, flush=True)
        number += 1
"""


def test_two_processes_push_while_a_third_collects(store_urls: Iterator[str], tmp_path: Path) -> None:
    url = next(store_urls)
    with tensorkeep.init(url) as store:
        for name in ("a", "b"):
            store.devices.add(name, str(tmp_path / name), bandwidth=1 << 30)
        pushers = [
            subprocess.Popen([sys.executable, "-c", PUSHER, url, name], stdout=subprocess.PIPE, text=True)
            for name in ("one", "two")
        ]
        for _ in range(12):
            store.gc(grace_s=0, max_fraction=None)
        for pusher in pushers:
            out, _ = pusher.communicate(timeout=PATIENCE_S)
            assert (pusher.returncode, out.split()) == (0, list("0123"))
        report = store.verify()
        assert report.problems == ()
        for name in ("one", "two"):
            assert len(store.log(f"acme/{name}")) == 4
            assert (store.model(f"acme/{name}").load()["own"] == 3).all()


@pytest.mark.parametrize(
    ("setting", "told"), [("fsync", "fsync = off"), ("full_page_writes", "full_page_writes = off")]
)
def test_a_server_that_would_lose_commits_is_refused_by_the_settings_name(setting: str, told: str) -> None:
    with Postgres.running() as server:
        url = server.make_database("store")
        with psycopg.connect(url, autocommit=True) as session:
            session.execute(f"ALTER SYSTEM SET {setting} = off".encode())
        server.kill_postmaster()
        server.start()
        with pytest.raises(InvalidInput, match=told):
            tensorkeep.open(url)


def test_synchronous_commit_off_is_switched_on(place: tuple[str, RealTime]) -> None:
    url, _ = place
    with psycopg.connect(url.partition("?")[0], autocommit=True) as session:
        database = session.info.dbname
        session.execute(f'ALTER DATABASE "{database}" SET synchronous_commit = off'.encode())
        try:
            other = open_catalog(url, runtime=Runtime())
            with other._db.read() as connection:
                assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
            other.close()
        finally:
            session.execute(f'ALTER DATABASE "{database}" RESET synchronous_commit'.encode())
