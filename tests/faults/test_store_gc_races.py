"""gc with a grace of 0 between the steps of pushes, and beside them: what is committed is whole."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tensorkeep.errors import AlreadyExists, Conflict, NotEnoughCopies
from tensorkeep.runtime import FAILPOINTS, Runtime, SeededRandomness, ThreadWorkers
from tensorkeep.store.reports import Progress
from tensorkeep.store.store import Store
from tests.faults.store_world import (
    MIB,
    MODEL,
    Arrays,
    Hooks,
    World,
    assert_clean,
    assert_loads,
    assert_no_orphans,
    small_weights,
    usable,
)

# Inside a commit's transaction no other can write: gc would wait for it, and the commit for gc.
STEPS = sorted(name for name in FAILPOINTS if name.startswith(("push.", "journal.")))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path, snapshot_every=2)
    yield world
    world.end()


def assert_whole(world: World, spec: str, arrays: Arrays) -> None:
    """Assert that a version has every copy that it owes, that they are right, and that nothing else is left."""
    store = world.open()
    version = store.model(spec).version
    held = usable(store)
    assert all(len(held[key]) >= 2 for key, _ in store._context.catalog.version_objects(version.id))
    assert_clean(store)
    assert_loads(store, spec, arrays)
    assert_no_orphans(world, store)
    assert_clean(store)
    assert_loads(store, spec, arrays)


@pytest.mark.parametrize("step", STEPS)
def test_a_push_is_whole_when_gc_runs_at_a_step_of_it(world: World, step: str) -> None:
    world.create().push(small_weights(0), MODEL, part_size=MIB, tag="v0")
    collector = world.open()
    hooks = Hooks()
    hooks.on[step] = collect_once(collector)
    world.open(failpoints=hooks).push(small_weights(1), MODEL, part_size=MIB)
    assert hooks.hits[step]
    assert_whole(world, MODEL, small_weights(1))
    assert_loads(world.open(), f"{MODEL}@v0", small_weights(0))


@pytest.mark.parametrize("step", STEPS)
def test_a_push_that_counts_on_garbage_is_whole_when_gc_runs_at_a_step_of_it(world: World, step: str) -> None:
    """Everything that it needs lies on devices already, of a version that was removed."""
    store = world.create()
    store.push(small_weights(0), MODEL, part_size=MIB, tag="v0")
    gone = store.push(small_weights(1), MODEL, part_size=MIB)
    store.branch(MODEL, "main", to="v0")
    store.rm(f"{MODEL}@{gone.id}")
    collector = world.open()
    hooks, collected = Hooks(), list[int]()
    hooks.on[step] = once(lambda: collected.append(collector.gc(grace_s=0, max_fraction=None).condemned))
    world.open(failpoints=hooks).push(small_weights(1), MODEL, part_size=MIB)
    assert hooks.hits[step]
    assert collected[0] > 0  # at least the record of the version that was removed
    assert_whole(world, MODEL, small_weights(1))
    assert_loads(world.open(), f"{MODEL}@v0", small_weights(0))


def test_a_push_whose_objects_are_collected_each_time_gives_up_and_can_be_run_again(world: World) -> None:
    store = world.create()
    store.push(small_weights(0), MODEL, part_size=MIB)
    collector = world.open()
    hooks = Hooks(push__before_commit=lambda: void(collector.gc(grace_s=0, max_fraction=None)))
    with pytest.raises(Conflict, match="push again"):
        world.open(failpoints=hooks).push(small_weights(1), MODEL, part_size=MIB)
    assert_clean(world.open())
    assert_loads(world.open(), MODEL, small_weights(0))
    world.open().push(small_weights(1), MODEL, part_size=MIB)
    assert_whole(world, MODEL, small_weights(1))


def test_a_version_that_is_removed_under_a_child_takes_nothing_with_it(world: World) -> None:
    """The parent is removed and collected after the child's push has planned to keep its parts."""
    store = world.create()
    store.push(small_weights(0), MODEL, part_size=MIB, tag="v0")
    remover = world.open()

    def remove() -> None:
        remover.delete_tag(MODEL, "v0")
        remover.push(small_weights(30), MODEL, part_size=MIB, branch="other")
        remover.branch(MODEL, "main", to="other")
        remover.rm(f"{MODEL}@{old}")
        remover.gc(grace_s=0, max_fraction=None)

    old = store.model(MODEL).version.id
    hooks = Hooks(push__planned=once(remove))
    with pytest.raises((Conflict, NotEnoughCopies)):
        world.open(failpoints=hooks).push(small_weights(1), MODEL, part_size=MIB)
    again = world.open().push(small_weights(1), MODEL, part_size=MIB)
    assert again.branches == ("main",)
    assert_whole(world, MODEL, small_weights(1))


def test_a_removed_version_is_read_until_the_grace_is_over(world: World) -> None:
    """A load finds its copies when it begins: what it found stays readable for the grace, though no new load finds it."""
    store = world.create()
    store.push(small_weights(0), MODEL, part_size=MIB, tag="v0")
    gone = store.push(small_weights(1), MODEL, part_size=MIB)
    model = world.open().model(MODEL)
    store.branch(MODEL, "main", to="v0")
    store.rm(f"{MODEL}@{gone.id}")
    objects = world.objects()
    collector = world.open()

    def collect(progress: Progress) -> None:
        """Called when the first bytes have landed, so that all is planned."""
        collector.gc(max_fraction=None)

    loaded = model.load(progress=collect)
    assert all(loaded[name].tobytes() == array.tobytes() for name, array in small_weights(1).items())
    assert world.objects() == objects
    collector.gc(grace_s=0, max_fraction=None)
    with pytest.raises(NotEnoughCopies, match="knows no"):
        model.load()
    assert_whole(world, MODEL, small_weights(0))


# ----------------------------------------------------------------------- in threads


@pytest.mark.parametrize("seed", range(2))
def test_two_pushers_that_share_parts_lose_nothing_to_collectors_beside_them(world: World, seed: int) -> None:
    world.create()
    acknowledged: dict[tuple[str, int], str] = {}
    stop = threading.Event()

    def push(model: str, start: int) -> None:
        store = world.open(runtime=Runtime(randomness=SeededRandomness(seed * 10 + start)))
        for turn in range(start, start + 8):
            while True:
                try:
                    version = store.push(small_weights(turn), model, part_size=MIB, tag=f"v{turn}")
                except Conflict:
                    continue  # collected again and again: push again
                except AlreadyExists:
                    break
                acknowledged[model, turn] = version.id
                break

    def collect() -> None:
        store = world.open()
        while not stop.is_set():
            store.gc(grace_s=0, max_fraction=None)

    with ThreadWorkers().open_pool(4, "race") as pool:
        pushers = [pool.submit(push, "one", 0), pool.submit(push, "two", 2)]
        collectors = [pool.submit(collect), pool.submit(collect)]
        try:
            for pusher in pushers:
                pusher.result()
        finally:
            stop.set()
        for collector in collectors:
            collector.result()

    assert len(acknowledged) == 16
    store = world.open()
    assert_clean(store)
    for (model, turn), version in acknowledged.items():
        assert store.model(f"{model}@v{turn}").version.id == version
        assert_loads(store, f"{model}@v{turn}", small_weights(turn))
    assert_no_orphans(world, store)
    assert_clean(store)


def test_pushers_that_also_remove_lose_nothing_to_collectors_beside_them(world: World) -> None:
    """Parts come and go: each version is removed again while another pusher may count on its parts."""
    world.create()
    stop = threading.Event()

    def push(model: str) -> Callable[[], None]:
        def work() -> None:
            store = world.open()
            for turn in range(6):
                while True:
                    try:
                        store.push(small_weights(turn % 3), model, part_size=MIB)
                    except Conflict:
                        continue
                    break
                assert_loads(store, model, small_weights(turn % 3))
                if turn < 5:
                    store.rm_model(model)

        return work

    def collect() -> None:
        store = world.open()
        while not stop.is_set():
            store.gc(grace_s=0, max_fraction=None)

    with ThreadWorkers().open_pool(4, "race") as pool:
        pushers = [pool.submit(push(name)) for name in ("one", "two", "three")]
        collector = pool.submit(collect)
        try:
            for pusher in pushers:
                pusher.result()
        finally:
            stop.set()
        collector.result()
    store = world.open()
    assert_clean(store)
    for model in ("one", "two", "three"):
        assert_loads(store, model, small_weights(2))
    assert_no_orphans(world, store)
    assert_clean(store)


def collect_once(store: Store) -> Callable[[], None]:
    return once(lambda: void(store.gc(grace_s=0, max_fraction=None)))


def once(call: Callable[[], None]) -> Callable[[], None]:
    """Return a call that does something the first time only, also from several threads."""
    lock = threading.Lock()

    def first() -> None:
        if lock.acquire(blocking=False):
            call()

    return first


def void(value: object) -> None:
    """Take a value that nobody needs."""
