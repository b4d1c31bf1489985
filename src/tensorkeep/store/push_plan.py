"""Deciding what a push will do: which files are known, how the rest is cut, and where each part goes.

Files are read here only as far as their headers and their small items, whose digests decide what a pack keeps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tensorkeep.catalog.counting import count_copies
from tensorkeep.catalog.protocol import ObjectKey
from tensorkeep.errors import Format
from tensorkeep.formats.gguf import is_gguf
from tensorkeep.formats.gguf_split import check_splits
from tensorkeep.formats.hub_index import INDEX_LIMIT_BYTES, check_index, is_index, is_strict
from tensorkeep.formats.opaque import OPAQUE
from tensorkeep.formats.protocol import FileStructure, TensorLayout
from tensorkeep.formats.registry import read_structure
from tensorkeep.planning.layers import NO_NAMING
from tensorkeep.planning.methods import find_method
from tensorkeep.planning.splitting import (
    Choice,
    LayerNaming,
    Method,
    Parent,
    SourceFile,
    SplitPlan,
    choose_split,
    list_small_items,
    plan_split,
)
from tensorkeep.records.checks import Checks
from tensorkeep.records.digest import blake3_256
from tensorkeep.records.layout import MIB
from tensorkeep.records.manifest import File, Manifest
from tensorkeep.records.naming import ObjectKind
from tensorkeep.store.context import StoreContext
from tensorkeep.store.reports import FileNote
from tensorkeep.store.sources import PushSource
from tensorkeep.store.stat_cache import StatCache
from tensorkeep.transfer.hashing import FileHasher

_HASH_STEP_BYTES = 4 * MIB


@dataclass(frozen=True, slots=True)
class Base:
    """The version whose method, part size and packs are kept: the branch's head, or what ``--base`` names."""

    manifest: Manifest
    checks: Checks

    def digest(self, part: int) -> bytes:
        """Return the digest of one of its parts."""
        return self.checks.digest(part)


@dataclass(frozen=True, slots=True)
class PushPlan:
    """What is read and what is kept.

    ``kept[path]`` are files of the base that are known to be unchanged; ``read`` are the others, cut by ``split`` (whose file
    numbers are positions in ``read``). ``item_digests`` are keyed by (file, start, length).
    """

    sources: tuple[PushSource, ...]
    kept: Mapping[str, File]
    read: tuple[PushSource, ...]
    structures: tuple[FileStructure, ...]
    split: SplitPlan
    choice: Choice
    item_digests: Mapping[tuple[int, int, int], bytes]

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(source.size_bytes for source in self.sources)

    @property
    def notes(self) -> tuple[FileNote, ...]:
        """What the readers said of the files that are read."""
        return tuple(FileNote(s.path, f.note) for s, f in zip(self.read, self.structures, strict=True) if f.note)


def plan_push(
    context: StoreContext,
    sources: Sequence[PushSource],
    *,
    requested: str,
    part_size: int | None,
    naming: LayerNaming,
    base: Base | None,
    device_count: int,
    cache: StatCache | None,
    hash_items: bool = True,
) -> PushPlan:
    """Return what a push of these sources does; reads headers and small items, writes nothing.

    With ``hash_items=False`` small items are read only where the base may have them, and no whole file is: enough to look at, not
    to push.

    Raises:
        Format: a file breaks its format's rules.
        InvalidInput: the split method or part size is not possible.
    """
    lost = _lost_parts(context, base) if base is not None else frozenset()
    known = _known_files(sources, cache)
    unchanged = _unchanged_files(sources, known, base)
    structures = {
        source.path: read_structure(source.path, source, strict=requested != "size")
        for source in sources
        if source.path not in unchanged
    }
    if hash_items:
        unchanged |= _all_unchanged(sources, structures, unchanged, base)
    every = [
        SourceFile(s.path, s.size_bytes, f.format, f.tensors)
        for s in sources
        for f in (known_structure(unchanged[s.path]) if s.path in unchanged else structures[s.path],)
    ]
    parent = _parent(base, lost)
    choice = choose_split(
        every,
        requested=requested,
        part_size=part_size,
        device_count=max(1, device_count),
        parent=parent,
        naming=naming,
    )
    kept = _kept_files(sources, unchanged, base, choice, lost)
    read = tuple(source for source in sources if source.path not in kept)
    for source in read:
        if source.path not in structures:
            structures[source.path] = read_structure(source.path, source, strict=requested != "size")
    if requested != "size":
        _check_complete(sources, structures, kept)
    found = tuple(structures[source.path] for source in read)
    files = [SourceFile(s.path, s.size_bytes, f.format, f.tensors) for s, f in zip(read, found, strict=True)]
    digests = _hash_items(read, files, choice.method) if hash_items or base is not None else {}
    split = plan_split(
        files,
        method=choice.method,
        part_size=choice.part_size,
        item_digests=digests,
        parent=parent,
        naming=naming,
        model_files=[(source.path, source.size_bytes) for source in sources],
        why=choice.why,
    )
    return PushPlan(tuple(sources), kept, read, found, split, choice, digests)


def _parent(base: Base | None, lost: frozenset[int]) -> Parent | None:
    if base is None:
        return None
    digests = [base.digest(part) for part in range(len(base.manifest.parts))]
    return Parent(base.manifest, digests, lost=lost)


def _lost_parts(context: StoreContext, base: Base) -> frozenset[int]:
    """Return the parts of the base that have no copy which can be read: they must come from the source again."""
    keys = [ObjectKey(ObjectKind.PART, base.digest(part)) for part in range(len(base.manifest.parts))]
    readable = context.fleet.readable()
    found = context.catalog.locate(list(dict.fromkeys(keys)))
    usable = {
        key
        for key, locations in found.items()
        if count_copies(row for row in locations if row.device in readable and row.state in ("live", "stored"))
    }
    return frozenset(part for part, key in enumerate(keys) if key not in usable)


def _known_files(sources: Sequence[PushSource], cache: StatCache | None) -> dict[str, str]:
    if cache is None:
        return {}
    found = ((source.path, cache.find_sha256(source)) for source in sources)
    return {path: sha256 for path, sha256 in found if sha256 is not None}


def _unchanged_files(sources: Sequence[PushSource], known: Mapping[str, str], base: Base | None) -> dict[str, File]:
    """Return the base's files that the sources are known to equal, by path.

    A file that the base has as opaque and that a reader knows now (a newer tensorkeep's, or one of another package) is read
    anew, as it would be without the cache; but not where nothing changed at all, since then no version is made.
    """
    if base is None:
        return {}
    files = {file.path: file for file in base.manifest.files}
    same = [
        source for source in sources if source.path in files and known.get(source.path) == files[source.path].sha256
    ]
    if len(same) < max(len(sources), len(files)):
        same = [source for source in same if files[source.path].format != OPAQUE or _is_opaque(source)]
    return {source.path: files[source.path] for source in same}


def _is_opaque(source: PushSource) -> bool:
    return read_structure(source.path, source, strict=False).format == OPAQUE


def _all_unchanged(
    sources: Sequence[PushSource],
    structures: Mapping[str, FileStructure],
    unchanged: Mapping[str, File],
    base: Base | None,
) -> dict[str, File]:
    """Return the base's files by path where the sources equal all of them and some have another structure by now; else nothing.

    A reader that is new, or better than the one of that push, cuts its files anew. That is for the next version: where nothing
    changed none is made, and parts that were cut anew would be of no version.
    """
    method = find_method(base.manifest.split) if base is not None else None
    if base is None or method is None or not method.cuts_tensors:
        return {}
    files = {file.path: file for file in base.manifest.files}
    if {source.path: source.size_bytes for source in sources} != {path: f.size_bytes for path, f in files.items()}:
        return {}
    if all(_same_structure(known_structure(files[path]), structure) for path, structure in structures.items()):
        return {}
    unknown = sorted((s for s in sources if s.path not in unchanged), key=lambda source: source.size_bytes)
    return files if all(_hash_file(source) == files[source.path].sha256 for source in unknown) else {}


def _same_structure(one: FileStructure, other: FileStructure) -> bool:
    return (one.format, tuple(one.tensors)) == (other.format, tuple(other.tensors))


def _hash_file(source: PushSource) -> str:
    hasher = FileHasher(source.size_bytes)
    buffer = memoryview(bytearray(min(source.size_bytes, _HASH_STEP_BYTES)))
    for start in range(0, source.size_bytes, _HASH_STEP_BYTES):
        step = buffer[: source.size_bytes - start]
        source.read_into(start, step)
        hasher.update(step)
    return hasher.sha256


def _kept_files(
    sources: Sequence[PushSource],
    unchanged: Mapping[str, File],
    base: Base | None,
    choice: Choice,
    lost: frozenset[int],
) -> dict[str, File]:
    if base is None or (str(choice.method), choice.part_size) != (base.manifest.split, base.manifest.part_size):
        return {}
    sizes = [(source.path, source.size_bytes) for source in sources]
    if choice.method.shares and sizes != [(file.path, file.size_bytes) for file in base.manifest.files]:
        return {}  # shares are of all files together: where one grew, all are cut elsewhere
    return {path: f for path, f in unchanged.items() if not any(extent.part in lost for extent in f.extents)}


def _check_complete(
    sources: Sequence[PushSource], structures: Mapping[str, FileStructure], kept: Mapping[str, File]
) -> None:
    """Return if no model of several files lacks one, as far as its files say."""
    indexes = [source for source in sources if is_index(source.path)]
    splits = any(is_gguf(source.path) for source in sources)
    if not (indexes or splits) or all(source.path in kept for source in sources):
        return
    every = dict(structures)
    for path, file in kept.items():
        every.setdefault(path, known_structure(file))
    for source in indexes:
        if source.size_bytes > INDEX_LIMIT_BYTES and not is_strict(source.path):
            continue
        if source.size_bytes > INDEX_LIMIT_BYTES:
            raise Format(f"{source.path} has {source.size_bytes} bytes; an index has at most {INDEX_LIMIT_BYTES}")
        check_index(source.path, source.read(0, source.size_bytes), every)
    check_splits({source.path: source for source in sources}, every)


def known_structure(file: File) -> FileStructure:
    """Return the structure of a file that a version has; nothing is known of its note."""
    tensors = (TensorLayout(t.name, t.dtype, t.shape, t.strides, t.start, t.length) for t in file.tensors)
    return FileStructure(file.format, tuple(tensors))


def _hash_items(
    read: Sequence[PushSource], files: Sequence[SourceFile], method: Method
) -> dict[tuple[int, int, int], bytes]:
    return {
        (item.file, item.start, item.length): blake3_256(read[item.file].read(item.start, item.length))
        for item in list_small_items(files, method=method, naming=NO_NAMING)
    }
