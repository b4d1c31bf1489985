"""Small items that the parent version has already: each keeps its extent in the parent's pack.

Without this a changed tensor would rewrite the pack that it shares with its neighbours. Which of the parent's extents are in
packs follows from the parent's own files by the rule that made them, so nothing about packs is stored.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

from tensorkeep.planning.cuts import SmallItem, SourceFile, list_small_items
from tensorkeep.planning.layers import NO_NAMING
from tensorkeep.planning.methods import find_method
from tensorkeep.records.manifest import File, Manifest


@dataclass(frozen=True)
class Parent:
    """The version whose method, part size and packs are kept.

    ``digests[i]`` names its part i; ``lost`` are parts that no device can give any more: nothing is kept in them.
    """

    manifest: Manifest
    digests: Sequence[bytes]
    lost: frozenset[int] = field(default_factory=frozenset)


class KeptItem(NamedTuple):
    """A small item that lies at ``part_start`` of part number ``parent_part`` of the parent."""

    item: SmallItem
    parent_part: int
    part_start: int


class _Place(NamedTuple):
    part: int
    start: int


def find_kept(
    items: Iterable[SmallItem],
    files: Sequence[SourceFile],
    *,
    digests: Mapping[tuple[int, int, int], bytes],
    parent: Parent,
) -> Iterator[KeptItem]:
    """Yield the items whose bytes are in a pack of the parent, in order.

    Among equal ones the place of the same tensor (or start) of the same path wins: an unchanged file keeps exactly its extents,
    whatever else has the same bytes (all-ones norms are in every layer). Then one of the same tensor wins: files were cut
    anew or renamed. What layers are called plays no part in it.
    """
    places = _index(parent)
    for item in items:
        digest = digests.get((item.file, item.start, item.length))
        if digest is None:
            continue
        for key in _keys(files[item.file].path, item, digest.hex()):
            if (place := places.get(key)) is not None:
                yield KeptItem(item, place.part, place.start)
                break


def _keys(path: str, item: SmallItem, digest: str) -> tuple[tuple[object, ...], ...]:
    """Return what an item is looked up by, best first. The length keeps a wrong digest from naming other bytes."""
    return (
        (path, item.start if item.tensor is None else item.tensor, digest, item.length),
        (item.tensor, digest, item.length),
        (digest, item.length),
    )


def _index(parent: Parent) -> dict[tuple[object, ...], _Place]:
    """Return the places of the parent's small items by each of their keys; the first of equal ones."""
    places: dict[tuple[object, ...], _Place] = {}
    method = find_method(parent.manifest.split)
    if method is None:
        return places
    for file in parent.manifest.files:
        digests = {(tensor.start, tensor.length): tensor.digest for tensor in file.tensors}
        digests |= {(item.start, item.length): item.digest for item in file.items}
        source = SourceFile(file.path, file.size_bytes, file.format, file.tensors)
        starts = [0, *accumulate(extent.length for extent in file.extents)]
        for small in list_small_items([source], method=method, naming=NO_NAMING):
            digest = digests.get((small.start, small.length))
            place = _place(file, starts, small)
            if digest is None or place is None or place.part in parent.lost:
                continue
            for key in _keys(file.path, small, digest):
                places.setdefault(key, place)
    return places


def _place(file: File, starts: Sequence[int], item: SmallItem) -> _Place | None:
    """Return where an item of the parent lies if it is in one extent."""
    number = bisect_right(starts, item.start) - 1
    extent = file.extents[number]
    skipped = item.start - starts[number]
    if skipped + item.length > extent.length:
        return None
    return _Place(extent.part, extent.start + skipped)
