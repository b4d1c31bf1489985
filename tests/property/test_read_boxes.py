"""Boxes read from devices equal numpy's slicing, whatever the parts, the strides and the damage."""

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tensorkeep.errors import Integrity
from tensorkeep.records.dtype import DTYPES, get_dtype, packed_shape
from tensorkeep.records.layout import BLOCK_BYTES
from tensorkeep.records.manifest import Extent, File, Tensor
from tensorkeep.runtime import InlineWorkers, Runtime
from tensorkeep.transfer.boxes import Box, tensor_array
from tensorkeep.transfer.far_memory import FarMemory
from tensorkeep.transfer.reader import read_boxes
from tests.unit.transfer.small_world import (
    LateCarrier,
    World,
    array_in,
    array_of,
    make_file,
    make_tensor,
    make_world,
    same_bits,
    seeded_bytes,
)

RUNTIMES: list[Callable[[], Runtime]] = [Runtime, lambda: Runtime(workers=InlineWorkers())]
SETTINGS = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@dataclass
class Model:
    """One file of tensors, cut into parts."""

    content: bytes
    file: File
    parts: list[bytes]


@st.composite
def tensors(draw: st.DrawFn, number: int, start: int) -> Tensor:
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    bits = get_dtype(dtype).bits
    shape = list(draw(st.lists(st.integers(0, 7), max_size=4)))
    if draw(st.booleans()) and shape:  # some are longer than a block, with rows about a block
        shape[draw(st.integers(0, len(shape) - 1))] = draw(
            st.sampled_from([1000, 40_000, BLOCK_BYTES - 8, BLOCK_BYTES + 8])
        )
    row = [8 * draw(st.integers(0, 5))] if bits < 8 else []
    while len(shape) > 1 and np.prod([max(size, 1) for size in [*shape, *row]]) * bits // 8 > 2 << 20:
        shape.remove(sorted(shape)[-2])
    shape += row
    packed = packed_shape(tuple(shape), get_dtype(dtype))
    length = int(np.prod(packed, dtype=np.int64)) * get_dtype(dtype).numpy.itemsize
    return make_tensor(f"t{number}", dtype, tuple(shape), start, length)


@st.composite
def models(draw: st.DrawFn) -> Model:
    found: list[Tensor] = []
    position = 0
    for number in range(draw(st.integers(1, 5))):
        position += draw(st.sampled_from([0, 0, 1, 8, 64]))
        found.append(draw(tensors(number, position)))
        position += found[-1].length
    size = max(position, 1)
    content = seeded_bytes(size, draw(st.integers(0, 9)))
    cut = st.one_of(
        st.integers(1, size),
        st.integers(1, 9).map(lambda blocks: blocks * BLOCK_BYTES),
        st.integers(1, 9).map(lambda blocks: blocks * BLOCK_BYTES - 1),
        st.integers(1, 9).map(lambda blocks: blocks * BLOCK_BYTES + 1),
        st.sampled_from([tensor.start for tensor in found if tensor.start] or [1]),
    )
    cuts = sorted({0, size, *(at for at in draw(st.lists(cut, max_size=6)) if at < size)})
    parts: list[bytes] = []
    extents = []
    for low, high in itertools.pairwise(cuts):
        piece = content[low:high]
        if draw(st.booleans()) and parts:  # into a pack with the part before, behind some padding
            gap = draw(st.sampled_from([0, 3, 64]))
            extents.append(Extent(len(parts) - 1, len(parts[-1]) + gap, len(piece)))
            parts[-1] += bytes(gap) + piece
        else:
            before = bytes(draw(st.sampled_from([0, 0, 5, BLOCK_BYTES])))
            extents.append(Extent(len(parts), len(before), len(piece)))
            parts.append(before + piece)
    return Model(content, make_file(content, extents, found), parts)


@st.composite
def destinations(
    draw: st.DrawFn, sizes: tuple[int, ...], dtype: np.dtype[Any], carrier: LateCarrier
) -> npt.NDArray[Any] | FarMemory:
    if draw(st.integers(0, 2)) == 0:
        return carrier.memory(dtype, sizes)
    steps = [draw(st.sampled_from([1, 1, 1, 2, -1, -3])) for _ in sizes]
    order = draw(st.permutations(range(len(sizes))))
    full = np.zeros([sizes[axis] * abs(steps[axis]) for axis in order], dtype)
    array = full.transpose(np.argsort(order)) if sizes else full
    region: tuple[Any, ...] = (..., *(slice(None, None, step) for step in steps))
    found: npt.NDArray[Any] = array[region]
    return found


@st.composite
def boxes_of(draw: st.DrawFn, model: Model) -> list[Box]:
    found = []
    carrier = LateCarrier()
    for tensor in draw(st.lists(st.sampled_from(model.file.tensors), min_size=1, max_size=6)):
        dtype, shape = tensor_array(tensor)
        if draw(st.booleans()):
            starts, sizes = (0,) * len(shape), shape
        else:
            starts = tuple(draw(st.integers(0, full)) for full in shape)
            sizes = tuple(draw(st.integers(0, full - start)) for start, full in zip(starts, shape, strict=True))
        found.append(Box(model.file, tensor, starts, sizes, draw(destinations(sizes, dtype, carrier))))
    return found


def expected(model: Model, box: Box) -> npt.NDArray[Any]:
    region: tuple[Any, ...] = tuple(
        slice(start, start + size) for start, size in zip(box.starts, box.sizes, strict=True)
    )
    found: npt.NDArray[Any] = array_of(model.content, box.tensor)[(..., *region)]
    return found


def all_right(model: Model, boxes: list[Box]) -> bool:
    return all(same_bits(array_in(box.destination), expected(model, box)) for box in boxes)


@pytest.mark.parametrize("runtime", RUNTIMES, ids=["threads", "inline"])
@SETTINGS
@given(
    data=st.data(), verify=st.sampled_from(["blocks", "digest", "off"]), limit=st.sampled_from([1, 1 << 20, 256 << 20])
)
def test_boxes_equal_numpy_slicing(
    runtime: Callable[[], Runtime], data: st.DataObject, verify: Literal["blocks", "digest", "off"], limit: int
) -> None:
    model = data.draw(models())
    boxes = data.draw(boxes_of(model))
    world = make_world(model.parts, copies=data.draw(st.integers(1, 2)), devices=data.draw(st.integers(2, 3)))
    landed: list[int] = []
    report = read_boxes(
        boxes, parts=world.table(), verify=verify, memory_limit_bytes=limit, runtime=runtime(), progress=landed.append
    )
    assert all_right(model, boxes)
    assert report.bytes_needed == sum(landed) == sum(box.destination.nbytes for box in boxes)
    assert not report.damaged
    assert not report.retried
    assert report.bytes_read == sum(device.bytes for device in report.devices)


@SETTINGS
@given(data=st.data(), shape=st.lists(st.integers(1, 40), min_size=1, max_size=4))
def test_boxes_of_strided_tensors_equal_numpy_slicing(data: st.DataObject, shape: list[int]) -> None:
    strides = data.draw(
        st.one_of(
            st.permutations(range(len(shape))).map(lambda order: _permuted_strides(shape, order)),
            st.lists(st.integers(0, 50), min_size=len(shape), max_size=len(shape)).map(tuple),
        )
    )
    dtype = data.draw(st.sampled_from(["BF16", "F32", "U8", "C64"]))
    reach = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    length = reach * get_dtype(dtype).numpy.itemsize
    start = data.draw(st.sampled_from([0, 1, 100]))
    content = seeded_bytes(start + length)
    tensor = make_tensor("t", dtype, tuple(shape), start, length, strides)
    half = data.draw(st.integers(1, len(content)))
    parts = [part for part in (content[:half], content[half:]) if part]
    extents = [Extent(index, 0, len(part)) for index, part in enumerate(parts)]
    model = Model(content, make_file(content, extents, [tensor]), parts)
    boxes = data.draw(boxes_of(model))
    landed: list[int] = []
    read_boxes(boxes, parts=make_world(parts).table(), runtime=Runtime(workers=InlineWorkers()), progress=landed.append)
    assert all_right(model, boxes)
    assert sum(landed) == sum(box.destination.nbytes for box in boxes)


def _permuted_strides(shape: list[int], order: list[int]) -> tuple[int, ...]:
    strides = [0] * len(shape)
    step = 1
    for axis in order:
        strides[axis] = step
        step *= shape[axis]
    return tuple(strides)


def _flip_some(data: st.DataObject, world: World, *, copies: range) -> None:
    for _ in range(data.draw(st.integers(1, 5))):
        part = data.draw(st.integers(0, len(world.parts) - 1))
        device = world.placement[part][data.draw(st.sampled_from(copies))]
        world.flip(device, part, data.draw(st.integers(0, len(world.parts[part]) - 1)))


@SETTINGS
@given(data=st.data(), verify=st.sampled_from(["blocks", "digest"]))
def test_flips_in_one_of_two_copies_change_nothing(data: st.DataObject, verify: Literal["blocks", "digest"]) -> None:
    model = data.draw(models())
    boxes = data.draw(boxes_of(model))
    world = make_world(model.parts, copies=2, devices=2)
    bad = data.draw(st.integers(0, 1))
    _flip_some(data, world, copies=range(bad, bad + 1))
    report = read_boxes(boxes, parts=world.table(), verify=verify, runtime=Runtime())
    assert all_right(model, boxes)
    assert all(damage.kind == "corrupt" and damage.confirmed for damage in report.damaged)


@SETTINGS
@given(data=st.data(), verify=st.sampled_from(["blocks", "digest"]), copies=st.integers(1, 2))
def test_a_load_is_right_or_says_that_it_is_not(
    data: st.DataObject, verify: Literal["blocks", "digest"], copies: int
) -> None:
    model = data.draw(models())
    boxes = data.draw(boxes_of(model))
    world = make_world(model.parts, copies=copies, devices=2)
    _flip_some(data, world, copies=range(copies))
    with contextlib.suppress(Integrity):
        report = read_boxes(boxes, parts=world.table(), verify=verify, runtime=Runtime(workers=InlineWorkers()))
        assert all_right(model, boxes)
        assert copies == 2 or not report.damaged


@SETTINGS
@given(data=st.data())
def test_a_flip_of_a_needed_byte_with_one_copy_is_an_integrity_error(data: st.DataObject) -> None:
    model = data.draw(models().filter(lambda model: any(tensor.length for tensor in model.file.tensors)))
    tensor = data.draw(st.sampled_from([tensor for tensor in model.file.tensors if tensor.length]))
    dtype, shape = tensor_array(tensor)
    box = Box(model.file, tensor, (0,) * len(shape), shape, np.zeros(shape, dtype))
    world = make_world(model.parts)
    at = tensor.start + data.draw(st.integers(0, tensor.length - 1))
    for extent in model.file.extents:
        if at < extent.length:
            world.flip(world.placement[extent.part][0], extent.part, extent.start + at)
            break
        at -= extent.length
    with pytest.raises(Integrity):
        read_boxes([box], parts=world.table(), runtime=Runtime())
