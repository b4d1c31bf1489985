"""Workers: who runs tasks in parallel. Threads in production, the caller itself in tests that need one order."""

import concurrent.futures
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Protocol, Self


class Cancelled(Exception):
    """Raised in a worker whose work nobody waits for any more."""


class Cancellation:
    """A flag that long tasks look at, so that an error or Ctrl-C ends them at their next step. Thread safe.

    As a context manager inside that of a pool it cancels when left, before the pool waits for its tasks.
    """

    def __init__(self) -> None:
        self._cancelled = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Ask every task that checks this flag to stop."""
        self._cancelled = True

    def check(self) -> None:
        """Return if nobody cancelled.

        Raises:
            Cancelled: somebody did.
        """
        if self._cancelled:
            raise Cancelled


class WorkerPool(Protocol):
    """A bounded pool; a context manager that waits for its tasks when left, and drops queued ones when left by an error."""

    def submit(self, task: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "concurrent.futures.Future[Any]":
        """Queue a task and return its future."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> bool | None: ...


class LeavablePool(WorkerPool, Protocol):
    """A pool that can be left while a task hangs: `WorkerPool` otherwise."""

    def abandon(self) -> None:
        """Let the pool be left at once: what runs goes on alone, and ends with the process at the latest."""

    def grow(self, max_workers: int) -> None:
        """Let it have up to that many workers from now on."""


class Workers(Protocol):
    """Opens pools."""

    def open_pool(self, max_workers: int, name: str) -> WorkerPool:
        """Return a pool of at most that many workers, named for debuggers."""

    def open_leavable_pool(self, max_workers: int, name: str) -> LeavablePool:
        """Return such a pool whose tasks may hang for ever."""

    def cpu_count(self) -> int:
        """Return how many processors this process may use."""


class ThreadWorkers:
    """Pools of threads."""

    def open_pool(self, max_workers: int, name: str) -> WorkerPool:
        """Return a thread pool."""
        return _ThreadPool(max_workers, thread_name_prefix=f"tensorkeep-{name}")

    def open_leavable_pool(self, max_workers: int, name: str) -> LeavablePool:
        """Return a pool of daemon threads."""
        return _LeavableThreads(max_workers, f"tensorkeep-{name}")

    def cpu_count(self) -> int:
        """Return the number of processors this process may run on."""
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


class _ThreadPool(concurrent.futures.ThreadPoolExecutor):
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> bool | None:
        self.shutdown(wait=True, cancel_futures=kind is not None)
        return None


_Task = tuple["concurrent.futures.Future[Any]", Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class _LeavableThreads:
    """Daemon threads. Those of `concurrent.futures` are waited for when the interpreter ends, whatever they do."""

    def __init__(self, max_workers: int, name: str) -> None:
        self._most = max_workers
        self._name = name
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._abandoned = False

    def submit(self, task: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "concurrent.futures.Future[Any]":
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self._tasks.put((future, task, args, kwargs))
        if len(self._threads) < self._most:
            number = len(self._threads)
            thread = threading.Thread(target=_work_off, args=(self._tasks,), name=f"{self._name}_{number}", daemon=True)
            self._threads.append(thread)
            thread.start()
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
            with suppress(Empty):
                while (found := self._tasks.get_nowait()) is not None:
                    found[0].cancel()
        for _ in self._threads:
            self._tasks.put(None)
        if not self._abandoned:
            for thread in self._threads:
                thread.join()
        return None


def _work_off(tasks: "SimpleQueue[_Task | None]") -> None:
    while (found := tasks.get()) is not None:
        future, task, args, kwargs = found
        if future.set_running_or_notify_cancel():
            try:
                answer = task(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - a future carries whatever the task raised
                future.set_exception(error)
                del error
            else:
                future.set_result(answer)
                del answer
        del found, future, task, args, kwargs  # while it waits a thread keeps nothing alive


class InlineWorkers:
    """Pools that run each task at once, in the caller's thread: one order, no races. For tests and simulations."""

    def open_pool(self, max_workers: int, name: str) -> WorkerPool:  # noqa: ARG002 - the protocol's names
        """Return a pool that runs tasks when they are submitted."""
        return _InlinePool()

    def open_leavable_pool(self, max_workers: int, name: str) -> LeavablePool:  # noqa: ARG002 - the protocol's names
        """Return the same: what hangs, hangs the caller."""
        return _InlinePool()

    def cpu_count(self) -> int:
        """Return 1."""
        return 1


class _InlinePool:
    def submit(self, task: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "concurrent.futures.Future[Any]":
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        try:
            future.set_result(task(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - a future carries whatever the task raised
            future.set_exception(error)
        return future

    def abandon(self) -> None:
        pass

    def grow(self, max_workers: int) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> bool | None:
        return None
