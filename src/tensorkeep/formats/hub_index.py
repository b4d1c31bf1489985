"""The index of a sharded checkpoint, as on the Hugging Face Hub: which tensor lies in which shard.

``*.index.json`` holds ``{"metadata": {...}, "weight_map": {tensor: shard}}``; shards are named from the index's own folder. An
index is stored like any other file; it is checked because it tells of shards that are missing. Of shards in formats whose
tensors the Hub's libraries name otherwise than we do (HDF5), only their being there is checked.

Source: https://huggingface.co/docs/safetensors/en/metadata_parsing; ``save_torch_state_dict`` of huggingface_hub.
"""

import posixpath
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from tensorkeep.errors import Format
from tensorkeep.formats.protocol import FileStructure
from tensorkeep.formats.pytorch import PYTORCH
from tensorkeep.formats.safetensors import SAFETENSORS

INDEX_SUFFIX = ".index.json"
STRICT_SUFFIX = ".safetensors.index.json"
"""A file of this name must be an index; any other without a ``weight_map`` is somebody else's JSON."""

_NAMED_ALIKE = (SAFETENSORS, PYTORCH)

INDEX_LIMIT_BYTES = 100_000_000
"""Most bytes of an index: as many as a header's, which names as many tensors."""


class WeightIndex(NamedTuple):
    """An index: tensor → shard, as it stands in ``fields``, which is all of its JSON."""

    weight_map: dict[str, str]
    fields: dict[str, Any]


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


_INDEX = msgspec.json.Decoder(_Index)


def is_index(path: str) -> bool:
    """Return whether a file of this path may be an index, by its name."""
    return path.lower().endswith(INDEX_SUFFIX)


def is_strict(path: str) -> bool:
    """Return whether a file of this path must be an index, by its name."""
    return path.lower().endswith(STRICT_SUFFIX)


def find_weight_index(data: bytes) -> WeightIndex | None:
    """Return the index that these bytes are, or None where they are none."""
    try:
        return WeightIndex(_INDEX.decode(data).weight_map, msgspec.json.decode(data, type=dict[str, Any]))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def encode_weight_index(index: WeightIndex, weight_map: Mapping[str, str], *, total_size: int) -> bytes:
    """Return the file of an index with another map, its ``total_size`` in bytes of tensors, and all else kept.

    Written as huggingface_hub and transformers do: sorted, indented by two.
    """
    metadata = index.fields.get("metadata")
    kept = metadata if isinstance(metadata, dict) else {}
    fields = index.fields | {"metadata": kept | {"total_size": total_size}, "weight_map": dict(weight_map)}
    return msgspec.json.format(msgspec.json.encode(fields, order="sorted"), indent=2) + b"\n"


def check_index(path: str, data: bytes, files: Mapping[str, FileStructure]) -> None:
    """Return if every shard of an index is among the files and has the tensors that the index says.

    ``files`` are all files of the version by path. Of an opaque shard (a broken one under ``--split size``) only its
    being there is checked. A file that need not be an index, and is none, passes.

    Raises:
        Format: not the index that it must be, or a shard or a tensor of it is missing; the message names both.
    """
    if not is_strict(path) and find_weight_index(data) is None:
        return
    weight_map = _read_weight_map(path, data)
    folder = posixpath.dirname(path)
    names: dict[str, set[str] | None] = {}
    for tensor, shard in weight_map.items():
        if shard not in names:
            names[shard] = _tensor_names(path, posixpath.normpath(posixpath.join(folder, shard)), files)
        found = names[shard]
        if found is not None and tensor not in found:
            raise Format(
                f"the index {path!r} says that the tensor {tensor!r} is in {shard!r}, which has no such tensor: an "
                "incomplete download, or the shard of another model?",
                path=path,
                shard=shard,
                tensor=tensor,
            )


def _read_weight_map(path: str, data: bytes) -> dict[str, str]:
    if len(data) > INDEX_LIMIT_BYTES:
        raise Format(f"the index {path!r} has {len(data)} bytes; the limit is {INDEX_LIMIT_BYTES}", path=path)
    try:
        return _INDEX.decode(data).weight_map
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Format(f"the index {path!r} is no JSON object with a weight_map: {error}", path=path) from error


def _tensor_names(path: str, shard: str, files: Mapping[str, FileStructure]) -> set[str] | None:
    """Return the names of a shard's tensors, or None where nobody can know them."""
    structure = files.get(shard)
    if structure is None:
        raise Format(
            f"the index {path!r} names the shard {shard!r}, which is not in the folder: an incomplete download?",
            path=path,
            shard=shard,
        )
    return {tensor.name for tensor in structure.tensors} if structure.format in _NAMED_ALIKE else None
