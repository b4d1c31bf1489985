"""Engines killed and stopped while several pushes run: nothing acknowledged is lost, every push finishes or resumes, no hang."""

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tensorkeep.devices.object_store import ObjectStoreDevice
from tensorkeep.devices.object_store_clients import RequestLimits
from tensorkeep.devices.object_store_url import is_object_store_url, parse_object_store_url
from tensorkeep.devices.protocol import Device
from tensorkeep.devices.retrying import RetryDevice
from tensorkeep.records.device import DeviceFacts
from tensorkeep.runtime import Runtime
from tensorkeep.store.fleet import open_by_facts
from tensorkeep.store.opening import open_folder
from tensorkeep.store.store import Store
from tests.engines.ceph import Ceph
from tests.faults.pushers import Pushers

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


@pytest.fixture
def opener(own_ceph: Ceph, tmp_path: Path) -> Callable[[], Store]:
    """Opens a store on Ceph, its catalog in SQLite, as another process would."""
    runtime = Runtime(environment=own_ceph.s3.environment())

    def open_store() -> Store:
        return Store(
            open_folder(tmp_path / "store", runtime=runtime, cache_root=None, user="tester", opener=open_device)
        )

    with open_store() as store:
        store.devices.add("ceph", own_ceph.s3.device_url("kills", tmp_path.name), bandwidth=GIB)
    return open_store


def kill(ceph: Ceph, name: str) -> Callable[[], None]:
    """Kill a server with -9 and start it again."""

    def disturb() -> None:
        ceph.kill(name)
        ceph.start(name)

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
