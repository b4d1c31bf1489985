"""One read of a plan, through all its attempts: what is still pending, what was tried, where the bytes lie."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tensorkeep.devices.protocol import Device
from tensorkeep.errors import Integrity, NotFound, TensorkeepError
from tensorkeep.planning.read_plan import PartRead, Piece
from tensorkeep.transfer.image import PartImage, PassingImage, ScratchPool, lay_out
from tensorkeep.transfer.memory import HUGE_PAGE_BYTES
from tensorkeep.transfer.report import DamageKind, Verify
from tensorkeep.transfer.sources import PartSource
from tensorkeep.transfer.verification import DigestStream, Judge, Mismatch, iter_windows

WINDOW_BYTES = 8 << 20
"""Longest single read from a device: hashed right after, while it is in the last-level cache."""

CHECK_BYTES = 1 << 20
"""The same where bytes are only checked: one buffer a thread, which its own cache holds."""

Deliver = Callable[[PartImage, Sequence[Piece]], int]
"""Takes the pieces of a verified image that were not read in place; returns how many needed bytes that were."""

Landed = Callable[[Sequence[Piece]], int]
"""Told, in the thread that read them, which pieces have landed; returns how many needed bytes that completed beyond those."""

Ahead = Callable[[int, int, int], None]
"""Told, in the thread that is about to check them, which bytes (part, start, end) are to be checked where they lie elsewhere."""


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

    @property
    def size_bytes(self) -> int:
        """Memory that the read takes, in destinations and in scratch."""
        return max(self.read.end - self.read.start, self.least_bytes)


@dataclass(frozen=True, slots=True)
class Attempt:
    """What one attempt gave; times by the runtime's clock.

    ``delivered`` needed bytes have landed; the job is done where ``failure`` and ``stopped`` are both unset. ``late``: all was read,
    and another attempt had delivered it.
    """

    bytes_read: int
    started_s: float
    ended_s: float
    delivered: int = 0
    failure: Failure | None = None
    stopped: bool = False
    late: bool = False


@dataclass(slots=True)
class Reading:
    """What all attempts of a load share; once it is closed, attempts that still run keep none of the load's arrays alive."""

    judge: Judge
    scratch: ScratchPool
    verify: Verify
    part_sizes: Sequence[int]
    direct: Callable[[Piece], memoryview | None]
    deliver: Deliver
    landed: Landed
    monotonic_s: Callable[[], float]
    should_stop: Callable[[], bool]
    ahead: Ahead

    def attempt(self, job: ReadJob, source: PartSource, device: Device) -> Attempt:
        """Read what is pending from one copy, verify it, and deliver when all is there.

        What was good stays; what was not is read once more, since a bit may have flipped on the way, before the copy is
        blamed, and then pending for the next copy. Errors of the device become the attempt's failure; errors of delivery
        are raised.
        """
        started = self.monotonic_s()
        if job.image is None:
            self._lay_out(job)
            assert job.image is not None
        bytes_read, failure, stopped = self._fill(job, job.image, source, device)
        if failure and failure.kind == "corrupt":
            more, failure, stopped = self._fill(job, job.image, source, device)
            bytes_read += more
        ended = self.monotonic_s()
        if not job.pending and job.race is not None and not job.race.win(job):
            self.let_go(job)
            return Attempt(bytes_read, started, ended, late=True)
        delivered = 0 if job.pending else self._deliver(job, job.image)
        return Attempt(bytes_read, started, ended, delivered, failure, stopped)

    def _lay_out(self, job: ReadJob) -> None:
        if job.optional:
            job.scratch = self.scratch.take(min(job.read.end - job.read.start, CHECK_BYTES))
            job.image, job.copied = PassingImage(job.scratch), list(job.read.pieces)
        else:
            direct = self.direct if job.race is None else _nowhere
            job.image, job.copied, job.scratch = lay_out(job.read, direct, self.scratch)

    def _fill(
        self, job: ReadJob, image: PartImage, source: PartSource, device: Device
    ) -> tuple[int, Failure | None, bool]:
        part = job.read.part
        if source.length != self.part_sizes[part]:
            reason = f"the copy has {source.length} bytes, the part {self.part_sizes[part]}"
            return 0, Failure(source, "corrupt", reason), False
        stream = DigestStream() if self.verify == "digest" else None
        windows = list(iter_windows(job.pending, CHECK_BYTES if job.optional else WINDOW_BYTES))
        done, left, bad = 0, windows, list[Mismatch]()
        failure, stopped = None, False
        for number, (start, end) in enumerate(windows):
            left = windows[number:]
            if stopped := self.should_stop():
                break
            if job.optional and (number == 0 or start % HUGE_PAGE_BYTES == 0):
                self.ahead(part, start, min(start - start % HUGE_PAGE_BYTES + HUGE_PAGE_BYTES, job.read.end))
            views = image.views(start, end)
            try:
                device.read_into(source.name, source.offset + start, views)
            except TensorkeepError as error:
                failure = _failure_of(source, error)
                break
            done, left = done + end - start, windows[number + 1 :]
            if stream:
                stream.update(views)
            elif self.verify == "blocks":
                bad += self.judge.judge_blocks(image, part, start, end)
        if stream and not left:
            bad = self.judge.judge_digest(part, stream.digest())
        if bad:
            failure = failure or Failure(source, "corrupt", bad[0].reason, bad[0].confirmed)
        # A digest says nothing of a piece of a part: then the next copy starts from the beginning.
        restart = stream is not None and bool(left or bad)
        job.pending = job.pending if restart else [(each.start, each.end) for each in bad] + left
        return done, failure, stopped

    def close(self) -> None:
        """Forget the destinations. Nobody may deliver any more."""
        self.direct, self.deliver, self.landed, self.ahead = _nowhere, _to_nobody, nothing_finished, nothing_ahead

    def let_go(self, job: ReadJob) -> None:
        """Give back the memory of a job that has ended."""
        if job.scratch is not None:
            self.scratch.give(job.scratch)
        job.image = job.scratch = None

    def _deliver(self, job: ReadJob, image: PartImage) -> int:
        placed = sum(piece.length for piece in job.read.pieces) - sum(piece.length for piece in job.copied)
        delivered = placed + self.deliver(image, job.copied)
        self.let_go(job)
        return delivered + self.landed(job.read.pieces)


def _to_nobody(image: PartImage, pieces: Sequence[Piece]) -> int:  # noqa: ARG001 - as `Deliver`
    return 0


def nothing_finished(pieces: Sequence[Piece]) -> int:  # noqa: ARG001 - as `Landed`
    """Return 0: nothing is left to do once the pieces have landed."""
    return 0


def nothing_ahead(part: int, start: int, end: int) -> None:
    """Do nothing: what is to be checked lies nowhere else."""


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
