"""What a folder becomes when its tensors leave as safetensors: which files are converted, copied, rewritten, and their names.

A file of a known tensor format becomes one safetensors file; all others are copied. The index of a sharded checkpoint is
rewritten with its shards, all of them or none: a folder must never mix two formats of one checkpoint.
"""

import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tensorkeep.errors import InvalidInput
from tensorkeep.formats.hub_index import WeightIndex
from tensorkeep.formats.opaque import OPAQUE
from tensorkeep.formats.safetensors import SAFETENSORS
from tensorkeep.records.manifest import File

_SUFFIX = ".safetensors"
_INDEX = re.compile(r"(?P<weights>.+)(?P<rest>\.index(\.[^./]+)?\.json)", re.DOTALL)
_SHARD = re.compile(r"-[0-9]{5}-of-[0-9]{5}\.")
_MODEL_SUFFIX = re.compile(
    r"\.(safetensors|bin|pt|pth|ckpt|gguf|npz|npy|h5|hdf5|keras|onnx|msgpack|pkl|pickle|ot|pb|tflite)", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class FolderPlan:
    """What becomes of the files of a version.

    Attributes:
        names: path → the path it gets.
        converted: paths of the files that become safetensors files.
        indexes: paths of the indexes that are rewritten, with what they hold.
        warnings: what the user should know of the file at a path, a sentence each.
    """

    names: Mapping[str, str]
    converted: frozenset[str]
    indexes: Mapping[str, WeightIndex]
    warnings: Mapping[str, str]


def plan_folder(files: Sequence[File], indexes: Mapping[str, WeightIndex]) -> FolderPlan:
    """Return what becomes of files; ``indexes`` are the indexes of sharded checkpoints among them, by path."""
    converted = {file.path for file in files if is_convertible(file)}
    kept: dict[str, str] = {}
    while broken := _find_broken(indexes, converted, kept):
        index, shard = broken
        kept[index] = shard
        converted -= shards_of(index, indexes[index])
    rewritten = {path: index for path, index in indexes.items() if path not in kept}
    names = {file.path: file.path for file in files}
    names |= {path: safetensors_path(path) for path in converted}
    names |= {path: index_path(path) for path in rewritten}
    warnings = {
        file.path: f"{file.path!r} may be a model, but no tensors of it are known: it comes as it is"
        for file in files
        if may_be_model(file)
    }
    warnings |= {
        path: f"{path!r} and its shards come as they are, because no tensors of {shard!r} are known"
        for path, shard in kept.items()
    }
    return FolderPlan(names, frozenset(converted), rewritten, warnings)


def check_names(plan: FolderPlan, paths: Iterable[str]) -> None:
    """Return if the files at these paths get names of their own.

    Raises:
        InvalidInput: two would get one name; the message names both.
    """
    owners: dict[str, str] = {}
    for path in paths:
        name = plan.names[path]
        other = owners.setdefault(name.casefold(), path)
        if other != path:
            raise InvalidInput(
                f"{other!r} and {path!r} would both be written as {name!r}: choose one of them with --include",
                files=[other, path],
                name=name,
            )


def is_convertible(file: File) -> bool:
    """Return whether a file has tensors, in a format other than safetensors."""
    return file.format not in (SAFETENSORS, OPAQUE) and bool(file.tensors)


def may_be_model(file: File) -> bool:
    """Return whether a file has the name of a model, and no tensors that are known."""
    named = _MODEL_SUFFIX.fullmatch(posixpath.splitext(file.path)[1])
    return named is not None and not file.tensors and file.format != SAFETENSORS


def is_unknown_shard(file: File) -> bool:
    """Return whether a file is a piece of a model, by its name, and no tensors of it are known: what loads is no whole model."""
    return may_be_model(file) and _SHARD.search(posixpath.basename(file.path)) is not None


def safetensors_path(path: str) -> str:
    """Return the path that a converted file gets: what transformers looks for, else its own with the other suffix.

    ``pytorch_model.bin`` becomes ``model.safetensors``, its shards and variants alike.
    """
    folder, name = posixpath.split(path)
    stem = posixpath.splitext(name)[0]
    if re.match(r"pytorch_model($|[-.])", stem):
        stem = stem.removeprefix("pytorch_")
    return posixpath.join(folder, stem + _SUFFIX)


def is_foreign_index(path: str) -> bool:
    """Return whether a file of this path may be the index of a checkpoint that is not in safetensors yet, by its name."""
    found = _INDEX.fullmatch(path)
    return found is not None and not found["weights"].lower().endswith(_SUFFIX)


def index_path(path: str) -> str:
    """Return the path that a rewritten index gets: ``model.safetensors.index.json`` for ``pytorch_model.bin.index.json``."""
    found = _INDEX.fullmatch(path)
    assert found, "an index has the name of one"
    return safetensors_path(found["weights"]) + found["rest"]


def shards_of(path: str, index: WeightIndex) -> set[str]:
    """Return the paths of an index's shards in the version."""
    return {shard_path(path, shard) for shard in index.weight_map.values()}


def shard_path(path: str, shard: str) -> str:
    """Return the path in the version of a shard that the index at ``path`` names."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), shard))


def _find_broken(
    indexes: Mapping[str, WeightIndex], converted: set[str], kept: Mapping[str, str]
) -> tuple[str, str] | None:
    """Return an index that can't be rewritten, and a shard of it that is not converted."""
    for path, index in indexes.items():
        if path not in kept and (left := shards_of(path, index) - converted):
            return path, min(left)
    return None
