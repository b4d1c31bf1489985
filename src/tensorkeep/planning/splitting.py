"""Splitting: which bytes of which files become which part. Pure: the same files, parent, method and part size, the same parts.

Splitting only chooses cut points and grouping. `plan_split` names every byte of every file exactly once, in parts that are
written (`PlannedPart`) or kept from the parent version (`ReusedPart`). The rules are in `cuts`, `packs` and `kept_items`;
`choosing` chooses method and part size.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tensorkeep.errors import Internal
from tensorkeep.planning.choosing import Choice, choose_split
from tensorkeep.planning.cuts import (
    METHODS,
    Method,
    SmallItem,
    SourceFile,
    check_part_size,
    get_method,
    iter_cuts,
    iter_runs,
    list_small_items,
)
from tensorkeep.planning.kept_items import KeptItem, Parent, find_kept
from tensorkeep.planning.packs import Piece, PlannedPart, pack_items
from tensorkeep.records.layout import SMALL_ITEM_BYTES
from tensorkeep.records.manifest import Extent

__all__ = [
    "METHODS",
    "Choice",
    "Method",
    "Parent",
    "Piece",
    "PlannedPart",
    "ReusedPart",
    "SmallItem",
    "SourceFile",
    "SplitPlan",
    "choose_split",
    "list_small_items",
    "plan_split",
]


@dataclass(frozen=True, slots=True)
class ReusedPart:
    """A pack of the parent version, kept as it is: its digest, its size, its number there."""

    digest: bytes
    size_bytes: int
    parent_part: int


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """How files are split.

    ``parts`` are ordered by the first byte, in file order, that lies in them. ``extents[i]`` cover file i exactly, in order,
    with part numbers of this plan; neighbours that are contiguous in both are one. ``items[i]`` are (start, length) of what
    lies in packs of file i and is no tensor.
    """

    method: str
    part_size: int
    why: str
    parts: tuple[PlannedPart | ReusedPart, ...]
    extents: tuple[tuple[Extent, ...], ...]
    items: tuple[tuple[tuple[int, int], ...], ...]


def plan_split(
    files: Sequence[SourceFile],
    *,
    method: str,
    part_size: int,
    item_digests: Mapping[tuple[int, int, int], bytes],
    parent: Parent | None,
    why: str = "",
) -> SplitPlan:
    """Return how these files are split; linear in files, tensors and parts.

    Args:
        files: in the order of the manifest, sorted by path.
        method: ``tensor`` or ``size``.
        part_size: in bytes, a whole number of MiB from 1 to 64.
        item_digests: BLAKE3-256 of the small items (`list_small_items`) by (file number, start, length). Only needed with a
            parent; an item without one is written again.
        parent: the version whose packs are kept.
        why: a sentence from `choose_split`, passed on.

    Raises:
        InvalidInput: the method or the part size is not possible.
    """
    check_part_size(part_size)
    small = list_small_items(files, method=method)
    kept = list(find_kept(small, files, digests=item_digests, parent=parent)) if parent else []
    kept_items = {(found.item.file, found.item.start) for found in kept}
    packs = pack_items((item for item in small if (item.file, item.start) not in kept_items), part_size=part_size)
    parts, pieces = _number_parts([*_cut_runs(files, get_method(method), part_size), *packs], kept, parent)
    items: list[list[tuple[int, int]]] = [[] for _ in files]
    for item in small:
        if item.tensor is None:
            items[item.file].append((item.start, item.length))
    return SplitPlan(
        method=method,
        part_size=part_size,
        why=why,
        parts=parts,
        extents=_join_extents(files, pieces),
        items=tuple(tuple(of_file) for of_file in items),
    )


def _cut_runs(files: Sequence[SourceFile], method: Method, part_size: int) -> Iterable[PlannedPart]:
    """Yield the parts of all runs of 1 MiB and more."""
    for number, file in enumerate(files):
        for run in iter_runs(file, method=method):
            if run.length >= SMALL_ITEM_BYTES:
                for start, length in iter_cuts(run.length, part_size):
                    yield PlannedPart(length, (Piece(number, run.start + start, length, 0),), run.layer)


def _number_parts(
    new: Sequence[PlannedPart], kept: Sequence[KeptItem], parent: Parent | None
) -> tuple[tuple[PlannedPart | ReusedPart, ...], list[tuple[int, Piece]]]:
    """Return the parts in order of their first byte, and every piece with the number of its part."""
    pieces_of: list[tuple[PlannedPart | ReusedPart, list[Piece]]] = [(part, list(part.pieces)) for part in new]
    reused: dict[int, list[Piece]] = {}
    for item, parent_part, part_start in kept:
        reused.setdefault(parent_part, []).append(Piece(item.file, item.start, item.length, part_start))
    for number, pieces in reused.items():
        assert parent is not None
        pieces_of.append((ReusedPart(parent.digests[number], parent.manifest.parts[number], number), pieces))
    pieces_of.sort(key=lambda entry: entry[1][0])  # pieces are in file order, and no byte is in two
    numbered = [(number, piece) for number, (_, pieces) in enumerate(pieces_of) for piece in pieces]
    return tuple(part for part, _ in pieces_of), numbered


def _join_extents(files: Sequence[SourceFile], pieces: Sequence[tuple[int, Piece]]) -> tuple[tuple[Extent, ...], ...]:
    """Return each file's extents, neighbours joined where the part is contiguous too."""
    found: list[list[Extent]] = [[] for _ in files]
    covered = [0] * len(files)
    for part, piece in sorted(pieces, key=lambda numbered: numbered[1]):
        if piece.start != covered[piece.file]:
            raise Internal(f"the split of {files[piece.file].path!r} has a hole or an overlap at byte {piece.start}")
        covered[piece.file] += piece.length
        extents = found[piece.file]
        if extents and extents[-1].part == part and extents[-1].start + extents[-1].length == piece.offset:
            last = extents.pop()
            extents.append(Extent(part, last.start, last.length + piece.length))
        else:
            extents.append(Extent(part, piece.offset, piece.length))
    if any(length != file.size_bytes for length, file in zip(covered, files, strict=True)):
        raise Internal("the split leaves bytes of a file out")
    return tuple(tuple(extents) for extents in found)
