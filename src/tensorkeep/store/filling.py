"""Whole tensors into arrays that the caller has: numpy arrays of any strides, or a framework's, such as a ``state_dict``."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tensorkeep.errors import InvalidInput
from tensorkeep.records.manifest import File, Tensor
from tensorkeep.store.frameworks import Destination, existing_memory
from tensorkeep.store.loading import whole_box
from tensorkeep.store.progress import ByteProgress, progress_callback
from tensorkeep.store.reading import VersionReader
from tensorkeep.store.reports import ProgressCallback

_Place = tuple[int, tuple[int, ...], tuple[int, ...]]
"""Where an array lies: its address, shape and strides."""


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
        InvalidInput: an array has not its tensor's dtype and shape, is read-only, or is none that can be filled; or one memory
            is to get two tensors. Nothing was read then.
    """
    taken: dict[_Place, tuple[str, Tensor]] = {}
    boxes = []
    for name, (file, tensor) in tensors.items():
        memory = existing_memory(into[name], name)
        if isinstance(memory, np.ndarray) and memory.size:
            other, there = taken.setdefault((memory.ctypes.data, memory.shape, memory.strides), (name, tensor))
            if there.digest != tensor.digest:
                raise InvalidInput(
                    f"{other!r} and {name!r} are one array, and their tensors differ: give each an array of its own",
                    tensor=name,
                )
            if other != name:
                continue
        boxes.append(whole_box(file, tensor, Destination(into[name], memory)))
    reader.progress = ByteProgress(progress_callback(progress), "load", sum(box.destination.nbytes for box in boxes))
    reader.read_boxes(boxes)
