"""Reads of a part of a model: how many bytes are read for each byte that was asked for.

Whole blocks of 256 KiB are read, because blocks are what is verified; a column slice is read as the rows that it crosses where
these are shorter than blocks.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from bench.loading import MODEL
from bench.results import Options, Row, Table
from bench.work import get_model, new_store, remove
from tensorkeep.planning.layers import usual_role
from tensorkeep.records.dtype import get_dtype
from tensorkeep.store.model import Model
from tensorkeep.transfer.boxes import Box
from tensorkeep.transfer.report import LoadReport

RANK, RANKS = 1, 4
ROWS = 100

Part = Callable[[tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]] | None]
"""Of a tensor's shape: starts and sizes of the box that is wanted, None where the tensor is not."""


def partial_tables(options: Options) -> list[Table]:
    """Return the table ``partial``: one row for each kind of part, of the model and of one with many small tensors."""
    rows = []
    for name in dict.fromkeys([options.model, "moe"]):
        with new_store("partial") as store:
            store.push(get_model(name), MODEL)
            opened = store.model(MODEL)
            rows += [_row(f"{name}: {what}", report) for what, report in _reports(opened)]
    remove("partial")
    return [Table("partial", "Bytes read for a part of a model", "scripts/bench.sh run partial", rows)]


def _reports(model: Model) -> Iterable[tuple[str, LoadReport]]:
    matrices = [name for name, info in model.tensors.items() if len(info.shape) == 2]
    middle = matrices[len(matrices) // 2]
    yield "one tensor", _load(model, [middle])
    yield f"{ROWS} rows of a tensor", _read(model, lambda shape: ((0, 0), (min(ROWS, shape[0]), shape[1])), {middle})
    layer = usual_role(middle).layer
    yield "one layer", _load(model, [name for name in model.tensors if usual_role(name).layer == layer])
    yield f"tensor parallel, rank {RANK} of {RANKS}, by rows", _read(model, _rows_of_rank)
    yield f"tensor parallel, rank {RANK} of {RANKS}, by columns", _read(model, _columns_of_rank)
    yield f"FSDP, shard {RANK} of {RANKS} of every tensor", _read(model, _shard_of_rank)


def _load(model: Model, names: list[str]) -> LoadReport:
    model.load(include=names)
    assert model.report is not None
    return model.report


def _read(model: Model, part: Part, names: set[str] | None = None) -> LoadReport:
    boxes = []
    for file, tensor in model.manifest.iter_tensors():
        box = part(tensor.shape) if names is None or tensor.name in names else None
        if box is not None:
            empty: Any = np.empty(box[1], get_dtype(tensor.dtype).numpy)
            boxes.append(Box(file, tensor, *box, empty))
    return model.read_boxes(boxes)


def _rows_of_rank(shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    if len(shape) != 2 or shape[0] < RANKS:
        return None
    rows = shape[0] // RANKS
    return (RANK * rows, 0), (rows, shape[1])


def _columns_of_rank(shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    if len(shape) != 2 or shape[1] < RANKS:
        return None
    columns = shape[1] // RANKS
    return (0, RANK * columns), (shape[0], columns)


def _shard_of_rank(shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """As torch's ``fully_shard`` cuts: the first dimension, whatever the number of dimensions."""
    rows = -(-shape[0] // RANKS)
    start = min(RANK * rows, shape[0])
    size = min(rows, shape[0] - start)
    return ((start, *(0 for _ in shape[1:])), (size, *shape[1:])) if size else None


def _row(name: str, report: LoadReport) -> Row:
    figures = {
        "needed_bytes": [float(report.bytes_needed)],
        "read_over_needed": [report.bytes_read / report.bytes_needed],
    }
    return Row(name, "ours", figures)
