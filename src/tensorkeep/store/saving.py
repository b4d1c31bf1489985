"""Tensors of a version written as one safetensors file, in bounded memory, whole or not at all.

What goes where is planned before (`planning.export`). A batch of tensors is read from all devices at once, every block
verified, then written; batches follow each other in the order of the file.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tensorkeep.errors import AlreadyExists, InvalidInput, NotFound
from tensorkeep.planning.export import FORMAT_KEY, BoxRead, ExportPlan, plan_batches, plan_export, plan_runs
from tensorkeep.records.manifest import File, Tensor
from tensorkeep.runtime import Runtime
from tensorkeep.store.local_files import UnfinishedFile, open_unfinished, translate_os_error
from tensorkeep.store.progress import ByteProgress
from tensorkeep.store.reading import VersionReader
from tensorkeep.store.reports import ProgressCallback
from tensorkeep.transfer.boxes import Box, tensor_array
from tensorkeep.transfer.memory import allocate
from tensorkeep.transfer.report import LoadReport

BATCH_BYTES = 128 << 20
"""Most bytes of tensors that are in memory at once; the buffers of the reads come on top."""

PYTORCH = "pytorch"


@dataclass(frozen=True, slots=True)
class SaveReport:
    """What a save did: the file and its size, how many tensors it holds, and the names that stand for one of them."""

    path: str
    bytes: int
    tensors: int
    aliases: dict[str, str]
    load: LoadReport


def save_tensors(
    tensors: Sequence[tuple[File, Tensor]],
    path: Path,
    reader: VersionReader,
    runtime: Runtime,
    *,
    force: bool,
    progress: ProgressCallback | None,
) -> SaveReport:
    """Write tensors of a version as one safetensors file; see `Model.save`."""
    once = {(file.path, tensor.name): (file, tensor) for file, tensor in tensors}  # globs may choose one by two names
    if not once:
        raise NotFound(f"no tensors are known that could be written to {path}: `tensorkeep show --files` tells why")
    plan = plan_export(list(once.values()), metadata_of([file for file, _ in once.values()]))
    reader.progress = ByteProgress(progress, "save", plan.data_bytes)
    if path.is_dir():
        raise InvalidInput(f"{path} is a folder: name a file in it", path=str(path))
    if os.path.lexists(path) and not force:
        raise AlreadyExists(f"{path} exists: move it away, or save with --force", path=str(path))
    try:
        output = open_unfinished(path, plan.size_bytes, runtime)
        try:
            write_export(plan, output, reader)
            output.publish(force=force, verb="save")
        finally:
            output.discard()
    except OSError as error:
        raise translate_os_error(error, path) from error
    return SaveReport(str(path), plan.size_bytes, len(plan.tensors), dict(plan.aliases), reader.report())


def write_export(plan: ExportPlan, output: UnfinishedFile, reader: VersionReader) -> None:
    """Write all bytes of a planned file.

    Raises:
        Integrity: bytes are damaged on every device that has them.
        NotEnoughCopies: no device that has some bytes can be read.
    """
    output.write_at(memoryview(plan.header), 0)
    buffer = allocate(min(BATCH_BYTES, plan.data_bytes))
    for batch in plan_batches(plan, limit_bytes=BATCH_BYTES):
        reader.read_boxes(_boxes(batch, buffer))
        output.write_all((buffer[run.at : run.at + run.length], run.start) for run in plan_runs(batch))


def metadata_of(files: Iterable[File]) -> dict[str, str] | None:
    """Return the metadata of a file that holds tensors of these: whose they are, where the readers of the format ask."""
    return {FORMAT_KEY: "pt"} if all(file.format == PYTORCH for file in files) else None


def _boxes(batch: Sequence[BoxRead], buffer: memoryview) -> list[Box]:
    """Return what is read, each box into its own bytes of the buffer, one after the other."""
    boxes = []
    at = 0
    for each in batch:
        dtype, _ = tensor_array(each.placed.tensor)
        array = np.frombuffer(buffer[at : at + each.length], dtype).reshape(each.sizes)
        boxes.append(Box(each.placed.file, each.placed.tensor, each.starts, each.sizes, array))
        at += each.length
    return boxes
