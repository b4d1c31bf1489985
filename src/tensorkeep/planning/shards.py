"""Shards: which part of a model one process wants, as frameworks divide models over processes.

A `Shard` is a plain value; `cut_tensors` says what it means for the tensors of a version: which belong to it, and which box of each.
Ranks of pipelines and of experts get whole tensors and leave others out; tensor parallelism cuts an axis of a tensor into equal runs,
FSDP the first dimension into chunks. All combine: FSDP cuts what tensor parallelism left. The shards of all ranks, put side by side,
are the tensor.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from operator import index
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from tensorkeep.errors import InvalidInput
from tensorkeep.planning.layers import LayerNaming, parse_layer_pattern
from tensorkeep.planning.tensor_parallel import usual_axis
from tensorkeep.records.dtype import Dtype, get_dtype, packed_shape
from tensorkeep.records.manifest import Tensor

Rank = tuple[int, int]
"""A rank, from 0, and how many there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """The part of a model that one process wants.

    Attributes:
        tensor_parallel: rank and size: of each tensor that a rule names an axis of, the rank gets one of ``size`` equal runs of
            that axis. Key and value heads are not repeated: where there are fewer of them than ranks, give a rule.
        rules: glob over tensor names, as `Model.load` returns them → the axis to cut (negative ones count from the last), or None
            for whole. The first that fits holds; else the preset does.
        preset: whether tensors that no rule fits are cut as Llama-like models are (`planning.tensor_parallel`): by columns (axis 0)
            ``q_proj``, ``k_proj``, ``v_proj``, ``gate_proj``, ``up_proj``, ``w1``, ``w3``, ``embed_tokens``, ``lm_head`` and the
            like, with their biases; by rows (axis 1) ``o_proj``, ``down_proj``, ``w2`` and the like; all else whole. False: whole.
        fsdp: rank and size: the first dimension in chunks of ceil(n / size), as torch's ``fully_shard`` and ``torch.chunk`` cut; the
            last ones may be shorter or empty. Tensors without a dimension are whole on every rank: ``fully_shard`` refuses such
            parameters, and never cuts buffers.
        layers: numbers of layers, such as ``range(0, 8)`` for a stage of a pipeline; in a model of several stacks of layers, of each.
            None: all.
        layer_pattern: what layers are called, as in `Store.push`. None: as the usual families call them.
        outside_layers: whether tensors that belong to no layer (embeddings, final norm, head) are wanted too.
        experts: numbers of experts: tensors of others are left out, those of no expert stay. Tensors that hold all experts of a
            layer in one are not cut by this. None: all.

    Raises:
        InvalidInput: a rank is not below its size, a number makes no sense, or rules have nothing to cut.
    """

    tensor_parallel: Rank | None = None
    rules: Mapping[str, int | None] = field(default_factory=dict, hash=False)
    preset: bool = True
    fsdp: Rank | None = None
    layers: Collection[int] | None = None
    layer_pattern: str | None = None
    outside_layers: bool = True
    experts: Collection[int] | None = None

    def __post_init__(self) -> None:
        put = object.__setattr__  # values are checked once, here, and kept in one form
        put(self, "tensor_parallel", _check_rank("tensor_parallel", self.tensor_parallel))
        put(self, "fsdp", _check_rank("fsdp", self.fsdp))
        put(self, "rules", _check_rules(self.rules))
        put(self, "layers", _check_numbers("layers", self.layers))
        put(self, "experts", _check_numbers("experts", self.experts))
        if self.rules and self.tensor_parallel is None:
            raise InvalidInput("rules say which axis tensor parallelism cuts: give tensor_parallel=(rank, size) too")
        parse_layer_pattern(self.layer_pattern)


class TensorBox(NamedTuple):
    """Elements ``[starts, starts + sizes)`` of a tensor's packed shape, as `transfer.boxes.Box` counts them."""

    starts: tuple[int, ...]
    sizes: tuple[int, ...]


class TensorPart(Struct, frozen=True, gc=False):
    """What a shard has of one tensor.

    Attributes:
        tensor: what to read. A run of whole rows is a tensor of its own here, with the shape, the place in the file and the length of
            the run; its digest is that of the tensor that it was cut from, and means nothing.
        box: what to read of ``tensor``; None: all.
        full_shape: of the model's tensor, in elements.
        starts: first index in every dimension of the model's tensor, in elements.
        shape: of the part, in elements.
    """

    tensor: Tensor
    box: TensorBox | None
    full_shape: tuple[int, ...]
    starts: tuple[int, ...]
    shape: tuple[int, ...]


def cut_tensors(tensors: Mapping[str, Tensor], shard: Shard) -> dict[str, TensorPart]:
    """Return the tensors that belong to a shard, in their order, each with its part.

    Args:
        tensors: by the name that rules are about; layers, experts and the preset go by the tensors' own names.
        shard: the part of the model.

    Raises:
        InvalidInput: an axis does not divide into equal runs, a rule names an axis that is not there, the preset does not know how a
            tensor is cut, or a cut would go through a byte or a quantised block.
        Format: a tensor to be cut is of a dtype that is not known.
    """
    naming = parse_layer_pattern(shard.layer_pattern)
    return {name: _cut(name, tensor, shard) for name, tensor in tensors.items() if _belongs(tensor.name, shard, naming)}


def _belongs(name: str, shard: Shard, naming: LayerNaming) -> bool:
    if shard.layers is None and shard.experts is None and shard.outside_layers:
        return True
    layer, expert = naming.role_of(name)
    in_layers = shard.outside_layers if layer is None else shard.layers is None or layer.number in shard.layers
    return in_layers and (shard.experts is None or expert is None or expert in shard.experts)


def _cut(name: str, tensor: Tensor, shard: Shard) -> TensorPart:
    starts, sizes = [0] * len(tensor.shape), list(tensor.shape)
    axis = _parallel_axis(name, tensor, shard)
    if axis is not None and shard.tensor_parallel is not None:
        rank, count = shard.tensor_parallel
        sizes[axis], rest = divmod(sizes[axis], count)
        if rest:
            raise InvalidInput(
                f"axis {axis} of {name!r} has {tensor.shape[axis]} elements, which {count} ranks can't share equally: use another "
                f"size of tensor_parallel, or load it whole with rules={{{name!r}: None}}",
                tensor=name,
                axis=axis,
                size=tensor.shape[axis],
                ranks=count,
            )
        starts[axis] = rank * sizes[axis]
    if shard.fsdp is not None and sizes:
        start, sizes[0] = chunk_of(sizes[0], *shard.fsdp)
        starts[0] += start
    return _part(name, tensor, tuple(starts), tuple(sizes))


def chunk_of(size: int, rank: int, count: int) -> tuple[int, int]:
    """Return the start and the length of a rank's chunk, as ``torch.chunk`` cuts: ceil(size / count) each, the last ones less."""
    chunk = -(-size // count)
    start = min(rank * chunk, size)
    return start, min(chunk, size - start)


def _parallel_axis(name: str, tensor: Tensor, shard: Shard) -> int | None:
    if shard.tensor_parallel is None or shard.tensor_parallel[1] == 1:
        return None
    for glob, axis in shard.rules.items():
        if fnmatchcase(name, glob):
            return axis if axis is None else _check_axis(name, tensor.shape, glob, axis)
    return usual_axis(tensor.name, tensor.shape) if shard.preset else None


def _check_axis(name: str, shape: tuple[int, ...], glob: str, axis: int) -> int:
    if not -len(shape) <= axis < len(shape):
        raise InvalidInput(
            f"the rule {glob!r}: {axis} fits {name!r}, whose shape {shape} has no such axis: put a rule for it before that one",
            tensor=name,
            rule=glob,
            axis=axis,
        )
    return axis % len(shape)


def _part(name: str, tensor: Tensor, starts: tuple[int, ...], shape: tuple[int, ...]) -> TensorPart:
    if shape == tensor.shape:
        return TensorPart(tensor, None, shape, starts, shape)
    dtype = get_dtype(tensor.dtype)
    box = TensorBox(_packed(name, tensor, dtype, starts), _packed(name, tensor, dtype, shape))
    full = packed_shape(tensor.shape, dtype)
    if tensor.strides is not None or box.sizes[1:] != full[1:]:
        return TensorPart(tensor, box, tensor.shape, starts, shape)
    row_bytes = math.prod(full[1:]) * dtype.numpy.itemsize
    first, rows = box.starts[0], box.sizes[0]
    run = replace(tensor, shape=shape, start=tensor.start + first * row_bytes, length=rows * row_bytes)
    return TensorPart(run, None, tensor.shape, starts, shape)


def _packed(name: str, tensor: Tensor, dtype: Dtype, counts: tuple[int, ...]) -> tuple[int, ...]:
    """Return indices or sizes in elements as those of the packed shape, whose last dimension may count bytes."""
    if dtype.bits >= 8 and dtype.block_elements == 1:
        return counts
    unit = dtype.block_elements * (8 // math.gcd(dtype.bits, 8))  # the fewest elements that fill whole bytes and blocks
    units, rest = divmod(counts[-1], unit)
    if rest:
        axis = len(counts) - 1
        raise InvalidInput(
            f"{tensor.dtype} packs {unit} elements together: axis {axis} of {name!r}, of shape {tensor.shape}, can't be cut at element "
            f"{counts[-1]}. Use another number of ranks, or a rule that cuts another axis",
            tensor=name,
            axis=axis,
            size=tensor.shape[-1],
        )
    return (*counts[:-1], units * unit // dtype.block_elements * dtype.bits // 8)


def _check_rank(what: str, value: Rank | None) -> Rank | None:
    if value is None:
        return None
    try:
        rank, size = (_whole(number) for number in value)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{what} is a rank and a size, such as (0, 8), not {value!r}") from error
    if not 0 <= rank < size:
        raise InvalidInput(f"{what}={value!r}: ranks go from 0 to one below the size", rank=rank, size=size)
    return rank, size


def _check_rules(rules: Mapping[str, int | None] | None) -> dict[str, int | None]:
    checked: dict[str, int | None] = {}
    for glob, axis in (rules or {}).items():
        try:
            checked[glob] = None if axis is None else _whole(axis)
        except TypeError as error:
            raise InvalidInput(f"the rule {glob!r}: {axis!r} names no axis: give an int, or None for whole") from error
    return checked


def _check_numbers(what: str, numbers: Collection[int] | None) -> Collection[int] | None:
    if numbers is None:
        return None
    try:
        checked: Collection[int] = numbers if isinstance(numbers, range) else frozenset(map(_whole, numbers))
    except TypeError as error:
        raise InvalidInput(f"{what} are whole numbers, such as range(0, 8) or [0, 1, 5], not {numbers!r}") from error
    least = min(checked[0], checked[-1]) if isinstance(checked, range) and checked else min(checked, default=-1)
    if least < 0:
        raise InvalidInput(
            f"{what} are numbers from 0 on, at least one of them; {numbers!r} are not", numbers=str(numbers)
        )
    return checked


def _whole(number: int) -> int:
    """Return a whole number as an int; numpy's too, and no boolean."""
    if isinstance(number, bool):
        raise TypeError(f"{number} is no number")
    return index(number)
