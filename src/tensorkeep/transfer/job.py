"""One read of a plan, through all its attempts: what is still pending, what was tried, where the bytes lie."""

import resource
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace

from tensorkeep.devices.forwarding import open_object
from tensorkeep.devices.protocol import OpenFile, OpenObject, ReadableDevice
from tensorkeep.errors import Integrity, NotFound, TensorkeepError
from tensorkeep.planning.read_plan import PartRead, Piece
from tensorkeep.transfer.image import PartImage, PassingImage, ScratchPool, lay_out
from tensorkeep.transfer.mapped_tensors import MappedTensors
from tensorkeep.transfer.memory import HUGE_PAGE_BYTES
from tensorkeep.transfer.report import DamageKind, Verify
from tensorkeep.transfer.sources import PartSource
from tensorkeep.transfer.verification import DigestStream, Judge, Mismatch, iter_windows

WINDOW_BYTES = 8 << 20
"""Longest single read from a device: hashed right after, while it is in the last-level cache."""

CHECK_BYTES = HUGE_PAGE_BYTES
"""The same where bytes are only checked: one buffer a thread, which its own cache holds."""

LONGEST_CHECK_BYTES = 32 << 20
"""Longest run that is checked at once: nothing of it is kept, and each asks the scheduling thread. Where it is checked where it lies all of it is populated at
once, so that the disk has enough to do."""

Deliver = Callable[[PartImage, Sequence[Piece]], int]
"""Takes the pieces of a verified image that were not read in place; returns how many needed bytes that were."""

Landed = Callable[[Sequence[Piece]], int]
"""Told, in the thread that delivered them, which pieces have landed; returns how many needed bytes that completed beyond those."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a copy could not serve a read."""

    source: PartSource
    kind: DamageKind
    reason: str
    confirmed: bool = True


NOBODY = object()
"""Who wins a race that nobody is to deliver."""


class Race:
    """One read, asked of several copies because the first was late: whoever has it verified first delivers it. Thread safe."""

    def __init__(self) -> None:
        self.running = 0
        self.is_over = False  # it was delivered, or nobody will
        self.spare: ReadJob | None = None  # one that failed while another ran, with copies left to try
        self.winner: object | None = None
        self._lock = threading.Lock()

    def win(self, who: object) -> bool:
        """Return whether they are the first, and so deliver."""
        with self._lock:
            if self.winner is None:
                self.winner = who
            return self.winner is who


@dataclass(slots=True)
class ReadJob:
    """A read, its copies still to try (best first), and its state between attempts. Used by one thread at a time.

    ``optional``: it only checks what lies elsewhere, so nothing of it is kept; where no copy is left the load goes on without it, and its
    part is among `Scheduler.abandoned`. ``replaceable``: its part
    has another copy that can be reached. ``race``: it may be asked of another copy while it runs, or be left; then it is read into
    scratch, where one who comes late harms nobody. ``least_bytes``: what its scratch takes at least.
    ``progressed_s``: when the last window of it was there.
    """

    read: PartRead
    sources: list[PartSource]
    pending: list[tuple[int, int]]
    failures: list[Failure] = field(default_factory=list)
    admitted: bool = False
    image: PartImage | None = None
    copied: list[Piece] = field(default_factory=list)
    scratch: memoryview | None = None
    optional: bool = False
    replaceable: bool = False
    race: Race | None = None
    least_bytes: int = 0
    progressed_s: float = 0.0

    @property
    def size_bytes(self) -> int:
        """What is read, or what its scratch takes where that is more."""
        return max(self.read.end - self.read.start, self.least_bytes)

    @property
    def memory_bytes(self) -> int:
        """Memory that the read takes, in destinations and in scratch."""
        if not self.optional:
            return self.size_bytes
        return max(min(self.read.end - self.read.start, CHECK_BYTES), self.least_bytes)


@dataclass(frozen=True, slots=True)
class Attempt:
    """What one attempt gave; times by the runtime's clock.

    ``delivered`` needed bytes have landed; the job is done where ``failure`` and ``stopped`` are both unset. ``late``: all was read,
    and another attempt had delivered it. ``disk_bytes``: what of it was in no memory of this machine, as far as the system tells.
    """

    bytes_read: int
    started_s: float
    ended_s: float
    delivered: int = 0
    failure: Failure | None = None
    stopped: bool = False
    late: bool = False
    disk_bytes: int = 0


@dataclass(slots=True)
class Reading:
    """What all attempts of a load share; once it is closed, attempts that still run keep none of the load's arrays alive.

    ``carries``: which pieces are delivered by `carry`, one read after the other, once they are verified.
    """

    judge: Judge
    scratch: ScratchPool
    verify: Verify
    part_sizes: Sequence[int]
    direct: Callable[[Piece], memoryview | None]
    deliver: Deliver
    landed: Landed
    monotonic_s: Callable[[], float]
    should_stop: Callable[[], bool]
    laid: MappedTensors | None
    carries: Callable[[Sequence[Piece]], bool]

    def attempt(self, job: ReadJob, source: PartSource, device: ReadableDevice) -> Attempt:
        """Read what is pending from one copy, verify it, and deliver when all is there, or leave that to `carry`.

        What was good stays; what was not is read once more, since a bit may have flipped on the way, before the copy is
        blamed, and then pending for the next copy. Errors of the device become the attempt's failure; errors of delivery
        are raised.
        """
        started, disk_bytes = self.monotonic_s(), -_bytes_from_disks()
        bytes_read, failure, stopped = self._fill(job, source, device)
        if failure and failure.kind == "corrupt":
            more, failure, stopped = self._fill(job, source, device)
            bytes_read += more
        ended, disk_bytes = self.monotonic_s(), disk_bytes + _bytes_from_disks()
        if not job.pending and job.race is not None and not job.race.win(job):
            self.let_go(job)
            return Attempt(bytes_read, started, ended, late=True, disk_bytes=disk_bytes)
        delivered = 0 if job.pending or self.is_carried(job) else self._deliver(job)
        return Attempt(bytes_read, started, ended, delivered, failure, stopped, disk_bytes=disk_bytes)

    def is_carried(self, job: ReadJob) -> bool:
        """Return whether what was read is left to `carry`."""
        return not job.optional and self.carries(job.read.pieces)

    def carry(self, job: ReadJob, attempt: Attempt) -> Attempt:
        """Deliver what an attempt has verified, and return the attempt with that."""
        return replace(attempt, delivered=self._deliver(job))

    def _image_of(self, job: ReadJob) -> PartImage:
        """Return the memory that a job is read into."""
        if job.image is None and job.optional:
            job.scratch = self.scratch.take(min(job.read.end - job.read.start, CHECK_BYTES))
            job.image = PassingImage(job.scratch)
        elif job.image is None:
            direct = self.direct if job.race is None else _nowhere
            job.image, job.copied, job.scratch = lay_out(job.read, direct, self.scratch)
        return job.image

    def _fill(self, job: ReadJob, source: PartSource, device: ReadableDevice) -> tuple[int, Failure | None, bool]:
        part = job.read.part
        if source.length != self.part_sizes[part]:
            reason = f"the copy has {source.length} bytes, the part {self.part_sizes[part]}"
            return 0, Failure(source, "corrupt", reason), False
        stream = DigestStream() if self.verify == "digest" else None
        done, left, bad = 0, deque[tuple[int, int]](), list[Mismatch]()
        stopped = False
        kept = self._kept(job)
        with nullcontext(kept) if kept is not None else closing(open_object(device, source.name)) as opened:
            failure = self._find_replaced(job, source, opened) if kept is None else None
            is_kept = kept is not None or self._is_kept(job, source, opened)
            left.extend(iter_windows(job.pending, _longest_window(job, is_kept=is_kept)))
            while left and failure is None and not (stopped := self.should_stop()):
                start, end = left.popleft()
                seen = self.laid.look(part, start, end) if job.optional and self.laid else None
                if seen is None and job.optional and end - start > CHECK_BYTES:  # some of it lies elsewhere
                    left.extendleft([*iter_windows([(start, end)], CHECK_BYTES)][::-1])
                    continue
                image = PassingImage(seen) if is_kept and seen is not None else self._image_of(job)
                try:
                    if image is job.image:
                        opened.read_into(source.offset + start, image.views(start, end))
                except TensorkeepError as error:
                    left.appendleft((start, end))
                    failure = _failure_of(source, error)
                    break
                done, job.progressed_s = done + end - start, self.monotonic_s()
                if stream:
                    stream.update(image.views(start, end))
                elif self.verify == "blocks":
                    bad += self.judge.judge_blocks(image, part, start, end)
        if stream and not left:
            bad = self.judge.judge_digest(part, stream.digest())
        if bad:
            failure = failure or Failure(source, "corrupt", bad[0].reason, bad[0].confirmed)
        # A digest says nothing of a piece of a part: then the next copy starts from the beginning.
        restart = stream is not None and bool(left or bad)
        job.pending = job.pending if restart else [*((each.start, each.end) for each in bad), *left]
        return done, failure, stopped

    def _kept(self, job: ReadJob) -> OpenFile | None:
        """Return the file that was laid and is only checked, if it is still open and the system keeps its length."""
        laid = self.laid if job.optional and self.verify == "blocks" else None
        opened = laid.kept.get(job.read.part) if laid else None
        return opened if opened is not None and opened.keeps_length() else None

    def _is_kept(self, job: ReadJob, source: PartSource, opened: OpenObject) -> bool:
        """Return whether what is only checked can be judged where it lies, since nobody can shorten its file meanwhile."""
        return job.optional and self.verify == "blocks" and opened.keep_length(source.offset + source.length)

    def _find_replaced(self, job: ReadJob, source: PartSource, opened: OpenObject) -> Failure | None:
        """Return why a file says nothing of what was laid and is only checked: it is another one by now, or there is none."""
        laid = self.laid.files.get(job.read.part) if job.optional and self.laid else None
        if laid is None:
            return None
        try:
            if opened.file_identity() in (laid, None):
                return None
        except TensorkeepError as error:
            return _failure_of(source, error)
        return Failure(source, "unreachable", "its file was replaced by another while it was mapped")

    def close(self) -> None:
        """Forget the destinations. Nobody may deliver any more."""
        self.direct, self.deliver, self.landed, self.laid = _nowhere, _to_nobody, nothing_finished, None
        self.carries = nothing_far

    def let_go(self, job: ReadJob) -> None:
        """Give back the memory of a job that has ended."""
        if job.scratch is not None:
            self.scratch.give(job.scratch)
        job.image = job.scratch = None

    def _deliver(self, job: ReadJob) -> int:
        needed = sum(piece.length for piece in job.read.pieces)
        if job.optional:  # it lies where it should
            self.let_go(job)
            return needed
        delivered = needed - sum(piece.length for piece in job.copied)
        delivered += self.deliver(self._image_of(job), job.copied)
        self.let_go(job)
        return delivered + self.landed(job.read.pieces)


def _longest_window(job: ReadJob, *, is_kept: bool) -> int:
    if not job.optional:
        return WINDOW_BYTES
    return LONGEST_CHECK_BYTES if is_kept else CHECK_BYTES


def _bytes_from_disks() -> int:
    """Return how much this thread has read from disks so far; 0 where the system does not tell. Source: getrusage(2), ru_inblock."""
    if sys.platform != "linux":
        return 0
    return resource.getrusage(resource.RUSAGE_THREAD).ru_inblock * 512


def _to_nobody(image: PartImage, pieces: Sequence[Piece]) -> int:  # noqa: ARG001 - as `Deliver`
    return 0


def nothing_finished(pieces: Sequence[Piece]) -> int:  # noqa: ARG001 - as `Landed`
    """Return 0: nothing is left to do once the pieces have landed."""
    return 0


def nothing_far(pieces: Sequence[Piece]) -> bool:  # noqa: ARG001 - as `Reading.carries`
    """Return False: readers deliver what they have verified."""
    return False


def _nowhere(piece: Piece) -> memoryview | None:  # noqa: ARG001 - as `Reading.direct`
    return None


def _failure_of(source: PartSource, error: TensorkeepError) -> Failure:
    """Return what an error of a device means for the copy: absent and damaged are facts, all else is "cannot tell"."""
    kind: DamageKind = "unreachable"
    if isinstance(error, NotFound):
        kind = "missing"
    elif isinstance(error, Integrity):
        kind = "corrupt"
    return Failure(source, kind, error.message)
