"""Whole tensors into arrays of a framework: made, laid over files or filled from all devices at once, and handed over when all is verified."""

from collections.abc import Mapping
from typing import Any, Literal

from tensorkeep.errors import InvalidInput
from tensorkeep.records.manifest import File, Tensor
from tensorkeep.store.frameworks import Destination, get_framework
from tensorkeep.store.progress import ByteProgress, progress_callback
from tensorkeep.store.reading import VersionReader
from tensorkeep.store.reports import ProgressCallback
from tensorkeep.transfer.boxes import Box

Mode = Literal["auto", "read"]


def load_tensors(
    tensors: Mapping[str, tuple[File, Tensor]],
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
    laid = reader.map_tensors(list(tensors.values())) if maps else None
    views = laid[0].views if laid else {}
    destinations = {
        name: made.make_empty(tensor.dtype, tensor.shape, device, views.get(number))
        for number, (name, (_, tensor)) in enumerate(tensors.items())
    }
    boxes = [
        whole_box(file, tensor, destinations[name])
        for number, (name, (file, tensor)) in enumerate(tensors.items())
        if number not in views
    ]
    needed = sum(destination.view.nbytes for destination in destinations.values())
    reader.progress = ByteProgress(progress_callback(progress), "load", needed)
    reader.read_boxes(boxes, laid)
    return {name: made.finish(destination, device) for name, destination in destinations.items()}


def whole_box(file: File, tensor: Tensor, destination: Destination) -> Box:
    """Return the box of a whole tensor that fills a destination."""
    shape = destination.view.shape
    return Box(file, tensor, (0,) * len(shape), shape, destination.view)
