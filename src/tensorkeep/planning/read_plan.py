"""Which bytes of which parts a load reads, in which pieces, and from which copy of each part.

Byte ranges of files resolve over extents to `Piece`s of parts (`resolve_ranges`); pieces are sorted once and joined into
block-aligned `PartRead`s (`plan_reads`); each part gets one of its copies so that devices finish together
(`choose_copies`). Everything here is a pure function over plain values: 60,000 small tensors plan in a fraction of a
second, because nothing looks twice at a piece.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from msgspec import Struct

from tensorkeep.errors import InvalidInput
from tensorkeep.records.layout import BLOCK_BYTES
from tensorkeep.records.manifest import Extent

GAP_BYTES = BLOCK_BYTES
"""Largest hole between two needed ranges that is read along rather than asked for twice."""

OVERREAD_SHARE = 4
"""Holes make up at most one part in this many of a joined read."""

UNKNOWN_RATE_BYTES_PER_S = 500e6
"""Taken for a device when no device of the load has a known rate; else the mean of the known ones is."""


class PartRange(NamedTuple):
    """Bytes ``[start, start + length)`` of a part. ``key`` is the caller's own number for it and means nothing here."""

    part: int
    start: int
    length: int
    key: int = 0


class Piece(Struct, frozen=True, order=True, gc=False):
    """Bytes ``[start, start + length)`` of a part that belong to request number ``item``, from ``offset`` within it.

    No tuple: a load may have 60,000 of them, and Python's garbage collector would look at each.
    """

    part: int
    start: int
    length: int
    item: int
    offset: int


class PartRead(NamedTuple):
    """Bytes ``[start, end)`` of a part that are read together, and the needed pieces in it, ordered by start."""

    part: int
    start: int
    end: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class CopyChoice:
    """Which copy serves each part, and what that gives each device.

    ``copies``: part → index into its copies; parts without a copy are left out. ``bytes`` and ``seconds`` (predicted) by
    device.
    """

    copies: Mapping[int, int]
    bytes: Mapping[str, int]
    seconds: Mapping[str, float]


class ExtentMap:
    """Resolves byte ranges of one file to pieces of parts. Built in one pass over the extents, then a bisection a range."""

    def __init__(self, extents: Sequence[Extent]) -> None:
        self._extents = extents
        self._ends = list(accumulate(extent.length for extent in extents))

    def pieces(self, start: int, length: int, item: int, offset: int = 0) -> tuple[Piece, ...]:
        """Return the pieces that bytes ``[start, start + length)`` of the file are made of, in order; none for no bytes.

        Args:
            start: first byte, in the file.
            length: number of bytes.
            item: the request that they belong to.
            offset: where in the request the first byte goes.

        Raises:
            InvalidInput: the range ends past the file.
        """
        size = self._ends[-1] if self._ends else 0
        if start < 0 or length < 0 or start + length > size:
            raise InvalidInput(f"bytes {start} to {start + length} lie outside a file of {size} bytes")
        if not length:
            return ()
        index = bisect_right(self._ends, start)
        extent = self._extents[index]
        skip = start - (self._ends[index] - extent.length)
        if skip + length <= extent.length:  # as nearly all are where there are many
            return (Piece(extent.part, extent.start + skip, length, item, offset),)
        found = list[Piece]()
        while length > 0:
            extent = self._extents[index]
            skip = start - (self._ends[index] - extent.length)
            taken = min(length, extent.length - skip)
            found.append(Piece(extent.part, extent.start + skip, taken, item, offset))
            start, length, offset, index = start + taken, length - taken, offset + taken, index + 1
        return tuple(found)


def resolve_ranges(extents: Sequence[Extent], ranges: Iterable[tuple[int, int]]) -> list[Piece]:
    """Return the pieces of ranges ``(start, length)`` of one file; ``item`` is the range's place in the input."""
    extent_map = ExtentMap(extents)
    return [piece for item, (start, length) in enumerate(ranges) for piece in extent_map.pieces(start, length, item)]


def plan_reads(
    pieces: Iterable[Piece],
    part_sizes: Sequence[int],
    *,
    max_read_bytes: int,
    align: int = BLOCK_BYTES,
    whole_parts: bool = False,
    keep_whole: bool = False,
    columns: Mapping[int, Sequence[int]] | None = None,
) -> list[PartRead]:
    """Return the reads that bring these pieces, ordered by part and start.

    Reads start at multiples of ``align`` and end at one or at the end of their part. Neighbours with a hole of at most
    `GAP_BYTES` are joined while holes stay under 1 / `OVERREAD_SHARE` of the read. Joined reads longer than
    ``max_read_bytes`` are cut evenly, and so are the pieces in them.

    Args:
        pieces: what is needed, in any order; they may overlap. Empty pieces give nothing.
        part_sizes: bytes of every part.
        max_read_bytes: longest read; at least ``align``.
        align: `BLOCK_BYTES` where blocks are verified, 1 where nothing is.
        whole_parts: read every touched part whole, in one read (for verification by digest).
        keep_whole: never cut a piece; a read is then as long as its longest piece needs.
        columns: part → where its columns begin, for units in that order (`planning.units`): a read is cut there, if it can be.
    """
    ordered = sorted(piece for piece in pieces if piece.length)
    limit = max(max_read_bytes // align, 1) * align
    if whole_parts:
        return list(_whole_parts(ordered, part_sizes))
    reads = _join(ordered, part_sizes, align, limit if keep_whole else None)
    if keep_whole:
        return list(reads)
    if columns:
        return [cut for read in reads for cut in _cut_at_columns(read, align, limit, columns.get(read.part))]
    return [cut for read in reads for cut in _cut(read, align, limit)]


def choose_copies(
    needs: Mapping[int, int], copies: Mapping[int, Sequence[str]], rates: Mapping[str, float]
) -> CopyChoice:
    """Return one copy for each part such that the slowest device finishes early.

    Greedy: parts with the fewest copies first, then the longest; each goes to the device that would finish it first, ties
    to the copy named first.

    Args:
        needs: part → bytes to read of it.
        copies: part → devices that keep a copy, best first.
        rates: device → bytes per second, where known.
    """
    known = [rate for rate in rates.values() if rate > 0]
    default = sum(known) / len(known) if known else UNKNOWN_RATE_BYTES_PER_S
    speed = {device: rate for device, rate in rates.items() if rate > 0}
    load: dict[str, int] = {}
    chosen: dict[int, int] = {}
    for part in sorted(needs, key=lambda part: (len(copies.get(part, ())), -needs[part], part)):
        devices = copies.get(part, ())
        if not devices:
            continue
        size, best = needs[part], 0
        if len(devices) > 1:
            best = min(
                range(len(devices)),
                key=lambda i: (load.get(devices[i], 0) + size) / speed.get(devices[i], default),
            )
        chosen[part] = best
        load[devices[best]] = load.get(devices[best], 0) + size
    seconds = {device: size / speed.get(device, default) for device, size in load.items()}
    return CopyChoice(chosen, load, seconds)


def _whole_parts(ordered: Sequence[Piece], part_sizes: Sequence[int]) -> Iterator[PartRead]:
    by_part: dict[int, list[Piece]] = {}
    for piece in ordered:
        by_part.setdefault(piece.part, []).append(piece)
    for part, pieces in by_part.items():
        yield PartRead(part, 0, part_sizes[part], tuple(pieces))


def _join(ordered: Sequence[Piece], part_sizes: Sequence[int], align: int, limit: int | None) -> Iterator[PartRead]:
    part, start, end, holes, first = -1, 0, 0, 0, 0
    for index, piece in enumerate(ordered):
        low = piece.start - piece.start % align
        high = min(-(-(piece.start + piece.length) // align) * align, part_sizes[piece.part])
        hole = max(low - end, 0)
        joined = max(end, high) - start
        fits = hole == 0 or (hole <= GAP_BYTES and (holes + hole) * OVERREAD_SHARE <= joined)
        if piece.part == part and fits and (limit is None or joined <= limit):
            end, holes = max(end, high), holes + hole
            continue
        if index:
            yield PartRead(part, start, end, tuple(ordered[first:index]))
        part, start, end, holes, first = piece.part, low, high, 0, index
    if ordered:
        yield PartRead(part, start, end, tuple(ordered[first:]))


def _cut_at_columns(read: PartRead, align: int, limit: int, starts: Sequence[int] | None) -> Iterator[PartRead]:
    """Yield a read cut at the last column that begins within the limit of each piece of it."""
    if starts is None:
        yield from _cut(read, align, limit)
        return
    low = read.start
    while low < read.end:
        high = min(read.end, low + limit)
        column = starts[bisect_right(starts, high) - 1]
        high = column if low < column < read.end and high < read.end else high
        pieces = []
        for piece in read.pieces:
            start, end = max(piece.start, low), min(piece.start + piece.length, high)
            if start < end:
                pieces.append(Piece(piece.part, start, end - start, piece.item, piece.offset + start - piece.start))
        if pieces:
            yield PartRead(read.part, low, high, tuple(pieces))
        low = high


def _cut(read: PartRead, align: int, limit: int) -> Iterator[PartRead]:
    size = read.end - read.start
    if size <= limit:
        yield read
        return
    count = -(-size // limit)
    window = -(-size // (count * align)) * align
    buckets: list[list[Piece]] = [[] for _ in range(-(-size // window))]
    for piece in read.pieces:
        end = piece.start + piece.length
        first, last = (piece.start - read.start) // window, (end - 1 - read.start) // window
        if first == last:
            buckets[first].append(piece)
            continue
        for number in range(first, last + 1):
            low = max(piece.start, read.start + number * window)
            high = min(end, read.start + (number + 1) * window)
            buckets[number].append(Piece(piece.part, low, high - low, piece.item, piece.offset + low - piece.start))
    for number, pieces in enumerate(buckets):
        if pieces:
            start = read.start + number * window
            yield PartRead(read.part, start, min(start + window, read.end), tuple(pieces))
