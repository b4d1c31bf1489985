"""The simulator itself: the baton, what waits on what, crashes, and disks that lose what was not flushed."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from tensorkeep.errors import NotFound, Unavailable
from tensorkeep.store import staging
from tensorkeep.testing.simulation_devices import Chances, Disk, SimulatedDevice
from tensorkeep.testing.simulation_threads import (
    Crashed,
    Process,
    Scheduler,
    SimulatedWorkers,
    Stuck,
    cooperative_locks,
)

QUIET = Chances(put_late=0, put_lost=0, answer_lost=0, delete_late=0, flush_fails=0)
NAME = f"parts/{'0' * 2}/{'0' * 64}.{'0' * 26}"


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    scheduler = Scheduler(7, stay=0.0)
    with cooperative_locks(scheduler):
        yield scheduler


def store_threading() -> Any:
    """Return what the store's modules take for ``threading`` now."""
    return vars(staging)["threading"]


def run(scheduler: Scheduler, *bodies: Callable[[], None]) -> None:
    for number, body in enumerate(bodies):
        scheduler.start(Process(f"p{number}"), f"p{number}", body)
    scheduler.run()


def test_threads_go_on_one_at_a_time_in_an_order_that_the_seed_gives() -> None:
    def order_of(seed: int) -> list[int]:
        scheduler = Scheduler(seed, stay=0.0)
        order: list[int] = []

        def body(number: int) -> Callable[[], None]:
            def steps() -> None:
                for _ in range(20):
                    scheduler.switch("step")
                    order.append(number)

            return steps

        run(scheduler, *map(body, range(3)))
        return order

    assert order_of(1) == order_of(1)
    assert order_of(1) != order_of(2)
    assert sorted(order_of(1)) == [0] * 20 + [1] * 20 + [2] * 20


def test_a_lock_held_over_a_switch_point_keeps_others_out(scheduler: Scheduler) -> None:
    lock = store_threading().Lock()
    inside: list[int] = []

    def body() -> None:
        for _ in range(10):
            with lock:
                inside.append(1)
                scheduler.switch("inside")
                assert len(inside) == 1
                inside.pop()

    run(scheduler, body, body, body)


def test_threads_that_wait_for_each_other_are_seen_at_once(scheduler: Scheduler) -> None:
    one, other = store_threading().Lock(), store_threading().Lock()
    both = store_threading().Condition()

    def wait() -> None:
        with both:
            both.wait()

    def take(first: Any, second: Any) -> Callable[[], None]:
        def body() -> None:
            with first, second:
                wait()

        return body

    with pytest.raises(Stuck, match="p0"):
        run(scheduler, take(one, other), take(other, one))


def test_a_condition_wakes_those_that_wait(scheduler: Scheduler) -> None:
    changed = store_threading().Condition()
    ready: list[int] = []
    seen: list[int] = []

    def wait() -> None:
        with changed:
            while not ready:
                changed.wait()
        seen.append(1)

    def tell() -> None:
        scheduler.switch("later")
        with changed:
            ready.append(1)
            changed.notify_all()

    run(scheduler, wait, wait, tell)
    assert seen == [1, 1]


def test_a_pool_runs_no_more_tasks_at_once_than_it_may(scheduler: Scheduler) -> None:
    running: list[int] = []
    most: list[int] = []

    def task(number: int) -> int:
        running.append(number)
        scheduler.switch("task")
        most.append(len(running))
        running.remove(number)
        return number

    def body() -> None:
        with SimulatedWorkers(scheduler).open_pool(2, "pool") as pool:
            tasks: list[Future[int]] = [pool.submit(task, number) for number in range(10)]
            assert [each.result() for each in tasks] == list(range(10))

    run(scheduler, body)
    assert max(most) == 2


def test_a_crashed_process_does_nothing_any_more(scheduler: Scheduler) -> None:
    process, done = Process("victim"), []

    def steps() -> None:
        with SimulatedWorkers(scheduler).open_pool(2, "pool") as pool:
            tasks = [pool.submit(count, number) for number in range(2)]
            for task in tasks:
                task.result()

    def count(number: int) -> None:
        try:
            while True:
                scheduler.switch("step")
                done.append(number)
        finally:
            with pytest.raises(Crashed):
                scheduler.switch("on its way out")

    def killer() -> None:
        while len(done) < 10:
            scheduler.switch("wait")
        scheduler.crash(process)
        done.clear()

    scheduler.start(process, "victim", steps)
    run(scheduler, killer)
    assert done == []


def test_who_sleeps_wakes_when_nobody_else_can_go_on(scheduler: Scheduler) -> None:
    woken: list[float] = []

    def sleeper(seconds: float) -> Callable[[], None]:
        def body() -> None:
            scheduler.sleep(seconds)
            woken.append(seconds)

        return body

    run(scheduler, sleeper(7200), sleeper(60), sleeper(3600))
    assert woken == [60, 3600, 7200]
    assert scheduler.now_s >= 7200


def test_a_power_cut_takes_what_was_not_flushed_and_leaves_the_handle_suspect() -> None:
    kept = 0
    for seed in range(20):
        scheduler = Scheduler(seed, stay=0.0)
        disk = Disk("d0", scheduler, QUIET, is_far=False)
        device = SimulatedDevice(disk)

        def body(device: SimulatedDevice = device, disk: Disk = disk) -> None:
            device.put(NAME, [b"flushed"])
            device.flush()
            device.put(NAME[:-1] + "1", [b"not flushed"])
            disk.cut_power()
            with pytest.raises(Unavailable):
                device.flush()

        run(scheduler, body)
        assert disk.holds(NAME)
        kept += disk.holds(NAME[:-1] + "1")
    assert 0 < kept < 20


def test_a_late_put_fails_and_lands_when_it_is_told_to() -> None:
    scheduler = Scheduler(1, stay=0.0)
    disk = Disk("d0", scheduler, Chances(put_late=1, put_lost=0, answer_lost=0), is_far=True)
    device = SimulatedDevice(disk)

    def body() -> None:
        with pytest.raises(Unavailable, match="late"):
            device.put(NAME, [b"data"])
        with pytest.raises(NotFound):
            device.read(NAME)
        assert disk.land_one() == f"d0 put {NAME}"
        assert device.read(NAME) == b"data"

    run(scheduler, body)
