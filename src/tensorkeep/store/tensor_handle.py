"""One tensor of a version, indexed like a numpy array: only the bytes that an index selects are read."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorkeep.errors import InvalidInput
from tensorkeep.records.dtype import find_dtype, packed_shape
from tensorkeep.records.manifest import File, Tensor
from tensorkeep.transfer.boxes import Box
from tensorkeep.transfer.report import LoadReport


class TensorHandle:
    """One tensor of a version, not read yet. Index it like a numpy array: ints and slices of step 1 are read as such."""

    def __init__(self, file: File, tensor: Tensor, read_boxes: Callable[[Sequence[Box]], LoadReport]) -> None:
        self._file = file
        self._tensor = tensor
        self._read_boxes = read_boxes

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in elements."""
        return self._tensor.shape

    @property
    def dtype(self) -> str:
        """The dtype in safetensors spelling."""
        return self._tensor.dtype

    def __getitem__(self, index: Any) -> npt.NDArray[Any]:
        """Return the elements that a numpy index of ints, slices and ``...`` selects; only their bytes are read.

        Slices with a step other than 1 read the range they span. Packed dtypes count their last dimension in bytes.

        Raises:
            InvalidInput: an index that is no int or slice, too many of them, or an int out of range.
        """
        dtype = find_dtype(self._tensor.dtype)
        shape = packed_shape(self._tensor.shape, dtype) if dtype else (self._tensor.length,)
        starts, sizes, after = _resolve_index(index, shape)
        array = _empty_box(self._tensor, sizes)
        self._read_boxes([Box(self._file, self._tensor, starts, sizes, array)])
        picked: npt.NDArray[Any] = array[after]
        return picked

    def load(self) -> npt.NDArray[Any]:
        """Return the whole tensor."""
        return self[...]


def _empty_box(tensor: Tensor, sizes: tuple[int, ...]) -> npt.NDArray[Any]:
    dtype = find_dtype(tensor.dtype)
    return np.empty(sizes, dtype=dtype.numpy if dtype else np.uint8)


def _resolve_index(index: Any, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[Any, ...]]:
    """Return the box (starts, sizes) that an index spans, and the index to apply to the box once it is read."""
    parts = index if isinstance(index, tuple) else (index,)
    if sum(part is Ellipsis for part in parts) > 1:
        raise InvalidInput("an index holds '...' at most once")
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        parts = (*parts[:at], *(slice(None),) * (len(shape) - len(parts) + 1), *parts[at + 1 :])
    if len(parts) > len(shape):
        raise InvalidInput(f"{len(parts)} indices for a tensor of {len(shape)} dimensions")
    parts = (*parts, *(slice(None),) * (len(shape) - len(parts)))
    starts, sizes, after = [], [], []
    for part, size in zip(parts, shape, strict=True):
        start, length, rest = _resolve_dimension(part, size)
        starts.append(start)
        sizes.append(length)
        after.append(rest)
    return tuple(starts), tuple(sizes), tuple(after)


def _resolve_dimension(part: Any, size: int) -> tuple[int, int, Any]:
    if isinstance(part, slice):
        indices = range(size)[part]
        if len(indices) == 0:
            return 0, 0, slice(None)
        low, high = min(indices[0], indices[-1]), max(indices[0], indices[-1])
        step = slice(None, None, indices.step) if abs(indices.step) != 1 or indices.step < 0 else slice(None)
        return low, high - low + 1, step
    if isinstance(part, (int, np.integer)) and not isinstance(part, bool):
        position = int(part) + size if part < 0 else int(part)
        if not 0 <= position < size:
            raise InvalidInput(f"index {part} is out of range for a dimension of {size}", index=int(part))
        return position, 1, 0
    raise InvalidInput(f"{part!r} is no index: use ints, slices and '...'")
