"""Runs the reads of a load: a queue and a pool per device, one budget of memory, other copies when one fails.

The caller's thread hands out jobs and takes their answers; workers never wait for each other, so a slow device delays only
its own reads, and pools that run tasks inline work as well. Each device gets an equal share of the memory budget, so that a
slow one can't hold all of it. A device that has nothing left takes over what waits for others, and what others are late with
(`transfer.lateness`): a read that hangs is left alone with its scratch memory when the load has ended.
"""

import concurrent.futures
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue

from tensorkeep.devices.forwarding import innermost
from tensorkeep.devices.protocol import ThrottlingDevice
from tensorkeep.errors import Integrity, Internal, NotEnoughCopies, TensorkeepError, Unavailable
from tensorkeep.runtime import Cancellation, LeavablePool, Runtime
from tensorkeep.transfer.device_queue import GIVE_UP_AFTER, DeviceQueue
from tensorkeep.transfer.job import NOBODY, Attempt, Failure, Race, Reading, ReadJob
from tensorkeep.transfer.lateness import HANGS_S, LOOK_EVERY_S, is_late, is_worth
from tensorkeep.transfer.left_reads import has_left_reads, note_left
from tensorkeep.transfer.reader_count import HIGHEST, ReaderCount, remember_readers, remembered_readers
from tensorkeep.transfer.report import Damage
from tensorkeep.transfer.sources import RESTORER, SUSPECT, PartSource, PartTable

LEAVE_AFTER_S = 1.0
"""How long a load that has failed waits for reads that hang."""


@dataclass(slots=True)
class _Running:
    """A read that runs: since when, and for which job it was asked again, if it was; or one that is over and is carried."""

    job: ReadJob
    source: PartSource
    since_s: float
    instead_of: ReadJob | None = None
    is_carried: bool = False


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
        cancellation: Cancellation | None = None,
    ) -> None:
        self._parts = parts
        self._cancellation = cancellation
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
        self.hedged = 0
        self._running: dict[concurrent.futures.Future[Attempt], _Running] = {}
        self._ended: SimpleQueue[concurrent.futures.Future[Attempt]] = SimpleQueue()
        self._carriage: LeavablePool | None = None
        self._unfinished = 0
        self._fatal: TensorkeepError | None = None

    def run(self, jobs: Iterable[ReadJob], stop: Callable[[], None]) -> None:
        """Run jobs to their end.

        When this returns or raises no thread reads into a destination any more. All have ended but those whose read hangs, or
        was late and is done by another.

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
            self._prepare(job)
            if job.optional and job.replaceable and job.race is not None and self._hangs(job.sources[0]):
                self._leave(job, job.race)
            else:
                self._queue(job, first=True)
        with ExitStack() as pools:
            self._carriage = pools.enter_context(self._runtime.workers.open_leavable_pool(1, "carry"))
            try:
                self._loop(pools)
                if self._fatal:
                    stop()
                    self._drain()
            except BaseException:  # a bug, or an interrupt: workers must see it before their pools are joined
                stop()
                self._await_running()
                raise
            finally:
                self._leave_late()
        if self._fatal:
            raise self._fatal
        if self._unfinished:
            raise Internal(f"{self._unfinished} reads of a load were never finished")

    def _loop(self, pools: ExitStack) -> None:
        while self._unfinished and self._fatal is None:
            self._check_deadline()
            if self._cancellation is not None:
                self._cancellation.check()
            self._submit(pools)
            self._take_over(pools)
            if not self._running:
                return
            try:
                self._settle(self._ended.get(timeout=self._patience_s()))
                while not self._ended.empty():
                    self._settle(self._ended.get())
            except Empty:
                pass  # nothing has ended: somebody may be late

    def _submit(self, pools: ExitStack) -> None:
        progressed = True
        while progressed and self._fatal is None:
            progressed = False
            for queue in list(self.queues.values()):
                if queue.waiting and queue.has_room and self._admit(queue):
                    self._start(queue, pools)
                    progressed = True

    def _admit(self, queue: DeviceQueue) -> bool:
        """Return whether the device's next job may start now, having booked its memory."""
        job = queue.waiting[0][0]
        if job.admitted:
            return True
        size = job.memory_bytes
        share = self._limit // len(self.queues)
        full = self._held_bytes + size > self._limit or queue.memory_bytes + size > max(share, size)
        if self._held_bytes and full and not (queue.running == 0 and self._all_are_late()):
            return False
        job.admitted = True
        self._held_bytes += size
        return True

    def _all_are_late(self) -> bool:
        """Return whether every read that holds memory is late: then one that could end may start, whatever the limit."""
        now = self._runtime.clock.monotonic_s()
        return all(not each.is_carried and now - each.since_s > HANGS_S for each in self._running.values())

    def _start(self, queue: DeviceQueue, pools: ExitStack) -> None:
        job, source = queue.waiting.popleft()
        queue.waiting_bytes -= job.size_bytes
        self._ask(queue, pools, job, source)

    def _ask(
        self,
        queue: DeviceQueue,
        pools: ExitStack,
        job: ReadJob,
        source: PartSource,
        instead_of: ReadJob | None = None,
    ) -> None:
        now = self._runtime.clock.monotonic_s()
        queue.held_bytes += job.size_bytes
        queue.memory_bytes += job.memory_bytes
        queue.owes_since_s = queue.owes_since_s if queue.running else now
        queue.running += 1
        queue.asked_s = now if queue.asked_s is None else queue.asked_s
        if job.race is not None:
            job.race.running += 1
        if queue.pool is None:
            queue.pool = pools.enter_context(self._open_pool(queue))
        future = queue.pool.submit(self._reading.attempt, job, source, self._parts.devices[source.device])
        self._running[future] = _Running(job, source, now, instead_of)
        future.add_done_callback(self._ended.put)  # to wait for any of many futures asks each of them, every time

    def _open_pool(self, queue: DeviceQueue) -> LeavablePool:
        device = innermost(self._parts.devices[queue.device])
        if isinstance(device, ThrottlingDevice):
            queue.remote = device
            queue.readers = ReaderCount(remembered_readers(device.url), throttled=device.throttled)
        workers = self._readers if queue.readers is None else HIGHEST
        return self._runtime.workers.open_leavable_pool(workers, f"read-{self._parts.device_name(queue.device)}")

    def _count_read(self, queue: DeviceQueue, attempt: Attempt) -> None:
        if queue.readers is not None and queue.remote is not None and attempt.bytes_read:
            queue.readers.read_ended(
                attempt.bytes_read, attempt.started_s, attempt.ended_s, throttled=queue.remote.throttled
            )
            remember_readers(queue.remote.url, queue.readers.settled)

    def _settle(self, future: "concurrent.futures.Future[Attempt]") -> None:
        running = self._running.pop(future)
        job = running.job
        queue = self.queues[running.source.device]
        if running.is_carried:
            queue.carried -= 1
            queue.memory_bytes -= job.memory_bytes
            self._finish(job, future.result())
            return
        queue.running -= 1
        queue.held_bytes -= job.size_bytes
        queue.memory_bytes -= job.memory_bytes
        if job.race is not None:
            job.race.running -= 1
        if future.cancelled():  # another was first, before this one had begun
            self._reading.let_go(job)
            return
        attempt = future.result()
        queue.count(attempt)
        if job.optional:
            queue.count_check(attempt, len(self.queues))
        self._count_read(queue, attempt)
        if attempt.failure:
            self._record(job, attempt.failure)
        if not job.pending and not attempt.late:
            if not self._reading.is_carried(job):
                self._finish(job, attempt)
            elif self._fatal is None:
                self._carry(running, attempt)
            else:
                self._reading.let_go(job)
        elif attempt.failure:
            self._go_on(running)
        if queue.given_up:
            self._give_up(queue)

    def _carry(self, running: _Running, attempt: Attempt) -> None:
        """Have a read that is verified delivered; its reader can go on with another."""
        assert self._carriage is not None
        queue = self.queues[running.source.device]
        queue.carried += 1
        queue.memory_bytes += running.job.memory_bytes
        future = self._carriage.submit(self._reading.carry, running.job, attempt)
        self._running[future] = replace(running, is_carried=True)
        future.add_done_callback(self._ended.put)

    def _finish(self, job: ReadJob, attempt: Attempt) -> None:
        self._unfinished -= 1
        self._held_bytes -= job.memory_bytes
        if (race := job.race) is not None:
            race.is_over = True
            if race.running:
                for future in [future for future, other in self._running.items() if other.job.race is race]:
                    future.cancel()
            if race.spare is not None:
                self._reading.let_go(race.spare)
        if self._progress and self._fatal is None:
            self._progress(attempt.delivered)

    def _go_on(self, running: _Running) -> None:
        """Ask the next copy for what one failed to give, unless another is at it."""
        job, race = running.job, running.job.race
        if race is not None and race.winner is not None:
            self._reading.let_go(job)
        elif running.instead_of is not None:
            self._reading.let_go(job)
            running.instead_of.failures += job.failures
            if race is not None and race.spare is running.instead_of:
                race.spare = None
                self._next_copy(running.instead_of)
        elif race is not None and race.running:
            race.spare = job
        else:
            self._next_copy(job)

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
        if (
            failure.kind == "unreachable" and source.device != RESTORER
        ):  # which says something of one part, not of a device
            self.queues[source.device].failures += 1

    def _prepare(self, job: ReadJob) -> None:
        """Find out whether the load may go on, or end, while a read hangs: then it must not be read into its destination."""
        first = job.sources[0] if job.sources else None
        others = (each for each in self._parts.sources.get(job.read.part, ()) if each is not first)
        job.replaceable = any(each.device in self._parts.devices for each in others)
        job.least_bytes = self._reading.scratch.least_bytes
        if job.replaceable or job.optional or self._deadline_at_s is not None:
            job.race = Race()

    def _patience_s(self) -> float | None:
        """Return how long to wait for the end of any read before somebody may be late."""
        left = None
        if self._deadline_at_s is not None:
            left = max(self._deadline_at_s - self._runtime.clock.monotonic_s(), 0.0) + 1e-3
        if self._cancellation is not None or any(each.job.race is not None for each in self._running.values()):
            return LOOK_EVERY_S if left is None else min(left, LOOK_EVERY_S)
        return left

    def _take_over(self, pools: ExitStack) -> None:
        """Give devices that have nothing left what waits for others, and ask them for what others are late with."""
        now = self._runtime.clock.monotonic_s()
        for queue in [queue for queue in self.queues.values() if queue.is_idle and not queue.given_up]:
            for other in self.queues.values():
                if other is not queue:
                    self._take_waiting(queue, other, now, pools)
        last: dict[int, _Running] = {}  # of each race the attempt that was begun last
        for running in self._running.values():
            if running.job.race is not None and running.job.race.winner is None and running.job.replaceable:
                last[id(running.job.race)] = running
        for running in last.values():
            assert running.job.race is not None
            if not running.job.optional:
                self._ask_again(running, running.job.race, now, pools)
            elif is_late(
                now - max(running.since_s, running.job.progressed_s), self.queues[running.source.device].usual_s, None
            ):
                self._leave(running.job, running.job.race)
                self._leave_waiting(self.queues[running.source.device])

    def _ask_again(self, running: _Running, race: Race, now: float, pools: ExitStack) -> None:
        """Ask another copy for a read that is late, if its device has nothing else to do."""
        job = running.instead_of or running.job
        usual_s = self.queues[running.source.device].usual_s
        for source in job.sources:
            queue = self.queues.setdefault(source.device, DeviceQueue(source.device, local_readers=self._readers))
            usable = queue.is_idle and not queue.given_up and source.location not in self._missing
            if usable and is_late(now - running.since_s, usual_s, queue.usual_s):
                job.sources = [each for each in job.sources if each is not source]
                whole = [(job.read.start, job.read.end)]
                again = ReadJob(
                    job.read, [], whole, admitted=True, race=race, replaceable=True, least_bytes=job.least_bytes
                )
                self.hedged += 1
                self._ask(queue, pools, again, source, instead_of=job)
                return

    def _take_waiting(self, queue: DeviceQueue, other: DeviceQueue, now: float, pools: ExitStack) -> None:
        while queue.is_idle and other.waiting:
            job, source = other.waiting[-1]
            mine = next((each for each in job.sources if each.device == queue.device and each.rank < SUSPECT), None)
            if mine is None or mine.location in self._missing:
                return
            stalls = is_late(other.quiet_s(now), other.usual_s, queue.usual_s)
            if mine.rank > source.rank and not (stalls or self._hangs(source)):
                return
            rate = other.rate(now) or self._parts.rates.get(other.device)
            if not (stalls or is_worth(other.waiting_bytes + other.held_bytes, rate, queue.usual_s)):
                return
            other.waiting.pop()
            other.waiting_bytes -= job.size_bytes
            job.sources = [*(each for each in job.sources if each is not mine), source]
            queue.waiting.append((job, mine))
            queue.waiting_bytes += job.size_bytes
            if not self._admit(queue):
                return
            self._start(queue, pools)

    def _leave(self, job: ReadJob, race: Race) -> None:
        """Go on without an optional read that is late; its scratch is its own until it ends."""
        if race.win(NOBODY):
            race.is_over = True
            self.hedged += 1
            self.abandoned.add(job.read.part)
            self._unfinished -= 1
            self._held_bytes -= job.memory_bytes if job.admitted else 0

    def _leave_waiting(self, queue: DeviceQueue) -> None:
        """Leave the optional reads that wait behind one that is late."""
        kept = deque[tuple[ReadJob, PartSource]]()
        for job, source in queue.waiting:
            if job.optional and job.replaceable and job.race is not None:
                queue.waiting_bytes -= job.size_bytes
                self._leave(job, job.race)
            else:
                kept.append((job, source))
        queue.waiting = kept

    def _leave_late(self) -> None:
        """Let the pools be left whose reads nobody waits for, once none of them can deliver any more."""
        for running in self._running.values():
            if (race := running.job.race) is not None and not race.is_over:
                race.win(NOBODY)
        for future, running in self._running.items():
            race = running.job.race
            if race is not None and race.winner is running.job and not race.is_over:
                concurrent.futures.wait([future])  # it delivers
        left = {future: running for future, running in self._running.items() if not future.done()}
        needed = {each.source.device for each in left.values() if each.job.race is None}  # read into their destination
        for future, running in left.items():
            queue = self.queues[running.source.device]
            if running.source.device not in needed and queue.pool is not None:
                queue.pool.abandon()
                note_left(self._parts.devices[running.source.device].url, future)
        if not needed:
            self._reading.close()

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
        source = usable[0] if first and not self._hangs(usable[0]) else min(usable, key=self._order)
        job.sources = [other for other in usable if other is not source]
        queue = self.queues[source.device]
        queue.waiting_bytes += job.size_bytes
        if job.admitted:  # its memory is booked: the sooner it ends, the better
            queue.waiting.appendleft((job, source))
        else:
            queue.waiting.append((job, source))

    def _order(self, source: PartSource) -> tuple[bool, bool, int, float]:
        """Return the order in which copies are tried: those found bad last, before them those whose device hangs."""
        return source.rank >= SUSPECT, self._hangs(source), source.rank, self._time_left(source)

    def _hangs(self, source: PartSource) -> bool:
        """Return whether a read of the device that was left, in this load or another, has not ended yet."""
        return has_left_reads(self._parts.devices[source.device].url)

    def _abandon(self, job: ReadJob) -> None:
        self.abandoned.add(job.read.part)
        self._unfinished -= 1
        if job.admitted:
            self._held_bytes -= job.memory_bytes
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
            waited_for: dict[str, int] = {}
            for running in [each for each in self._running.values() if not each.is_carried]:
                name = self._parts.device_name(running.source.device)
                waited_for[name] = waited_for.get(name, 0) + 1
            asked = ", ".join(f"{count} of device {name}" for name, count in sorted(waited_for.items())) or "none"
            self._fail(
                Unavailable(
                    f"the load passed its deadline of {self._deadline_s:g} s with {self._unfinished} reads to go, waiting for "
                    f"{asked}: give it more time, or see why that device is slow",
                    deadline_s=self._deadline_s,
                    devices=sorted(waited_for),
                )
            )

    def _await_running(self) -> None:
        """Wait for what still runs; for what may be left not long, since it may hang."""
        for future in self._running:
            future.cancel()
        running = {future: each for future, each in self._running.items() if not future.cancelled()}
        concurrent.futures.wait([future for future, each in running.items() if each.job.race is None])
        concurrent.futures.wait(running, timeout=LEAVE_AFTER_S)

    def _drain(self) -> None:
        """Wait for what still runs, save what hangs; what failed for good in the meantime is noted on the first error."""
        self._await_running()
        for future in [future for future in self._running if future.done()]:
            error = None if future.cancelled() else future.exception()
            if error and self._fatal:
                self._fatal.add_note(f"also: {error!r}")
            if error or future.cancelled():
                del self._running[future]
            else:
                self._settle(future)
