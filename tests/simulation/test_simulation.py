"""The store's real code in deterministic simulation: thousands of histories of pushes, gc, drain and repair, and none loses anything."""

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import pytest

from tensorkeep.catalog import memory_changes, memory_push
from tensorkeep.catalog.protocol import GcSummary
from tensorkeep.devices.memory import MemoryDevice
from tensorkeep.records.json_text import format_time
from tensorkeep.runtime import Runtime
from tensorkeep.store import gc, object_writer
from tensorkeep.store.context import StoreContext
from tensorkeep.testing.simulation import Report, simulate
from tensorkeep.testing.simulation_devices import Chances
from tests.simulation.many_seeds import Summary, run_seeds

SEEDS = 1_000
STEP = 250
SOAK_SEEDS = 20_000
CONTROL_SEEDS = 300


def test_a_seed_gives_the_same_history_twice() -> None:
    for seed in (1, 2, 3):
        one, other = simulate(seed), simulate(seed)
        assert one.trace == other.trace
        assert one == other
    assert simulate(1).trace != simulate(2).trace


def test_a_seed_gives_the_same_history_in_another_process() -> None:
    """Sets of texts have another order there, on which nothing may depend."""
    code = "from tensorkeep.testing.simulation import simulate; print(simulate(1).trace)"
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == repr(simulate(1).trace)


@pytest.mark.parametrize("first", range(0, SEEDS, STEP))
def test_no_history_of_pushes_gc_and_drains_loses_a_version(first: int) -> None:
    started_s = time.monotonic()
    total = run_seeds(range(first, first + STEP))
    print(total.tell(time.monotonic() - started_s))
    assert not total.failed, total.failed[0]
    assert total.acknowledged > 3 * STEP
    assert all(total.outcomes[what] > STEP // 20 for what in ("push", "rm", "gc", "drain", "repair", "crash"))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_none_of_many_histories_loses_a_version() -> None:
    started_s = time.monotonic()
    slices = [range(first, first + STEP) for first in range(SEEDS, SEEDS + SOAK_SEEDS, STEP)]
    total = Summary()
    with multiprocessing.get_context("spawn").Pool(min(4, len(os.sched_getaffinity(0)))) as pool:
        for each in pool.imap_unordered(run_seeds, slices):
            total = total.add(each)
    print(total.tell(time.monotonic() - started_s))
    assert not total.failed, total.failed[0]
    assert total.seeds == SOAK_SEEDS


# ---------------------------------------------------------------- without a protective step


def first_failure(chances: Chances | None = None) -> Report:
    """Return the first simulation that loses something."""
    for seed in range(CONTROL_SEEDS):
        report = simulate(seed, chances=chances)
        if report.problems:
            print(f"seed {seed}: {'; '.join(report.problems)}")
            return report
    raise AssertionError(f"{CONTROL_SEEDS} seeds lose nothing")


def test_a_commit_that_does_not_count_copies_again_loses_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_push, "_check_copies", lambda *_: None)
    assert first_failure().problems


def test_a_gc_that_judges_in_one_transaction_and_condemns_in_another_loses_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gc, "condemn_unused", condemn_without_fence)
    assert first_failure().problems


def condemn_without_fence(context: StoreContext, *, grace_s: float, **_: Any) -> GcSummary:
    """Condemn what looked unused a moment ago."""
    catalog: Any = context.catalog
    state = catalog.inner._state
    now = context.runtime.clock.now()
    doomed = [
        number
        for number, row in state.locations.items()
        if memory_changes._is_doomed(state, row, grace_s=grace_s, now=now)
    ]
    context.fleet.heads()  # a few calls, and everybody else goes on meanwhile
    with catalog.inner._write() as changed:
        for number in doomed:
            if number in changed.locations:
                changed.set_state(number, "condemned", condemned_at=format_time(now))
    return GcSummary(locations=len(doomed), bytes=0, condemned_before=0)


def test_names_that_are_used_again_lose_data_to_late_and_stale_deletions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_writer, "new_ulid", always_the_same_ulid)
    monkeypatch.setattr(MemoryDevice, "put", put_over)
    assert first_failure(Chances(delete_late=0.1, lands=0.02)).problems


def always_the_same_ulid(runtime: Runtime) -> str:
    """Name every copy of an object alike."""
    return "0" * 26


def put_over(device: MemoryDevice, name: str, data: Sequence[bytes]) -> None:
    """Put an object in the place of another, as where names are not unique it must be possible."""
    device._present().objects[name] = b"".join(bytes(each) for each in data)
