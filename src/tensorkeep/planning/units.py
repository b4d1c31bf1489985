"""Units of a load: runs of bytes that are read from one place each.

A part that is kept whole is a unit, under its own number. Of a part in fragments each data fragment is one, as long as all of
them can be read where they lie: raw, so they can be mapped. Where one can't, the whole part is a single unit in the order of
*columns*: some bytes of each data fragment, then the next ones of each, so that one read has all that a lost fragment is restored
from, and each byte that is left is read once. Where a part is judged as a whole, it is a unit in its own order.

All of it is arithmetic on byte ranges: whoever plans, reads and verifies units knows nothing of fragments.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from msgspec import Struct

from tensorkeep.planning.read_plan import PartRange, Piece
from tensorkeep.records.layout import BLOCK_BYTES
from tensorkeep.records.redundancy import ErasureCoded, filled_fragments, fragment_range

Order = Literal["fragments", "columns", "whole"]
"""fragments: a unit for each data fragment; columns: one unit, by columns; whole: one unit, as the part's bytes are."""


class PartCut(NamedTuple):
    """A part that is kept in fragments, and how a load reads it; ``width``: bytes of each fragment in a column, whole blocks."""

    code: ErasureCoded
    order: Order
    width: int = BLOCK_BYTES


class Run(Struct, frozen=True, gc=False):
    """Bytes of data fragment ``fragment`` from ``start`` of it: bytes from ``part_start`` of the part, and ``unit_start`` of a unit."""

    fragment: int
    start: int
    length: int
    part_start: int
    unit: int
    unit_start: int


class UnitMap:
    """Units of the parts of a version.

    Attributes:
        sizes: bytes of each unit, by number. Parts that are not cut have their own; numbers of parts that are cut mean nothing.
        parts: part of each unit.
        runs: of each part that is cut, its bytes in order.
        units: of each part that is cut, its units.
        columns: of each unit in that order, where its columns begin.
    """

    def __init__(self, sizes: Sequence[int], cuts: Mapping[int, PartCut]) -> None:
        self.sizes = list(sizes)
        self.parts = list(range(len(sizes)))
        self.runs: dict[int, list[Run]] = {}
        self.units: dict[int, range] = {}
        self.columns: dict[int, list[int]] = {}
        self._starts: dict[int, list[int]] = {}
        for part, cut in cuts.items():
            runs = _cut(cut, sizes[part], len(self.sizes))
            self.runs[part] = sorted(runs, key=lambda run: run.part_start)
            self._starts[part] = [run.part_start for run in self.runs[part]]
            first = len(self.sizes)
            for run in runs:
                if run.unit == len(self.sizes):
                    self.sizes.append(0)
                    self.parts.append(part)
                self.sizes[run.unit] = max(self.sizes[run.unit], run.unit_start + run.length)
            self.units[part] = range(first, len(self.sizes))
            if cut.order == "columns":
                self.columns[first] = [run.unit_start for run in runs if run.fragment == 0]

    def pieces(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """Yield the same bytes as pieces of units; in order within each piece."""
        for piece in pieces:
            if piece.part not in self.runs:
                yield piece
                continue
            for run, skip, taken, done in self._runs_of(piece.part, piece.start, piece.length):
                yield Piece(run.unit, run.unit_start + skip, taken, piece.item, piece.offset + done)

    def ranges(self, ranges: Iterable[PartRange]) -> Iterator[PartRange]:
        """Yield the same bytes as ranges of parts of which each lies in one run of a unit."""
        for each in ranges:
            if each.part not in self.runs or not each.length:
                yield each
                continue
            for _, _, taken, done in self._runs_of(each.part, each.start, each.length):
                yield PartRange(each.part, each.start + done, taken, each.key)

    def runs_of_unit(self, unit: int) -> list[Run]:
        """Return the runs of a unit of a part that is cut, in its own order."""
        found = [run for run in self.runs[self.parts[unit]] if run.unit == unit]
        return sorted(found, key=lambda run: run.unit_start)

    def _runs_of(self, part: int, start: int, length: int) -> Iterator[tuple[Run, int, int, int]]:
        """Yield (run, bytes of it before, bytes of it, bytes of the range before) of a range of a part."""
        runs, done = self.runs[part], 0
        index = bisect_right(self._starts[part], start) - 1
        while done < length:
            run = runs[index]
            skip = start + done - run.part_start
            taken = min(run.length - skip, length - done)
            yield run, skip, taken, done
            done, index = done + taken, index + 1


def runs_in_order(code: ErasureCoded, size_bytes: int, unit: int) -> list[Run]:
    """Return the runs of a part that is one unit in its own order."""
    return _cut(PartCut(code, "whole"), size_bytes, unit)


def column_width(code: ErasureCoded, read_bytes: int) -> int:
    """Return how many bytes of each fragment are in a column, so that a read of that length takes one: whole blocks."""
    return max(read_bytes // code.data // BLOCK_BYTES, 1) * BLOCK_BYTES


def _cut(cut: PartCut, size_bytes: int, unit: int) -> list[Run]:
    """Return the runs of a part, in the order of its units, whose first has this number."""
    ranges = [fragment_range(cut.code, size_bytes, i) for i in range(filled_fragments(cut.code, size_bytes))]
    match cut.order:
        case "fragments":
            return [Run(i, 0, end - start, start, unit + i, 0) for i, (start, end) in enumerate(ranges)]
        case "whole":
            return [Run(i, 0, end - start, start, unit, start) for i, (start, end) in enumerate(ranges)]
        case "columns":
            return _cut_columns(ranges, cut.width, unit)


def _cut_columns(ranges: Sequence[tuple[int, int]], width: int, unit: int) -> list[Run]:
    """Return the runs of one unit by columns. A last block that is shorter comes last, since blocks are judged by their place."""
    runs: list[Run] = []
    at = 0
    size = ranges[-1][1]
    whole = size - size % BLOCK_BYTES
    for low in range(0, ranges[0][1], width):
        for i, (start, end) in enumerate(ranges):
            length = min(low + width, min(end, whole) - start) - low
            if length > 0:
                runs.append(Run(i, low, length, start + low, unit, at))
                at += length
    if size > whole:
        last = len(ranges) - 1
        runs.append(Run(last, whole - ranges[last][0], size - whole, whole, unit, at))
    return runs
