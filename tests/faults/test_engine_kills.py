"""Engines killed and stopped while several pushes run: nothing acknowledged is lost, every push finishes or resumes, no hang."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import tensorkeep
from tensorkeep.devices.object_store import ObjectStoreDevice
from tensorkeep.devices.object_store_clients import RequestLimits
from tensorkeep.devices.object_store_url import is_object_store_url, parse_object_store_url
from tensorkeep.devices.protocol import Device
from tensorkeep.devices.retrying import RetryDevice
from tensorkeep.records.device import DeviceFacts
from tensorkeep.runtime import Runtime
from tensorkeep.store.fleet import open_by_facts
from tensorkeep.store.opening import open_store
from tensorkeep.store.store import Store
from tests.engines.ceph import Ceph
from tests.engines.postgres import Postgres
from tests.faults.pushers import Pushers
from tests.faults.wire_world import MIB, same, weights

GIB = 1 << 30
LIMITS = RequestLimits(connect_s=2.0, small_s=4.0, large_s=8.0)

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def own_ceph() -> Iterator[Ceph]:
    """A Ceph that may be killed."""
    with Ceph.running() as ceph:
        ceph.make_bucket("kills")
        yield ceph


def open_device(facts: DeviceFacts, runtime: Runtime) -> Device:
    if not is_object_store_url(facts.url):
        return open_by_facts(facts, runtime)
    place = parse_object_store_url(facts.url)
    return RetryDevice(ObjectStoreDevice(place, runtime=runtime, limits=LIMITS), runtime=runtime)


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[Postgres]:
    """A PostgreSQL that may be killed."""
    with Postgres.running() as postgres:
        yield postgres


def open_at(location: Path | str, environment: dict[str, str]) -> Callable[[], Store]:
    """Return what opens a store as another process would."""

    def open_it() -> Store:
        runtime = Runtime(environment=environment)
        return Store(open_store(location, runtime=runtime, cache_root=None, user="tester", opener=open_device))

    return open_it


@pytest.fixture
def opener(own_ceph: Ceph, tmp_path: Path) -> Callable[[], Store]:
    """Opens a store on Ceph, its catalog in SQLite."""
    open_it = open_at(tmp_path / "store", own_ceph.s3.environment())
    with open_it() as store:
        store.devices.add("ceph", own_ceph.s3.device_url("kills", tmp_path.name), bandwidth=GIB)
    return open_it


@pytest.fixture
def database_opener(own_postgres: Postgres, tmp_path: Path) -> Callable[[], Store]:
    """Opens a store with its catalog in PostgreSQL, on two disks."""
    location = own_postgres.make_database()
    tensorkeep.init(location).close()
    open_it = open_at(location, dict(os.environ))
    with open_it() as store:
        for name in ("a", "b"):
            store.devices.add(name, str(tmp_path / name), bandwidth=GIB)
    return open_it


def kill(ceph: Ceph, name: str) -> Callable[[], None]:
    """Kill a server with -9 and start it again."""

    def disturb() -> None:
        ceph.kill(name)
        ceph.start(name)

    return disturb


def kill_postmaster(postgres: Postgres) -> Callable[[], None]:
    """Kill PostgreSQL with -9 and start it again."""

    def disturb() -> None:
        postgres.kill_postmaster()
        postgres.start()

    return disturb


def stop_for(ceph: Ceph, name: str, seconds: float) -> Callable[[], None]:
    """Stop a server's process for a while: its connections stay open and nothing answers."""

    def disturb() -> None:
        ceph.kill(name, signal.SIGSTOP)
        try:
            threading.Event().wait(seconds)
        finally:
            ceph.kill(name, signal.SIGCONT)

    return disturb


def test_a_gateway_killed_during_pushes_loses_nothing(own_ceph: Ceph, opener: Callable[[], Store]) -> None:
    pushers = Pushers(opener)
    pushers.run([kill(own_ceph, "rgw")] * 3)
    pushers.check()


def test_a_gateway_stopped_over_its_deadlines_during_pushes_loses_nothing(
    own_ceph: Ceph, opener: Callable[[], Store]
) -> None:
    pushers = Pushers(opener)
    pushers.run([stop_for(own_ceph, "rgw", 6.0)])
    pushers.check()


def test_a_load_takes_the_other_copies_while_the_gateway_stands_still(own_ceph: Ceph, tmp_path: Path) -> None:
    open_it = open_at(tmp_path / "store", own_ceph.s3.environment())
    arrays = weights(3, count=8)
    with open_it() as store:
        store.devices.add("ceph", own_ceph.s3.device_url("kills", tmp_path.name), bandwidth=GIB)
        store.devices.add("disk", str(tmp_path / "disk"), bandwidth=GIB)
        store.push(arrays, "acme/m", replicas=2, part_size=MIB)
        both = store.model("acme/m").load(mode="read")
        assert same(both, arrays)
        model = store.model("acme/m")
        own_ceph.kill("rgw", signal.SIGSTOP)
        started_s = time.monotonic()
        try:
            loaded = model.load(mode="read")
            seconds = time.monotonic() - started_s
        finally:
            own_ceph.kill("rgw", signal.SIGCONT)
        assert same(loaded, arrays)
        assert seconds < LIMITS.large_s, "it waited for a deadline of the gateway's"


def test_a_database_killed_during_pushes_loses_nothing(
    own_postgres: Postgres, database_opener: Callable[[], Store]
) -> None:
    pushers = Pushers(database_opener)
    pushers.run([kill_postmaster(own_postgres)] * 3, pushes_between=2)
    pushers.check()


@pytest.mark.soak
def test_a_database_killed_again_and_again_loses_nothing(
    own_postgres: Postgres, database_opener: Callable[[], Store]
) -> None:
    pushers = Pushers(database_opener, count=4)
    pushers.run([kill_postmaster(own_postgres)] * 20, pushes_between=3)
    pushers.check()


@pytest.mark.soak
def test_database_gateway_and_store_killed_in_turn_lose_nothing(
    own_ceph: Ceph, own_postgres: Postgres, tmp_path: Path
) -> None:
    location = own_postgres.make_database()
    tensorkeep.init(location).close()
    open_it = open_at(location, own_ceph.s3.environment())
    with open_it() as store:
        store.devices.add("ceph", own_ceph.s3.device_url("kills", tmp_path.name), bandwidth=GIB)
    pushers = Pushers(open_it, count=4)
    deaths = [kill_postmaster(own_postgres), kill(own_ceph, "rgw"), kill(own_ceph, "osd")]
    pushers.run(deaths * 3, pushes_between=3)
    pushers.check()


@pytest.mark.soak
def test_gateway_and_store_killed_again_and_again_lose_nothing(own_ceph: Ceph, opener: Callable[[], Store]) -> None:
    pushers = Pushers(opener, count=4)
    pushers.run([kill(own_ceph, name) for name in ("osd", "rgw", "osd", "rgw", "rgw", "osd")], pushes_between=4)
    pushers.check()
    assert len(pushers.acknowledged) >= 28


@pytest.mark.soak
def test_a_gateway_stopped_for_a_minute_loses_nothing(own_ceph: Ceph, opener: Callable[[], Store]) -> None:
    pushers = Pushers(opener, count=4)
    pushers.run([stop_for(own_ceph, "rgw", 60.0)], pushes_between=4)
    pushers.check()
