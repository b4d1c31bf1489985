"""What a pull writes: files as they were pushed, files converted to safetensors, and indexes that say where tensors went."""

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from blake3 import blake3

from tensorkeep.formats.hub_index import INDEX_LIMIT_BYTES, encode_weight_index, find_weight_index
from tensorkeep.planning.export import ExportPlan, plan_export
from tensorkeep.planning.export_folder import (
    FolderPlan,
    check_names,
    is_foreign_index,
    plan_folder,
    shard_path,
    shards_of,
)
from tensorkeep.records.digest import parse_digest
from tensorkeep.records.manifest import File, Manifest
from tensorkeep.store.reading import VersionReader
from tensorkeep.store.saving import own_metadata
from tensorkeep.store.stored_source import StoredSource
from tensorkeep.transfer.hashing import FileHasher

_CHUNK_BYTES = 8 << 20


class Output(Protocol):
    """A file of a pull: the path that it gets, its size, and how many bytes of devices it is made of."""

    @property
    def path(self) -> str:
        """The path under the destination."""

    @property
    def size_bytes(self) -> int:
        """Its size."""

    @property
    def needed_bytes(self) -> int:
        """How many bytes are read for it."""

    def is_at(self, path: Path) -> bool:
        """Return whether the file at a path has exactly its bytes, so that nothing needs to be written."""


@dataclass(frozen=True, slots=True)
class CopiedFile:
    """A file as it was pushed."""

    file: File

    @property
    def path(self) -> str:
        """Its own path."""
        return self.file.path

    @property
    def size_bytes(self) -> int:
        """Its size."""
        return self.file.size_bytes

    @property
    def needed_bytes(self) -> int:
        """All of it."""
        return self.file.size_bytes

    def is_at(self, path: Path) -> bool:
        """Return whether the file at a path has its SHA-256."""
        if not _has_size(path, self.file.size_bytes):
            return False
        hasher = FileHasher(self.file.size_bytes)
        with path.open("rb") as stream:
            left = self.file.size_bytes
            while left and (data := stream.read(min(left, _CHUNK_BYTES))):
                hasher.update(memoryview(data))
                left -= len(data)
        return left == 0 and hasher.sha256 == parse_digest(self.file.sha256, what="SHA-256").hex()


@dataclass(frozen=True, slots=True)
class ConvertedFile:
    """A file that becomes a safetensors file."""

    path: str
    plan: ExportPlan

    @property
    def size_bytes(self) -> int:
        """Its size once it is converted."""
        return self.plan.size_bytes

    @property
    def needed_bytes(self) -> int:
        """Its tensors."""
        return self.plan.data_bytes

    def is_at(self, path: Path) -> bool:
        """Return whether the file at a path has its header, and tensors of the right digests.

        False too where a tensor is strided: the digest is of its bytes in another order.
        """
        tensors = [placed for placed in self.plan.tensors if placed.tensor.length]
        if any(placed.tensor.strides for placed in tensors) or not _has_size(path, self.size_bytes):
            return False
        with path.open("rb") as stream:
            if stream.read(len(self.plan.header)) != self.plan.header:
                return False
            for placed in tensors:
                hasher, left = blake3(), placed.tensor.length
                while left and (data := stream.read(min(left, _CHUNK_BYTES))):
                    hasher.update(data)
                    left -= len(data)
                if hasher.hexdigest() != placed.tensor.digest:
                    return False
        return True


@dataclass(frozen=True, slots=True)
class MadeFile:
    """A small file that is made anew: an index."""

    path: str
    data: bytes

    @property
    def size_bytes(self) -> int:
        """Its size."""
        return len(self.data)

    @property
    def needed_bytes(self) -> int:
        """None: it is made already."""
        return 0

    def is_at(self, path: Path) -> bool:
        """Return whether the file at a path has its bytes."""
        return _has_size(path, len(self.data)) and path.read_bytes() == self.data


def plan_conversion(
    manifest: Manifest, chosen: Sequence[File], reader: VersionReader
) -> tuple[list[Output], tuple[str, ...]]:
    """Return what the chosen files become as safetensors, in their order, and what the user should know of them.

    Raises:
        InvalidInput: a file holds what safetensors can't, or two would get one name.
    """
    indexes = {}
    for file in manifest.files:
        if is_foreign_index(file.path) and file.size_bytes <= INDEX_LIMIT_BYTES:
            found = find_weight_index(StoredSource(file, reader).read(0, file.size_bytes))
            if found:
                indexes[file.path] = found
    plan = plan_folder(manifest.files, indexes)
    check_names(plan, [file.path for file in chosen])
    files = {file.path: file for file in manifest.files}
    wanted = {file.path for file in chosen}
    wanted |= {shard for path, index in plan.indexes.items() if path in wanted for shard in shards_of(path, index)}
    exports = {path: _plan_file(files[path], reader) for path in sorted(wanted & plan.converted)}
    warnings = [plan.warnings[file.path] for file in chosen if file.path in plan.warnings]
    outputs: list[Output] = []
    for file in chosen:
        if file.path in plan.converted:
            outputs.append(ConvertedFile(plan.names[file.path], exports[file.path]))
        elif file.path in plan.indexes:
            outputs.append(_rewrite_index(file.path, plan, exports, warnings))
        else:
            outputs.append(CopiedFile(file))
    return outputs, tuple(warnings)


def _plan_file(file: File, reader: VersionReader) -> ExportPlan:
    return plan_export([(file, tensor) for tensor in file.tensors], own_metadata(file, reader) or None)


def _rewrite_index(path: str, plan: FolderPlan, exports: dict[str, ExportPlan], warnings: list[str]) -> MadeFile:
    """Return the index with the new names of shards, without the names that are not written (aliases)."""
    index = plan.indexes[path]
    name = plan.names[path]
    folder = posixpath.dirname(path)
    written = {shard: {each.tensor.name for each in exports[shard].tensors} for shard in shards_of(path, index)}
    weight_map, lost = {}, []
    for tensor, shard in index.weight_map.items():
        source = shard_path(path, shard)
        if tensor in written[source]:
            weight_map[tensor] = posixpath.relpath(plan.names[source], folder or ".")
        elif tensor not in exports[source].aliases:
            lost.append(tensor)
    if lost:
        warnings.append(
            f"{path!r} names {len(lost)} tensors that its shards do not have, such as {min(lost)!r}: {name!r} leaves them out"
        )
    total_size = sum(exports[shard].data_bytes for shard in written)
    return MadeFile(name, encode_weight_index(index, weight_map, total_size=total_size))


def _has_size(path: Path, size_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == size_bytes
