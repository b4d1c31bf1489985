"""What a process is given from outside: clocks, randomness, workers, failpoints."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from tensorkeep.runtime import (
    FAILPOINTS,
    Clock,
    InlineWorkers,
    ManualClock,
    NoFailpoints,
    Randomness,
    Runtime,
    SeededRandomness,
    SystemClock,
    SystemRandomness,
    ThreadWorkers,
    Workers,
    system_runtime,
)


def test_a_manual_clock_stands_still_until_told() -> None:
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    assert clock.now() == clock.now() == datetime(2026, 1, 1, tzinfo=UTC)
    assert clock.monotonic_s() == 0.0


def test_sleeping_on_a_manual_clock_moves_both_times_at_once() -> None:
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    clock.sleep(90.5)
    clock.advance(1.5)
    clock.sleep(-5)
    assert clock.now() == datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=92)
    assert clock.monotonic_s() == 92.0


@pytest.mark.parametrize("clock", [SystemClock(), ManualClock()], ids=["system", "manual"])
def test_every_clock_tells_aware_utc_time(clock: Clock) -> None:
    assert clock.now().utcoffset() == timedelta(0)
    first = clock.monotonic_s()
    clock.sleep(0)
    assert clock.monotonic_s() >= first


@pytest.mark.parametrize("source", [SystemRandomness(), SeededRandomness(1)], ids=["system", "seeded"])
def test_randomness_gives_what_was_asked_for(source: Randomness) -> None:
    assert [len(source.random_bytes(count)) for count in (0, 1, 10, 1000)] == [0, 1, 10, 1000]
    draws = [source.uniform() for _ in range(1000)]
    assert all(0.0 <= draw < 1.0 for draw in draws)
    assert len(set(draws)) == 1000
    assert 0.4 < sum(draws) / 1000 < 0.6


def test_one_seed_gives_one_sequence() -> None:
    def sequence(seed: int) -> tuple[bytes, float, bytes]:
        source = SeededRandomness(seed)
        return source.random_bytes(10), source.uniform(), source.random_bytes(3)

    assert sequence(7) == sequence(7)
    assert sequence(7) != sequence(8)


def test_seeded_randomness_never_repeats_between_threads() -> None:
    source = SeededRandomness(3)
    with ThreadWorkers().open_pool(4, "draw") as pool:
        draws = [future.result() for future in [pool.submit(source.random_bytes, 10) for _ in range(1000)]]
    assert len(set(draws)) == 1000


def _raise(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("workers", [ThreadWorkers(), InlineWorkers()], ids=["threads", "inline"])
def test_a_future_carries_the_result_or_the_error_of_its_task(workers: Workers) -> None:
    with workers.open_pool(2, "test") as pool:
        good = pool.submit(lambda a, *, b: a + b, 1, b=2)
        bad = pool.submit(_raise, OSError("disk"))
        assert good.result() == 3
        with pytest.raises(OSError, match="disk"):
            bad.result()
    assert workers.cpu_count() >= 1


def test_leaving_a_pool_waits_for_its_tasks() -> None:
    done: list[int] = []
    gate = threading.Event()

    def task(number: int) -> None:
        gate.wait()
        done.append(number)

    with ThreadWorkers().open_pool(2, "test") as pool:
        for number in range(10):
            pool.submit(task, number)
        gate.set()
    assert sorted(done) == list(range(10))


def test_threads_are_named_for_debuggers() -> None:
    with ThreadWorkers().open_pool(1, "reader") as pool:
        name: str = pool.submit(lambda: threading.current_thread().name).result()
    assert name.startswith("tensorkeep-reader")


def test_inline_workers_run_in_the_callers_thread_in_order() -> None:
    seen: list[tuple[int, int]] = []
    with InlineWorkers().open_pool(8, "test") as pool:
        for number in range(5):
            pool.submit(lambda number=number: seen.append((number, threading.get_ident())))
            assert seen[-1] == (number, threading.get_ident())
    assert InlineWorkers().cpu_count() == 1


def test_failpoints_are_named_by_verb_and_step_and_do_nothing_in_production() -> None:
    failpoints = NoFailpoints()
    for name in FAILPOINTS:
        assert name.count(".") == 1
        failpoints.hit(name)


def test_the_system_runtime_is_made_of_system_parts() -> None:
    runtime = system_runtime()
    parts: list[tuple[object, Callable[..., object]]] = [
        (runtime.clock, SystemClock),
        (runtime.randomness, SystemRandomness),
        (runtime.workers, ThreadWorkers),
        (runtime.failpoints, NoFailpoints),
    ]
    assert all(type(part) is kind for part, kind in parts)


def test_a_runtime_takes_each_part_by_name() -> None:
    clock = ManualClock()
    assert Runtime(clock=clock).clock is clock
