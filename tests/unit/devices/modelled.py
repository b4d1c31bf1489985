"""A device whose speed is a formula: calls move a manual clock, and nothing waits."""

from collections.abc import Callable, Sequence

from typing_extensions import Buffer

from tensorkeep.devices import Device, ForwardingDevice, MemoryDevice
from tensorkeep.runtime import InlineWorkers, ManualClock, Runtime
from tensorkeep.runtime.workers import WorkerPool


class CountingWorkers(InlineWorkers):
    """Runs tasks inline, and knows how many would run at once."""

    def __init__(self) -> None:
        self.at_once = 1

    def open_pool(self, max_workers: int, name: str) -> WorkerPool:
        self.at_once = max_workers
        return super().open_pool(max_workers, name)


class Modelled(ForwardingDevice):
    """Takes the time that its rates say: of reads by how many readers there are, all together."""

    def __init__(
        self,
        inner: Device,
        clock: ManualClock,
        workers: CountingWorkers,
        *,
        read_rate: Callable[[int], float],
        write_rate: float,
        latency_s: float = 0.0,
        flush_s: float = 0.0,
    ) -> None:
        super().__init__(inner)
        self._clock = clock
        self._workers = workers
        self._read_rate = read_rate
        self._write_rate = write_rate
        self._latency_s = latency_s
        self._flush_s = flush_s

    def put(self, name: str, data: Sequence[Buffer]) -> None:
        self._clock.advance(sum(memoryview(each).nbytes for each in data) / self._write_rate)
        super().put(name, data)

    def flush(self) -> None:
        self._clock.advance(self._flush_s)
        super().flush()

    def read_into(self, name: str, offset: int, buffers: Sequence[memoryview]) -> None:
        at_once = self._workers.at_once
        length = sum(buffer.nbytes for buffer in buffers)
        self._clock.advance(length / self._read_rate(at_once) + self._latency_s / at_once)
        super().read_into(name, offset, buffers)


class RemoteMemory(MemoryDevice):
    """Memory that says of itself that it lies across a network."""

    throttled = 0
    put_concurrency = 3


def manual_runtime() -> tuple[Runtime, ManualClock, CountingWorkers]:
    """Return a runtime of a manual clock and inline workers, and these two."""
    clock, workers = ManualClock(), CountingWorkers()
    return Runtime(clock=clock, workers=workers), clock, workers
