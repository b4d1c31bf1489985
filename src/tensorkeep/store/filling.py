"""Whole tensors into arrays that the caller has: numpy arrays of any strides, or a framework's, such as a ``state_dict``."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tensorkeep.errors import InvalidInput
from tensorkeep.records.manifest import File, Tensor
from tensorkeep.store.frameworks import existing_memory
from tensorkeep.store.loading import whole_box
from tensorkeep.store.progress import ByteProgress, progress_callback
from tensorkeep.store.reading import VersionReader
from tensorkeep.store.reports import ProgressCallback
from tensorkeep.transfer.far_memory import FarMemory


class _Claim(NamedTuple):
    """A run of addresses of one memory that a tensor is to fill: all of it, or with holes."""

    space: int  # 0: the host's; else of one carrier
    start: int
    end: int
    name: str
    tensor: Tensor
    memory: npt.NDArray[Any] | FarMemory


def fill_arrays(
    into: Mapping[str, Any],
    tensors: Mapping[str, tuple[File, Tensor]],
    reader: VersionReader,
    *,
    progress: bool | ProgressCallback | None,
) -> None:
    """Fill each array with the tensor of its name; see `Model.load`.

    Names of one and the same memory, as tied weights are, must be of equal tensors, and are read once.

    Raises:
        InvalidInput: an array has not its tensor's dtype and shape, is read-only, or is none that can be filled; or memory is to get
            two tensors. Nothing was read then.
    """
    memories = {name: existing_memory(into[name], name) for name in tensors}
    tied = _find_tied([_claim(name, tensors[name][1], memory) for name, memory in memories.items()])
    boxes = [whole_box(file, tensor, memories[name]) for name, (file, tensor) in tensors.items() if name not in tied]
    reader.progress = ByteProgress(progress_callback(progress), "load", sum(box.destination.nbytes for box in boxes))
    reader.read_boxes(boxes)


def _claim(name: str, tensor: Tensor, memory: npt.NDArray[Any] | FarMemory) -> _Claim:
    if isinstance(memory, FarMemory):
        start = memory.address or 0
        space = id(memory.carrier) if memory.address is not None else id(memory)
        return _Claim(space, start, start + memory.nbytes, name, tensor, memory)
    start = end = memory.ctypes.data
    if memory.size:
        for size, stride in zip(memory.shape, memory.strides, strict=True):
            start, end = start + min((size - 1) * stride, 0), end + max((size - 1) * stride, 0)
        end += memory.itemsize
    if memory.nbytes > end - start:
        raise InvalidInput(f"the array for {name!r} has elements that share memory: give one of its own", tensor=name)
    return _Claim(0, start, end, name, tensor, memory)


def _find_tied(claims: Sequence[_Claim]) -> set[str]:
    """Return names whose tensor and memory are those of another name.

    Raises:
        InvalidInput: two share memory and are not the same.
    """
    tied: set[str] = set()
    open_: list[_Claim] = []
    for claim in sorted(claims, key=lambda each: each[:3]):
        open_ = [each for each in open_ if each.space == claim.space and each.end > claim.start]
        for other in open_:
            if not _share_memory(other, claim):
                continue
            if not _are_same(other, claim):
                raise InvalidInput(
                    f"{other.name!r} and {claim.name!r} share memory, and are not the same tensor: give each an array of its own",
                    tensor=claim.name,
                )
            tied.add(claim.name)
        if claim.name not in tied and claim.end > claim.start:
            open_.append(claim)
    return tied


def _share_memory(one: _Claim, other: _Claim) -> bool:
    if isinstance(one.memory, FarMemory) or isinstance(other.memory, FarMemory):
        return True  # they are contiguous, and their runs meet
    try:
        return np.shares_memory(one.memory, other.memory, max_work=100_000)  # type: ignore[arg-type]  # its stub knows two numbers
    except np.exceptions.TooHardError:
        return True


def _are_same(one: _Claim, other: _Claim) -> bool:
    def place(claim: _Claim) -> tuple[object, ...]:
        memory = claim.memory
        strides = None if isinstance(memory, FarMemory) else memory.strides
        return claim.start, claim.end, memory.dtype, memory.shape, strides

    def content(tensor: Tensor) -> tuple[object, ...]:
        return tensor.digest, tensor.dtype, tensor.shape, tensor.strides

    return place(one) == place(other) and content(one.tensor) == content(other.tensor)
