"""Tensors of a version written as one safetensors file, in bounded memory, whole or not at all.

What goes where is planned before (`planning.export`). Tensors in C order are byte ranges, copied from all devices at once like
files (`copying`); strided ones are then read a batch at a time into C order and written.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tensorkeep.errors import AlreadyExists, InvalidInput, NotFound
from tensorkeep.formats.registry import read_metadata
from tensorkeep.formats.safetensors import SAFETENSORS
from tensorkeep.planning.export import (
    FORMAT_KEY,
    BoxRead,
    ExportPlan,
    merge_metadata,
    plan_batches,
    plan_export,
    plan_runs,
)
from tensorkeep.records.manifest import File, Tensor
from tensorkeep.runtime import Runtime
from tensorkeep.store.copying import Copies
from tensorkeep.store.local_files import UnfinishedFile, check_path, open_unfinished, translate_os_error
from tensorkeep.store.progress import ByteProgress
from tensorkeep.store.reading import VersionReader
from tensorkeep.store.reports import ProgressCallback
from tensorkeep.store.stored_source import StoredSource
from tensorkeep.transfer.boxes import Box, tensor_array
from tensorkeep.transfer.memory import allocate
from tensorkeep.transfer.report import LoadReport

BATCH_BYTES = 128 << 20
"""Most bytes of strided tensors that are in memory at once; the buffers of the reads come on top."""

PYTORCH = "pytorch"


@dataclass(frozen=True, slots=True)
class SaveReport:
    """What a save did: the file and its size, how many tensors it holds, and the names that stand for one of them.

    ``warnings`` name files that may be models and whose tensors are not known.
    """

    path: str
    bytes: int
    tensors: int
    aliases: dict[str, str]
    load: LoadReport
    warnings: tuple[str, ...] = ()


def save_tensors(
    tensors: Sequence[tuple[File, Tensor]],
    path: Path,
    reader: VersionReader,
    runtime: Runtime,
    *,
    unknown: Sequence[File],
    force: bool,
    progress: ProgressCallback | None,
) -> SaveReport:
    """Write tensors of a version as one safetensors file, and warn of ``unknown`` files; see `Model.save`."""
    once = {(file.path, tensor.name): (file, tensor) for file, tensor in tensors}  # globs may choose one by two names
    if not once:
        raise NotFound(f"no tensors are known that could be written to {path}: `tensorkeep show --files` tells why")
    files = {file.path: file for file, _ in once.values()}
    metadata = merge_metadata([own_metadata(file, reader) for file in files.values()])
    plan = plan_export(list(once.values()), metadata)
    reader.progress = ByteProgress(progress, "save", plan.data_bytes)
    check_path(path)
    try:
        if path.is_dir():
            raise InvalidInput(f"{path} is a folder: name a file in it", path=str(path))
        if os.path.lexists(path) and not force:
            raise AlreadyExists(f"{path} exists: move it away, or save with --force", path=str(path))
        output = open_unfinished(path, plan.size_bytes, runtime)
        try:
            copies = Copies()
            add_export(plan, output, copies)
            copies.run(reader)
            write_strided(plan, output, reader)
            output.publish(force=force, verb="save")
        finally:
            output.discard()
    except OSError as error:
        raise translate_os_error(error, path) from error
    return SaveReport(
        path=str(path),
        bytes=plan.size_bytes,
        tensors=len(plan.tensors),
        aliases=dict(plan.aliases),
        load=reader.report(),
        warnings=tuple(
            f"{file.path!r} may be a model, but no tensors of it are known: it is left out" for file in unknown
        ),
    )


def add_export(plan: ExportPlan, output: UnfinishedFile, copies: Copies) -> None:
    """Write the header of a planned file, and have its tensors in C order copied."""
    output.write_at(memoryview(plan.header), 0)
    for file, tensor, start in plan.tensors:
        if tensor.strides is None:
            copies.add(file, tensor.start, tensor.length, output, start)


def write_strided(plan: ExportPlan, output: UnfinishedFile, reader: VersionReader) -> None:
    """Write the tensors of a planned file that are not in C order where they lie now.

    Raises:
        Integrity: bytes are damaged on every device that has them.
        NotEnoughCopies: no device that has some bytes can be read.
    """
    buffer = memoryview(b"")
    for batch in plan_batches(plan, limit_bytes=BATCH_BYTES):
        buffer = buffer or allocate(min(BATCH_BYTES, plan.data_bytes))
        reader.read_boxes(_boxes(batch, buffer))
        output.write_all((buffer[run.at : run.at + run.length], run.start) for run in plan_runs(batch))


def own_metadata(file: File, reader: VersionReader) -> Mapping[str, str]:
    """Return what a file says of its tensors, as safetensors' metadata: whose they are, where readers of the format ask."""
    if file.format == PYTORCH:
        return {FORMAT_KEY: "pt"}
    if file.format == SAFETENSORS:
        return read_metadata(file.path, file.format, StoredSource(file, reader)) or {}
    return {}


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
