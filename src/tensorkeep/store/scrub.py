"""Scrub: devices are looked through for what is missing or damaged, page by page, so that a scrub that is killed goes on.

A light scrub lists every folder of a device beside the catalog's rows: objects that are missing or have another size are marked
bad, and objects that no row tells of are noted for gc. A deep one reads every byte, past the system's cache as far as the system
lets go of it, and compares it with its digest. Devices are scrubbed at once, each at its own pace.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import msgspec

from tensorkeep.catalog.protocol import Location, ScrubDepth, ScrubState
from tensorkeep.catalog.rules import USABLE
from tensorkeep.devices.protocol import Device
from tensorkeep.devices.rate_limit import open_bucket
from tensorkeep.errors import Conflict, Integrity, NotFound, PermissionDenied, TensorkeepError, Unavailable
from tensorkeep.records.device import DeviceFacts
from tensorkeep.records.json_text import format_time
from tensorkeep.records.naming import ObjectKind, parse_physical_name
from tensorkeep.runtime import Cancellation
from tensorkeep.store.answering import Answering, answers
from tensorkeep.store.checking import CHUNK_BYTES, check_copy
from tensorkeep.store.context import StoreContext
from tensorkeep.store.fragments import object_bytes
from tensorkeep.store.journal import refuse_stale
from tensorkeep.store.progress import ByteProgress
from tensorkeep.store.read_back import drop_cached
from tensorkeep.store.reports import DeviceScrub, Problem, ProgressCallback, ScrubReport
from tensorkeep.transfer.memory import allocate

_PAGE = 200
_UNREADABLE = 3
"""Objects of a page that may be unreadable by themselves; of more the device is suspected."""

_FOLDERS = 16
"""That are listed together: a sixteenth of what a device holds of a kind is in memory at once."""

_READERS = 2
"""Threads that read from one device."""

_CHECKED = (*USABLE, "bad")


@dataclass(slots=True)
class _Found:
    """What a page of a scrub found."""

    good: list[int] = field(default_factory=list)
    bad: list[Problem] = field(default_factory=list)
    bad_rows: list[int] = field(default_factory=list)
    unread: list[Problem] = field(default_factory=list)
    unreadable: list[Location] = field(default_factory=list)
    bytes: int = 0

    def add(self, other: "_Found") -> None:
        self.good += other.good
        self.bad += other.bad
        self.bad_rows += other.bad_rows
        self.unread += other.unread
        self.unreadable += other.unreadable
        self.bytes += other.bytes


def scrub(
    context: StoreContext,
    *,
    depth: ScrubDepth,
    devices: Sequence[str],
    rate_limit: int | None,
    restart: bool,
    progress: ProgressCallback | None,
) -> ScrubReport:
    """Look through devices; see `Store.scrub`."""
    started_s = context.runtime.clock.monotonic_s()
    if context.read_only:
        raise PermissionDenied(f"the store {context.place.shown} can't be written: use `tensorkeep verify`")
    context.fleet.recheck()
    refuse_stale(context)
    members = [m for m in context.fleet.members() if not devices or m.facts.name.casefold() in _folded(devices)]
    _refuse_unknown(devices, [member.facts for member in members])
    held = {row.device: row.bytes for row in context.catalog.device_usage()}
    before = {state.device: state for state in context.catalog.list_scrubs() if state.depth == depth}
    todo = [(m.facts, m.device) for m in members if m.readable and m.device is not None]
    left = [_bytes_left(before.get(facts.id), held.get(facts.id, 0), restart=restart) for facts, _ in todo]
    counter = ByteProgress(progress, "scrub", sum(left) if depth == "deep" else 0)
    reports = []
    with context.runtime.workers.open_pool(max(1, len(todo)), "scrub") as pool, Cancellation() as stop:
        tasks = []
        for facts, device in todo:
            state = before.get(facts.id)
            if state is None or not state.after or restart:
                ended = state.ended_at if state else None
                now = format_time(context.runtime.clock.now())
                state = ScrubState(device=facts.id, depth=depth, begun_at=now, ended_at=ended)
            one = _DeviceScrub(context, facts, device, state, rate_limit, counter, stop)
            tasks.append(pool.submit(one.run))
        reports = [task.result() for task in tasks]
    for member in members:
        if not member.readable:
            problem = Problem("unreachable", "device", str(member.problem), device=member.facts.name)
            reports.append(
                DeviceScrub(
                    device=member.facts.name,
                    objects=0,
                    bytes=0,
                    bad=0,
                    orphans=0,
                    complete=False,
                    seconds=0.0,
                    problems=(problem,),
                )
            )
    return ScrubReport(
        depth=depth,
        devices=tuple(sorted(reports, key=lambda report: report.device)),
        seconds=context.runtime.clock.monotonic_s() - started_s,
    )


def _folded(names: Sequence[str]) -> set[str]:
    return {name.casefold() for name in names}


def _refuse_unknown(asked: Sequence[str], found: Sequence[DeviceFacts]) -> None:
    unknown = [name for name in asked if name.casefold() not in _folded([facts.name for facts in found])]
    if unknown:
        raise NotFound(f"no device {unknown[0]!r} in use: `tensorkeep device ls` lists them", device=unknown[0])


def _bytes_left(state: ScrubState | None, held: int, *, restart: bool) -> int:
    done = state.bytes if state is not None and state.after and not restart else 0
    return max(0, held - done)


class _DeviceScrub:
    """The scrub of one device, from where the last one that was cut off has left it."""

    def __init__(
        self,
        context: StoreContext,
        facts: DeviceFacts,
        device: Device,
        state: ScrubState,
        rate_limit: int | None,
        counter: ByteProgress,
        stop: Cancellation,
    ) -> None:
        self._context = context
        self._facts = facts
        self._device = device
        self._state = state
        self._bucket = open_bucket(rate_limit, context.runtime.clock)
        self._counter = counter
        self._stop = stop
        self._answering = Answering(device)
        self._found = _Found()
        self._orphans = 0

    def run(self) -> DeviceScrub:
        clock = self._context.runtime.clock
        started_s = clock.monotonic_s()
        complete = True
        try:
            pages = self._deep_pages() if self._state.depth == "deep" else self._light_pages()
            for after, objects, page in pages:
                complete = not self._answering.is_given_up and (
                    not page.unread or (len(page.unread) <= _UNREADABLE and answers(self._device))
                )
                self._keep(page, after, objects, advance=complete)
                if not complete:
                    break  # the device may be going: what is left is for the next scrub
            if complete:
                ended = msgspec.structs.replace(self._state, after=0, ended_at=format_time(clock.now()))
                self._context.catalog.record_scrub(ended, good=[], bad=[])
        except Conflict:
            raise
        except TensorkeepError as error:
            complete = False
            self._found.unread.append(Problem("unreachable", "device", error.message, device=self._facts.name))
        return DeviceScrub(
            device=self._facts.name,
            objects=self._state.objects,
            bytes=self._found.bytes,
            bad=len(self._found.bad),
            orphans=self._orphans,
            complete=complete,
            seconds=clock.monotonic_s() - started_s,
            problems=(*self._found.bad, *self._found.unread),
        )

    def _keep(self, page: _Found, after: int, objects: int, *, advance: bool) -> None:
        """Have the catalog know what a page found, and where the next one begins, in one transaction."""
        self._leave_out_condemned(page)
        if advance:
            self._state = msgspec.structs.replace(
                self._state,
                after=after,
                objects=self._state.objects + objects,
                bytes=self._state.bytes + page.bytes,
                bad=self._state.bad + len(page.bad),
            )
        self._context.catalog.record_scrub(self._state, good=page.good, bad=page.bad_rows)
        self._context.runtime.failpoints.hit("scrub.page_recorded")
        self._found.bad += page.bad
        self._found.unread += page.unread
        self._found.bytes += page.bytes

    def _leave_out_condemned(self, page: _Found) -> None:
        """Forget what is wrong with copies that were given up since they were listed: gc may have deleted them meanwhile."""
        kept = []
        for number, problem in zip(page.bad_rows, page.bad, strict=True):
            rows = self._context.catalog.list_on(self._facts.id, after=number - 1, limit=1)
            if rows and rows[0].id == number and rows[0].state in _CHECKED:
                kept.append((number, problem))
        page.bad_rows, page.bad = [number for number, _ in kept], [problem for _, problem in kept]

    # ---------------------------------------------------------------- deep

    def _deep_pages(self) -> Iterator[tuple[int, int, _Found]]:
        """Yield, for each page of rows: the id of its last, how many were checked, what was found."""
        after = self._state.after
        with self._context.runtime.workers.open_pool(_READERS, "read") as pool:
            while rows := self._context.catalog.list_on(self._facts.id, after=after, limit=_PAGE):
                after = rows[-1].id
                checked = [row for row in rows if row.state in _CHECKED]
                lanes = [checked[lane::_READERS] for lane in range(_READERS)]
                page = _Found()
                for task in [pool.submit(self._read_lane, lane) for lane in lanes]:
                    page.add(task.result())
                self._judge_unreadable(page)
                yield after, len(checked), page

    def _read_lane(self, rows: Sequence[Location]) -> _Found:
        found = _Found()
        scratch = allocate(CHUNK_BYTES)
        for number, row in enumerate(rows):
            self._stop.check()
            drop_cached(self._device, row.name)
            if self._answering.is_given_up:
                what = f"{len(rows) - number} objects"
                detail = f"the device answers no more; not looked at are {what}, and what comes after them"
                found.unread.append(Problem("unreachable", what, detail, device=self._facts.name))
                break
            problem = self._ask(row, partial(check_copy, self._device, row, scratch, before=self._take))
            self._note(found, row, problem)
            found.bytes += row.length
            self._counter.count(row.length)
        return found

    def _judge_unreadable(self, page: _Found) -> None:
        """Call copies bad that can't be read twice, though their device answers: a sector of the disk is. Few: else it is the device."""
        if not page.unreadable or len(page.unreadable) > _UNREADABLE or self._answering.is_given_up:
            return
        if not answers(self._device):
            return
        scratch = allocate(CHUNK_BYTES)
        for row in page.unreadable:
            try:
                check_copy(self._device, row, scratch, before=self._take)
            except Unavailable as error:
                if answers(self._device):
                    detail = f"it can't be read, twice: {error.message}"
                    page.bad.append(Problem("corrupt", row.name, detail, device=self._facts.name))
                    page.bad_rows.append(row.id)
                    page.unread = [problem for problem in page.unread if problem.object != row.name]
            except TensorkeepError:
                continue

    def _take(self, size_bytes: int) -> None:
        if self._bucket is not None:
            self._bucket.take(size_bytes)

    # --------------------------------------------------------------- light

    def _light_pages(self) -> Iterator[tuple[int, int, _Found]]:
        """Yield, for each run of folders: its number from 1, how many rows were checked, what was found."""
        for number, (folders, kind, first, last) in enumerate(_folders(), start=1):
            if number <= self._state.after:
                continue
            self._stop.check()
            # In this order: what is put meanwhile has a row before it is there.
            before = self._context.catalog.list_named(self._facts.id, kind, first, last)
            listed = {info.name: info.size_bytes for folder in folders for info in self._device.iter_objects(folder)}
            page = _Found()
            checked = [row for row in before if row.state in _CHECKED]
            for row in checked:
                if self._answering.is_given_up:
                    break
                problem = self._ask(row, partial(self._check_listed, row, listed))
                self._note(page, row, problem)
            known = {row.name for row in self._context.catalog.list_named(self._facts.id, kind, first, last)}
            self._note_orphans({name: size for name, size in listed.items() if name not in known})
            yield number, len(checked), page

    def _check_listed(self, row: Location, listed: dict[str, int]) -> None:
        if row.name not in listed:
            # A listing may lag; only the device's own answer counts. Presence alone makes no bad copy good.
            self._device.size_of(row.name)
        elif listed[row.name] != object_bytes(row):
            size = self._device.size_of(row.name)
            if size != object_bytes(row):
                raise Integrity(f"it has {size} bytes instead of {object_bytes(row)}")

    def _note_orphans(self, unknown: dict[str, int]) -> None:
        ours = [(name, size) for name, size in unknown.items() if parse_physical_name(name) is not None]
        if ours:
            self._orphans += self._context.catalog.note_orphans(
                self._facts.id, ours, heads=self._context.fleet.heads(), now=self._context.runtime.clock.now()
            )

    # -------------------------------------------------------------- common

    def _ask(self, row: Location, check: Callable[[], None]) -> Problem | None:
        try:
            check()
        except NotFound as error:
            self._answering.answered()
            return Problem("missing", row.name, error.message, device=self._facts.name)
        except Integrity as error:
            self._answering.answered()
            return Problem("corrupt", row.name, error.message, device=self._facts.name)
        except TensorkeepError as error:
            self._answering.failed()
            return Problem("unreachable", row.name, error.message, device=self._facts.name)
        self._answering.answered()
        return None

    def _note(self, found: _Found, row: Location, problem: Problem | None) -> None:
        if problem is None:
            if self._state.depth == "deep":
                found.good.append(row.id)
        elif problem.kind == "unreachable":
            found.unread.append(problem)
            found.unreadable.append(row)
        else:
            found.bad.append(problem)
            found.bad_rows.append(row.id)


def _folders() -> Iterator[tuple[list[str], ObjectKind, int, int]]:
    """Yield runs of a device's folders that hold objects with rows: their names, and which kind and first bytes of digests."""
    for name, kind in (("parts", ObjectKind.PART), ("manifests", ObjectKind.MANIFEST), ("checks", ObjectKind.CHECKS)):
        for first in range(0, 256, _FOLDERS):
            run = range(first, first + _FOLDERS)
            yield [f"{name}/{byte:02x}/" for byte in run], kind, run[0], run[-1]
    yield ["versions/"], ObjectKind.VERSION, 0, 255
