"""Any tensors, of any dtypes, strides and ties, leave as a file that the safetensors library reads as the same tensors."""

import math

import numpy as np
import safetensors
from hypothesis import find, given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

from tensorkeep.formats.safetensors import METADATA_KEY
from tensorkeep.planning.export import ExportPlan, plan_batches, plan_export, plan_runs
from tensorkeep.records.dtype import DTYPES, get_dtype, packed_shape
from tensorkeep.records.manifest import Extent, File, Tensor
from tensorkeep.transfer.boxes import Box, land_box

SIZE_BYTES = 4096
DATA = np.random.default_rng(5).integers(0, 2, SIZE_BYTES, np.uint8).tobytes()
"""A file's bytes: zeros and ones, so that they are booleans too."""

NAMES = st.text(min_size=1, max_size=6).filter(lambda name: name != METADATA_KEY)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[str, tuple[int, ...], tuple[int, ...] | None, int, int]:
    """Draw dtype, shape, strides, start and length of a tensor of the file."""
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    shape: tuple[int, ...] = tuple(draw(st.lists(st.integers(0, 6), max_size=4)))
    if DTYPES[dtype].bits < 8:
        shape = (*shape, 8)
    item = get_dtype(dtype).numpy.itemsize
    strides = None
    if DTYPES[dtype].bits >= 8 and shape and 0 not in shape and draw(st.booleans()):
        strides = tuple(draw(st.integers(0, 8)) for _ in shape)
        reach = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        length = reach * item
    else:
        length = math.prod(packed_shape(shape, get_dtype(dtype))) * item
    return dtype, shape, strides, draw(st.integers(0, SIZE_BYTES - 2048)), length


@st.composite
def files(draw: st.DrawFn) -> File:
    """Draw a file of tensors, some of which have several names."""
    kinds = draw(st.lists(layouts(), max_size=5))
    names = draw(st.lists(NAMES, unique=True, max_size=8)) if kinds else []
    chosen = [(name, draw(st.sampled_from(kinds))) for name in names]
    tensors = tuple(
        Tensor(name=name, dtype=dtype, shape=shape, strides=strides, start=start, length=length, digest="")
        for name, (dtype, shape, strides, start, length) in chosen
    )
    extents = (Extent(0, 0, SIZE_BYTES),)
    return File(
        path="x", size_bytes=SIZE_BYTES, format="pytorch", extents=extents, tensors=tensors, items=(), sha256=""
    )


@given(file=files(), limit=st.integers(8, 400))
def test_what_is_written_is_read_back_by_the_library_name_by_name(file: File, limit: int) -> None:
    plan = plan_export([(file, tensor) for tensor in file.tensors], {"format": "pt"})
    data = write(plan, limit)
    found = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
    assert sorted(found) == sorted(each.tensor.name for each in plan.tensors)
    assert set(plan.aliases).isdisjoint(found)
    for tensor in file.tensors:
        stored = found[plan.aliases.get(tensor.name, tensor.name)]
        assert (stored["dtype"], tuple(stored["shape"])) == (tensor.dtype, tensor.shape)
        assert bytes(stored["data"]) == tensor_bytes(tensor)


def write(plan: ExportPlan, limit: int) -> bytes:
    """Return the file that a plan means, each box landed by the code that loads land by."""
    data = bytearray(plan.size_bytes)
    data[: len(plan.header)] = plan.header
    for _, tensor, start in plan.tensors:
        if tensor.strides is None:
            data[start : start + tensor.length] = tensor_bytes(tensor)
    for batch in plan_batches(plan, limit_bytes=limit):
        read = b"".join(box_bytes(box.placed.file, box.placed.tensor, box.starts, box.sizes) for box in batch)
        assert len(read) <= limit
        for run in plan_runs(batch):
            data[run.start : run.start + run.length] = read[run.at : run.at + run.length]
    return bytes(data)


def box_bytes(file: File, tensor: Tensor, starts: tuple[int, ...], sizes: tuple[int, ...]) -> bytes:
    destination = np.zeros(sizes, get_dtype(tensor.dtype).numpy)
    landing = land_box(Box(file, tensor, starts, sizes, destination))
    for offset, length in landing.spans():
        at = tensor.start + offset
        landing.write(offset, memoryview(DATA[at : at + length]))
    landing.finish()
    return destination.tobytes()


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return a tensor's bytes in C order, by numpy's own strides."""
    if tensor.strides is None:
        return DATA[tensor.start : tensor.start + tensor.length]
    dtype = get_dtype(tensor.dtype).numpy
    flat = np.frombuffer(DATA, dtype, tensor.length // dtype.itemsize, tensor.start)
    return as_strided(flat, tensor.shape, [stride * dtype.itemsize for stride in tensor.strides]).tobytes()


def test_the_strategy_draws_ties_and_strides() -> None:
    tied = find(files(), lambda file: bool(plan_export([(file, each) for each in file.tensors]).aliases))
    assert len(tied.tensors) == 2
    assert find(files(), lambda file: any(each.strides for each in file.tensors)).tensors
