"""Runs the reads of a load: a queue and a pool per device, one budget of memory, other copies when one fails.

The caller's thread hands out jobs and takes their answers; workers never wait for each other, so a slow device delays only
its own reads, and pools that run tasks inline work as well. Each device gets an equal share of the memory budget, so that a
slow one can't hold all of it.
"""

import concurrent.futures
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from queue import SimpleQueue

from tensorkeep.devices.forwarding import innermost
from tensorkeep.devices.protocol import ThrottlingDevice
from tensorkeep.errors import Integrity, Internal, NotEnoughCopies, TensorkeepError, Unavailable
from tensorkeep.records.layout import BLOCK_BYTES
from tensorkeep.runtime import Runtime, WorkerPool
from tensorkeep.transfer.job import WINDOW_BYTES, Attempt, Failure, Reading, ReadJob
from tensorkeep.transfer.reader_count import HIGHEST, ReaderCount, remember_readers, remembered_readers
from tensorkeep.transfer.report import Damage
from tensorkeep.transfer.sources import PartSource, PartTable

LEAST_READERS, MOST_READERS = 4, 8
"""Reads of a local device at once; as many again wait in its pool, so that none waits for the scheduling thread. With more than 8
threads each waits longer for the interpreter lock than it reads: on 16 processors 8 were quickest, warm."""

GIVE_UP_AFTER = 3
"""Failures to answer after which a device is not asked again in the same load."""


def readers_per_device(device_count: int, processors: int) -> int:
    """Return how many reads of a local device run at once."""
    return min(max(processors // 2 // max(device_count, 1), LEAST_READERS), MOST_READERS)


def longest_read_bytes(memory_limit_bytes: int, device_count: int, readers: int) -> int:
    """Return how long reads may be such that each device can have all its readers at work within the limit."""
    share = memory_limit_bytes // max(device_count, 1) // readers
    return max(min(share, WINDOW_BYTES) // BLOCK_BYTES, 1) * BLOCK_BYTES


@dataclass(slots=True)
class DeviceQueue:
    """A device's jobs and what it has done so far. Touched by the scheduling thread only."""

    device: str
    waiting: deque[tuple[ReadJob, PartSource]] = field(default_factory=deque)
    waiting_bytes: int = 0
    running: int = 0
    held_bytes: int = 0
    failures: int = 0
    bytes_read: int = 0
    started_s: float | None = None
    ended_s: float = 0.0
    local_readers: int = LEAST_READERS
    pool: WorkerPool | None = None
    remote: ThrottlingDevice | None = None
    readers: ReaderCount | None = None

    @property
    def admits(self) -> int:
        """How many reads may be in its pool; those of a remote device are counted one by one to find the best number."""
        return 2 * self.local_readers if self.readers is None else self.readers.readers

    @property
    def given_up(self) -> bool:
        """Whether the device failed to answer too often to be asked again."""
        return self.failures >= GIVE_UP_AFTER

    @property
    def seconds(self) -> float:
        """From the first byte asked for to the last byte verified."""
        return 0.0 if self.started_s is None else self.ended_s - self.started_s


class Scheduler:
    """Brings all jobs of one load to an end, or raises the first error that no copy can mend."""

    def __init__(
        self,
        parts: PartTable,
        reading: Reading,
        runtime: Runtime,
        *,
        memory_limit_bytes: int,
        readers: int,
        deadline_at_s: float | None,
        deadline_s: float | None,
        progress: Callable[[int], None] | None,
    ) -> None:
        self._parts = parts
        self._readers = readers
        self._reading = reading
        self._runtime = runtime
        self._limit = memory_limit_bytes
        self._deadline_at_s = deadline_at_s
        self._deadline_s = deadline_s
        self._progress = progress
        self.queues: dict[str, DeviceQueue] = {}
        self.damaged: dict[tuple[int, str], Damage] = {}
        self.abandoned: set[int] = set()
        self.retried = 0
        self._missing: dict[int, Failure] = {}
        self._held_bytes = 0
        self._running: dict[concurrent.futures.Future[Attempt], tuple[ReadJob, PartSource]] = {}
        self._ended: SimpleQueue[concurrent.futures.Future[Attempt]] = SimpleQueue()
        self._unfinished = 0
        self._fatal: TensorkeepError | None = None

    def run(self, jobs: Iterable[ReadJob], stop: Callable[[], None]) -> None:
        """Run jobs to their end; all threads have ended when this returns or raises.

        Args:
            jobs: in order of part and start; the first source of each is its first choice.
            stop: makes the reading's ``should_stop`` answer yes.

        Raises:
            Integrity: no copy of a part is left, and one was corrupt.
            NotEnoughCopies: no copy of a part is left; none was corrupt.
            Unavailable: the deadline passed.
        """
        for job in jobs:
            self._unfinished += 1
            self._queue(job, first=True)
        with ExitStack() as pools:
            try:
                self._loop(pools)
            except BaseException:  # a bug, or an interrupt: workers must see it before their pools are joined
                stop()
                self._cancel()
                raise
            if self._fatal:
                stop()
                self._drain()
        if self._fatal:
            raise self._fatal
        if self._unfinished:
            raise Internal(f"{self._unfinished} reads of a load were never finished")

    def _loop(self, pools: ExitStack) -> None:
        while self._unfinished and self._fatal is None:
            self._check_deadline()
            self._submit(pools)
            if not self._running:
                return
            self._settle(self._ended.get())
            while not self._ended.empty():
                self._settle(self._ended.get())

    def _submit(self, pools: ExitStack) -> None:
        progressed = True
        while progressed and self._fatal is None:
            progressed = False
            for queue in list(self.queues.values()):
                if queue.waiting and queue.running < queue.admits and self._admit(queue):
                    self._start(queue, pools)
                    progressed = True

    def _admit(self, queue: DeviceQueue) -> bool:
        """Return whether the device's next job may start now, having booked its memory."""
        job = queue.waiting[0][0]
        if job.admitted:
            return True
        size = job.size_bytes
        share = self._limit // len(self.queues)
        if self._held_bytes and (self._held_bytes + size > self._limit or queue.held_bytes + size > max(share, size)):
            return False
        job.admitted = True
        self._held_bytes += size
        return True

    def _start(self, queue: DeviceQueue, pools: ExitStack) -> None:
        job, source = queue.waiting.popleft()
        queue.waiting_bytes -= job.size_bytes
        queue.held_bytes += job.size_bytes
        queue.running += 1
        if queue.pool is None:
            queue.pool = pools.enter_context(self._open_pool(queue))
        future = queue.pool.submit(self._reading.attempt, job, source, self._parts.devices[source.device])
        self._running[future] = (job, source)
        future.add_done_callback(self._ended.put)  # to wait for any of many futures asks each of them, every time

    def _open_pool(self, queue: DeviceQueue) -> WorkerPool:
        device = innermost(self._parts.devices[queue.device])
        if isinstance(device, ThrottlingDevice):
            queue.remote = device
            queue.readers = ReaderCount(remembered_readers(device.url), throttled=device.throttled)
        workers = self._readers if queue.readers is None else HIGHEST
        return self._runtime.workers.open_pool(workers, f"read-{self._parts.device_name(queue.device)}")

    def _count_read(self, queue: DeviceQueue, attempt: Attempt) -> None:
        if queue.readers is not None and queue.remote is not None and attempt.bytes_read:
            queue.readers.read_ended(
                attempt.bytes_read, attempt.started_s, attempt.ended_s, throttled=queue.remote.throttled
            )
            remember_readers(queue.remote.url, queue.readers.settled)

    def _settle(self, future: "concurrent.futures.Future[Attempt]") -> None:
        job, source = self._running.pop(future)
        queue = self.queues[source.device]
        queue.running -= 1
        queue.held_bytes -= job.size_bytes
        attempt = future.result()
        queue.bytes_read += attempt.bytes_read
        queue.started_s = attempt.started_s if queue.started_s is None else min(queue.started_s, attempt.started_s)
        queue.ended_s = max(queue.ended_s, attempt.ended_s)
        self._count_read(queue, attempt)
        if attempt.failure:
            self._record(job, attempt.failure)
        if not job.pending:
            self._unfinished -= 1
            self._held_bytes -= job.size_bytes
            if self._progress and self._fatal is None:
                self._progress(attempt.delivered)
        elif attempt.failure:
            self._next_copy(job)
        if queue.given_up:
            self._give_up(queue)

    def _record(self, job: ReadJob, failure: Failure) -> None:
        job.failures.append(failure)
        source = failure.source
        damage = Damage(
            location=source.location,
            part=job.read.part,
            device=source.device,
            device_name=self._parts.device_name(source.device),
            reason=failure.reason,
            kind=failure.kind,
            confirmed=failure.confirmed,
        )
        self.damaged.setdefault((source.location, failure.kind), damage)
        if failure.kind == "missing":
            self._missing.setdefault(source.location, failure)
        if failure.kind == "unreachable":
            self.queues[source.device].failures += 1

    def _next_copy(self, job: ReadJob) -> None:
        self.retried += 1
        self._queue(job)

    def _give_up(self, queue: DeviceQueue) -> None:
        waiting, queue.waiting, queue.waiting_bytes = queue.waiting, deque(), 0
        for job, source in waiting:
            job.failures.append(self._unasked(source))
            self._next_copy(job)

    def _unasked(self, source: PartSource) -> Failure:
        return Failure(source, "unreachable", f"given up after {GIVE_UP_AFTER} failures to answer")

    def _queue(self, job: ReadJob, *, first: bool = False) -> None:
        """Give a job to its next copy: the first choice at first, then the one whose device has the least left to do."""
        usable = []
        for source in job.sources:
            queue = self.queues.setdefault(source.device, DeviceQueue(source.device, local_readers=self._readers))
            if source.location in self._missing:
                job.failures.append(self._missing[source.location])
            elif queue.given_up:
                job.failures.append(self._unasked(source))
            else:
                usable.append(source)
        if not usable:
            job.sources = []
            if job.optional:
                self._abandon(job)
            else:
                self._fail(self._no_copy_left(job))
            return
        source = usable[0] if first else min(usable, key=lambda each: (each.suspect, self._time_left(each)))
        job.sources = [other for other in usable if other is not source]
        queue = self.queues[source.device]
        queue.waiting_bytes += job.size_bytes
        if job.admitted:  # its memory is booked: the sooner it ends, the better
            queue.waiting.appendleft((job, source))
        else:
            queue.waiting.append((job, source))

    def _abandon(self, job: ReadJob) -> None:
        self.abandoned.add(job.read.part)
        self._unfinished -= 1
        if job.admitted:
            self._held_bytes -= job.size_bytes
        self._reading.let_go(job)

    def _time_left(self, source: PartSource) -> float:
        queue = self.queues[source.device]
        rate = self._parts.rates.get(source.device) or 1.0
        return (queue.waiting_bytes + queue.held_bytes) / rate

    def _fail(self, error: TensorkeepError) -> None:
        if self._fatal is None:
            self._fatal = error
        elif isinstance(error, Integrity | NotEnoughCopies):
            self._fatal.add_note(f"also: {error.message}")

    def _no_copy_left(self, job: ReadJob) -> TensorkeepError:
        part = job.read.part
        digest = self._reading.judge.digest(part).hex()
        what = f" of {self._parts.describe(part)}" if self._parts.describe else ""
        tried = [f"device {self._parts.device_name(each.source.device)}: {each.reason}" for each in job.failures]
        facts = {
            "part": digest,
            "file": self._parts.describe(part) if self._parts.describe else None,
            "devices": [self._parts.device_name(each.source.device) for each in job.failures],
        }
        reasons = "; ".join(dict.fromkeys(tried)) or "the catalog knows no copy of it"
        if any(each.kind == "corrupt" for each in job.failures):
            return Integrity(
                f"part {digest}{what} is damaged and has no good copy left: {reasons}. Run `tensorkeep verify` to "
                "find all damage, then push the same files again to heal it",
                **facts,
            )
        return NotEnoughCopies(
            f"no copy of part {digest}{what} can be read: {reasons}. Bring a device that keeps it back, or push the same "
            "files again",
            **facts,
        )

    def _check_deadline(self) -> None:
        if self._deadline_at_s is not None and self._runtime.clock.monotonic_s() > self._deadline_at_s:
            self._fail(
                Unavailable(
                    f"the load passed its deadline of {self._deadline_s} s with {self._unfinished} reads to go: give it more "
                    "time, or see which device is slow",
                    deadline_s=self._deadline_s,
                )
            )

    def _cancel(self) -> None:
        for future in self._running:
            future.cancel()

    def _drain(self) -> None:
        """Wait for what still runs; what failed for good in the meantime is noted on the first error."""
        self._cancel()
        concurrent.futures.wait(self._running)
        for future in list(self._running):
            error = None if future.cancelled() else future.exception()
            if error and self._fatal:
                self._fatal.add_note(f"also: {error!r}")
            if error or future.cancelled():
                del self._running[future]
            else:
                self._settle(future)
