"""Deterministic simulation of the store's real code: many processes, one seed, and what must hold after every commit.

`simulate` runs pushes that share parts, collections with a grace of 0, a drain, a repair or rebalance, and a scrub as processes of
one store, while deeds land late, answers are lost, the power of devices goes, clocks jump, and processes crash or sleep for a day. In
what order all that happens follows from the seed alone, so that a failure can be looked at again. Parts are too small to be kept as
fragments.

What must hold: a version that is in the catalog has, on devices, durably and under rows that count, all the copies that it owes;
and one that was acknowledged and not removed loads as it was pushed, after everything that was on its way has landed.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from tensorkeep.catalog.counting import count_copies
from tensorkeep.catalog.memory import MemoryCatalog
from tensorkeep.catalog.protocol import Catalog, CatalogImage, Location, ObjectKey
from tensorkeep.catalog.rules import USABLE
from tensorkeep.devices.protocol import Device
from tensorkeep.errors import TensorkeepError
from tensorkeep.records.device import DeviceFacts, is_gone
from tensorkeep.records.ulid import RANDOM_BYTES, make_ulid
from tensorkeep.runtime import InlineWorkers, ManualClock, Runtime, SeededRandomness
from tensorkeep.store.context import StoreContext
from tensorkeep.store.fleet import Fleet, write_identity
from tensorkeep.store.place import LockCheck, StoreNote
from tensorkeep.store.store import Store
from tensorkeep.testing.simulation_devices import Chances, Disk, SimulatedDevice
from tensorkeep.testing.simulation_threads import Process, Scheduler, SimulatedWorkers, Turn, cooperative_locks

Arrays = dict[str, npt.NDArray[np.float32]]

START = datetime(2026, 1, 1, tzinfo=UTC)
PUSHERS = 8
DEVICES = 3
MODELS = 6
DAY_S = 86400.0
_ARRAYS = 3
_VARIANTS = 2
_PARTS = f"parts={_ARRAYS}"


@dataclass(frozen=True, slots=True)
class Report:
    """What a simulation did: ``problems`` are what must never be; ``outcomes`` how verbs ended, by name."""

    seed: int
    problems: tuple[str, ...]
    outcomes: Counter[str]
    acknowledged: int
    commits: int
    simulated_s: float
    trace: tuple[Turn, ...]

    @property
    def switches(self) -> int:
        """How many switch points were reached."""
        return len(self.trace)

    def explain(self) -> str:
        """Return the seed, what is wrong, and every switch point in order."""
        turns = "\n".join(f"  {thread}: {point}" for thread, point in self.trace)
        problems = "\n".join(self.problems)
        return f"seed {self.seed}:\n{problems}\n{turns}\nseed {self.seed}:\n{problems}"


@dataclass(slots=True)
class _World:
    """One simulated store, and what is known of it beside it."""

    seed: int
    scheduler: Scheduler
    catalog: MemoryCatalog
    disks: dict[str, Disk] = field(default_factory=dict)
    pushed: dict[str, tuple[str, Arrays]] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    commits: int = 0

    def open(self, process: Process, number: int) -> Store:
        """Return the store as a process sees it that starts now."""
        runtime = Runtime(
            clock=_Clock(self.scheduler, process),
            randomness=SeededRandomness(self.seed * 1_000_003 + number),
            workers=SimulatedWorkers(self.scheduler),
            failpoints=_Failpoints(self.scheduler),
        )
        return self._store(runtime, cast("Catalog", _SwitchingCatalog(self)))

    def open_alone(self) -> Store:
        """Return the store for whoever looks at it when nobody else runs."""
        runtime = Runtime(clock=ManualClock(START), randomness=SeededRandomness(0), workers=InlineWorkers())
        return self._store(runtime, self.catalog)

    def _store(self, runtime: Runtime, catalog: Catalog) -> Store:
        def open_device(facts: DeviceFacts, runtime: Runtime) -> Device:  # noqa: ARG001 - an opener's
            return SimulatedDevice(self.disks[facts.id])

        fleet = Fleet(catalog, runtime=runtime, opener=open_device)
        return Store(StoreContext(catalog, fleet, runtime, _Place(), None, user="simulated"))

    # ------------------------------------------------------------------ what must hold

    def check_copies(self) -> None:
        """Note each version in the catalog that has not, durably on devices, the copies that it owes."""
        state = self.catalog._state
        rows: dict[ObjectKey, list[Location]] = {}
        for row in state.locations.values():
            location = row.location
            if location.state in USABLE and not is_gone(state.devices[location.device]):
                rows.setdefault(location.key, []).append(location)
        for version, made in state.versions.items():
            for key in made.keys:
                held = [each for each in rows.get(key, ()) if self.disks[each.device].holds(each.name)]
                if count_copies(held) < state.copies_owed(key):
                    self.problems.append(
                        f"version {version[:12]} has {count_copies(held)} of the {state.copies_owed(key)} durable copies "
                        f"that {key.kind} {key.digest.hex()[:12]} owes"
                    )

    def check_loads(self) -> None:
        """Note each version that was acknowledged, not removed, and does not load as it was pushed."""
        store = self.open_alone()
        for version, (model, arrays) in self.pushed.items():
            if version in self.removed:
                continue
            try:
                loaded = store.model(f"{model}@{version}").load()
            except TensorkeepError as error:
                self.problems.append(f"version {version[:12]} of {model} does not load: {error.message}")
                continue
            if any(loaded[name].tobytes() != array.tobytes() for name, array in arrays.items()):
                self.problems.append(f"version {version[:12]} of {model} loads other bytes than were pushed")


class _SwitchingCatalog:
    """A process's handle on the catalog: each call is one transaction, after a switch point."""

    def __init__(self, world: _World) -> None:
        self._world = world
        self.inner = world.catalog

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.inner, name)
        scheduler = self._world.scheduler

        point = f"catalog {name}"

        def transact(*args: Any, **kwargs: Any) -> Any:
            scheduler.switch(point)
            return call(*args, **kwargs)

        self.__dict__[name] = transact
        return transact

    def commit(self, request: Any) -> Any:
        """Commit, and look whether all that the catalog refers to is there."""
        world = self._world
        world.scheduler.switch("catalog commit")
        before = len(world.catalog._state.versions)
        answer = world.catalog.commit(request)
        if len(world.catalog._state.versions) > before:
            world.commits += 1
            world.check_copies()
        return answer

    def remove_version(self, *args: Any, **kwargs: Any) -> Any:
        """Remove, and note what went."""
        return self._removing(self.inner.remove_version, *args, **kwargs)

    def remove_model(self, *args: Any, **kwargs: Any) -> Any:
        """Remove, and note what went."""
        return self._removing(self.inner.remove_model, *args, **kwargs)

    def _removing(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        world = self._world
        world.scheduler.switch("catalog remove")
        before = set(world.catalog._state.versions)
        answer = call(*args, **kwargs)
        world.removed |= before - set(world.catalog._state.versions)
        return answer


class _Clock:
    """A process's clock: it may be wrong, and jump, but its monotonic time is everybody's."""

    def __init__(self, scheduler: Scheduler, process: Process) -> None:
        self._scheduler = scheduler
        self._process = process

    def now(self) -> datetime:
        self._scheduler.switch("clock now")
        return START + timedelta(seconds=self._scheduler.now_s + self._process.skew_s)

    def monotonic_s(self) -> float:
        self._scheduler.switch("clock monotonic")
        return self._scheduler.now_s

    def sleep(self, seconds: float) -> None:
        self._scheduler.switch("clock sleep")
        self._scheduler.sleep(seconds)


class _Failpoints:
    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def hit(self, name: str) -> None:
        self._scheduler.switch(name)


class _Place:
    """A place without folders. Nobody rebuilds in a simulation, so its lock stops nobody."""

    shown = "simulated"
    catalog_url = "simulated"
    made_by_opening = False
    first_device: Path | None = None

    def lock(self, *, shared: bool) -> AbstractContextManager[LockCheck]:  # noqa: ARG002 - the protocol's
        return _lock()

    def has_catalog(self, runtime: Runtime) -> bool:  # noqa: ARG002 - the protocol's
        return True

    def may_write(self, runtime: Runtime) -> bool:  # noqa: ARG002 - the protocol's
        return True

    def create(self, store: str, policy: str, runtime: Runtime) -> None: ...

    def prepare_rebuild(self) -> None: ...

    def install(self, image: CatalogImage, runtime: Runtime) -> str | None:  # noqa: ARG002 - the protocol's
        return None

    def find_note(self) -> StoreNote | None:
        return None

    def write_note(self, catalog: Catalog) -> None: ...


@contextmanager
def _lock() -> Iterator[LockCheck]:
    yield lambda: None


# --------------------------------------------------------------------------- processes


def _push_some(world: _World, process: Process, number: int, chance: random.Random) -> None:
    """Push arrays that others push too, to a model that another process may push to; sometimes remove it, and push again."""
    model = f"acme/m{number % MODELS}"
    for turn in range(1 + (chance.random() < 0.15)):
        arrays = {f"layers.{layer}.weight": _array(layer, int(chance.random() * _VARIANTS)) for layer in range(_ARRAYS)}
        store = world.open(process, number * 100 + turn)

        _try(world, "push", partial(_push, world, store, model, arrays))
        if chance.random() < 0.5:
            _try(world, "rm", partial(store.rm_model, model))


def _push(world: _World, store: Store, model: str, arrays: Arrays) -> None:
    version = store.push(arrays, model, split=_PARTS)
    world.pushed[version.id] = model, arrays


def _collect_some(world: _World, process: Process, number: int, chance: random.Random) -> None:
    for turn in range(3):
        store = world.open(process, number * 100 + turn)
        grace_s = 0.0 if chance.random() < 0.8 else 60.0
        _try(world, "gc", partial(store.gc, grace_s=grace_s, max_fraction=None))


def _drain_one(world: _World, process: Process, number: int, chance: random.Random) -> None:
    name = f"d{int(chance.random() * DEVICES)}"
    for turn in range(2):
        store = world.open(process, number * 100 + turn)
        _try(world, "drain", partial(store.devices.drain, name, grace_s=0))


def _repair_some(world: _World, process: Process, number: int, chance: random.Random) -> None:
    for turn in range(2):
        store = world.open(process, number * 100 + turn)
        if chance.random() < 0.5:
            _try(world, "repair", store.repair)
        else:
            _try(world, "rebalance", store.rebalance)


def _scrub_once(world: _World, process: Process, number: int, chance: random.Random) -> None:
    store = world.open(process, number * 100)
    _try(world, "scrub", partial(store.scrub, deep=chance.random() < 0.5))


def _try(world: _World, verb: str, call: Callable[[], object]) -> None:
    try:
        call()
    except TensorkeepError as error:
        world.outcomes[f"{verb}: {error.code}"] += 1
    else:
        world.outcomes[verb] += 1


def _array(layer: int, variant: int) -> npt.NDArray[np.float32]:
    return np.arange(96, dtype=np.float32) + np.float32(1000 * layer + 100_000 * variant)


# ----------------------------------------------------------------------------- weather


def _make_weather(world: _World, processes: Sequence[Process]) -> None:
    """Do to the others what the world does to processes and disks, until they have ended."""
    scheduler = world.scheduler
    chance = scheduler.random
    while scheduler.others_alive:
        disk = chance.choice(list(world.disks.values()))
        process = chance.choice(processes)
        if chance.random() < disk.chances.lands and (what := disk.land_one()):
            scheduler.switch(f"lands: {what}")
        match chance.random():
            case drawn if drawn < 0.03:
                disk.cut_power()
                scheduler.switch(f"{disk.name} loses power")
            case drawn if drawn < 0.05:
                scheduler.crash(process)
                scheduler.switch(f"{process.name} crashes")
            case drawn if drawn < 0.09:
                process.paused_until_s = scheduler.now_s + chance.choice([60.0, 3600.0, 1.1 * DAY_S])
                scheduler.switch(f"{process.name} sleeps")
            case drawn if drawn < 0.15:
                process.skew_s += chance.uniform(-2 * DAY_S, 2 * DAY_S)
                scheduler.switch(f"the clock of {process.name} jumps")
            case drawn if drawn < 0.17:
                disk.is_away = True
                scheduler.switch(f"{disk.name} goes away")
            case _:
                for each in world.disks.values():
                    each.is_away = False
        if scheduler.others_ready:
            scheduler.sleep(chance.random())
        else:
            scheduler.sleep_until_next()


# ---------------------------------------------------------------------------- simulate


def simulate(seed: int, *, chances: Chances | None = None) -> Report:
    """Return what happened in the simulation of a seed; the same every time, but for the code under test."""
    chance = random.Random(seed)
    scheduler = Scheduler(seed, stay=chance.choice([0.0, 0.5, 0.8, 0.95]))
    world = _make_world(seed, scheduler, chances or Chances())
    processes: list[Process] = []

    def add(name: str, body: Callable[[_World, Process, int, random.Random], None]) -> None:
        process, number = Process(name), len(processes)
        own = random.Random(chance.random())
        processes.append(process)
        scheduler.start(process, name, lambda: body(world, process, number, own))

    for number in range(PUSHERS):
        add(f"push{number}", _push_some)
    for number in range(1 + (chance.random() < 0.5)):
        add(f"gc{number}", _collect_some)
    if chance.random() < 0.4:
        add("drain", _drain_one)
    if chance.random() < 0.3:
        add("repair", _repair_some)
    if chance.random() < 0.15:  # it asks for each of many folders
        add("scrub", _scrub_once)
    scheduler.start(Process("weather"), "weather", lambda: _make_weather(world, processes))
    with cooperative_locks(scheduler):
        scheduler.run()
    world.outcomes["crash"] = sum(process.crashed for process in processes)
    for disk in world.disks.values():
        disk.is_away = False
        disk.cut_power()
        while disk.land_one():
            pass
    world.check_copies()
    world.check_loads()
    return Report(
        seed=seed,
        problems=tuple(dict.fromkeys(world.problems)),
        outcomes=world.outcomes,
        acknowledged=len(world.pushed),
        commits=world.commits,
        simulated_s=scheduler.now_s,
        trace=tuple(scheduler.trace),
    )


def _make_world(seed: int, scheduler: Scheduler, chances: Chances) -> _World:
    runtime = Runtime(clock=ManualClock(START), randomness=SeededRandomness(seed), workers=InlineWorkers())
    store = make_ulid(START, runtime.randomness.random_bytes(RANDOM_BYTES))
    catalog = MemoryCatalog(store=store, policy="replicas=2", runtime=runtime)
    world = _World(seed, scheduler, catalog)
    for number in range(DEVICES):
        name = f"d{number}"
        facts = DeviceFacts(
            id=make_ulid(START, runtime.randomness.random_bytes(RANDOM_BYTES)),
            name=name,
            url=f"memory://{name}",
            zone=name,
            durability="durable",
            bandwidth=1 << 30,
        )
        disk = world.disks[facts.id] = Disk(name, scheduler, chances, is_far=number % 2 == 1)
        write_identity(SimulatedDevice(disk), facts.id, store=store, epoch=1, runtime=runtime)
        catalog.change_device(None, facts, heads=(), now=START)
    return world
