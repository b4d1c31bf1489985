"""Threads of which exactly one runs, and a seed that says which: real code, its races, and the same order each time.

Simulated threads are real ones that hand on a baton. Whoever has it runs until it reaches a switch point (`Scheduler.switch`) or waits
for another; then the seed says who goes on. What the store's own code waits on is known to the scheduler: pools and their futures
come from `SimulatedWorkers`, and locks and conditions that are made while `cooperative_locks` holds are of this module. Nothing
waits for real time, and where everybody waits for somebody else, that is seen at once.

Each call of a device, of the catalog or of the clock, and each failpoint, begins with a switch point. None is needed at its end:
until the next call a process touches only what is its own, so that whoever goes on after one call may as well before the next.

A process can crash: each of its threads ends at the switch point where it is, and what it still does on its way out reaches nothing,
since the switch point that each call begins with raises `Crashed` again.
"""

import heapq
import random
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import ModuleType, TracebackType
from typing import Any, NamedTuple, Self

from tensorkeep.runtime import LeavablePool, ThreadWorkers, WorkerPool

_STEP_S = 0.02
"""The most seconds that pass between two switch points."""

_CARRIERS = 10_000


class Crashed(BaseException):
    """Ends a thread of a process that is no more; no code that handles errors handles it."""


class Stuck(Exception):
    """Everybody waits for somebody else: a deadlock in the code under test."""


class Process:
    """What crashes, sleeps and has a clock as one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.crashed = False
        self.paused_until_s = 0.0
        self.skew_s = 0.0
        """How far its wall clock is ahead."""


Turn = tuple[str, str]
"""One entry of a trace: which thread reached which switch point."""


class _Carrier:
    """A real thread that runs one simulated thread after another; starting one for each would be half of a simulation's time."""

    def __init__(self) -> None:
        self.gate = threading.Lock()
        self.gate.acquire()
        self.body: Callable[[], None] = _nothing
        _pool.submit(self._run)

    def _run(self) -> None:
        while True:
            self.gate.acquire()
            self.body()


def _nothing() -> None:
    pass


_pool = ThreadWorkers().open_leavable_pool(_CARRIERS, "simulation")
_idle: list[_Carrier] = []


class _Thread:
    """A simulated thread."""

    __slots__ = ("carrier", "is_ready", "name", "process")

    def __init__(self, process: Process, name: str, carrier: _Carrier) -> None:
        self.process = process
        self.name = name
        self.carrier = carrier
        self.is_ready = True


class Scheduler:
    """Runs simulated threads, one at a time, in an order that follows from a seed.

    Args:
        seed: of everything that is drawn.
        stay: how likely it is that a thread goes on at a switch point, whoever else could.
    """

    def __init__(self, seed: int, *, stay: float) -> None:
        self.random = random.Random(seed)
        self.now_s = 0.0
        self.trace: list[Turn] = []
        self._stay = stay
        self._draw = self.random.random
        self._current: _Thread | None = None
        self._ready: list[_Thread] = []
        self._alive: list[_Thread] = []
        self._sleeping: list[tuple[float, int, _Thread]] = []
        self._slept = 0
        self._ended = threading.Lock()
        self._ended.acquire()
        self._failure: BaseException | None = None

    # ---------------------------------------------------------------------- from outside

    def start(self, process: Process, name: str, body: Callable[[], None]) -> None:
        """Add a thread; it runs when it is chosen. ``body`` handles its own errors: one that escapes ends the simulation."""
        carrier = _idle.pop() if _idle else _Carrier()
        thread = _Thread(process, name, carrier)
        carrier.body = lambda: self._run(thread, body)
        self._ready.append(thread)
        self._alive.append(thread)

    def run(self) -> None:
        """Return when every thread has ended.

        Raises:
            Stuck: they wait for each other.
        """
        if self._alive:
            self._give_baton(self._choose())
            self._ended.acquire()
        if self._failure is not None:
            raise self._failure

    @property
    def is_running(self) -> bool:
        """Whether the caller is one of the threads."""
        return self._current is not None

    # ---------------------------------------------------------------------- from threads

    @property
    def process(self) -> Process:
        """The process of the thread that runs."""
        return self._get_current().process

    def switch(self, point: str) -> None:
        """Let the seed say who goes on; return when it is the caller again.

        Raises:
            Crashed: its process is no more.
        """
        thread = self._current
        if thread is None:
            return
        if thread.process.crashed:
            raise Crashed
        self.trace.append((thread.name, point))
        drawn = self._draw()
        self.now_s += drawn * _STEP_S
        if self._sleeping and self._sleeping[0][0] <= self.now_s:
            self._wake_due()
        if drawn >= self._stay and len(self._ready) > 1:
            self._hand_over(thread, self._choose())
        if thread.process.paused_until_s > self.now_s:
            self._sleep_until(thread.process.paused_until_s)
        if thread.process.crashed:
            raise Crashed

    def sleep(self, seconds: float) -> None:
        """Let the others go on until that much time has passed."""
        self._sleep_until(self.now_s + seconds)

    def sleep_until_next(self) -> None:
        """Let time pass until the first of those that sleep wakes up; nothing where nobody does."""
        if self._sleeping:
            self._sleep_until(max(self._sleeping[0][0], self.now_s))

    @property
    def others_ready(self) -> bool:
        """Whether anybody but the caller could go on now."""
        return len(self._ready) > 1

    @property
    def others_alive(self) -> bool:
        """Whether anybody but the caller has not ended."""
        return len(self._alive) > 1

    def park(self, *queues: list[_Thread]) -> None:
        """Wait in queues until somebody wakes one of them; whoever waited looks again whether it is time."""
        thread = self._get_current()
        if thread.process.crashed:
            raise Crashed
        for queue in queues:
            queue.append(thread)
        self._stop(thread)
        for queue in queues:
            if thread in queue:
                queue.remove(thread)
        if thread.process.crashed:
            raise Crashed

    def wake(self, queue: list[_Thread]) -> None:
        """Let all go on that wait in a queue."""
        for thread in queue:
            self._make_ready(thread)
        queue.clear()

    def crash(self, process: Process) -> None:
        """End a process: none of its threads does anything any more."""
        process.crashed = True
        for thread in self._alive:
            if thread.process is process:
                self._make_ready(thread)

    # ---------------------------------------------------------------------- the baton

    def _run(self, thread: _Thread, body: Callable[[], None]) -> None:
        try:
            if not thread.process.crashed:
                body()
        except Crashed:
            pass
        except BaseException as error:  # noqa: BLE001 - whatever it is, `run` raises it
            self._fail(error)
        self._ready.remove(thread)
        self._alive.remove(thread)
        thread.carrier.body = _nothing
        _idle.append(thread.carrier)
        if self._alive:
            self._give_baton(self._choose())
        else:
            self._current = None
            self._ended.release()

    def _get_current(self) -> _Thread:
        assert self._current is not None, "only simulated threads wait here"
        return self._current

    def _choose(self) -> _Thread:
        while not self._ready and self._sleeping:
            self.now_s = max(self.now_s, self._sleeping[0][0])
            self._wake_due()
        if not self._ready:
            self._fail(Stuck(f"all of these wait: {', '.join(thread.name for thread in self._alive)}"))
        return self._ready[int(self._draw() * len(self._ready))]

    def _fail(self, error: BaseException) -> None:
        """Keep an error, the first one, for `run`, and end everybody."""
        self._failure = self._failure or error
        for thread in self._alive:
            thread.process.crashed = True
            self._make_ready(thread)

    def _give_baton(self, thread: _Thread) -> None:
        self._current = thread
        thread.carrier.gate.release()

    def _hand_over(self, thread: _Thread, chosen: _Thread) -> None:
        if chosen is not thread:
            self._give_baton(chosen)
            thread.carrier.gate.acquire()

    def _stop(self, thread: _Thread) -> None:
        thread.is_ready = False
        self._ready.remove(thread)
        self._hand_over(thread, self._choose())

    def _make_ready(self, thread: _Thread) -> None:
        if not thread.is_ready:
            thread.is_ready = True
            self._ready.append(thread)

    def _sleep_until(self, moment_s: float) -> None:
        thread = self._get_current()
        while self.now_s < moment_s and not thread.process.crashed:
            self._slept += 1
            heapq.heappush(self._sleeping, (moment_s, self._slept, thread))
            self._stop(thread)
        if thread.process.crashed:
            raise Crashed

    def _wake_due(self) -> None:
        while self._sleeping and self._sleeping[0][0] <= self.now_s:
            self._make_ready(heapq.heappop(self._sleeping)[2])


# ------------------------------------------------------------------------------- pools


class _SimulatedFuture(Future[Any]):
    """A future whose waiting the scheduler knows of."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__()
        self._scheduler = scheduler
        self.waiters: list[_Thread] = []
        self.add_done_callback(lambda _: scheduler.wake(self.waiters))

    def result(self, timeout: float | None = None) -> Any:
        self._wait()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._wait()
        return super().exception(timeout)

    def _wait(self) -> None:
        while not self.done():
            self._scheduler.park(self.waiters)


class _Item(NamedTuple):
    future: _SimulatedFuture
    task: Callable[[], Any]


class _SimulatedPool:
    """A pool whose workers are simulated threads of the process that opened it."""

    def __init__(self, scheduler: Scheduler, max_workers: int, name: str) -> None:
        self._scheduler = scheduler
        self._most = max_workers
        self._name = name
        self._process = scheduler.process
        self._queue: deque[_Item] = deque()
        self._running = 0
        self._started = 0
        self._left: list[_Thread] = []
        self._abandoned = False

    def submit(self, task: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = _SimulatedFuture(self._scheduler)
        self._queue.append(_Item(future, lambda: task(*args, **kwargs)))
        if self._running < self._most:
            self._running += 1
            self._started += 1
            name = f"{self._process.name}/{self._name}-{self._started}"
            self._scheduler.start(self._process, name, self._work)
        return future

    def abandon(self) -> None:
        self._abandoned = True

    def grow(self, max_workers: int) -> None:
        self._most = max(self._most, max_workers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> bool | None:
        if kind is not None or self._abandoned:
            while self._queue:
                self._queue.popleft().future.cancel()
        while self._running and not self._abandoned and not self._process.crashed:
            self._scheduler.park(self._left)
        return None

    def _work(self) -> None:
        try:
            while self._queue:
                future, task = self._queue.popleft()
                if not future.set_running_or_notify_cancel():
                    continue
                try:
                    answer = task()
                except Crashed:
                    raise
                except BaseException as error:  # noqa: BLE001 - a future carries whatever the task raised
                    future.set_exception(error)
                    del error
                else:
                    future.set_result(answer)
                    del answer
        finally:
            self._running -= 1
            self._scheduler.wake(self._left)


class SimulatedWorkers:
    """Opens pools of simulated threads."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def open_pool(self, max_workers: int, name: str) -> WorkerPool:
        """Return a pool of simulated threads."""
        return _SimulatedPool(self._scheduler, max_workers, name)

    def open_leavable_pool(self, max_workers: int, name: str) -> LeavablePool:
        """Return the same."""
        return _SimulatedPool(self._scheduler, max_workers, name)

    def cpu_count(self) -> int:
        """Return 2."""
        return 2


# ------------------------------------------------------------------------------- locks


class _CooperativeLock:
    def __init__(self, scheduler: Scheduler, *, reentrant: bool = False) -> None:
        self._scheduler = scheduler
        self._reentrant = reentrant
        self._holder: _Thread | None = None
        self._depth = 0
        self._waiters: list[_Thread] = []

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: ARG002, FBT001, FBT002 - as in threading
        me = self._scheduler._current
        if me is None:  # nobody else runs: a simulation is being built or looked at
            return True
        while self._depth and not (self._reentrant and self._holder is me):
            if not blocking:
                return False
            self._scheduler.park(self._waiters)
        self._holder = me
        self._depth += 1
        return True

    def release(self) -> None:
        if self._depth:  # else its holder crashed where it waited for a condition
            self._depth -= 1
        if not self._depth:
            self._holder = None
            self._scheduler.wake(self._waiters)

    def locked(self) -> bool:
        return self._depth > 0

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.release()


class _CooperativeCondition:
    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._lock = _CooperativeLock(scheduler, reentrant=True)
        self._sleepers: list[_Thread] = []
        self.acquire, self.release = self._lock.acquire, self._lock.release

    def __enter__(self) -> bool:
        return self._lock.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._lock.release()

    def wait(self) -> None:
        """Wait; every caller looks again at what it waits for, so one that is woken for nothing does no harm."""
        self._lock.release()
        self._scheduler.park(self._sleepers)
        self._lock.acquire()

    def notify_all(self) -> None:
        self._scheduler.wake(self._sleepers)

    def notify(self, n: int = 1) -> None:  # noqa: ARG002 - as in threading
        self._scheduler.wake(self._sleepers)


class _Threading:
    """What stands for the module ``threading`` in the modules of the store: its locks, and all else as it is."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def Lock(self) -> _CooperativeLock:  # noqa: N802 - as in threading
        return _CooperativeLock(self._scheduler)

    def RLock(self) -> _CooperativeLock:  # noqa: N802 - as in threading
        return _CooperativeLock(self._scheduler, reentrant=True)

    def Condition(self) -> _CooperativeCondition:  # noqa: N802 - as in threading
        return _CooperativeCondition(self._scheduler)

    def __getattr__(self, name: str) -> Any:
        return getattr(threading, name)


_ROOMS = ("tensorkeep.store.", "tensorkeep.transfer.", "tensorkeep.devices.", "tensorkeep.catalog.")


@contextmanager
def cooperative_locks(scheduler: Scheduler) -> Iterator[None]:
    """Have the store's modules make locks and conditions that the scheduler knows, and wait for several futures through it."""
    stand_in = _Threading(scheduler)

    def as_completed(futures: Iterable[_SimulatedFuture]) -> Iterator[_SimulatedFuture]:
        pending = list(dict.fromkeys(futures))
        while pending:
            done = [future for future in pending if future.done()]
            if not done:
                scheduler.park(*(future.waiters for future in pending))
                continue
            pending = [future for future in pending if future not in done]
            yield from done

    replaced: list[tuple[ModuleType, str, object]] = []
    for module in _rooms():
        for name, stand in (("threading", stand_in), ("as_completed", as_completed)):
            if hasattr(module, name):
                replaced.append((module, name, getattr(module, name)))
                setattr(module, name, stand)
    try:
        yield
    finally:
        for module, name, real in replaced:
            setattr(module, name, real)


def _rooms() -> list[ModuleType]:
    return [
        module
        for name, module in list(sys.modules.items())
        if name.startswith(_ROOMS) and ("threading" in vars(module) or "as_completed" in vars(module))
    ]
