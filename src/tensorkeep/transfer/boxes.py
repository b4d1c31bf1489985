"""Boxes: what a load is asked for, and how bytes of a file land in an array.

A box is a rectangle of a tensor and the array that gets it. In bytes it is a nest of dimensions over one file range, the
innermost always a run of contiguous bytes; `land_box` brings it to that form once, so that copying never asks about dtypes,
and so that a tensor may be cut at any byte. A landing gives file ranges to read (`spans`), offers memory to read straight
into (`direct`), and takes bytes that were read elsewhere (`write`).
"""

import itertools
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from tensorkeep.errors import Format, InvalidInput
from tensorkeep.records.dtype import find_dtype, packed_shape
from tensorkeep.records.layout import BLOCK_BYTES
from tensorkeep.records.manifest import File, Tensor
from tensorkeep.transfer.far_memory import FarMemory
from tensorkeep.transfer.memory import allocate

DIRECT_BYTES = 64 << 10
"""Runs from this length on are read straight into the destination; below, one more copy costs less than one more segment."""

_BYTE = np.dtype(np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class Box:
    """Elements ``[starts, starts + sizes)`` of a tensor, and where they go.

    Attributes:
        file: the file that the tensor lies in.
        tensor: the tensor; its shape counts with the last dimension in bytes for packed and quantised dtypes, and as flat
            bytes for dtypes that are not known.
        starts: first index in every dimension.
        sizes: number of indices in every dimension.
        destination: a writable array of shape ``sizes`` and the tensor's numpy dtype, with any strides. Two boxes must not
            share destination memory. Or memory of another device, of that shape and dtype. After a failed load its content is
            undefined.
    """

    file: File
    tensor: Tensor
    starts: tuple[int, ...]
    sizes: tuple[int, ...]
    destination: npt.NDArray[Any] | FarMemory


class Landing(Protocol):
    """Where the bytes of one box go. Offsets are bytes from the start of the tensor.

    Attributes:
        is_carried: whether `write` begins a copy by a carrier, which one thread does for all.
    """

    is_carried: bool

    def spans(self) -> Iterator[tuple[int, int]]:
        """Yield the ranges ``(offset, length)`` to read; ordered, disjoint, and with nothing needed outside them."""

    def direct(self, offset: int, length: int) -> memoryview | None:
        """Return the memory that these bytes may be read into, or None where they are not contiguous there."""

    def write(self, offset: int, data: memoryview) -> int:
        """Copy what the box needs of these bytes to its destination; return how many that were."""

    def finish(self) -> int:
        """Do what is left once all bytes have landed; return how many bytes that brought to the destination. Called once."""


def tensor_array(tensor: Tensor) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Return the numpy dtype and the packed shape of the array that holds a tensor.

    A dtype that is not known (a newer version's, or a foreign format's) loads as its flat bytes.
    """
    dtype = find_dtype(tensor.dtype)
    if dtype is None:
        return _BYTE, (tensor.length,)
    return dtype.numpy, packed_shape(tensor.shape, dtype)


def land_box(box: Box) -> Landing:
    """Return how a box's bytes land.

    Raises:
        InvalidInput: the box does not fit its tensor, or the destination does not fit the box.
        Format: the tensor's shape, strides and length contradict each other.
    """
    dtype, shape = tensor_array(box.tensor)
    _check_box(box, dtype, shape)
    destination = box.destination
    if isinstance(destination, FarMemory):
        return _land_far(box, destination, shape)
    whole = box.tensor.strides is None and box.sizes == shape
    if whole and destination.flags.c_contiguous:
        return _Contiguous(0, destination.reshape(-1).view(_BYTE).data)
    if math.prod(box.sizes) == 0:
        return _Contiguous(0, memoryview(b""))
    return _land_strided(box, destination, dtype, shape)


def _check_box(box: Box, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    tensor, destination = box.tensor, box.destination
    if tensor.strides is None:
        if math.prod(shape) * dtype.itemsize != tensor.length:
            raise Format(
                f"tensor {tensor.name!r} of {box.file.path!r} has {tensor.length} bytes; shape {shape} of {tensor.dtype} "
                f"needs {math.prod(shape) * dtype.itemsize}"
            )
    elif len(tensor.strides) != len(shape) or shape != tensor.shape or min(tensor.strides, default=0) < 0:
        raise Format(
            f"tensor {tensor.name!r} of {box.file.path!r} has strides {tensor.strides} for shape {tensor.shape}"
        )
    fits = len(box.starts) == len(box.sizes) == len(shape)
    if fits and (box.sizes != shape or any(box.starts)):  # most boxes are whole tensors, and there may be 60,000
        fits = all(
            start >= 0 and size >= 0 and start + size <= full
            for start, size, full in zip(box.starts, box.sizes, shape, strict=True)
        )
    if not fits:
        raise InvalidInput(
            f"box of starts {box.starts} and sizes {box.sizes} does not lie in {tensor.name!r} of shape {shape}"
        )
    if destination.shape != box.sizes or destination.dtype != dtype:
        raise InvalidInput(
            f"the destination for {tensor.name!r} is {destination.dtype} of shape {destination.shape}; the box is {dtype} "
            f"of shape {box.sizes}"
        )
    if not isinstance(destination, FarMemory) and not destination.flags.writeable:
        raise InvalidInput(f"the destination for {tensor.name!r} is read-only")


def _land_far(box: Box, memory: FarMemory, shape: tuple[int, ...]) -> Landing:
    if math.prod(box.sizes) == 0:
        return _Contiguous(0, memoryview(b""))
    if box.tensor.strides is None and _is_run(box.sizes, shape):
        below = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        start = sum(first * step for first, step in zip(box.starts, below, strict=True))
        return _Far(start * memory.dtype.itemsize, memory)
    return _FarAssembled(box, memory)


def _is_run(sizes: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Return whether a box of those sizes is one run of elements of a C-contiguous array."""
    outer = next((axis for axis, size in enumerate(sizes) if size != 1), len(sizes))
    return sizes[outer + 1 :] == shape[outer + 1 :]


def _land_strided(box: Box, memory: npt.NDArray[Any], dtype: np.dtype[Any], shape: tuple[int, ...]) -> Landing:
    item = dtype.itemsize
    strides = box.tensor.strides or tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    base = item * sum(start * stride for start, stride in zip(box.starts, strides, strict=True))
    reach = item + item * sum((size - 1) * stride for size, stride in zip(box.sizes, strides, strict=True))
    if base + reach > box.tensor.length:
        raise Format(
            f"strides of tensor {box.tensor.name!r} of {box.file.path!r} reach past its {box.tensor.length} bytes"
        )
    # A last dimension of the item's bytes makes all that follows independent of the dtype.
    destination = memory[..., None].view(_BYTE)
    dims = [
        _Dim(size, stride * item, to)
        for size, stride, to in zip(box.sizes, strides, destination.strides[:-1], strict=True)
        if size > 1
    ]
    dims.sort(key=lambda dim: -dim.source)
    dims = _merge([*dims, _Dim(item, 1, 1)])
    if len(dims) == 1:
        flat = as_strided(destination, shape=(dims[0].size,), strides=(1,))
        return _Contiguous(base, flat.data)
    if not _is_nested(dims):
        return _Assembled(base, reach, strides, memory)
    return _Strided(base, dims, as_strided(destination, [dim.size for dim in dims], [dim.to for dim in dims]))


@dataclass(frozen=True, slots=True)
class _Dim:
    """One dimension in bytes: its size, its stride in the file, its stride in the destination."""

    size: int
    source: int
    to: int


def _merge(dims: list[_Dim]) -> list[_Dim]:
    """Return the same nest with neighbours joined that follow each other without a hole on both sides."""
    merged = [dims[-1]]
    for outer in reversed(dims[:-1]):
        inner = merged[-1]
        if outer.source == inner.size * inner.source and outer.to == inner.size * inner.to:
            merged[-1] = _Dim(outer.size * inner.size, inner.source, inner.to)
        else:
            merged.append(outer)
    return merged[::-1]


def _is_nested(dims: list[_Dim]) -> bool:
    """Return whether no two indices of a dimension share source bytes (False for broadcast or overlapping strides)."""
    spans = _spans_below(dims)
    return all(dim.source >= span for dim, span in zip(dims, spans[1:], strict=False))


def _spans_below(dims: list[_Dim]) -> list[int]:
    """Return, for each depth, how many source bytes the dimensions from there on reach over."""
    spans = [1]
    for dim in reversed(dims):
        spans.append(spans[-1] + (dim.size - 1) * dim.source)
    return spans[:0:-1]


class _Contiguous:
    """A box that is one run of bytes in the file and in memory."""

    is_carried = False

    def __init__(self, base: int, memory: memoryview) -> None:
        self._base = base
        self._memory = memory

    def spans(self) -> Iterator[tuple[int, int]]:
        yield self._base, len(self._memory)

    def direct(self, offset: int, length: int) -> memoryview | None:
        at = offset - self._base
        return self._memory[at : at + length]

    def write(self, offset: int, data: memoryview) -> int:
        at, length = offset - self._base, len(data)
        if length < DIRECT_BYTES:
            self._memory[at : at + length] = data
        else:  # numpy gives up the interpreter lock while it copies
            np.copyto(np.frombuffer(self._memory, _BYTE)[at : at + length], np.frombuffer(data, _BYTE))
        return length

    def finish(self) -> int:
        return 0


class _Strided:
    """A box with holes, in the file or in memory: nested dimensions down to runs of bytes."""

    is_carried = False

    def __init__(self, base: int, dims: list[_Dim], destination: npt.NDArray[np.uint8]) -> None:
        self._base = base
        self._dims = dims
        self._below = _spans_below(dims)
        self._run = dims[-1].size
        self._bytes = destination
        # Runs of one element copy faster as elements than as rows of bytes.
        self._item = np.dtype(f"u{self._run}") if self._run in (1, 2, 4, 8) else None
        self._items = destination.view(self._item)[..., 0] if self._item else destination

    def spans(self) -> Iterator[tuple[int, int]]:
        depth = self._split_depth()
        for index in itertools.product(*(range(dim.size) for dim in self._dims[:depth])):
            skip = sum(i * dim.source for i, dim in zip(index, self._dims, strict=False))
            yield self._base + skip, self._below[depth]

    def direct(self, offset: int, length: int) -> memoryview | None:
        if self._run < DIRECT_BYTES:
            return None
        index = []
        rest = offset - self._base
        for dim in self._dims[:-1]:
            at, rest = divmod(rest, dim.source)
            index.append(at)
        if rest + length > self._run:
            return None
        row: memoryview = self._bytes[tuple(index)].data
        return row[rest : rest + length]

    def write(self, offset: int, data: memoryview) -> int:
        low = offset - self._base
        return self._scatter((), low, low + len(data), data, 0)

    def finish(self) -> int:
        return 0

    def _split_depth(self) -> int:
        """Return how many outer dimensions are read index by index, because what lies between is worth leaving out."""
        if self._run >= DIRECT_BYTES:
            return len(self._dims) - 1
        depth = 0
        while depth < len(self._dims) - 1 and self._dims[depth].source - self._below[depth + 1] >= BLOCK_BYTES:
            depth += 1
        return depth

    def _scatter(self, index: tuple[int, ...], low: int, high: int, data: memoryview, at: int) -> int:
        """Copy source bytes ``[low, high)`` of the sub-box at ``index``; byte ``low`` is ``data[at]``. Return bytes copied."""
        depth = len(index)
        dim, below = self._dims[depth], self._below[depth + 1] if depth + 1 < len(self._dims) else 1
        if depth == len(self._dims) - 1:
            start, stop = max(low, 0), min(high, self._run)
            if start < stop:
                source = np.frombuffer(data, _BYTE, stop - start, at + start - low)
                self._bytes[index][start:stop] = source
            return max(stop - start, 0)
        first = max(-(-low // dim.source), 0)  # first and last index that lie whole in the range
        last = min((high - below) // dim.source, dim.size - 1)
        copied = 0
        if first <= last:
            copied += self._copy_whole(index, first, last, data, at + first * dim.source - low)
        for edge in {first - 1, max(last, first - 1) + 1}:
            start, stop = edge * dim.source, edge * dim.source + below
            if 0 <= edge < dim.size and start < high and stop > low:
                copied += self._scatter((*index, edge), low - start, high - start, data, at)
        return copied

    def _copy_whole(self, index: tuple[int, ...], first: int, last: int, data: memoryview, at: int) -> int:
        inner = self._dims[len(index) :]
        sizes = [last - first + 1, *(dim.size for dim in inner[1:])]
        strides = [dim.source for dim in inner]
        target = self._items[index][first : last + 1]
        if self._item:
            source = np.ndarray(sizes[:-1], self._item, data, at, strides[:-1])
        else:
            source = np.ndarray(sizes, _BYTE, data, at, strides)
        np.copyto(target, source)
        return math.prod(sizes)


class _Assembled(_Contiguous):
    """A box of a tensor whose elements share bytes (broadcast or overlapping strides): read whole, spread at the end.

    Its buffer is as long as what the box reaches over, and counts on top of the load's memory limit.
    """

    def __init__(self, base: int, reach: int, strides: tuple[int, ...], destination: npt.NDArray[Any]) -> None:
        super().__init__(base, allocate(reach))
        self._strides = strides
        self._destination = destination

    def direct(self, offset: int, length: int) -> memoryview | None:  # noqa: ARG002 - the bytes count in `finish`
        return None

    def write(self, offset: int, data: memoryview) -> int:
        super().write(offset, data)
        return 0

    def finish(self) -> int:
        destination = self._destination
        item = destination.dtype.itemsize
        strides = [stride * item for stride in self._strides]
        np.copyto(destination, np.ndarray(destination.shape, destination.dtype, self._memory, 0, strides))
        return destination.nbytes


class _Far:
    """A box that is one run of bytes in the file and in memory that only a carrier reaches."""

    is_carried = True

    def __init__(self, base: int, memory: FarMemory) -> None:
        self._base = base
        self._memory = memory

    def spans(self) -> Iterator[tuple[int, int]]:
        yield self._base, self._memory.nbytes

    def direct(self, offset: int, length: int) -> memoryview | None:  # noqa: ARG002 - nothing can be read into it
        return None

    def write(self, offset: int, data: memoryview) -> int:
        self._memory.carrier.copy(self._memory.target, offset - self._base, data)
        return len(data)

    def finish(self) -> int:
        return 0


class _FarAssembled:
    """A box with holes in the file that goes to far memory: put together in the host's, and carried there when it is whole.

    Its buffer, taken when the first bytes land, counts on top of the load's memory limit.
    """

    is_carried = False

    def __init__(self, box: Box, memory: FarMemory) -> None:
        self._box = box
        self._memory = memory
        self._spans = list(self._near(np.empty(memory.shape, memory.dtype)).spans())  # no page of it is touched
        self._host: tuple[memoryview, Landing] | None = None
        self._lock = threading.Lock()

    def spans(self) -> Iterator[tuple[int, int]]:
        return iter(self._spans)

    def direct(self, offset: int, length: int) -> memoryview | None:
        return self._assembling()[1].direct(offset, length)

    def write(self, offset: int, data: memoryview) -> int:
        return self._assembling()[1].write(offset, data)

    def finish(self) -> int:
        buffer, landing = self._assembling()
        finished = landing.finish()
        with self._memory.carrier.copies():
            self._memory.carrier.copy(self._memory.target, 0, buffer)
        self._host = None
        return finished

    def _assembling(self) -> tuple[memoryview, Landing]:
        with self._lock:
            if self._host is None:
                buffer = self._memory.carrier.allocate(self._memory.nbytes)
                self._host = buffer, self._near(np.frombuffer(buffer, self._memory.dtype).reshape(self._memory.shape))
            return self._host

    def _near(self, array: npt.NDArray[Any]) -> Landing:
        return land_box(replace(self._box, destination=array))
