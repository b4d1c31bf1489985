"""Splitting: which bytes of which files become which part. Pure: the same files, parent, method and part size, the same parts.

Splitting only chooses cut points and grouping. `plan_split` names every byte of every file exactly once, in parts that are
written (`PlannedPart`) or kept from the parent version (`ReusedPart`). The rules are in `cuts`, `packs` and `kept_items`;
`choosing` chooses method and part size, `layers` knows which layer a tensor is of.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tensorkeep.errors import Internal
from tensorkeep.planning.choosing import Choice, choose_split
from tensorkeep.planning.cuts import (
    Run,
    SmallItem,
    SourceFile,
    check_part_size,
    iter_cuts,
    iter_runs,
    iter_shares,
    list_small_items,
)
from tensorkeep.planning.kept_items import KeptItem, Parent, find_kept
from tensorkeep.planning.layers import USUAL_NAMING, Layer, LayerNaming
from tensorkeep.planning.methods import LAYER, Method
from tensorkeep.planning.packs import Piece, PlannedPart, pack_items
from tensorkeep.records.layout import SMALL_ITEM_BYTES
from tensorkeep.records.manifest import Extent

__all__ = [
    "Choice",
    "Layer",
    "LayerNaming",
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

    ``parts`` are ordered by the first byte, in file order, that lies in them; with ``layer`` by layer: what is of none first, then
    stacks in order of first appearance, in each by number, in a layer by expert. ``extents[i]`` cover file i exactly, in order,
    with part numbers of this plan; neighbours that are contiguous in both are one. ``items[i]`` are (start, length) of what
    lies in packs of file i and is no tensor.
    """

    method: Method
    part_size: int
    why: str
    parts: tuple[PlannedPart | ReusedPart, ...]
    extents: tuple[tuple[Extent, ...], ...]
    items: tuple[tuple[tuple[int, int], ...], ...]


def plan_split(
    files: Sequence[SourceFile],
    *,
    method: Method,
    part_size: int,
    item_digests: Mapping[tuple[int, int, int], bytes],
    parent: Parent | None,
    naming: LayerNaming = USUAL_NAMING,
    model_files: Sequence[tuple[str, int]] | None = None,
    why: str = "",
) -> SplitPlan:
    """Return how these files are split; linear in files, tensors and parts.

    Args:
        files: in the order of the manifest, sorted by path.
        method: how they are cut.
        part_size: in bytes, a whole number of MiB from 1 to 64.
        item_digests: BLAKE3-256 of the small items (`list_small_items`) by (file number, start, length). Only needed with a
            parent; an item without one is written again.
        parent: the version whose packs are kept.
        naming: what layers are called.
        model_files: (path, size) of all files of the version, in order, where ``files`` are only some: ``parts=N`` counts them all.
        why: a sentence from `choose_split`, passed on.

    Raises:
        InvalidInput: the part size is not possible.
    """
    check_part_size(part_size)
    if method.shares:
        runs: list[list[Run]] = []
        new = list(_cut_shares(files, method.shares, part_size, model_files or [(f.path, f.size_bytes) for f in files]))
    else:
        runs = [list(iter_runs(file, method=method, naming=naming)) for file in files]
        new = list(_cut_runs(runs, part_size))
    small = [SmallItem(n, *run) for n, of_file in enumerate(runs) for run in of_file if run.length < SMALL_ITEM_BYTES]
    packed = sorted(small, key=lambda item: _expert_rank(item.expert)) if method == LAYER else small
    kept = list(find_kept(packed, files, digests=item_digests, parent=parent)) if parent else []
    kept_items = {(found.item.file, found.item.start) for found in kept}
    loose = [item for item in packed if (item.file, item.start) not in kept_items]
    new += pack_items(loose, part_size=part_size)
    entries = [*(_Entry(p, p.pieces, p.layer, p.expert) for p in new), *_reuse(kept, parent)]
    ranks = _rank_stacks(runs) if method == LAYER else {}
    entries.sort(key=lambda entry: _order(entry, ranks) if method == LAYER else entry.pieces[0])
    numbered = [(number, piece) for number, entry in enumerate(entries) for piece in entry.pieces]
    items: list[list[tuple[int, int]]] = [[] for _ in files]
    for item in small:
        if item.tensor is None:
            items[item.file].append((item.start, item.length))
    return SplitPlan(
        method=method,
        part_size=part_size,
        why=why,
        parts=tuple(entry.part for entry in entries),
        extents=_join_extents(files, numbered),
        items=tuple(tuple(of_file) for of_file in items),
    )


class _Entry(NamedTuple):
    """A part with what of these files lies in it, no byte in two, and what orders it: layer and expert of the first piece."""

    part: PlannedPart | ReusedPart
    pieces: Sequence[Piece]
    layer: Layer | None
    expert: int | None


def _cut_runs(runs: Sequence[Sequence[Run]], part_size: int) -> Iterator[PlannedPart]:
    """Yield the parts of all runs of 1 MiB and more."""
    for number, of_file in enumerate(runs):
        for run in of_file:
            if run.length >= SMALL_ITEM_BYTES:
                for start, length in iter_cuts(run.length, part_size):
                    yield PlannedPart(length, (Piece(number, run.start + start, length, 0),), run.layer, run.expert)


def _cut_shares(
    files: Sequence[SourceFile], count: int, part_size: int, model_files: Sequence[tuple[str, int]]
) -> Iterator[PlannedPart]:
    """Yield the parts of what lies of each share in each file, cut from where the share starts in it."""
    total = sum(size for _, size in model_files)
    first: dict[str, int] = {}
    covered = 0
    for path, size in model_files:
        first[path] = covered
        covered += size
    for number, file in enumerate(files):
        for share, start, run in iter_shares(first[file.path], file.size_bytes, count=count, total_bytes=total):
            for offset, length in iter_cuts(run, part_size):
                piece = Piece(number, start - first[file.path] + offset, length, 0)
                yield PlannedPart(length, (piece,), None, share=share)


def _reuse(kept: Sequence[KeptItem], parent: Parent | None) -> Iterator[_Entry]:
    """Yield the parent's packs that kept items lie in."""
    reused: dict[int, list[KeptItem]] = {}
    for found in kept:
        reused.setdefault(found.parent_part, []).append(found)
    for number, items in reused.items():
        assert parent is not None
        part = ReusedPart(parent.digests[number], parent.manifest.parts[number], number)
        pieces = [Piece(item.file, item.start, item.length, part_start) for item, _, part_start in items]
        yield _Entry(part, pieces, items[0].item.layer, items[0].item.expert)


def _rank_stacks(runs: Sequence[Sequence[Run]]) -> dict[str, int]:
    """Return the stacks of layers, numbered in the order in which they appear in the files."""
    ranks: dict[str, int] = {}
    for of_file in runs:
        for run in of_file:
            if run.layer is not None:
                ranks.setdefault(run.layer.stack, len(ranks))
    return ranks


def _order(entry: _Entry, stacks: Mapping[str, int]) -> tuple[int, ...]:
    """Return what orders parts by layer, in it by expert, in that as packs were filled and by file."""
    layer = (-1, -1) if entry.layer is None else (stacks[entry.layer.stack], entry.layer.number)
    return (*layer, _expert_rank(entry.expert), *entry.pieces[0])


def _expert_rank(expert: int | None) -> int:
    return -1 if expert is None else expert


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
