"""Measures changed tensors of two versions: reads both, box by box through verified reads, and compares their values.

Memory is bounded whatever the tensors' sizes: many small tensors are read together, a large one in boxes of rows.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tensorkeep.records.dtype import find_dtype
from tensorkeep.records.layout import MIB
from tensorkeep.records.manifest import File, Tensor
from tensorkeep.store.model import Model
from tensorkeep.store.names_of_tensors import tensors_by_name
from tensorkeep.store.progress import ByteProgress
from tensorkeep.store.reports import ComparedUnit, Diff, ProgressCallback, TensorStats
from tensorkeep.store.value_changes import ItemChanges, ValueChanges, is_numeric
from tensorkeep.transfer.boxes import Box, tensor_array
from tensorkeep.transfer.memory import allocate

BATCH_BYTES = 16 * MIB
"""Bytes of each version that are compared at a time."""
_READ_LIMIT_BYTES = 64 * MIB
_ALIGNMENT = 64


class _Pair(NamedTuple):
    """A tensor in both versions, and what compares them."""

    old: tuple[File, Tensor]
    new: tuple[File, Tensor]
    changes: ValueChanges | ItemChanges
    note: str

    @property
    def whole(self) -> int:
        """Indices of the last dimension that must stay together: the bytes of a block."""
        unit, item_bytes = _item(self.new[1])
        return item_bytes if unit == "blocks" else 1

    @property
    def item_bytes(self) -> int:
        """Bytes of an element in the version where it has more."""
        return max(tensor_array(tensor)[0].itemsize for _, tensor in (self.old, self.new))


class _Piece(NamedTuple):
    """A box of a pair."""

    pair: _Pair
    starts: tuple[int, ...]
    sizes: tuple[int, ...]


def measure_changes(diff: Diff, old: Model, new: Model, progress: ProgressCallback | None) -> Diff:
    """Return a diff whose changed tensors have their stats.

    Raises:
        Integrity: bytes are damaged on every device that has them.
        NotEnoughCopies: no device that has some bytes can be read.
    """
    before, after = tensors_by_name(old.manifest), tensors_by_name(new.manifest)
    changed = [change.name for change in diff.tensors if change.kind == "changed"]
    found = {name: _pair_or_reason(before[name], after[name]) for name in changed}
    pairs = [pair for pair in found.values() if isinstance(pair, _Pair)]
    counter = ByteProgress(progress, "compare", sum(_read_bytes(pair) for pair in pairs))
    sides = (_Side(old), _Side(new)) if pairs else ()
    for batch in _batches(pairs):
        counter.count(_compare(batch, *sides))
    stats = {name: pair.changes.finish(pair.note) if isinstance(pair, _Pair) else pair for name, pair in found.items()}
    tensors = [
        dataclasses.replace(change, stats=stats[change.name]) if change.name in stats else change
        for change in diff.tensors
    ]
    return dataclasses.replace(diff, tensors=tuple(tensors))


def iter_boxes(
    shape: Sequence[int], axes: Sequence[int], most: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield (starts, sizes) of boxes of at most ``most`` elements that cover an array once.

    It is cut along the first of ``axes`` first, and along the next ones only where one index is still too much.
    """
    if math.prod(shape):
        yield from _iter_boxes([0] * len(shape), list(shape), list(axes), max(1, most))


def _iter_boxes(
    starts: list[int], sizes: list[int], axes: list[int], most: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    if math.prod(sizes) <= most:
        yield tuple(starts), tuple(sizes)
        return
    axis, *rest = axes
    count = max(1, most * sizes[axis] // math.prod(sizes))
    end = starts[axis] + sizes[axis]
    for start in range(starts[axis], end, count):
        inner_starts, inner_sizes = list(starts), list(sizes)
        inner_starts[axis], inner_sizes[axis] = start, min(count, end - start)
        yield from _iter_boxes(inner_starts, inner_sizes, rest, most)


def _read_bytes(pair: _Pair) -> int:
    arrays = (tensor_array(tensor) for _, tensor in (pair.old, pair.new))
    return sum(math.prod(shape) * dtype.itemsize for dtype, shape in arrays)


def _pair_or_reason(old: tuple[File, Tensor], new: tuple[File, Tensor]) -> _Pair | TensorStats:
    was, now = old[1], new[1]
    if was.shape != now.shape:
        return _not_compared("shapes differ")
    if not math.prod(now.shape):
        return _not_compared("no elements")
    if _has_numbers(was) and _has_numbers(now):
        changes = ValueChanges(tensor_array(was)[0], tensor_array(now)[0])
        return _Pair(old, new, changes, _note(was, now, changes.wide))
    if was.dtype != now.dtype:
        return _not_compared(f"{now.dtype if _has_numbers(was) else was.dtype} has no numbers to compare")
    unit, item_bytes = _item(now)
    if unit != "elements" and (was.strides, was.length) != (now.strides, now.length):
        return _not_compared("their bytes are laid out in different ways")
    return _Pair(old, new, ItemChanges(unit, item_bytes), f"{unit} of {now.dtype}")


def _note(was: Tensor, now: Tensor, wide: np.dtype[Any]) -> str:
    if was.dtype != now.dtype:
        return f"{was.dtype} and {now.dtype} compared as {wide.name}"
    return f"rounded to {wide.name}" if tensor_array(now)[0].itemsize > wide.itemsize else ""


def _has_numbers(tensor: Tensor) -> bool:
    dtype = find_dtype(tensor.dtype)
    return dtype is not None and dtype.bits >= 8 and dtype.block_elements == 1 and is_numeric(dtype.numpy)


def _item(tensor: Tensor) -> tuple[ComparedUnit, int]:
    """Return what is compared of a tensor without numbers, and its bytes."""
    dtype = find_dtype(tensor.dtype)
    if dtype is not None and dtype.block_elements > 1:
        return "blocks", dtype.bits // 8
    return ("bytes", 1) if dtype is None or dtype.bits < 8 else ("elements", dtype.bits // 8)


def _not_compared(reason: str) -> TensorStats:
    return TensorStats("elements", 0, 0, None, None, 0, reason)


def _batches(pairs: Iterable[_Pair]) -> Iterator[list[_Piece]]:
    """Yield pieces together as long as they fit the buffers."""
    batch: list[_Piece] = []
    size = 0
    for piece in _pieces(pairs):
        if batch and size + _room(piece) > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(piece)
        size += _room(piece)
    if batch:
        yield batch


def _pieces(pairs: Iterable[_Pair]) -> Iterator[_Piece]:
    for pair in pairs:
        _, shape = tensor_array(pair.new[1])
        strides = pair.new[1].strides or tuple(range(len(shape), 0, -1))
        axes = sorted(range(len(shape)), key=lambda axis, strides=strides: -strides[axis])  # type: ignore[misc]  # mypy: no defaults of lambdas
        most = BATCH_BYTES // pair.item_bytes // pair.whole * pair.whole
        for starts, sizes in iter_boxes(shape, axes, most):
            yield _Piece(pair, starts, sizes)


def _room(piece: _Piece) -> int:
    """Return the bytes that a piece takes in each of the buffers."""
    return -(-math.prod(piece.sizes) * piece.pair.item_bytes // _ALIGNMENT) * _ALIGNMENT


def _compare(batch: Sequence[_Piece], old: "_Side", new: "_Side") -> int:
    was = old.read([(piece.pair.old, piece) for piece in batch])
    now = new.read([(piece.pair.new, piece) for piece in batch])
    for piece, before, after in zip(batch, was, now, strict=True):
        piece.pair.changes.add(before, after)
    return sum(array.nbytes for array in (*was, *now))


class _Side:
    """One of the two versions, and the buffer that its pieces are read into, again and again."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._buffer = allocate(BATCH_BYTES)

    def read(self, wanted: Iterable[tuple[tuple[File, Tensor], _Piece]]) -> list[npt.NDArray[Any]]:
        """Return the pieces of a batch, verified; valid until the next call."""
        boxes, arrays = [], []
        at = 0
        for (file, tensor), piece in wanted:
            dtype, _ = tensor_array(tensor)
            size = math.prod(piece.sizes) * dtype.itemsize
            array = np.frombuffer(self._buffer[at : at + size], dtype).reshape(piece.sizes)
            boxes.append(Box(file, tensor, piece.starts, piece.sizes, array))
            arrays.append(array)
            at += _room(piece)
        self._model.read_boxes(boxes, memory_limit_bytes=_READ_LIMIT_BYTES)
        return arrays
