"""Engines killed with -9 amid a repair, a drain and a gc: what was stored stays whole, and running the verb again ends it."""

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import tensorkeep
from tensorkeep.errors import NotFound, TensorkeepError
from tensorkeep.runtime import Runtime
from tensorkeep.store.opening import open_store
from tensorkeep.store.store import Store
from tests.engines.ceph import Ceph
from tests.engines.postgres import Postgres
from tests.faults.pushers import in_catalog, on_devices
from tests.faults.store_world import MODEL, Hooks, assert_loads, small_weights
from tests.faults.test_engine_kills import GIB, open_device

pytestmark = pytest.mark.root

DOWN_S = 0.5
"""How long an engine is away before it is started again, while the verb goes on."""

STEPS = {
    "repair": ("repair.planned", "push.staged", "push.part_written", "repair.written", "repair.recorded"),
    "drain": ("drain.begun", "push.part_written", "repair.recorded", "drain.retired", "gc.deleted", "drain.deleted"),
    "gc": ("gc.condemned", "gc.deleted", "gc.flushed", "gc.dropped"),
}
CASES = [(verb, step) for verb, steps in STEPS.items() for step in steps]
FEW = [("repair", "push.part_written"), ("drain", "drain.retired"), ("gc", "gc.deleted")]


@pytest.fixture(scope="module")
def own_ceph() -> Iterator[Ceph]:
    """A Ceph that may be killed."""
    with Ceph.running() as ceph:
        ceph.make_bucket("upkeep")
        yield ceph


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[Postgres]:
    """A PostgreSQL that may be killed."""
    with Postgres.running() as postgres:
        yield postgres


@dataclass
class Scene:
    """A store with two copies of two versions on three devices."""

    location: Path | str
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    @contextmanager
    def open(self, hooks: Hooks | None = None) -> Iterator[Store]:
        """Open the store as another process would."""
        runtime = Runtime(environment=self.environment, failpoints=hooks or Hooks())
        context = open_store(self.location, runtime=runtime, cache_root=None, user="tester", opener=open_device)
        with Store(context) as store:
            yield store

    def fill(self, urls: list[str]) -> None:
        """Make devices and versions; the second version needs some of what the first one does."""
        tensorkeep.init(self.location, replicas=2).close()
        with self.open() as store:
            for name, url in zip("abc", urls, strict=True):
                store.devices.add(name, url, bandwidth=GIB)
            for turn in (0, 1):
                store.push(small_weights(turn), MODEL, part_size=1 << 20)
            old = store.log(MODEL)[1].id
            store.tag(MODEL, "old", old)


def prepare(scene: Scene, verb: str) -> None:
    """Have the store need a repair, or a gc."""
    with scene.open() as store:
        if verb == "repair":
            store.devices.lost("a")
        if verb == "gc":
            old = store.model(f"{MODEL}@old").version.id
            store.delete_tag(MODEL, "old")
            store.rm(f"{MODEL}@{old}")


def run(store: Store, verb: str) -> bool:
    """Do the verb; return whether there is nothing left of it to do."""
    if verb == "repair":
        return store.repair().ok
    if verb == "drain":
        return store.devices.drain("a", grace_s=0).empty
    report = store.gc(grace_s=0, max_fraction=None)
    return (report.waiting, report.unreachable) == (0, ())


def attempt(scene: Scene, hooks: Hooks, verb: str) -> TensorkeepError | None:
    """Do the verb once; return the typed error that it ends with."""
    try:
        with scene.open(hooks) as store:
            run(store, verb)
    except TensorkeepError as error:
        return error
    return None


def killed_amid(scene: Scene, verb: str, step: str, kill: Callable[[], None], start: Callable[[], None]) -> None:
    """Kill an engine at a step of a verb, start it again while the verb goes on, run the verb again until all is done, and check."""
    prepare(scene, verb)
    threads: list[threading.Thread] = []

    def start_later() -> None:
        time.sleep(DOWN_S)
        start()

    def strike() -> None:
        if not threads:
            threads.append(threading.Thread(target=start_later))
            kill()
            threads[0].start()

    hooks = Hooks()
    hooks.on[step] = strike
    try:
        failure = attempt(scene, hooks, verb)
    finally:
        for thread in threads:
            thread.join()
    assert not isinstance(failure, NotFound), f"unreachable is never absent: {failure}"
    assert threads, f"{verb} has no step {step}"
    for turn in itertools.count():
        with scene.open() as store:
            if run(store, verb):
                break
        assert turn < 3, f"{verb} comes to no end"
    check(scene, verb)


def check(scene: Scene, verb: str) -> None:
    """Assert that every version is whole, with all copies, and that devices hold what the catalog says and nothing else."""
    with scene.open() as store:
        assert_loads(store, MODEL, small_weights(1))
        if verb != "gc":
            assert_loads(store, f"{MODEL}@old", small_weights(0))
        assert store.verify().ok
        assert store.status().short == ()
        store.scrub()
        store.gc(grace_s=0, max_fraction=None)
        rows = in_catalog(store)
        lost = {facts.id for facts in store._context.catalog.list_devices() if facts.state == "lost"}
        assert on_devices(store) == {(device, name) for device, name in rows if device not in lost}
        assert store.verify().ok
        if verb == "drain":
            assert store.devices.remove("a").state == "removed"


def on_ceph(ceph: Ceph, folder: Path) -> Scene:
    """Return a scene on three prefixes of a bucket, its catalog in SQLite."""
    scene = Scene(folder / "store", ceph.s3.environment())
    scene.fill([ceph.s3.device_url("upkeep", f"{folder.name}-{name}") for name in "abc"])
    return scene


def on_postgres(postgres: Postgres, folder: Path) -> Scene:
    """Return a scene on three disks, its catalog in PostgreSQL."""
    scene = Scene(postgres.make_database())
    scene.fill([str(folder / name) for name in "abc"])
    return scene


@pytest.mark.parametrize(("verb", "step"), FEW)
def test_a_gateway_killed_amid_upkeep_loses_nothing(own_ceph: Ceph, tmp_path: Path, verb: str, step: str) -> None:
    scene = on_ceph(own_ceph, tmp_path)
    killed_amid(scene, verb, step, lambda: own_ceph.kill("rgw"), lambda: own_ceph.start("rgw"))


@pytest.mark.soak
@pytest.mark.parametrize("engine", ["rgw", "osd"])
@pytest.mark.parametrize(("verb", "step"), CASES)
def test_gateway_and_store_killed_at_each_step_of_upkeep_lose_nothing(
    own_ceph: Ceph, tmp_path: Path, verb: str, step: str, engine: str
) -> None:
    scene = on_ceph(own_ceph, tmp_path)
    killed_amid(scene, verb, step, lambda: own_ceph.kill(engine), lambda: own_ceph.start(engine))


@pytest.mark.parametrize(("verb", "step"), FEW)
def test_a_database_killed_amid_upkeep_loses_nothing(
    own_postgres: Postgres, tmp_path: Path, verb: str, step: str
) -> None:
    killed_amid(on_postgres(own_postgres, tmp_path), verb, step, own_postgres.kill_postmaster, own_postgres.start)


@pytest.mark.soak
@pytest.mark.parametrize(("verb", "step"), CASES)
def test_a_database_killed_at_each_step_of_upkeep_loses_nothing(
    own_postgres: Postgres, tmp_path: Path, verb: str, step: str
) -> None:
    killed_amid(on_postgres(own_postgres, tmp_path), verb, step, own_postgres.kill_postmaster, own_postgres.start)
