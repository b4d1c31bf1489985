"""Packs: parts that gather small items, so that a model of many small tensors is not as many small objects.

Each item starts at a multiple of 64 bytes (any dtype can be viewed in place), zeros lie only between items, and a pack holds
items of one layer, so that a device never serves half a layer because of an item of another.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from tensorkeep.planning.cuts import SmallItem
from tensorkeep.records.layout import PACK_ALIGNMENT_BYTES


class Piece(NamedTuple):
    """Bytes ``[start, start + length)`` of file number ``file`` that lie at ``offset`` in a part."""

    file: int
    start: int
    length: int
    offset: int


@dataclass(frozen=True, slots=True)
class PlannedPart:
    """A part to be written: its pieces by offset, zeros between them.

    A pack has one piece per small item; any other part has exactly one piece, which is the whole part.
    """

    size_bytes: int
    pieces: tuple[Piece, ...]
    layer: int | None


def pack_items(items: Iterable[SmallItem], *, part_size: int) -> list[PlannedPart]:
    """Return packs of at most ``part_size`` bytes that hold every item once.

    Items of a layer fill its packs in the given order, and so do the items without a layer.
    """
    open_packs: dict[int | None, list[Piece]] = {}
    packs: list[PlannedPart] = []
    for item in items:
        pieces = open_packs.setdefault(item.layer, [])
        offset = -(-_end(pieces) // PACK_ALIGNMENT_BYTES) * PACK_ALIGNMENT_BYTES
        if pieces and offset + item.length > part_size:
            packs.append(PlannedPart(_end(pieces), tuple(pieces), item.layer))
            pieces.clear()
            offset = 0
        pieces.append(Piece(item.file, item.start, item.length, offset))
    packs.extend(PlannedPart(_end(pieces), tuple(pieces), layer) for layer, pieces in open_packs.items())
    return packs


def _end(pieces: list[Piece]) -> int:
    return pieces[-1].offset + pieces[-1].length if pieces else 0
