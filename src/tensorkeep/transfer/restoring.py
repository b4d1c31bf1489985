"""Parts in fragments, for loads: which units they are read as, and the source that restores what can't be read.

`with_units` turns a table of parts into one of units (`planning.units`): data fragments become units with copies of their own,
like any part. Beside these copies every such unit has one more source, `Restorer`: to the scheduler a device like others, which
reads the same range of other fragments, verifies it block by block, and puts the lost bytes together. So what is late, damaged
or away is handled by the rules that hold for all copies.
"""

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tensorkeep.codecs.erasure import ErasureCode
from tensorkeep.devices.forwarding import innermost
from tensorkeep.devices.protocol import ReadableDevice, ThrottlingDevice
from tensorkeep.errors import Integrity, NotEnoughCopies, NotFound, TensorkeepError
from tensorkeep.planning.units import Order, PartCut, Run, UnitMap, column_width, runs_in_order
from tensorkeep.records.checks import BlockChecks
from tensorkeep.records.fragment import decode_footer, footer_length
from tensorkeep.records.layout import BLOCK_BYTES, MIB
from tensorkeep.records.redundancy import filled_fragments, fragment_length, fragment_range, stored_fragments
from tensorkeep.runtime import Clock
from tensorkeep.transfer.image import PartImage, ScratchPool
from tensorkeep.transfer.job import WINDOW_BYTES
from tensorkeep.transfer.report import Damage, DamageKind, DeviceLoad, Verify
from tensorkeep.transfer.sources import RESERVE, RESTORER, SUSPECT, FragmentSet, PartSource, PartTable
from tensorkeep.transfer.verification import Judge, block_checks_of

_GIVE_UP_AFTER = 3
"""Failures to answer after which a device's fragments are tried last."""

_numbers = itertools.count()

_FIRST_LOCATION = -(1 << 40)
"""Rows of the catalog count from 1, those of the node's cache down from -1."""


def with_units(table: PartTable, *, verify: Verify, clock: Clock, read_bytes: int = WINDOW_BYTES) -> PartTable:
    """Return the table with a unit, or several, for each part in fragments; the same table where there is none, or it has them.

    A part of which a whole copy can be read stays one unit, and is restored only where all of these fail.

    Args:
        table: the parts.
        verify: as the load verifies.
        clock: for the report.
        read_bytes: the longest read of the load: columns are as long.
    """
    if not table.fragments or table.units is not None:
        return table
    cuts = {
        part: PartCut(found.code, order, column_width(found.code, read_bytes))
        for part, found in table.fragments.items()
        if (order := _order(table, part, found, verify)) is not None
    }
    units = UnitMap(table.sizes, cuts)
    restorer = _open_restorer(table, verify=verify, clock=clock)
    sources = dict(table.sources)
    for part, found in table.fragments.items():
        whole = table.sources.get(part, ())
        if part not in cuts:
            name = restorer.add(_Target(part, runs_in_order(found.code, table.sizes[part], part)))
            if _suffices(table, part, found):
                sources[part] = [*whole, _restored(part, name, table.sizes[part])]
            continue
        for number, unit in enumerate(units.units[part]):
            sources[unit] = _unit_sources(table, units, restorer, part, number, unit, cuts[part])
    return replace(
        table,
        sizes=units.sizes,
        checks=_UnitChecks(units, table.checks),
        sources=sources,
        devices={**table.devices, RESTORER: restorer},
        names={**table.names, RESTORER: "restored from fragments"},
        confirm_checks=_confirm(units, table),
        describe=_describe(units, table),
        note_damage=_note(table),
        units=units,
        restorer=restorer,
    )


def _unit_sources(
    table: PartTable, units: UnitMap, restorer: "Restorer", part: int, number: int, unit: int, cut: PartCut
) -> list[PartSource]:
    """Return what a unit can be read from: copies of its fragment, then what restores it, then whole copies that were found bad."""
    found, whole = table.fragments[part], table.sources.get(part, ())
    runs, size = units.runs_of_unit(unit), units.sizes[unit]
    if cut.order == "columns":
        return [_restored(unit, restorer.add(_Target(part, runs)), size)]
    start = runs[0].part_start
    last = [replace(each, offset=each.offset + start, length=size) for each in whole]
    if cut.order == "whole":
        return [_restored(unit, restorer.add(_Target(part, runs)), size), *last]
    copies = found.copies[number]
    if not _suffices(table, part, found, without=number):
        return [*copies, *last]
    return [*copies, _restored(unit, restorer.add(_Target(part, runs, lost=number)), size), *last]


def _order(table: PartTable, part: int, found: FragmentSet, verify: Verify) -> Order | None:
    """Return how a part is read; None: as it is, since a good whole copy can be read, or only a bad one, and too few fragments."""
    whole = table.sources.get(part, ())
    can_read_whole = any(each.device in table.devices for each in whole)
    if _can_read(table, whole) or (can_read_whole and not _suffices(table, part, found)):
        return None
    if verify == "digest":
        return "whole"
    filled = range(filled_fragments(found.code, table.sizes[part]))
    if all(_can_read(table, found.copies.get(i, ())) for i in filled):
        return "fragments"
    return "whole" if can_read_whole else "columns"


def _suffices(table: PartTable, part: int, found: FragmentSet, without: int | None = None) -> bool:
    """Return whether as many fragments are on devices that can be read as it takes to restore the part."""
    there = [
        number
        for number, copies in found.copies.items()
        if number != without and any(each.device in table.devices for each in copies)
    ]
    return len(there) >= filled_fragments(found.code, table.sizes[part])


def _can_read(table: PartTable, copies: Sequence[PartSource]) -> bool:
    return any(each.rank < SUSPECT and each.device in table.devices for each in copies)


def _restored(unit: int, name: str, size_bytes: int) -> PartSource:
    return PartSource(location=_FIRST_LOCATION - unit, device=RESTORER, name=name, length=size_bytes, rank=RESERVE)


class _UnitChecks:
    """Checks of units, made of those of their parts."""

    def __init__(self, units: UnitMap, checks: BlockChecks) -> None:
        self._units = units
        self._checks = checks

    def digest(self, part: int) -> bytes:
        """Return the digest of a unit's part."""
        return self._checks.digest(self._units.parts[part])

    def block_checks(self, part: int) -> npt.NDArray[np.uint64]:
        """Return the checks of a unit's blocks, in its order."""
        of = self._units.parts[part]
        checks = self._checks.block_checks(of)
        if of not in self._units.runs:
            return checks
        runs = self._units.runs_of_unit(part)
        firsts = [run.part_start // BLOCK_BYTES for run in runs]
        counts = [-(-run.length // BLOCK_BYTES) for run in runs]
        return np.concatenate([checks[low : low + count] for low, count in zip(firsts, counts, strict=True)])


@dataclass(frozen=True, slots=True)
class _Target:
    """What the restorer gives under one name: runs of a part one after the other, without reading fragment ``lost``."""

    part: int
    runs: Sequence[Run]
    lost: int | None = None


@dataclass(slots=True)
class _Given:
    """What a device gave to be restored from, from when to when."""

    bytes: int
    started_s: float
    ended_s: float


@dataclass(frozen=True, slots=True)
class _Problem:
    kind: DamageKind
    reason: str
    confirmed: bool = True


class Restorer:
    """Reads ranges of parts from any fragments that can be read, and restores what can't. Thread safe.

    Args:
        table: the parts, before they were cut into units.
        verify: ``off``: fragments are not verified either.
        clock: for the report.
    """

    def __init__(self, table: PartTable, *, verify: Verify, clock: Clock) -> None:
        self.url = (
            f"restored:{next(_numbers)}"  # what is noted of a URL, as that a read of it hangs, is of this load alone
        )
        self._table = table
        self._verify = verify
        self._clock = clock
        self._judge = Judge(table)
        self._scratch = ScratchPool(64 * MIB)
        self._targets: dict[str, _Target] = {}
        self._codes = {found.code: ErasureCode(found.code) for found in table.fragments.values()}
        self._lock = threading.Lock()
        self._parity_checks: dict[int, npt.NDArray[np.uint64]] = {}
        self._problems: dict[int, _Problem] = {}  # by location: the first one of each
        self._gone: set[int] = set()  # locations that give nothing in this load
        self._failures: dict[str, int] = {}
        self._damaged: dict[tuple[str, int], Damage] = {}
        self._given: dict[str, _Given] = {}

    def add(self, target: _Target) -> str:
        """Return the name of a new object."""
        name = f"{target.part}/{len(self._targets)}"
        self._targets[name] = target
        return name

    def read_into(self, name: str, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers with verified bytes from ``offset`` of what a name stands for.

        Raises:
            Integrity: too few fragments are left, and one was corrupt.
            NotEnoughCopies: too few fragments can be read.
        """
        target = self._targets[name]
        end = offset + sum(map(len, buffers))
        image = _image_at(offset, buffers)
        wanted: dict[tuple[int, int], dict[int, list[memoryview]]] = {}
        for run in target.runs:
            low, high = max(offset, run.unit_start), min(end, run.unit_start + run.length)
            if low < high:
                start = run.start + low - run.unit_start
                wanted.setdefault((start, start + high - low), {})[run.fragment] = image.views(low, high)
        for (low, high), views in wanted.items():
            self._bring(target, low, high, views)

    def take_damage(self) -> list[Damage]:
        """Return what was found of fragments since this was asked last."""
        with self._lock:
            damaged, self._damaged = list(self._damaged.values()), {}
        return damaged

    def take_loads(self) -> list[DeviceLoad]:
        """Return what devices gave to restore from since this was asked last."""
        with self._lock:
            taken, self._given = self._given, {}
        return [
            DeviceLoad(device, self._table.device_name(device), given.bytes, given.ended_s - given.started_s, 0.0)
            for device, given in taken.items()
        ]

    def _bring(self, target: _Target, low: int, high: int, wanted: Mapping[int, list[memoryview]]) -> None:
        """Bring bytes ``[low, high)`` of some data fragments: read them, and restore those that can't be read."""
        there = {
            number: views
            for number, views in wanted.items()
            if number != target.lost and self._read(target.part, number, low, views)
        }
        lost = {number: views for number, views in wanted.items() if number not in there}
        if not lost:
            return
        width = column_width(self._table.fragments[target.part].code, WINDOW_BYTES)
        for start in range(low, high, width):
            end = min(start + width, high)
            some = _cut_all(there, start - low, end - low), _cut_all(lost, start - low, end - low)
            if self._restore(target, start, end, *some):
                continue
            # Not all blocks of all fragments are good: perhaps enough of each are.
            for first in range(start, end, BLOCK_BYTES):
                last = min(first + BLOCK_BYTES, end)
                block = [_cut_all(each, first - start, last - start) for each in some]
                if not self._restore(target, first, last, *block):
                    raise self._too_few(target.part)

    def _restore(
        self,
        target: _Target,
        start: int,
        end: int,
        there: Mapping[int, list[memoryview]],
        lost: Mapping[int, list[memoryview]],
    ) -> bool:
        """Restore bytes ``[start, end)`` of the lost fragments from those that are there, and as many others as it takes.

        Returns:
            Whether there were enough.
        """
        code = self._table.fragments[target.part].code
        buffers: list[memoryview] = []
        try:
            known = {number: self._contiguous(views, buffers) for number, views in there.items()}
            self._find_others(target, start, end, known, {*there, *lost}, code.data, buffers)
            lost = dict(lost)
            for number in [number for number in lost if number != target.lost]:  # what is suspect may be good here
                if len(known) < code.data and self._read(target.part, number, start, lost[number], suspect=True):
                    known[number] = self._contiguous(lost.pop(number), buffers)
            if len(known) < code.data:
                return False
            wanted = {number: self._room(views, buffers) for number, views in lost.items()}
            self._codes[code].restore(known, wanted)
            for number, views in lost.items():
                if len(views) > 1:
                    _scatter(wanted[number], views)
        finally:
            for buffer in buffers:
                self._scratch.give(buffer)
        return True

    def _find_others(
        self,
        target: _Target,
        start: int,
        end: int,
        known: dict[int, memoryview],
        numbers: set[int],
        enough: int,
        buffers: list[memoryview],
    ) -> None:
        """Add other fragments than ``numbers`` to those that are known until there are enough, suspect ones last."""
        end = -(-end // BLOCK_BYTES) * BLOCK_BYTES  # they are verified too, so their last block is read whole
        code = self._table.fragments[target.part].code
        for suspect in (False, True):
            for number in range(code.slots):
                if len(known) >= enough:
                    return
                if number in numbers or number in known:
                    continue
                size = self._length(target.part, number, start, end)
                if size and not suspect and self._is_away(target.part, number):
                    continue
                view = self._take(size, buffers)
                if not size or self._read(target.part, number, start, [view], suspect=suspect):
                    known[number] = view

    def _is_away(self, part: int, number: int) -> bool:
        copies = self._table.fragments[part].copies.get(number, ())
        return not any(each.device in self._table.devices for each in copies)

    def _length(self, part: int, number: int, start: int, end: int) -> int:
        """Return how many bytes a fragment has of ``[start, end)``: the last ones of the data may be shorter, or empty."""
        length = fragment_length(self._table.fragments[part].code, self._table.sizes[part], number)
        return max(0, min(end, length) - start)

    def _contiguous(self, views: list[memoryview], buffers: list[memoryview]) -> memoryview:
        if len(views) == 1:
            return views[0]
        joined = self._take(sum(map(len, views)), buffers)
        at = 0
        for view in views:
            joined[at : at + len(view)] = view
            at += len(view)
        return joined

    def _room(self, views: list[memoryview], buffers: list[memoryview]) -> memoryview:
        return views[0] if len(views) == 1 else self._take(sum(map(len, views)), buffers)

    def _take(self, size: int, buffers: list[memoryview]) -> memoryview:
        if not size:
            return memoryview(b"")
        buffer = self._scratch.take(size)
        buffers.append(buffer)
        return buffer[:size]

    def _read(self, part: int, number: int, start: int, views: list[memoryview], *, suspect: bool = False) -> bool:
        """Return whether a copy of a fragment gave its bytes from ``start``, verified; suspect ones are asked only where told."""
        for copy in self._table.fragments[part].copies.get(number, ()):
            with self._lock:
                if copy.location in self._gone or (not suspect and self._is_suspect(copy)):
                    continue
            problem = self._read_copy(part, number, copy, start, views)
            if problem is None:
                return True
            self._note(part, copy, problem)
        return False

    def _is_suspect(self, copy: PartSource) -> bool:
        """Return whether a copy was found bad, in this load or before, or its device fails to answer; the lock is held."""
        failures = self._failures.get(copy.device, 0)
        return copy.rank >= SUSPECT or copy.location in self._problems or failures >= _GIVE_UP_AFTER

    def _read_copy(
        self, part: int, number: int, copy: PartSource, start: int, views: list[memoryview]
    ) -> _Problem | None:
        device = self._table.devices.get(copy.device)
        if device is None:
            return _Problem("unreachable", "can't be reached", confirmed=False)
        length = fragment_length(self._table.fragments[part].code, self._table.sizes[part], number)
        if copy.length != length:
            return _Problem("corrupt", f"the fragment has {copy.length} bytes instead of {length}")
        began_s = self._clock.monotonic_s()
        try:
            problem = None
            for _ in range(2):  # a bit may have flipped on the way: only what is wrong twice is the copy's
                device.read_into(copy.name, copy.offset + start, views)
                self._count(copy.device, sum(map(len, views)), began_s)
                problem = self._judge_views(part, number, copy, device, start, views)
                if problem is None:
                    return None
        except NotFound as error:
            problem = _Problem("missing", error.message)
        except Integrity as error:
            problem = _Problem("corrupt", error.message)
        except TensorkeepError as error:
            problem = _Problem("unreachable", error.message, confirmed=False)
        return problem

    def _judge_views(
        self, part: int, number: int, copy: PartSource, device: ReadableDevice, start: int, views: list[memoryview]
    ) -> _Problem | None:
        if self._verify == "off":
            return None
        code, size = self._table.fragments[part].code, sum(map(len, views))
        if number < code.data:
            low = fragment_range(code, self._table.sizes[part], number)[0] + start
            bad = self._judge.judge_blocks(_image_at(low, views), part, low, low + size)
            return _Problem("corrupt", bad[0].reason, bad[0].confirmed) if bad else None
        expected = self._checks_of_parity(part, number, copy, device)
        first = start // BLOCK_BYTES
        found = block_checks_of(_image_at(start, views), start, start + size)
        for block, (is_, should) in enumerate(zip(found, expected[first:].tolist(), strict=False), first):
            if is_ != should:
                return _Problem("corrupt", f"block {block} does not fit its check")
        return None

    def _checks_of_parity(
        self, part: int, number: int, copy: PartSource, device: ReadableDevice
    ) -> npt.NDArray[np.uint64]:
        """Return the checks of a parity fragment's blocks, from its footer, read once."""
        with self._lock:
            known = self._parity_checks.get(copy.location)
        if known is not None:
            return known
        code, size = self._table.fragments[part].code, self._table.sizes[part]
        tail = bytearray(footer_length(code, size, number))
        device.read_into(copy.name, copy.offset + copy.length, [memoryview(tail)])
        footer = decode_footer(bytes(tail), what=copy.name)
        is_it = (footer.part, footer.policy, footer.size_bytes, footer.index)
        if is_it != (self._table.checks.digest(part).hex(), code, size, number):
            raise Integrity(f"{copy.name} is another fragment: its footer says number {footer.index} of {footer.part}")
        with self._lock:
            return self._parity_checks.setdefault(copy.location, footer.block_checks)

    def _count(self, device: str, size_bytes: int, began_s: float) -> None:
        now = self._clock.monotonic_s()
        with self._lock:
            given = self._given.setdefault(device, _Given(0, began_s, now))
            given.bytes += size_bytes
            given.started_s, given.ended_s = min(given.started_s, began_s), max(given.ended_s, now)

    def _note(self, part: int, copy: PartSource, problem: _Problem) -> None:
        with self._lock:
            if problem.kind == "unreachable":
                self._failures[copy.device] = self._failures.get(copy.device, 0) + 1
            if problem.kind == "missing" or copy.device not in self._table.devices:
                self._gone.add(copy.location)
            if problem.kind != "unreachable" or copy.location in self._gone:
                self._problems.setdefault(copy.location, problem)
            key = (copy.device, 0 if problem.kind == "unreachable" else copy.location)
            name = self._table.device_name(copy.device)
            damage = Damage(copy.location, part, copy.device, name, problem.reason, problem.kind, problem.confirmed)
            self._damaged.setdefault(key, damage)

    def _too_few(self, part: int) -> TensorkeepError:
        found = self._table.fragments[part]
        reasons, corrupt = [], False
        numbers = stored_fragments(found.code, self._table.sizes[part])
        absent = [number for number in numbers if not found.copies.get(number)]
        with self._lock:
            for number, copies in sorted(found.copies.items()):
                for copy in copies:
                    problem = self._problems.get(copy.location)
                    if problem is not None:
                        corrupt = corrupt or problem.kind == "corrupt"
                        reasons.append(f"{number} on {self._table.device_name(copy.device)}: {problem.reason}")
        if absent:
            reasons.append(f"the catalog knows no fragment {', '.join(map(str, absent))}")
        message = f"too few of its {found.code} fragments are left: {'; '.join(reasons) or 'devices did not answer'}"
        return Integrity(message) if corrupt else NotEnoughCopies(message)


class RemoteRestorer(Restorer):
    """The same of fragments across a network: how many reads at once are best is found by trying."""

    @property
    def throttled(self) -> int:
        """How often the stores have asked for fewer requests."""
        inner = (innermost(device) for device in self._table.devices.values())
        return sum(device.throttled for device in inner if isinstance(device, ThrottlingDevice))


def _open_restorer(table: PartTable, *, verify: Verify, clock: Clock) -> Restorer:
    used = {each.device for found in table.fragments.values() for copies in found.copies.values() for each in copies}
    devices = [innermost(table.devices[device]) for device in used if device in table.devices]
    is_remote = any(isinstance(device, ThrottlingDevice) for device in devices)
    return (RemoteRestorer if is_remote else Restorer)(table, verify=verify, clock=clock)


def _confirm(units: UnitMap, table: PartTable) -> Callable[[], BlockChecks] | None:
    confirm = table.confirm_checks
    return None if confirm is None else lambda: _UnitChecks(units, confirm())


def _describe(units: UnitMap, table: PartTable) -> Callable[[int], str] | None:
    describe = table.describe
    return None if describe is None else lambda unit: describe(units.parts[unit])


def _note(table: PartTable) -> Callable[[Sequence[Damage]], None] | None:
    """Return who is told of damage: what could not be restored is no copy of the catalog."""
    note = table.note_damage
    return None if note is None else lambda damaged: note([each for each in damaged if each.device != RESTORER])


def _image_at(start: int, views: Sequence[memoryview]) -> PartImage:
    starts = []
    for view in views:
        starts.append(start)
        start += len(view)
    return PartImage(starts, list(views))


def _cut(views: Sequence[memoryview], low: int, high: int) -> list[memoryview]:
    """Return bytes ``[low, high)`` of views that lie one after the other; fewer where they end before."""
    total = sum(map(len, views))
    return _image_at(0, views).views(min(low, total), min(high, total))


def _cut_all(wanted: Mapping[int, Sequence[memoryview]], low: int, high: int) -> dict[int, list[memoryview]]:
    return {number: _cut(views, low, high) for number, views in wanted.items()}


def _scatter(data: memoryview, views: Sequence[memoryview]) -> None:
    at = 0
    for view in views:
        view[:] = data[at : at + len(view)]
        at += len(view)
