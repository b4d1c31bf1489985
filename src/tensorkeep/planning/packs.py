"""Packs: parts that gather small items, so that a model of many small tensors is not as many small objects.

Each item starts at a multiple of 64 bytes (any dtype can be viewed in place), zeros lie only between items, and a pack holds
items of one layer, so that a device never serves half a layer because of an item of another.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from tensorkeep.planning.cuts import SmallItem
from tensorkeep.planning.layers import Layer
from tensorkeep.records.layout import PACK_ALIGNMENT_BYTES, SMALL_ITEM_BYTES


class Piece(NamedTuple):
    """Bytes ``[start, start + length)`` of file number ``file`` that lie at ``offset`` in a part."""

    file: int
    start: int
    length: int
    offset: int


@dataclass(frozen=True, slots=True)
class PlannedPart:
    """A part to be written: its pieces by offset, zeros between them.

    A pack has one piece per small item; any other part has exactly one piece, which is the whole part. ``expert`` is that of its
    first piece; ``share`` is the share of ``parts=N`` that it is of.
    """

    size_bytes: int
    pieces: tuple[Piece, ...]
    layer: Layer | None
    expert: int | None = None
    share: int | None = None

    @property
    def is_pack(self) -> bool:
        """Whether it gathers small items."""
        return self.share is None and self.pieces[0].length < SMALL_ITEM_BYTES


def pack_items(items: Iterable[SmallItem], *, part_size: int) -> list[PlannedPart]:
    """Return packs of at most ``part_size`` bytes that hold every item once.

    Items of a layer fill its packs in the given order, and so do the items without a layer.
    """
    open_packs: dict[Layer | None, _Pack] = {}
    packs: list[PlannedPart] = []
    for item in items:
        pack = open_packs.setdefault(item.layer, _Pack([], item.expert))
        offset = -(-pack.end // PACK_ALIGNMENT_BYTES) * PACK_ALIGNMENT_BYTES
        if pack.pieces and offset + item.length > part_size:
            packs.append(pack.close(item.layer))
            pack = open_packs[item.layer] = _Pack([], item.expert)
            offset = 0
        pack.pieces.append(Piece(item.file, item.start, item.length, offset))
    packs.extend(pack.close(layer) for layer, pack in open_packs.items())
    return packs


class _Pack(NamedTuple):
    """A pack that is being filled, and the expert of its first item."""

    pieces: list[Piece]
    expert: int | None

    @property
    def end(self) -> int:
        return self.pieces[-1].offset + self.pieces[-1].length if self.pieces else 0

    def close(self, layer: Layer | None) -> PlannedPart:
        return PlannedPart(self.end, tuple(self.pieces), layer, self.expert)
