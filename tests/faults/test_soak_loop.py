"""Ten minutes of everything at once, processes killed all the while; at the end each acknowledged version is looked for, as in a Jepsen set.

Four processes push, read, remove, collect, scrub, repair, drain and rebalance one store, on SQLite and on PostgreSQL. Half of their jobs are
killed by ``kill -9`` at a random moment. A version is *acknowledged* once the process said so, *uncertain* from the start of its push and of its
removal. In the end all that was acknowledged and not removed is there, nothing is there that nobody pushed, and every byte is right.
"""

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.faults.store_driver import Driver
from tests.faults.store_world import World, assert_clean, assert_loads, assert_no_orphans, small_weights

SECONDS = 300.0
"""Of each catalog."""

KILLED = -signal.SIGKILL
LONGEST_S = 0.8
"""Until a job is killed; most take less where nobody disturbs them."""

UPKEEP = ("gc", "gc", "scrub", "repair", "drain", "undrain", "rebalance")


@dataclass
class Ledger:
    """What each model must have, may have, and what is being read just now. Thread safe."""

    certain: dict[str, set[int]] = field(default_factory=dict)
    uncertain: dict[str, set[int]] = field(default_factory=dict)
    jobs: int = 0
    kills: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    _busy: set[tuple[str, int]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, model: str, turns: list[int]) -> None:
        """Note that these may be there from now on."""
        with self._lock:
            self.certain.setdefault(model, set())
            self.uncertain.setdefault(model, set()).update(turns)

    def acknowledge(self, model: str, turn: int) -> None:
        """Note that this is there from now on."""
        with self._lock:
            self.uncertain[model].discard(turn)
            self.certain[model].add(turn)

    @contextmanager
    def one(self, choice: random.Random, *, remove: bool) -> Iterator[tuple[str, int] | None]:
        """Take one that is certain, for this thread alone; one to be removed is uncertain from then on."""
        with self._lock:
            heads = {(model, max(turns)) for model, turns in self.certain.items() if turns}
            found = [(model, turn) for model, turns in self.certain.items() for turn in turns]
            found = sorted(each for each in found if each not in self._busy and not (remove and each in heads))
            taken = choice.choice(found) if found else None
            if taken and remove:
                self.certain[taken[0]].remove(taken[1])
                self.uncertain[taken[0]].add(taken[1])
            if taken:
                self._busy.add(taken)
        yield taken
        with self._lock:
            self._busy.discard(taken or ("", 0))

    def fail(self, why: str) -> None:
        """Count a job that ended with a typed error."""
        with self._lock:
            self.failures[why] = self.failures.get(why, 0) + 1

    def count(self, *, killed: bool) -> None:
        """Count a job."""
        with self._lock:
            self.jobs += 1
            self.kills += killed


class Worker:
    """A process that does one job after the other, and the thread that gives them and kills it."""

    def __init__(self, world: World, ledger: Ledger, seed: int, end_s: float, *, early: bool) -> None:
        self._job = {"folder": str(world.folder), "database": world.database, "early": early}
        self._ledger, self._choice, self._end_s, self._seed = ledger, random.Random(seed), end_s, seed
        self._driver = Driver()
        self.surprises: list[str] = []
        self.thread = threading.Thread(target=self._run, name=f"soak-{seed}")

    def _run(self) -> None:
        try:
            with self._driver:
                for turn in range(1_000_000):
                    if time.monotonic() > self._end_s or self.surprises:
                        return
                    self._one_job(turn)
        except BaseException as error:  # noqa: BLE001 - shown by the test's thread
            self.surprises.append(repr(error))

    def _one_job(self, turn: int) -> None:
        kind = ("push", "push", "read", "remove", "upkeep")[turn % 5]
        match kind:
            case "push":
                model, turns = f"soak/m{self._seed}", [10 * turn + number for number in range(3)]
                self._ledger.begin(model, turns)
                self._do(verb="push_to", model=model, turns=turns)
            case "read" | "remove":
                with self._ledger.one(self._choice, remove=kind == "remove") as taken:
                    if taken:
                        to = f"{self._job['folder']}/pulled-{self._seed}"
                        self._do(verb=kind, model=taken[0], turn=taken[1], to=to)
            case _:
                verb = self._choice.choice(UPKEEP)
                self._do(verb=verb, device=self._choice.choice(("d0", "d1")), may_fail=True)

    def _do(self, **job: Any) -> None:
        """Do a job, and kill it at a random moment half of the time."""
        self._driver.start(**self._job, **job)
        child = os.pidfd_open(self._driver.pid)
        killer = threading.Timer(self._choice.uniform(0, LONGEST_S), signal.pidfd_send_signal, (child, signal.SIGKILL))
        killer.daemon = True
        if self._choice.random() < 0.5:
            killer.start()
        while "exit" not in (said := self._driver.read()):
            if "acknowledged" in said:
                self._ledger.acknowledge(job["model"], said["acknowledged"])
            else:
                self._ledger.fail(f"{job['verb']}: {said['why']}")
        killer.cancel()
        if killer.ident:
            killer.join()
        os.close(child)
        self._ledger.count(killed=said["exit"] == KILLED)
        if said["exit"] not in (0, KILLED):
            self.surprises.append(f"{job} ended with {said['exit']}: see its traceback above")


def live_through(world: World, seconds: float, *, early: bool = False) -> Ledger:
    """Let everything happen for that long; return what is to be there."""
    ledger = Ledger()
    workers = [Worker(world, ledger, seed, time.monotonic() + seconds, early=early) for seed in range(4)]
    for worker in workers:
        worker.thread.start()
    for worker in workers:
        worker.thread.join()
    assert [surprise for worker in workers for surprise in worker.surprises] == []
    return ledger


def check(world: World, ledger: Ledger) -> int:
    """Assert that all is there, and right, and nothing else; return how many versions there are."""
    store = world.open()
    catalog = store._context.catalog
    for facts in catalog.list_devices():
        if facts.state == "draining":
            store.devices.undrain(facts.name)
    assert store.repair().ok
    models = {facts.name: facts.id for facts in catalog.list_models()}
    found = 0
    for model, certain in ledger.certain.items():
        there = {int(ref.name[1:]) for ref in catalog.list_refs(models[model]) if ref.kind == "tag"}
        assert certain <= there, "acknowledged and lost"
        assert there <= certain | ledger.uncertain[model], "never pushed"
        for turn in there:
            assert_loads(store, f"{model}@v{turn}", small_weights(turn))
        found += len(there)
    assert_clean(store)
    assert_no_orphans(world, store)
    assert_clean(store)
    return found


@pytest.fixture(params=["sqlite", "postgresql"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """Return a store on four devices."""
    url = next(request.getfixturevalue("store_urls")) if request.param == "postgresql" else None
    world = World(tmp_path / "world", devices=4, database=url)
    world.create()
    yield world
    world.end()


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_no_acknowledged_version_is_lost_in_ten_minutes_of_everything(world: World) -> None:
    ledger = live_through(world, SECONDS)
    found = check(world, ledger)
    assert ledger.kills > ledger.jobs / 8
    print(
        f"{ledger.jobs} jobs, {ledger.kills} killed; {sum(map(len, ledger.certain.values()))} versions acknowledged and not removed, "
        f"0 lost, 0 wrong; {found} found; {sum(ledger.failures.values())} typed errors:"
    )
    print(*(f"{count} x {why}" for why, count in ledger.failures.items()), sep="\n")


@pytest.mark.soak
@pytest.mark.parametrize("world", ["sqlite"], indirect=True)
def test_the_negative_control_what_is_acknowledged_before_it_is_pushed_is_found_lost(world: World) -> None:
    with pytest.raises(AssertionError, match=r"acknowledged and lost|ended with 1: see its traceback"):
        check(world, live_through(world, 20.0, early=True))
