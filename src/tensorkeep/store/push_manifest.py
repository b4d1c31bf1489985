"""Putting a version together: parts numbered by first use, equal parts once, so that the same bytes give the same manifest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from tensorkeep.planning.splitting import PlannedPart, ReusedPart
from tensorkeep.records.checks import encode_checks
from tensorkeep.records.digest import blake3_256
from tensorkeep.records.manifest import Extent, File, Item, Manifest, Tensor, check_manifest, encode_manifest
from tensorkeep.store.push_plan import Base, PushPlan
from tensorkeep.store.push_read import FileFact, PartFact, ReadResult

_EMPTY_DIGEST = blake3_256(b"")


@dataclass(frozen=True, slots=True)
class AssembledVersion:
    """The two objects that describe a version's content, their digests, and the facts of its parts in order."""

    manifest: Manifest
    manifest_body: bytes
    manifest_digest: bytes
    checks_body: bytes
    checks_digest: bytes
    parts: tuple[PartFact, ...]


@dataclass(slots=True)
class _Numbering:
    """Gives parts their numbers in the manifest, in order of first use."""

    numbers: dict[bytes, int] = field(default_factory=dict)
    facts: list[PartFact] = field(default_factory=list)

    def number(self, fact: PartFact) -> int:
        if fact.digest not in self.numbers:
            self.numbers[fact.digest] = len(self.facts)
            self.facts.append(fact)
        return self.numbers[fact.digest]


def assemble_version(plan: PushPlan, result: ReadResult, base: Base | None) -> AssembledVersion:
    """Return the manifest and checks of what was read and kept, files sorted by path."""
    numbering = _Numbering()
    positions = {source.path: number for number, source in enumerate(plan.read)}
    whole = _whole_parts(plan, result)
    files = []
    for source in plan.sources:
        if source.path in plan.kept:
            assert base is not None
            files.append(_renumber(plan.kept[source.path], base, numbering))
        else:
            files.append(_new_file(plan, positions[source.path], result, base, numbering, whole))
    checks_body = encode_checks([f.digest for f in numbering.facts], [f.checks for f in numbering.facts])
    checks_digest = blake3_256(checks_body)
    manifest = Manifest(
        split=str(plan.choice.method),
        part_size=plan.choice.part_size,
        files=tuple(files),
        parts=tuple(f.size_bytes for f in numbering.facts),
        checks=checks_digest.hex(),
    )
    check_manifest(manifest)
    body = encode_manifest(manifest)
    return AssembledVersion(manifest, body, blake3_256(body), checks_body, checks_digest, tuple(numbering.facts))


def same_files(manifest: Manifest, other: Manifest) -> bool:
    """Return whether two versions hold the same files: paths, sizes and SHA-256."""
    return [(f.path, f.size_bytes, f.sha256) for f in manifest.files] == [
        (f.path, f.size_bytes, f.sha256) for f in other.files
    ]


def base_fact(base: Base, part: int) -> PartFact:
    """Return what the base knows of one of its parts."""
    return PartFact(base.digest(part), base.manifest.parts[part], base.checks.block_checks(part).tolist())


def _renumber(file: File, base: Base, numbering: _Numbering) -> File:
    extents = tuple(Extent(numbering.number(base_fact(base, e.part)), e.start, e.length) for e in file.extents)
    return msgspec.structs.replace(file, extents=extents)


def _new_file(
    plan: PushPlan,
    number: int,
    result: ReadResult,
    base: Base | None,
    numbering: _Numbering,
    whole: Mapping[tuple[int, int, int], bytes],
) -> File:
    source, structure, fact = plan.read[number], plan.structures[number], result.files[number]
    extents = []
    for extent in plan.split.extents[number]:
        part = plan.split.parts[extent.part]
        if isinstance(part, ReusedPart):
            assert base is not None
            known = base_fact(base, part.parent_part)
        else:
            known = result.parts[extent.part]
        extents.append(Extent(numbering.number(known), extent.start, extent.length))
    return File(
        path=source.path,
        size_bytes=source.size_bytes,
        format=structure.format,
        extents=tuple(extents),
        tensors=_tensors(plan, number, fact, whole),
        items=tuple(
            Item(start, length, plan.item_digests[number, start, length].hex())
            for start, length in plan.split.items[number]
        ),
        sha256=fact.sha256,
        git_sha1=fact.git_sha1,
    )


def _tensors(
    plan: PushPlan, number: int, fact: FileFact, whole: Mapping[tuple[int, int, int], bytes]
) -> tuple[Tensor, ...]:
    tensors = []
    for layout in plan.structures[number].tensors:
        if layout.length == 0:
            digest = _EMPTY_DIGEST
        elif (layout.start, layout.length) in fact.range_digests:
            digest = fact.range_digests[layout.start, layout.length]
        elif (number, layout.start, layout.length) in whole:
            digest = whole[number, layout.start, layout.length]
        else:
            digest = plan.item_digests[number, layout.start, layout.length]
        tensors.append(
            Tensor(
                name=layout.name,
                dtype=layout.dtype,
                shape=layout.shape,
                strides=layout.strides,
                start=layout.start,
                length=layout.length,
                digest=digest.hex(),
            )
        )
    return tuple(tensors)


def _whole_parts(plan: PushPlan, result: ReadResult) -> dict[tuple[int, int, int], bytes]:
    """Return the digests of new parts that are one run of a file, by (file, start, length)."""
    whole = {}
    for index, part in enumerate(plan.split.parts):
        if isinstance(part, PlannedPart) and len(part.pieces) == 1:
            piece = part.pieces[0]
            if piece.length == part.size_bytes:
                whole[piece.file, piece.start, piece.length] = result.parts[index].digest
    return whole


def part_digests(parts: Sequence[PartFact]) -> bytes:
    """Return the digests of parts, 32 bytes each, in order."""
    return b"".join(fact.digest for fact in parts)
