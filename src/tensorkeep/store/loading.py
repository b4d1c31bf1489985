"""Tensors into arrays of a framework: made, laid over files or filled from all devices at once, and handed over when all is verified.

A shard's part of a tensor is a box of it, or, where it is a run of whole rows, a tensor of its own, which may lie over files too.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy.typing as npt
from msgspec import Struct

from tensorkeep.errors import InvalidInput
from tensorkeep.planning.shards import Shard, TensorPart, cut_tensors
from tensorkeep.records.manifest import File, Tensor
from tensorkeep.runtime import collection_paused
from tensorkeep.store.frameworks import get_framework
from tensorkeep.store.progress import ByteProgress, progress_callback
from tensorkeep.store.reading import VersionReader
from tensorkeep.store.reports import ProgressCallback
from tensorkeep.transfer.boxes import Box, tensor_array
from tensorkeep.transfer.far_memory import FarMemory, nowhere
from tensorkeep.transfer.report import LoadPlan, PlannedTensor

Mode = Literal["auto", "read"]


class Wanted(Struct, frozen=True, gc=False):
    """What is wanted of one tensor, and the file that it lies in."""

    file: File
    part: TensorPart

    def box_into(self, destination: npt.NDArray[Any] | FarMemory) -> Box:
        """Return the box that fills a destination with it."""
        tensor, box = self.part.tensor, self.part.box
        if box is None:
            return whole_box(self.file, tensor, destination)
        return Box(self.file, tensor, box.starts, box.sizes, destination)


def choose_parts(tensors: Mapping[str, tuple[File, Tensor]], shard: Shard | None) -> dict[str, Wanted]:
    """Return what a shard has of each tensor, by name; all of them without one.

    Raises:
        InvalidInput: a tensor can't be cut like that; see `planning.shards.cut_tensors`.
    """
    if shard is None:
        return {
            name: Wanted(file, TensorPart(tensor, None, tensor.shape, (0,) * len(tensor.shape), tensor.shape))
            for name, (file, tensor) in tensors.items()
        }
    parts = cut_tensors({name: tensor for name, (_, tensor) in tensors.items()}, shard)
    return {name: Wanted(tensors[name][0], part) for name, part in parts.items()}


def load_tensors(
    wanted: Mapping[str, Wanted],
    reader: VersionReader,
    *,
    framework: str,
    device: str | None,
    mode: Mode,
    progress: bool | ProgressCallback | None,
) -> dict[str, Any]:
    """Return arrays by name; see `Model.load`."""
    if mode not in ("auto", "read"):
        raise InvalidInput(f"{mode!r} is no load mode: use 'auto' or 'read'", mode=mode)
    made = get_framework(framework)
    # Whoever may change files behind a digest may do so after it was compared: then memory of its own is safer.
    maps = mode == "auto" and device in (None, "cpu") and reader.verify != "digest"
    with collection_paused():
        runs = [name for name, each in wanted.items() if each.part.box is None] if maps else []
        whole = [(wanted[name].file, wanted[name].part.tensor) for name in runs]
        cut = [(each.file, each.part.tensor) for each in wanted.values() if each.part.box is not None]
    laid = reader.map_tensors(whole, cut) if maps else None
    views = {runs[number]: view for number, view in laid[0].views.items()} if laid else {}
    with collection_paused():
        destinations = {
            name: made.make_empty(each.part.tensor.dtype, each.part.shape, device, views.get(name))
            for name, each in wanted.items()
        }
        boxes = [each.box_into(destinations[name].view) for name, each in wanted.items() if name not in views]
    needed = sum(destination.view.nbytes for destination in destinations.values())
    reader.progress = ByteProgress(progress_callback(progress), "load", needed)
    reader.read_boxes(boxes, laid)
    with collection_paused():
        return {name: made.finish(destination, device) for name, destination in destinations.items()}


def whole_box(file: File, tensor: Tensor, destination: npt.NDArray[Any] | FarMemory) -> Box:
    """Return the box of a whole tensor that fills a destination."""
    return Box(file, tensor, (0,) * len(destination.shape), destination.shape, destination)


def plan_tensors(wanted: Mapping[str, Wanted], reader: VersionReader) -> LoadPlan:
    """Return what a load would read; see `Model.plan_load`."""
    boxes = []
    rows = []
    for name, each in wanted.items():
        dtype, sizes = tensor_array(each.part.tensor)
        if each.part.box is not None:
            sizes = each.part.box.sizes
        destination = nowhere(dtype, sizes)
        boxes.append(each.box_into(destination))
        part = each.part
        rows.append(
            PlannedTensor(name, part.tensor.dtype, part.full_shape, part.starts, part.shape, destination.nbytes)
        )
    return replace(reader.plan_boxes(boxes), tensors=tuple(rows))
