"""How tensors of any format go into one safetensors file: which are written and where, and how strided ones are read.

The format keeps names, dtypes and bytes, and neither strides nor sharing. So a strided tensor is written in C order; names of
one and the same tensor (a tie) become one tensor, and the others are noted in the metadata as ``safetensors.torch.save_model``
does it, alias → name, so that ``load_model`` gives them back; tensors that share only some bytes are written apart.
What the format cannot say is refused before a byte is written.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tensorkeep.errors import InvalidInput
from tensorkeep.formats.writing import safetensors_header
from tensorkeep.records.dtype import DTYPES, get_dtype, packed_shape
from tensorkeep.records.manifest import File, Tensor

FORMAT_KEY = "format"
"""The metadata key in which readers look for whose tensors a file holds: ``pt`` is PyTorch's, and transformers asks for it."""


class Placed(NamedTuple):
    """A tensor, the file of the version that it lies in, and where it starts in the file that is written."""

    file: File
    tensor: Tensor
    start: int


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """A safetensors file to write: its first bytes, then ``tensors`` without gaps, in order.

    ``aliases`` are the names that are not written, each with the one that stands for it.
    """

    header: bytes
    tensors: tuple[Placed, ...]
    aliases: Mapping[str, str]
    size_bytes: int

    @property
    def data_bytes(self) -> int:
        """Bytes after the header."""
        return self.size_bytes - len(self.header)


class BoxRead(NamedTuple):
    """Elements ``[starts, starts + sizes)`` of a tensor (packed shape), which are read into ``length`` bytes, C order."""

    placed: Placed
    starts: tuple[int, ...]
    sizes: tuple[int, ...]
    length: int


class Run(NamedTuple):
    """``length`` bytes at ``at`` of a batch that go to ``start`` of the file."""

    at: int
    start: int
    length: int


def plan_export(tensors: Sequence[tuple[File, Tensor]], metadata: Mapping[str, str] | None = None) -> ExportPlan:
    """Return how these tensors become one safetensors file with that metadata, the aliases added.

    Raises:
        InvalidInput: a dtype that the format lacks, two tensors of one name, or a header over the format's limit; the message
            names tensor, file and dtype.
    """
    _check(tensors)
    by_name = {tensor.name: (file, tensor) for file, tensor in tensors}
    aliases = _find_aliases(tensors)
    kept = [tensor for _, tensor in tensors if tensor.name not in aliases]
    noted = {**(metadata or {}), **aliases}
    header, layouts = safetensors_header(
        [(tensor.name, tensor.dtype, tensor.shape) for tensor in kept], noted if noted or metadata is not None else None
    )
    placed = tuple(Placed(*by_name[layout.name], layout.start) for layout in layouts)
    return ExportPlan(header, placed, aliases, len(header) + sum(layout.length for layout in layouts))


def merge_metadata(found: Sequence[Mapping[str, str]]) -> dict[str, str] | None:
    """Return the metadata of one file that holds the tensors of several, from theirs; None where nothing is left.

    What two of them contradict each other in is left out, and the format if it is not that of all.
    """
    merged: dict[str, str] = {}
    dropped = {FORMAT_KEY} if any(FORMAT_KEY not in metadata for metadata in found) else set()
    for metadata in found:
        for key, text in metadata.items():
            if merged.setdefault(key, text) != text:
                dropped.add(key)
    return {key: text for key, text in merged.items() if key not in dropped} or None


def plan_batches(plan: ExportPlan, *, limit_bytes: int) -> Iterator[list[BoxRead]]:
    """Yield what is read together of the strided tensors, in the file's order: a large one in several boxes.

    A batch needs as many bytes as its boxes' lengths add up to, never more than the limit.
    """
    batch: list[BoxRead] = []
    size = 0
    for placed in plan.tensors:
        for box in _cut(placed, placed.tensor.strides, limit_bytes) if placed.tensor.strides else ():
            if size + box.length > limit_bytes:
                yield batch
                batch, size = [], 0
            batch.append(box)
            size += box.length
    if batch:
        yield batch


def plan_runs(batch: Sequence[BoxRead]) -> list[Run]:
    """Return where the bytes of a batch go, its boxes one after the other; neighbours on both sides are one run."""
    runs: list[Run] = []
    at = 0
    for box in batch:
        for skip, length in _rows(box):
            start = box.placed.start + skip
            if runs and runs[-1].start + runs[-1].length == start:
                runs[-1] = Run(runs[-1].at, runs[-1].start, runs[-1].length + length)
            else:
                runs.append(Run(at, start, length))
            at += length
    return runs


def _check(tensors: Sequence[tuple[File, Tensor]]) -> None:
    owners: dict[str, File] = {}
    for file, tensor in tensors:
        if tensor.dtype not in DTYPES:
            raise InvalidInput(
                f"tensor {tensor.name!r} of {file.path!r} has the dtype {tensor.dtype}, which safetensors has no word for: "
                "choose others, or pull the file as it is",
                tensor=tensor.name,
                file=file.path,
                dtype=tensor.dtype,
            )
        other = owners.setdefault(tensor.name, file)
        if other is not file:
            raise InvalidInput(
                f"{other.path!r} and {file.path!r} both have a tensor {tensor.name!r}, and one file can have only one: choose "
                f"by name (as in '{file.path}::*'), or pull each file",
                tensor=tensor.name,
                files=[other.path, file.path],
            )


def _find_aliases(tensors: Sequence[tuple[File, Tensor]]) -> dict[str, str]:
    """Return the names that are one and the same tensor as another name, with the name that is kept: the first by sorting."""
    ties: dict[tuple[object, ...], list[str]] = {}
    for file, tensor in tensors:
        if tensor.length:
            what = (file.path, tensor.start, tensor.length, tensor.dtype, tensor.shape, tensor.strides)
            ties.setdefault(what, []).append(tensor.name)
    aliases = {}
    for names in ties.values():
        # A tensor named like the key of the metadata that readers rely on can't be an alias.
        kept = min(names, key=lambda name: (name != FORMAT_KEY, name))
        aliases.update({name: kept for name in names if name != kept})
    return aliases


def _array_shape(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    """Return the bytes of an element and the shape of the array that holds a tensor."""
    dtype = get_dtype(tensor.dtype)
    return dtype.numpy.itemsize, packed_shape(tensor.shape, dtype)


def _cut(placed: Placed, strides: tuple[int, ...], limit_bytes: int) -> Iterator[BoxRead]:
    """Yield boxes that cover a tensor, each within the limit and near to one run of bytes of the source.

    Rows would each reach over all bytes of a transposed matrix, so the dimensions are cut by their strides.
    """
    item, shape = _array_shape(placed.tensor)
    if not math.prod(shape):
        return
    order = sorted(range(len(shape)), key=lambda axis: -strides[axis])
    below, depth = item, len(order)
    while depth and below * shape[order[depth - 1]] <= limit_bytes:
        depth -= 1
        below *= shape[order[depth]]
    if not depth:
        yield BoxRead(placed, (0,) * len(shape), shape, below)
        return
    outer, cut = order[: depth - 1], order[depth - 1]
    step = max(limit_bytes // below, 1)
    for index in itertools.product(*(range(shape[axis]) for axis in outer)):
        for start in range(0, shape[cut], step):
            starts, sizes = [0] * len(shape), list(shape)
            for axis, position in zip(outer, index, strict=True):
                starts[axis], sizes[axis] = position, 1
            starts[cut], sizes[cut] = start, min(step, shape[cut] - start)
            yield BoxRead(placed, tuple(starts), tuple(sizes), sizes[cut] * below)


def _rows(box: BoxRead) -> Iterator[tuple[int, int]]:
    """Yield the runs of bytes of a box in its tensor as it is written: ``(offset in the tensor, length)``, in order."""
    item, shape = _array_shape(box.placed.tensor)
    strides = [item * math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    inner = len(shape)
    while inner and box.sizes[inner - 1] == shape[inner - 1]:
        inner -= 1
    inner = max(inner - 1, 0)  # one dimension more: a range of it is still one run
    base = sum(start * stride for start, stride in zip(box.starts, strides, strict=True))
    length = item * math.prod(box.sizes[inner:])
    for index in itertools.product(*(range(size) for size in box.sizes[:inner])):
        yield base + sum(i * stride for i, stride in zip(index, strides, strict=False)), length
