"""Reading a version's bytes: boxes of its tensors and ranges of its files, verified, each from any good copy.

Every verb that reads a version ends here. A `VersionReader` serves one call of a verb: several reads count as one in its
report, against one deadline and on one bar of progress.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import get_args

from tensorkeep.devices.os_errors import translated_os_errors
from tensorkeep.errors import InvalidInput, TensorkeepError
from tensorkeep.planning.read_plan import PartRange
from tensorkeep.records.checks import Checks
from tensorkeep.records.device import is_gone
from tensorkeep.records.history import VersionFacts
from tensorkeep.records.manifest import File, Manifest, Tensor
from tensorkeep.runtime import Cancellation, collection_paused
from tensorkeep.store.cached_parts import NODE_CACHE, count_bytes, fetch_missing, with_cached
from tensorkeep.store.context import StoreContext
from tensorkeep.store.damage import confirm_checks, record_damage
from tensorkeep.store.learned_rates import learn_rates
from tensorkeep.store.node_cache import NodeCache
from tensorkeep.store.progress import ByteProgress
from tensorkeep.store.reports import PrefetchReport, ProgressCallback
from tensorkeep.store.structure import part_table
from tensorkeep.transfer.boxes import Box
from tensorkeep.transfer.device_queue import longest_read_bytes, readers_per_device
from tensorkeep.transfer.mapped_tensors import MappedTensors, map_tensors, pieces_of
from tensorkeep.transfer.reader import plan_boxes, read_boxes, read_parts
from tensorkeep.transfer.report import LoadPlan, LoadReport, Verify, add_reports
from tensorkeep.transfer.restoring import with_units
from tensorkeep.transfer.sources import PartTable

DEFAULT_MEMORY_LIMIT_BYTES = 256 << 20

LaidTensors = tuple[MappedTensors, PartTable]
"""Tensors that lie over files, and the table of parts that they were laid by."""


def choose_verify(context: StoreContext, wanted: Verify | None) -> Verify:
    """Return how a load verifies: as wanted; else whole digests where any active device is marked untrusted, else blocks.

    Raises:
        InvalidInput: there is no such way; an unknown one must never mean "not at all".
    """
    if wanted is not None:
        if wanted not in get_args(Verify):
            known = ", ".join(map(repr, get_args(Verify)))
            raise InvalidInput(f"{wanted!r} is no way to verify: use one of {known}", verify=wanted)
        return wanted
    devices = context.catalog.list_devices()
    return "digest" if any(f.untrusted and not is_gone(f) for f in devices) else "blocks"


class VersionReader:
    """Reads one version for one call of a verb. Not thread safe; each read uses all devices at once.

    Attributes:
        verify: how it verifies.
        progress: told the bytes that land; None: nobody is.
        fills_cache: whether parts that its tensors touch go to the node's cache, if there is one. What is there already is read
            from it in any case, unless nothing is verified: nothing in the cache is believed.
        fill_progress: told the bytes that come into the cache; None: nobody is.
    """

    def __init__(
        self,
        context: StoreContext,
        version: VersionFacts,
        manifest: Manifest,
        checks: Checks,
        *,
        verify: Verify,
        deadline_s: float | None = None,
        memory_limit_bytes: int | None = None,
    ) -> None:
        self.verify = verify
        self.progress: ByteProgress | None = None
        self.fills_cache = False
        self.fill_progress: ProgressCallback | None = None
        self._context = context
        self._version = version
        self._manifest = manifest
        self._checks = checks
        self._deadline_s = deadline_s
        self._memory_limit_bytes = memory_limit_bytes or DEFAULT_MEMORY_LIMIT_BYTES
        self._reports: list[LoadReport] = []
        self._spent_s = 0.0
        self._waited_s = 0.0

    def report(self) -> LoadReport:
        """Return what all reads up to now did, as one; its seconds have the waiting for other processes that filled the cache."""
        report = add_reports(self._reports, verify=self.verify)
        return replace(report, seconds=report.seconds + self._waited_s)

    def map_tensors(
        self, tensors: Sequence[tuple[File, Tensor]], others: Sequence[tuple[File, Tensor]] = ()
    ) -> LaidTensors:
        """Lay whole tensors over files where that can be done; `read_boxes` verifies them. See `transfer.mapped_tensors`.

        ``others`` are tensors that boxes of the same `read_boxes` are of.
        """
        with collection_paused():
            pieces = pieces_of(tensors)
            touched = {piece.part for found in (*pieces, *pieces_of(others)) for piece in found}
        table = self._table(touched, fill=self.fills_cache)
        with collection_paused():
            if table.units is not None:
                pieces = [tuple(table.pieces(found)) for found in pieces]
            return map_tensors(tensors, pieces, table, keeps=self.verify != "off"), table

    def read_boxes(
        self,
        boxes: Sequence[Box],
        mapping: LaidTensors | None = None,
        whole: Callable[[int], None] | None = None,
        stop: Cancellation | None = None,
    ) -> None:
        """Fill the destinations of boxes, and verify what was mapped; see `transfer.reader.read_boxes`."""
        mapped, table = mapping or (None, self._table(_parts_of(boxes), fill=self.fills_cache, stop=stop))
        report = read_boxes(
            boxes,
            parts=table,
            mapped=mapped,
            verify=self.verify,
            deadline_s=self._left_s(),
            memory_limit_bytes=self._memory_limit_bytes,
            runtime=self._context.runtime,
            progress=self._count,
            whole=whole,
            stop=stop,
        )
        self._add(report)
        learn_rates(self._context, report, table.devices)

    def plan_boxes(self, boxes: Sequence[Box]) -> LoadPlan:
        """Return what `read_boxes` would read, and read nothing; see `transfer.reader.plan_boxes`."""
        return plan_boxes(
            boxes,
            parts=self._table(_parts_of(boxes)),
            verify=self.verify,
            memory_limit_bytes=self._memory_limit_bytes,
            runtime=self._context.runtime,
        )

    def read_ranges(self, ranges: Sequence[PartRange], consume: Callable[[PartRange, memoryview], None]) -> None:
        """Hand each range of a part to ``consume``; see `transfer.reader.read_parts`."""
        table = self._table({each.part for each in ranges})
        self._add(self._read_parts(table, ranges, consume, deadline_s=self._left_s(), progress=self._count))

    def _read_parts(
        self,
        table: PartTable,
        ranges: Sequence[PartRange],
        consume: Callable[[PartRange, memoryview], None],
        *,
        deadline_s: float | None,
        progress: Callable[[int], None] | None,
        stop: Cancellation | None = None,
    ) -> LoadReport:
        return read_parts(
            ranges,
            consume,
            parts=self._with_units(table),
            verify=self.verify,
            deadline_s=deadline_s,
            memory_limit_bytes=self._memory_limit_bytes,
            runtime=self._context.runtime,
            progress=progress,
            stop=stop,
        )

    def prefetch(
        self, tensors: Sequence[tuple[File, Tensor]], cache: NodeCache, progress: ProgressCallback | None
    ) -> PrefetchReport:
        """Bring the parts of tensors into the cache; see `Model.prefetch`."""
        table = self._device_table({piece.part for found in pieces_of(tensors) for piece in found})
        self.progress = ByteProgress(progress, "prefetch", count_bytes(table, cache).left_out)
        with translated_os_errors("filling the node's cache", url=cache.device.url):
            self._fill(table, cache, None, self._count)
        return PrefetchReport(*count_bytes(table, cache), self.report())

    def _table(self, parts: Iterable[int], *, fill: bool = False, stop: Cancellation | None = None) -> PartTable:
        table, cache = self._device_table(parts), self._context.node_cache
        if cache is None or self.verify == "off":
            return self._with_units(table)
        if fill:
            with suppress(OSError, TensorkeepError):  # the load itself finds out what is wrong with a device
                lacking = count_bytes(table, cache).left_out if self.fill_progress else 0
                progress = ByteProgress(self.fill_progress if lacking else None, "prefetch", lacking)
                self._fill(table, cache, stop, progress.count)
        return self._with_units(with_cached(table, cache))

    def _with_units(self, table: PartTable) -> PartTable:
        runtime = self._context.runtime
        readers = readers_per_device(len(table.devices) + 1, runtime.workers.cpu_count())
        longest = longest_read_bytes(self._memory_limit_bytes, len(table.devices) + 1, readers)
        return with_units(table, verify=self.verify, clock=runtime.clock, read_bytes=longest)

    def _fill(
        self,
        table: PartTable,
        cache: NodeCache,
        stop: Cancellation | None,
        progress: Callable[[int], None] | None,
    ) -> None:
        """Fetch what the cache lacks, in at most half of the time that is left: what it does not get is read without it."""
        clock, before_s, left_s = self._context.runtime.clock, self._spent_s, self._left_s()
        before = len(self._reports)
        began_s = clock.monotonic_s()

        def fill_left_s() -> float | None:
            spent_s = clock.monotonic_s() - began_s
            return None if left_s is None else max(left_s / 2 - spent_s, 0.0)

        def may_go_on() -> bool:
            if stop is not None:
                stop.check()
            return fill_left_s() != 0

        def read(ranges: Sequence[PartRange], consume: Callable[[PartRange, memoryview], None]) -> None:
            report = self._read_parts(table, ranges, consume, deadline_s=fill_left_s(), progress=progress, stop=stop)
            self._reports.append(replace(report, bytes_needed=0))  # for later, or to be read again at once

        try:
            fetch_missing(table, cache, read, clock=clock, may_go_on=may_go_on)
        finally:
            took_s = clock.monotonic_s() - began_s
            self._spent_s = before_s + took_s  # waiting for other processes counts too
            self._waited_s += max(took_s - sum(each.seconds for each in self._reports[before:]), 0.0)

    def _device_table(self, parts: Iterable[int]) -> PartTable:
        context, version, manifest = self._context, self._version, self._manifest
        return part_table(
            context,
            manifest,
            self._checks,
            parts,
            confirm_checks=lambda: confirm_checks(context, version, manifest),
            note_damage=lambda damaged: record_damage(context, damaged),
        )

    def _left_s(self) -> float | None:
        """Return what earlier reads left of the deadline."""
        return None if self._deadline_s is None else max(self._deadline_s - self._spent_s, 0.0)

    def _add(self, report: LoadReport) -> None:
        # That a part has left the cache since it was looked for is no damage.
        damaged = [each for each in report.damaged if (each.device, each.kind) != (NODE_CACHE, "missing")]
        self._reports.append(replace(report, damaged=tuple(damaged)))
        self._spent_s += report.seconds

    def _count(self, size_bytes: int) -> None:
        if self.progress is not None:
            self.progress.count(size_bytes)


def _parts_of(boxes: Sequence[Box]) -> set[int]:
    """Return the parts that the tensors of boxes touch."""
    return {piece.part for found in pieces_of([(box.file, box.tensor) for box in boxes]) for piece in found}
