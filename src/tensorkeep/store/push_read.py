"""Reading what a push sends: every byte once, hashed while it is in the cache, written while the next ones are read.

Each file is one lane: its bytes go in order through SHA-256 (and git's SHA-1, and the BLAKE3 of tensors that are not exactly
one part); each run that is a part is hashed as one (BLAKE3, XXH3 per block) and handed to the writer. Packs gather items of many
files and are a lane of their own. All buffers are cut from one arena, so all lanes together stay under 256 MiB.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from tensorkeep.errors import InvalidInput
from tensorkeep.planning.splitting import Piece, PlannedPart
from tensorkeep.records.digest import blake3_256
from tensorkeep.records.layout import MIB
from tensorkeep.runtime import Cancellation, Cancelled, WorkerPool, Workers
from tensorkeep.store.push_plan import PushPlan
from tensorkeep.transfer.arena import Arena, Lease
from tensorkeep.transfer.hashing import FileHasher, RangeHasher, hash_part
from tensorkeep.transfer.memory import allocate

LANES = 2
ARENA_BYTES = 248 * MIB
_BATCH_BYTES = 56 * MIB
_BATCH_PARTS = 1000  # a transaction of more would keep others waiting
_SCRATCH_BYTES = 4 * MIB  # for each lane: what is read and not kept


class PartFact(NamedTuple):
    """What is known of a part once it was read: its digest, size and block checks."""

    digest: bytes
    size_bytes: int
    checks: Sequence[int]


@dataclass(frozen=True, slots=True)
class ReadPart:
    """A part in memory: its number in the split plan, what is known of it, its bytes."""

    index: int
    fact: PartFact
    data: memoryview


@dataclass(frozen=True, slots=True)
class FileFact:
    """What is known of a file once it was read: hex digests, and the BLAKE3 of ranges (start, length) that are tensors of their own."""

    sha256: str
    git_sha1: str | None
    range_digests: Mapping[tuple[int, int], bytes]


@dataclass(frozen=True, slots=True)
class ReadResult:
    """What a push read: facts of the split plan's new parts by number, and of the read files in order."""

    parts: Mapping[int, PartFact]
    files: tuple[FileFact, ...]


BatchSink = Callable[[Sequence[ReadPart], Cancellation], None]
ByteCounter = Callable[[int], None]


def read_sources(
    plan: PushPlan,
    sink: BatchSink,
    *,
    workers: Workers,
    pool: WorkerPool,
    count: ByteCounter,
    arena_bytes: int = ARENA_BYTES,
) -> ReadResult:
    """Read every file of the plan, hand every new part to ``sink`` in batches, and return what was learnt.

    Args:
        plan: what to read.
        sink: stores a batch of parts; called from ``pool``, several at once; when it returns the buffers are free. It may end by
            `Cancelled` once its second argument says that the push was given up.
        workers: opens the lanes.
        pool: where ``sink`` runs, so that a lane reads on while its last batch is written.
        count: told of bytes of files that were read.
        arena_bytes: all buffers together; what ``sink`` takes beside them is not among them.

    Raises:
        InvalidInput: a source changed meanwhile.
    """
    facts: dict[int, PartFact] = {}
    runs = _runs_by_file(plan)
    stop = Cancellation()
    batches = _Batches(sink, pool, facts, stop, arena_bytes)
    with workers.open_pool(LANES, "read") as lanes, stop:
        # The largest file first: lanes finish together.
        order = sorted(range(len(plan.read)), key=lambda number: -plan.read[number].size_bytes)
        packs = lanes.submit(_read_packs, plan, batches)
        files = {
            number: lanes.submit(_read_file, plan, number, runs.get(number, {}), batches, count) for number in order
        }
        _wait([packs, *files.values()], stop)
    for source in plan.sources:
        source.check_unchanged()
    return ReadResult(facts, tuple(files[index].result() for index in range(len(plan.read))))


def _wait(tasks: Sequence[Future[Any]], stop: Cancellation) -> None:
    """Return when all tasks are done; at the first error the others are stopped, and it is raised."""
    for task in as_completed(tasks):
        error = task.exception()
        if error is not None:
            stop.cancel()
            if not isinstance(error, Cancelled):
                raise error


def gather_part(plan: PushPlan, part: PlannedPart) -> memoryview:
    """Return the bytes of a planned part, read again from its sources."""
    data = allocate(part.size_bytes)
    _clear_padding(data, part)
    for piece in part.pieces:
        plan.read[piece.file].read_into(piece.start, data[piece.offset : piece.offset + piece.length])
    return data


class _Batches:
    """What the lanes of one push share: where batches go, the memory they are read into, what is known of their parts."""

    def __init__(
        self, sink: BatchSink, pool: WorkerPool, facts: dict[int, PartFact], stop: Cancellation, arena_bytes: int
    ) -> None:
        self._sink = sink
        self._pool = pool
        self._arena = Arena(arena_bytes)
        self.facts = facts
        self.stop = stop

    @contextmanager
    def lane(self) -> Iterator["_Lane"]:
        """Give a lane; when the block is left everything that was added to it is stored, or it ends by an error."""
        lane = _Lane(self, self._arena)
        try:
            yield lane
            lane.finish()
        finally:
            lane.drop()

    def send(self, parts: Sequence[ReadPart], leases: Sequence[Lease]) -> "Future[None]":
        """Hand parts to the sink; their memory is free once it is done with them."""
        return self._pool.submit(self._store, parts, leases)

    def _store(self, parts: Sequence[ReadPart], leases: Sequence[Lease]) -> None:
        try:
            self._sink(parts, self.stop)
        finally:
            for lease in leases:
                self._arena.give_back(lease)


class _Lane:
    """Parts on their way from one file, or from the packs, to the sink, in batches."""

    def __init__(self, batches: _Batches, arena: Arena) -> None:
        self._batches = batches
        self._arena = arena
        self._parts: list[ReadPart] = []
        self._leases: list[Lease] = []
        self._bytes = 0
        self._flying: deque[Future[None]] = deque()

    def make_room(self, size_bytes: int) -> memoryview:
        """Return a buffer of that size, once there is room; raises `Cancelled` where the push was given up."""
        self._batches.stop.check()
        while self._flying and self._flying[0].done():
            self._flying.popleft().result()
        lease = self._arena.try_take(size_bytes)
        if lease is None:
            self._send()  # who waits must hold nothing
            lease = self._arena.take(size_bytes)
        self._leases.append(lease)
        self._batches.stop.check()
        return lease.data

    def add(self, index: int, data: memoryview) -> PartFact:
        """Hash a part, keep it for the next batch, and return what is known of it."""
        hashed = hash_part(data)
        fact = PartFact(hashed.digest, len(data), hashed.checks)
        self._batches.facts[index] = fact
        self._parts.append(ReadPart(index, fact, data))
        self._bytes += len(data)
        if self._bytes >= _BATCH_BYTES or len(self._parts) >= _BATCH_PARTS:
            self._send()
        return fact

    def finish(self) -> None:
        """Return when everything that was added is stored."""
        self._send()
        while self._flying:
            self._flying.popleft().result()

    def drop(self) -> None:
        """Give back the memory of what was not sent."""
        for lease in self._leases:
            self._arena.give_back(lease)
        self._leases = []

    def _send(self) -> None:
        if self._parts:
            self._flying.append(self._batches.send(self._parts, self._leases))
            self._parts, self._leases, self._bytes = [], [], 0


def _runs_by_file(plan: PushPlan) -> dict[int, dict[int, tuple[int, Piece]]]:
    """Return for each file its parts that are one run of it: start → (part number, piece)."""
    runs: dict[int, dict[int, tuple[int, Piece]]] = {}
    for index, part in enumerate(plan.split.parts):
        if isinstance(part, PlannedPart) and _is_run(part):
            runs.setdefault(part.pieces[0].file, {})[part.pieces[0].start] = (index, part.pieces[0])
    return runs


def _is_run(part: PlannedPart) -> bool:
    return len(part.pieces) == 1 and part.pieces[0].length == part.size_bytes


def _read_packs(plan: PushPlan, batches: _Batches) -> None:
    with batches.lane() as lane:
        for index, part in enumerate(plan.split.parts):
            if isinstance(part, PlannedPart) and not _is_run(part):
                lane.add(index, _read_pack(plan, part, lane.make_room(part.size_bytes)))


def _read_pack(plan: PushPlan, part: PlannedPart, data: memoryview) -> memoryview:
    _clear_padding(data, part)
    for piece in part.pieces:
        view = data[piece.offset : piece.offset + piece.length]
        source = plan.read[piece.file]
        source.read_into(piece.start, view)
        if blake3_256(view) != plan.item_digests[piece.file, piece.start, piece.length]:
            raise InvalidInput(f"{source.path} changed while it was pushed: nothing was committed", path=source.path)
    return data


def _clear_padding(data: memoryview, part: PlannedPart) -> None:
    """Set what lies between the pieces to zero: fresh memory holds anything, and the same items must give the same pack."""
    covered = 0
    for piece in sorted(part.pieces, key=lambda piece: piece.offset):
        data[covered : piece.offset] = bytes(piece.offset - covered)
        covered = piece.offset + piece.length
    data[covered:] = bytes(len(data) - covered)


def _read_file(
    plan: PushPlan, number: int, runs: Mapping[int, tuple[int, Piece]], batches: _Batches, count: ByteCounter
) -> FileFact:
    source = plan.read[number]
    hasher = FileHasher(source.size_bytes)
    ranges = _streamed_ranges(plan, number, runs)
    tensors = RangeHasher(ranges)
    scratch = allocate(min(source.size_bytes, _SCRATCH_BYTES))
    with batches.lane() as lane:
        for start, length in _segments(source.size_bytes, runs):
            run = runs.get(start)
            data = lane.make_room(length) if run else scratch[:length]
            source.read_into(start, data)
            hasher.update(data)
            tensors.update(data)
            if run:
                lane.add(run[0], data)
            count(length)
    return FileFact(hasher.sha256, hasher.git_sha1, dict(zip(ranges, tensors.digests(), strict=True)))


def _segments(size_bytes: int, runs: Mapping[int, tuple[int, Piece]]) -> Iterator[tuple[int, int]]:
    """Yield (start, length) over a whole file: each run whole, what lies between in pieces of at most `_SCRATCH_BYTES`."""
    position = 0
    for start in [*sorted(runs), size_bytes]:
        while position < start:
            length = min(_SCRATCH_BYTES, start - position)
            yield position, length
            position += length
        if start in runs:
            yield start, runs[start][1].length
            position = start + runs[start][1].length


def _streamed_ranges(plan: PushPlan, number: int, runs: Mapping[int, tuple[int, Piece]]) -> list[tuple[int, int]]:
    """Return (start, length) of tensors whose digest neither a part nor a small item gives, by start."""
    streamed = set()
    for tensor in plan.structures[number].tensors:
        run = runs.get(tensor.start)
        whole_part = run is not None and run[1].length == tensor.length
        if tensor.length and not whole_part and (number, tensor.start, tensor.length) not in plan.item_digests:
            streamed.add((tensor.start, tensor.length))
    return sorted(streamed)
