"""Reads parts from devices: boxes of tensors into arrays (`read_boxes`), ranges of parts to a consumer (`read_parts`).

Both plan first (`planning.read_plan`), then run the plan (`transfer.schedule`). This is the *read* mode of a load: bytes
land in memory that the caller owns, each block verified by the thread that read it. What the *map* mode laid over addresses
(`transfer.mapped_tensors`) is verified in the same run, where it lies.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from tensorkeep.errors import InvalidInput
from tensorkeep.planning.read_plan import (
    CopyChoice,
    ExtentMap,
    PartRange,
    PartRead,
    Piece,
    choose_copies,
    plan_reads,
)
from tensorkeep.records.layout import BLOCK_BYTES, MIB
from tensorkeep.runtime import Cancellation, Clock, Runtime, collection_paused
from tensorkeep.transfer.boxes import Box, Landing, land_box
from tensorkeep.transfer.device_queue import checkers_per_device, longest_read_bytes, readers_per_device
from tensorkeep.transfer.far_memory import Carrier, FarMemory, copies_of
from tensorkeep.transfer.image import PartImage, ScratchPool
from tensorkeep.transfer.job import (
    LONGEST_CHECK_BYTES,
    Deliver,
    Failure,
    Landed,
    Reading,
    ReadJob,
    nothing_far,
    nothing_finished,
)
from tensorkeep.transfer.mapped_tensors import MappedTensors
from tensorkeep.transfer.report import (
    Damage,
    DeviceLoad,
    DevicePlan,
    LoadPlan,
    LoadReport,
    Verify,
    add_reports,
    merge_loads,
)
from tensorkeep.transfer.schedule import Scheduler
from tensorkeep.transfer.sources import RESTORER, SUSPECT, PartSource, PartTable
from tensorkeep.transfer.verification import Judge

MEMORY_LIMIT_BYTES = 256 * MIB


def read_boxes(
    boxes: Sequence[Box],
    *,
    parts: PartTable,
    mapped: MappedTensors | None = None,
    verify: Verify = "blocks",
    deadline_s: float | None = None,
    memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
    runtime: Runtime,
    progress: Callable[[int], None] | None = None,
    whole: Callable[[int], None] | None = None,
    stop: Cancellation | None = None,
) -> LoadReport:
    """Fill the destination of every box with verified bytes, from all devices at once, and return what was done.

    Damaged, missing and unreachable copies are replaced by other copies in the same load and named in the report.

    Args:
        boxes: what to read; all from the version that ``parts`` describes.
        parts: the parts, their checks and their copies.
        mapped: tensors that lie over files of these parts and are not verified yet. Where their copy fails, a good one takes
            its place, so that they are right when this returns; when it raises they must not be touched.
        verify: ``blocks``: every block touched; ``digest``: every part touched, whole; ``off``: nothing.
        deadline_s: seconds for the whole load, looked at between reads.
        memory_limit_bytes: bytes being read or verified at any moment, destinations included; one read is always let in.
        runtime: clock and workers.
        progress: told, in the caller's thread, how many needed bytes have landed since the last time.
        whole: told the number of each box once it is filled and verified, by the thread that brought its last bytes; also where
            the load fails later.
        stop: ends the load, by `Cancelled`, where it is cancelled.

    Raises:
        Integrity: a part has no good copy left, and one was corrupt.
        NotEnoughCopies: a part has no copy that can be read.
        Unavailable: the deadline passed.
        InvalidInput: a box fits neither its tensor nor its destination.
        Format: the manifest's tensor contradicts itself.
    """
    load = _Load(
        parts, runtime, verify=verify, deadline_s=deadline_s, memory_limit_bytes=memory_limit_bytes, progress=progress
    )
    load.cancellation = stop
    with collection_paused():
        landings = [land_box(box) for box in boxes]
    carriers = load.carriers = prepare_carriers(boxes)
    load.bytes_needed = sum(box.destination.nbytes for box in boxes) + (mapped.size_bytes if mapped else 0)

    def deliver(image: PartImage, pieces: Sequence[Piece]) -> int:
        delivered = 0
        with copies_of(carriers if carries(pieces) else ()):
            for piece in pieces:
                landing, offset = landings[piece.item], piece.offset
                for view in image.views(piece.start, piece.start + piece.length):
                    delivered += landing.write(offset, view)
                    offset += len(view)
        return delivered

    def direct(piece: Piece) -> memoryview | None:
        return landings[piece.item].direct(piece.offset, piece.length)

    def carries(pieces: Sequence[Piece]) -> bool:
        return bool(carriers) and any(landings[piece.item].is_carried for piece in pieces)

    with collection_paused():
        pieces = list(_box_pieces(boxes, landings, parts))
        landed = _Finishing(landings, pieces, whole)
        checks = (
            load.plan(mapped.runs(len(landings)), longest_bytes=LONGEST_CHECK_BYTES)
            if mapped and verify != "off"
            else []
        )
        reads = load.plan(pieces)
    if mapped:
        load.laid = mapped
    try:
        bad = load.run(reads, direct, deliver, landed, checks, carries)
    finally:
        if mapped:
            mapped.kept.close()
    if mapped and verify == "off" and progress:
        progress(mapped.size_bytes)
    if not mapped:
        return load.report()
    reports = [load.report()]
    if bad:
        reports.append(_heal(mapped, bad, load, parts, progress))
    return replace(
        add_reports(reports, verify=verify), mapped_bytes=mapped.size_bytes, unmapped_bytes=mapped.unmapped_bytes()
    )


def plan_boxes(
    boxes: Sequence[Box],
    *,
    parts: PartTable,
    verify: Verify = "blocks",
    memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
    runtime: Runtime,
) -> LoadPlan:
    """Return what `read_boxes` would read, tensors left out, and read nothing; destinations are not touched, and may be nowhere."""
    load = _Load(parts, runtime, verify=verify, deadline_s=None, memory_limit_bytes=memory_limit_bytes, progress=None)
    load.bytes_needed = sum(box.destination.nbytes for box in boxes)
    return load.foresee(load.plan(_box_pieces(boxes, [land_box(box) for box in boxes], parts)))


def _heal(
    mapped: MappedTensors,
    bad: set[int],
    load: "_Load",
    parts: PartTable,
    progress: Callable[[int], None] | None,
) -> LoadReport:
    """Read parts whose mapped copy failed into fresh memory in its place, from other copies first."""
    mapped.replace(bad)
    last = {part: mapped.sources[part] for part in bad}
    sources = {
        part: [*(each for each in parts.sources[part] if each is not last[part]), replace(last[part], rank=SUSPECT)]
        for part in bad
    }
    table = replace(parts, sources=sources)
    again = load.again(table, progress)

    def direct(piece: Piece) -> memoryview | None:
        return mapped.views[piece.item][piece.offset : piece.offset + piece.length]

    def deliver(image: PartImage, pieces: Sequence[Piece]) -> int:
        delivered = 0
        for piece in pieces:
            memory, at = mapped.views[piece.item], piece.offset
            for view in image.views(piece.start, piece.start + piece.length):
                memory[at : at + len(view)] = view
                at += len(view)
            delivered += piece.length
        return delivered

    reads = again.plan(mapped.pieces(bad))
    again.run(reads, direct, deliver)
    return again.report()


def prepare_carriers(boxes: Sequence[Box]) -> list[Carrier]:
    """Prepare the carriers of boxes, in the thread that made their destinations, and return them; `read_boxes` does so too."""
    found = {id(memory.carrier): memory.carrier for box in boxes if isinstance(memory := box.destination, FarMemory)}
    for carrier in found.values():
        carrier.prepare()
    return list(found.values())


class _Finishing:
    """Finishes each landing when its last piece has landed, in the thread that brought it, and tells ``whole``."""

    def __init__(
        self, landings: Sequence[Landing], pieces: Iterable[Piece], whole: Callable[[int], None] | None
    ) -> None:
        self._landings = landings
        self._whole = whole
        self._left = [0] * len(landings)  # bytes to come
        for piece in pieces:
            self._left[piece.item] += piece.length
        self._lock = threading.Lock()
        if whole is not None:
            for item, left in enumerate(self._left):
                if not left:
                    whole(item)

    def __call__(self, pieces: Sequence[Piece]) -> int:
        whole = []
        with self._lock:
            for piece in pieces:
                self._left[piece.item] -= piece.length
                if not self._left[piece.item]:
                    whole.append(piece.item)
        finished = 0
        for item in whole:
            finished += self._landings[item].finish()
            if self._whole is not None:
                self._whole(item)
        return finished


def read_parts(
    requests: Sequence[PartRange],
    consume: Callable[[PartRange, memoryview], None],
    *,
    parts: PartTable,
    verify: Verify = "blocks",
    deadline_s: float | None = None,
    memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
    runtime: Runtime,
    progress: Callable[[int], None] | None = None,
    stop: Cancellation | None = None,
) -> LoadReport:
    """Hand the verified bytes of every range to ``consume``, and return what was done.

    ``consume`` is called once for each request, with the request itself and a read-only view of all its bytes that is valid
    during the call; from several worker threads at once, in no order. A request of a part in fragments may come as several, each
    of some of its bytes and with its key. What it raises ends the load. A request is held in
    memory whole: with long ones, fewer are read at a time. All else is as in `read_boxes`.

    Raises:
        InvalidInput: a range lies outside its part.
    """
    load = _Load(
        parts, runtime, verify=verify, deadline_s=deadline_s, memory_limit_bytes=memory_limit_bytes, progress=progress
    )
    load.cancellation = stop
    load.bytes_needed = sum(request.length for request in requests)
    for request in requests:
        size = parts.sizes[request.part] if 0 <= request.part < len(parts.sizes) else -1
        if request.start < 0 or request.length < 0 or request.start + request.length > size:
            raise InvalidInput(f"{request} does not lie in a part of {size} bytes")

    if parts.units is not None:
        requests = list(parts.units.ranges(requests))
    for request in requests:
        if not request.length:
            consume(request, memoryview(b""))

    def deliver(image: PartImage, pieces: Sequence[Piece]) -> int:
        for piece in pieces:
            (view,) = image.views(piece.start, piece.start + piece.length)  # all is scratch, so one segment
            consume(requests[piece.item], view.toreadonly())
        return sum(piece.length for piece in pieces)

    pieces = parts.pieces(Piece(each.part, each.start, each.length, item, 0) for item, each in enumerate(requests))
    load.run(load.plan(pieces, keep_whole=True), lambda _: None, deliver)
    return load.report()


def _box_pieces(boxes: Sequence[Box], landings: Sequence[Landing], parts: PartTable) -> Iterable[Piece]:
    return parts.pieces(_part_pieces(boxes, landings))


def _part_pieces(boxes: Sequence[Box], landings: Sequence[Landing]) -> Iterable[Piece]:
    maps: dict[int, ExtentMap] = {}  # by identity: hashing a file would hash all its extents
    for item, (box, landing) in enumerate(zip(boxes, landings, strict=True)):
        extents = maps.get(id(box.file))
        if extents is None:
            extents = maps[id(box.file)] = ExtentMap(box.file.extents)
        for offset, length in landing.spans():
            yield from extents.pieces(box.tensor.start + offset, length, item, offset)


class _Load:
    """One load from plan to report."""

    def __init__(
        self,
        parts: PartTable,
        runtime: Runtime,
        *,
        verify: Verify,
        deadline_s: float | None,
        memory_limit_bytes: int,
        progress: Callable[[int], None] | None,
        deadline_at_s: float | None = None,
    ) -> None:
        self._parts = parts
        self._verify = verify
        self._limit = memory_limit_bytes
        self._runtime = runtime
        self._started_s = runtime.clock.monotonic_s()
        self._deadline_s = deadline_s
        if deadline_s is not None and deadline_at_s is None:
            deadline_at_s = self._started_s + deadline_s
        self._deadline_at_s = deadline_at_s
        self._stop_sign = _StopSign(self._deadline_at_s, runtime.clock)
        self._progress = progress
        self._choice = CopyChoice({}, {}, {})
        self._scheduler: Scheduler | None = None
        self._needed_parts: tuple[int, ...] = ()
        self._damaged: tuple[Damage, ...] = ()
        self.bytes_needed = 0
        self.carriers: Sequence[Carrier] = ()
        self.laid: MappedTensors | None = None
        self.cancellation: Cancellation | None = None

    def plan(
        self, pieces: Iterable[Piece], *, keep_whole: bool = False, longest_bytes: int | None = None
    ) -> list[PartRead]:
        return plan_reads(
            pieces,
            self._parts.sizes,
            max_read_bytes=longest_bytes or longest_read_bytes(self._limit, len(self._parts.devices), self._readers()),
            align=1 if self._verify == "off" else BLOCK_BYTES,
            whole_parts=self._verify == "digest",
            keep_whole=keep_whole,
            columns=self._parts.units.columns if self._parts.units is not None else None,
        )

    def foresee(self, reads: Sequence[PartRead]) -> LoadPlan:
        """Return what a run of these reads would take, as long as no copy fails."""
        self._choose(reads, {})
        choice = self._choice
        return LoadPlan(
            tensors=(),
            bytes_needed=self.bytes_needed,
            bytes_read=sum(read.end - read.start for read in reads),
            devices=tuple(
                DevicePlan(device, self._parts.device_name(device), size, choice.seconds[device])
                for device, size in choice.bytes.items()
            ),
            verify=self._verify,
        )

    def _readers(self) -> int:
        return readers_per_device(len(self._parts.devices), self._runtime.workers.cpu_count())

    def _checkers(self) -> int:
        return checkers_per_device(len(self._parts.devices), self._runtime.workers.cpu_count())

    def again(self, parts: PartTable, progress: Callable[[int], None] | None) -> "_Load":
        """Return a load of other copies of the same parts, up to the same deadline."""
        return _Load(
            parts,
            self._runtime,
            verify=self._verify,
            deadline_s=self._deadline_s,
            memory_limit_bytes=self._limit,
            progress=progress,
            deadline_at_s=self._deadline_at_s,
        )

    def run(
        self,
        reads: Sequence[PartRead],
        direct: Callable[[Piece], memoryview | None],
        deliver: Deliver,
        landed: Landed = nothing_finished,
        checks: Sequence[PartRead] = (),
        carries: Callable[[Sequence[Piece]], bool] = nothing_far,
    ) -> set[int]:
        """Run reads, and reads that only check the copy of their part that was laid; return the parts whose laid copy failed.

        Copies that could not be laid are tried before the one that would be chosen.
        """
        fixed, first = (self.laid.sources, self.laid.failed) if self.laid else ({}, {})
        reading = Reading(
            judge=Judge(self._parts),
            scratch=self._scratch(reads),
            verify=self._verify,
            part_sizes=self._parts.sizes,
            direct=direct,
            deliver=deliver,
            landed=landed,
            monotonic_s=self._runtime.clock.monotonic_s,
            should_stop=self._stop_sign.should_stop,
            laid=self.laid,
            carries=carries,
        )
        self._scheduler = Scheduler(
            self._parts,
            reading,
            self._runtime,
            memory_limit_bytes=self._limit,
            readers=self._readers() if reads else self._checkers(),
            deadline_at_s=self._deadline_at_s,
            deadline_s=self._deadline_s,
            progress=self._progress,
            cancellation=self.cancellation,
        )
        try:
            self._scheduler.run(self._jobs(reads, checks, fixed, first), self._stop_sign.stop)
        finally:
            self._damaged = self._find_damage(self._scheduler)
            if self._damaged and self._parts.note_damage:
                self._parts.note_damage(self._damaged)
        return self._scheduler.abandoned

    def _find_damage(self, scheduler: Scheduler) -> tuple[Damage, ...]:
        """Return what was found of copies and fragments; parts are those of the version."""
        units, restorer = self._parts.units, self._parts.restorer
        found = tuple(scheduler.damaged.values())
        if units is None or restorer is None:
            return found
        return (*(replace(each, part=units.parts[each.part]) for each in found), *restorer.take_damage())

    def _scratch(self, reads: Sequence[PartRead]) -> ScratchPool:
        """Return buffers; where a carrier brings them, all of the longest read's size, so that few have to be made."""
        if not self.carriers:
            return ScratchPool(self._limit)
        longest = max((read.end - read.start for read in reads), default=0)
        longest = min(longest, longest_read_bytes(self._limit, len(self._parts.devices), self._readers()))
        return ScratchPool(self._limit, allocate=self.carriers[0].allocate, least_bytes=longest)

    def report(self) -> LoadReport:
        assert self._scheduler is not None
        devices = self._device_loads(self._scheduler)
        return LoadReport(
            bytes_needed=self.bytes_needed,
            bytes_read=sum(each.bytes for each in devices),
            seconds=self._runtime.clock.monotonic_s() - self._started_s,
            devices=devices,
            damaged=(*self._damaged, *self._find_absent()),
            retried=self._scheduler.retried,
            hedged=self._scheduler.hedged,
            verify=self._verify,
        )

    def _device_loads(self, scheduler: Scheduler) -> tuple[DeviceLoad, ...]:
        """Return what each device gave, as a copy and to restore from."""
        loads = [
            DeviceLoad(
                id=queue.device,
                name=self._parts.device_name(queue.device),
                bytes=queue.bytes_read,
                seconds=queue.seconds,
                predicted_seconds=self._choice.seconds.get(queue.device, 0.0),
            )
            for queue in scheduler.queues.values()
            if queue.started_s is not None and queue.device != RESTORER
        ]
        restored = self._parts.restorer.take_loads() if self._parts.restorer is not None else []
        return merge_loads([*loads, *restored])

    def _find_absent(self) -> Iterable[Damage]:
        """Yield one note for each device that can't be reached and has copies of parts of this load."""
        first: dict[str, tuple[int, PartSource]] = {}
        counts: dict[str, int] = {}
        for part in self._needed_parts:
            for source in self._parts.sources.get(part, ()):
                if source.device not in self._parts.devices:
                    first.setdefault(source.device, (part, source))
                    counts[source.device] = counts.get(source.device, 0) + 1
        told = {each.device for each in self._damaged if each.kind == "unreachable"}
        for device, (part, source) in first.items():
            if device in told:
                continue
            of = part if self._parts.units is None else self._parts.units.parts[part]
            reason = f"can't be reached; it has copies of {counts[device]} parts of this load"
            name = self._parts.device_name(device)
            yield Damage(source.location, of, device, name, reason, "unreachable", confirmed=False)

    def _jobs(
        self,
        reads: Sequence[PartRead],
        checks: Sequence[PartRead],
        fixed: Mapping[int, PartSource],
        first: Mapping[int, PartSource],
    ) -> Iterable[ReadJob]:
        usable, trusted = self._choose((*reads, *checks), fixed)
        for read in reads:
            sources = usable[read.part]
            chosen = self._choice.copies.get(read.part)
            best = first.get(read.part) or (None if chosen is None else trusted[read.part][chosen])
            if best is not None:
                sources = [best, *(each for each in sources if each is not best)]
            absent = [
                Failure(each, "unreachable", "is not reachable")
                for each in self._parts.sources.get(read.part, ())
                if each.device not in self._parts.devices
            ]
            yield ReadJob(read, list(sources), [(read.start, read.end)], absent)
        for read in checks:
            yield ReadJob(read, [fixed[read.part]], [(read.start, read.end)], optional=True)

    def _choose(
        self, reads: Iterable[PartRead], fixed: Mapping[int, PartSource]
    ) -> tuple[Mapping[int, list[PartSource]], Mapping[int, list[PartSource]]]:
        """Choose a copy of each part; return part → its copies that can be reached, and those of them that were chosen from."""
        needs: dict[int, int] = {}
        for read in reads:
            needs[read.part] = needs.get(read.part, 0) + read.end - read.start
        self._needed_parts = tuple(needs)
        usable = {
            part: [each for each in self._parts.sources.get(part, ()) if each.device in self._parts.devices]
            for part in needs
        }
        trusted = {part: _of_lowest_rank(usable[part]) for part in needs}
        trusted.update((part, [source]) for part, source in fixed.items() if part in needs)
        devices = {part: [each.device for each in trusted[part]] for part in needs}
        self._choice = choose_copies(needs, devices, self._parts.rates)
        return usable, trusted


def _of_lowest_rank(sources: list[PartSource]) -> list[PartSource]:
    lowest = min((each.rank for each in sources), default=0)
    return [each for each in sources if each.rank == lowest]


class _StopSign:
    """Tells the workers of a load to end. Apart from the load: a cycle would keep all that was loaded until it is collected."""

    def __init__(self, deadline_at_s: float | None, clock: Clock) -> None:
        self._deadline_at_s = deadline_at_s
        self._clock = clock
        self._stopped = False

    def stop(self) -> None:
        self._stopped = True

    def should_stop(self) -> bool:
        late = self._deadline_at_s is not None and self._clock.monotonic_s() > self._deadline_at_s
        return self._stopped or late
