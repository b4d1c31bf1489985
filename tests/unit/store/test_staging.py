"""One transaction for all batches that wait: each gets its own answer, errors reach everybody, nobody waits for ever."""

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from tensorkeep.catalog.memory import MemoryCatalog
from tensorkeep.catalog.protocol import Location, ObjectRequest, Staging
from tensorkeep.errors import Internal, Unavailable
from tensorkeep.runtime import ManualClock, NoFailpoints, Runtime, SeededRandomness, ThreadWorkers
from tensorkeep.store.staging import StagingQueue
from tensorkeep.testing.catalog_fixtures import STORE
from tensorkeep.testing.catalog_scene import Scene, part_key


class Watched:
    """A catalog that notes each transaction of a push, and can be made to wait or to fail."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.calls: list[tuple[int, int]] = []  # requests, rows recorded
        self.gate = threading.Event()
        self.gate.set()
        self.error: BaseException | None = None

    def stage_and_record(
        self, session: str, requests: Sequence[ObjectRequest], stored: Sequence[int], **options: Any
    ) -> tuple[list[Staging], list[int]]:
        self.calls.append((len(requests), len(stored)))
        assert self.gate.wait(10)
        if self.error is not None:
            raise self.error
        answer: tuple[list[Staging], list[int]] = self.inner.stage_and_record(session, requests, stored, **options)
        return answer

    def record_stored(self, session: str, locations: Sequence[int]) -> list[int]:
        self.calls.append((0, len(locations)))
        answer: list[int] = self.inner.record_stored(session, locations)
        return answer


class World:
    def __init__(self) -> None:
        runtime = Runtime(clock=ManualClock(), randomness=SeededRandomness(1))
        catalog = MemoryCatalog(store=STORE, policy="replicas=1", runtime=runtime, snapshot_every=1000)
        self.scene = Scene(catalog, runtime)
        self.scene.add_device("a")
        self.session = self.scene.begin()
        self.catalog = Watched(self.scene.catalog)
        self.queue = StagingQueue(self.catalog, self.session, allow_soft=False, failpoints=NoFailpoints())  # type: ignore[arg-type]

    def stage(self, *numbers: int, size_bytes: int = 1000, down: frozenset[str] = frozenset()) -> list[Location]:
        requests = [self.scene.request(part_key(n), size_bytes=size_bytes) for n in numbers]
        return [row for answer in self.queue.stage(requests, down=down) for row in answer.staged]

    def state(self, number: int) -> list[str]:
        return [row.state for row in self.scene.catalog.locate([part_key(number)])[part_key(number)]]


def test_what_was_stored_is_recorded_with_the_next_staging_and_the_rest_at_the_end() -> None:
    world = World()
    world.queue.note_stored(world.stage(1, 2))
    assert world.state(1) == []
    world.queue.note_stored(world.stage(3))
    assert (world.state(1), world.state(2), world.state(3)) == (["stored"], ["stored"], [])
    world.queue.record()
    assert world.state(3) == ["stored"]
    world.queue.record()
    assert world.catalog.calls == [(2, 0), (1, 2), (0, 1)]


@pytest.mark.parametrize("error", [Unavailable("locked"), KeyboardInterrupt()])
def test_what_a_failed_transaction_was_to_record_is_recorded_by_the_next(error: BaseException) -> None:
    world = World()
    world.queue.note_stored(world.stage(1))
    world.catalog.error = error
    with pytest.raises(type(error)):
        world.stage(2)
    assert world.state(1) == []
    world.queue.record()
    assert world.state(1) == ["stored"]
    assert world.catalog.calls == [(1, 0), (1, 1), (0, 1)]


def test_rows_that_gc_gave_up_meanwhile_are_told_once() -> None:
    world = World()
    rows = world.stage(1, 2)
    world.scene.catalog.forget_staged(world.session, [rows[0].id])
    world.queue.note_stored(rows)
    world.queue.record()
    assert world.queue.take_late() == [rows[0]]
    assert world.queue.take_late() == []


def wait_for(world: World, waiting: int) -> None:
    while len(world.queue._waiting) < waiting:
        pass


def test_batches_that_wait_for_a_transaction_share_the_next_one_and_each_gets_its_own_places() -> None:
    world = World()
    world.catalog.gate.clear()
    with ThreadWorkers().open_pool(5, "batches") as pool:
        first = pool.submit(world.stage, 1)
        while not world.catalog.calls:
            pass
        others = [pool.submit(world.stage, 10 * n, 10 * n + 1) for n in range(1, 5)]
        wait_for(world, 4)
        world.catalog.gate.set()
        assert [row.key for row in first.result()] == [part_key(1)]
        for n, other in zip(range(1, 5), others, strict=True):
            assert [row.key for row in other.result()] == [part_key(10 * n), part_key(10 * n + 1)]
    assert world.catalog.calls == [(1, 0), (8, 0)]


def test_one_call_asks_for_at_most_128_mib_and_one_set_of_devices_that_are_down() -> None:
    world = World()
    world.catalog.gate.clear()
    with ThreadWorkers().open_pool(6, "batches") as pool:
        tasks = [pool.submit(world.stage, 1)]
        while not world.catalog.calls:
            pass
        for n in range(2, 6):
            tasks.append(pool.submit(world.stage, n, size_bytes=60 << 20, down=frozenset({"x"} if n == 5 else ())))
            wait_for(world, n - 1)
        world.catalog.gate.set()
        for task in tasks:
            task.result()
    assert world.catalog.calls == [(1, 0), (2, 0), (1, 0), (1, 0)]


@pytest.mark.parametrize(("error", "raised"), [(Unavailable("locked"), Unavailable), (KeyboardInterrupt(), Internal)])
def test_an_error_of_the_transaction_reaches_everybody_who_waited_for_it(
    error: BaseException, raised: type[BaseException]
) -> None:
    world = World()
    world.catalog.gate.clear()
    with ThreadWorkers().open_pool(3, "batches") as pool:
        first = pool.submit(world.stage, 1)
        while not world.catalog.calls:
            pass
        others = [pool.submit(world.stage, n) for n in (2, 3)]
        wait_for(world, 2)
        world.catalog.error = error
        world.catalog.gate.set()
        with pytest.raises(type(error)):
            first.result()
        ends = [type(other.exception()) for other in others]
    assert set(ends) <= {raised, type(error)}
    world.catalog.error = None
    assert [row.key for row in world.stage(9)] == [part_key(9)]
