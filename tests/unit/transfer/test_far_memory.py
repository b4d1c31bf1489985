"""What is loaded into memory that only a carrier reaches: verified before it is copied, by few buffers, and nothing after an error."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tensorkeep.errors import Integrity
from tensorkeep.integrations.torch_carrier import TorchCarrier
from tensorkeep.records.layout import BLOCK_BYTES
from tensorkeep.records.manifest import Extent, File
from tensorkeep.runtime import InlineWorkers, Runtime
from tensorkeep.transfer.boxes import Box, tensor_array
from tensorkeep.transfer.device_queue import readers_per_device
from tensorkeep.transfer.far_memory import FarMemory
from tensorkeep.transfer.reader import read_boxes
from tensorkeep.transfer.schedule import Scheduler
from tests.unit.transfer.small_world import (
    LateCarrier,
    array_in,
    array_of,
    make_file,
    make_tensor,
    make_world,
    same_bits,
    seeded_bytes,
)

MIB = 1 << 20
RUNTIMES: list[Callable[[], Runtime]] = [Runtime, lambda: Runtime(workers=InlineWorkers())]


def matrix(rows: int = 64, columns: int = 64 << 10, part: int = MIB) -> tuple[bytes, File]:
    content = seeded_bytes(rows * columns * 2)
    tensor = make_tensor("w", "BF16", (rows, columns), 0, len(content))
    extents = [Extent(index, 0, part) for index in range(len(content) // part)]
    return content, make_file(content, extents, [tensor])


def parts_of(content: bytes, part: int = MIB) -> list[bytes]:
    return [content[at : at + part] for at in range(0, len(content), part)]


def far_box(file: File, carrier: LateCarrier) -> Box:
    (tensor,) = file.tensors
    dtype, shape = tensor_array(tensor)
    return Box(file, tensor, (0,) * len(shape), shape, carrier.memory(dtype, shape))


@pytest.mark.parametrize("runtime", RUNTIMES, ids=["threads", "inline"])
def test_buffers_are_few_of_one_size_and_used_again(runtime: Callable[[], Runtime]) -> None:
    content, file = matrix(columns=256 << 10)
    carrier = LateCarrier()
    box = far_box(file, carrier)
    read_boxes([box], parts=make_world(parts_of(content)).table(), runtime=runtime())
    assert same_bits(array_in(box.destination), array_of(content, file.tensors[0]))
    assert carrier.prepared == 1
    assert len(set(carrier.buffers)) == 1
    assert sum(carrier.buffers) < len(content)


def test_readers_go_on_while_what_they_read_is_copied_by_one_thread() -> None:
    content, file = matrix(rows=256)
    world = make_world(parts_of(content), devices=1)
    (device,) = world.devices.values()
    readers = readers_per_device(1, Runtime().workers.cpu_count())
    enough = threading.Event()
    copying: set[int] = set()

    def count() -> None:
        if len(device.reads) > readers:  # more than there would be if each waited for its copy
            enough.set()

    class SlowCarrier(LateCarrier):
        def copy(self, target: npt.NDArray[np.uint8], offset: int, data: memoryview) -> None:
            copying.add(threading.get_ident())
            assert enough.wait(10), "nobody reads while a copy is waited for"
            super().copy(target, offset, data)

    device.before_read = count
    box = far_box(file, SlowCarrier())
    read_boxes([box], parts=world.table(), runtime=Runtime())
    assert same_bits(array_in(box.destination), array_of(content, file.tensors[0]))
    assert len(copying) == 1


def test_a_device_whose_reads_wait_to_be_copied_does_not_stall() -> None:
    content, file = matrix(rows=320)
    world = make_world(parts_of(content), copies=2)
    table = world.table()
    reserve = {
        part: [replace(source, rank=int(source.device == "d1")) for source in sources if part or source.device == "d1"]
        for part, sources in table.sources.items()
    }

    class StallingCarrier(LateCarrier):
        copied = 0

        def copy(self, target: npt.NDArray[np.uint8], offset: int, data: memoryview) -> None:
            self.copied += 1
            if self.copied == 3:
                time.sleep(0.7)  # longer than a device may owe an answer
            super().copy(target, offset, data)

    box = far_box(file, StallingCarrier())
    read_boxes([box], parts=replace(table, sources=reserve), runtime=Runtime(), memory_limit_bytes=16 * MIB)
    assert same_bits(array_in(box.destination), array_of(content, file.tensors[0]))
    assert len(world.devices["d1"].reads) == 1


def test_a_quick_device_leaves_a_slow_one_its_share_of_the_memory_while_reads_wait_to_be_copied() -> None:
    content, file = matrix(rows=384)
    world = make_world(parts_of(content))
    quick, slow = world.devices.values()
    begun_by_slow = list[int]()
    quick.before_read = lambda: begun_by_slow.append(len(slow.reads))
    slow.before_read = lambda: time.sleep(0.05)

    class SlowCarrier(LateCarrier):
        def copy(self, target: npt.NDArray[np.uint8], offset: int, data: memoryview) -> None:
            time.sleep(0.004)
            super().copy(target, offset, data)

    read_boxes([far_box(file, SlowCarrier())], parts=world.table(), runtime=Runtime(), memory_limit_bytes=8 * MIB)
    assert len(quick.reads) == len(slow.reads) == 24
    assert begun_by_slow[-1] > 6


def test_reads_that_were_asked_again_give_all_their_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [MIB, *[BLOCK_BYTES] * 7]
    content = seeded_bytes(sum(sizes))
    starts = list(accumulate(sizes, initial=0))
    tensor = make_tensor("w", "BF16", (len(content) // 2,), 0, len(content))
    file = make_file(content, [Extent(part, 0, size) for part, size in enumerate(sizes)], [tensor])
    world = make_world([content[low:high] for low, high in pairwise(starts)], copies=2)
    world.devices["d1"].before_read = lambda: time.sleep(0.8)
    schedulers = list[Scheduler]()
    run = Scheduler.run

    def keep(scheduler: Scheduler, *words: Any) -> None:
        schedulers.append(scheduler)
        run(scheduler, *words)

    monkeypatch.setattr(Scheduler, "run", keep)
    report = read_boxes([far_box(file, LateCarrier())], parts=world.table(), runtime=Runtime())
    assert report.hedged
    assert [each._held_bytes for each in schedulers] == [0]
    assert all(
        (each.memory_bytes, each.carried) == (0, 0) for each in schedulers[0].queues.values() if not each.running
    )


@pytest.mark.parametrize("runtime", RUNTIMES, ids=["threads", "inline"])
def test_a_copy_that_fails_ends_the_load_and_its_threads(runtime: Callable[[], Runtime]) -> None:
    class Full(Exception):
        pass

    class FailingCarrier(LateCarrier):
        copied = 0

        def copy(self, target: npt.NDArray[np.uint8], offset: int, data: memoryview) -> None:
            self.copied += 1
            if self.copied == 3:
                raise Full
            super().copy(target, offset, data)

    content, file = matrix()
    with pytest.raises(Full):
        read_boxes([far_box(file, FailingCarrier())], parts=make_world(parts_of(content)).table(), runtime=runtime())
    assert not [thread.name for thread in threading.enumerate() if "carry" in thread.name]


def test_a_damaged_block_is_never_copied() -> None:
    content, file = matrix()
    carrier = LateCarrier()
    box = far_box(file, carrier)
    world = make_world(parts_of(content), copies=1)
    world.flip(world.placement[3][0], 3, BLOCK_BYTES + 5)
    with pytest.raises(Integrity):
        read_boxes([box], parts=world.table(), runtime=Runtime())
    found, right = array_in(box.destination).view(np.uint8), array_of(content, file.tensors[0]).view(np.uint8)
    assert not ((found != right) & (found != 0)).any()
    damaged = slice(3 * MIB, 4 * MIB)
    assert not found.reshape(-1)[damaged].any()


def test_what_one_copy_lost_comes_from_the_other() -> None:
    content, file = matrix()
    carrier = LateCarrier()
    box = far_box(file, carrier)
    world = make_world(parts_of(content), copies=2)
    for part in range(0, len(world.parts), 3):
        world.flip(world.placement[part][0], part, part * 1000)
    report = read_boxes([box], parts=world.table(), runtime=Runtime())
    assert same_bits(array_in(box.destination), array_of(content, file.tensors[0]))
    assert {damage.kind for damage in report.damaged} == {"corrupt"}


def test_a_box_with_holes_is_put_together_and_its_buffer_given_up() -> None:
    content, file = matrix()
    carrier = LateCarrier()
    dtype, _ = tensor_array(file.tensors[0])
    boxes = [Box(file, file.tensors[0], (0, at), (64, 32), carrier.memory(dtype, (64, 32))) for at in range(0, 640, 32)]
    landed: list[int] = []
    read_boxes(boxes, parts=make_world(parts_of(content)).table(), runtime=Runtime(), progress=landed.append)
    whole = array_of(content, file.tensors[0])
    for number, box in enumerate(boxes):
        assert same_bits(array_in(box.destination), whole[:, 32 * number : 32 * (number + 1)].copy())
    assert sum(landed) == sum(box.destination.nbytes for box in boxes)


def test_the_carrier_of_torch_fills_tensors_of_its_device() -> None:
    """On the CPU, where each step is the same but for the pinned buffers and the stream; `tests/e2e/test_gpu.py` has those."""
    content, file = matrix()
    (tensor,) = file.tensors
    carrier = TorchCarrier(torch.device("cpu"))
    whole, rows, columns = (
        torch.zeros(shape, dtype=torch.bfloat16) for shape in ((64, 64 << 10), (7, 64 << 10), (64, 9))
    )
    boxes = [
        Box(file, tensor, starts, tuple(found.shape), _far(carrier, found))
        for starts, found in (((0, 0), whole), ((3, 0), rows), ((0, 11), columns))
    ]
    read_boxes(boxes, parts=make_world(parts_of(content)).table(), runtime=Runtime())
    right = torch.frombuffer(bytearray(content), dtype=torch.bfloat16).reshape(64, 64 << 10).view(torch.int16)
    assert torch.equal(whole.view(torch.int16), right)
    assert torch.equal(rows.view(torch.int16), right[3:10])
    assert torch.equal(columns.view(torch.int16), right[:, 11:20])


def _far(carrier: TorchCarrier, tensor: torch.Tensor) -> FarMemory:
    dtype, _ = tensor_array(make_tensor("", "BF16", (1,), 0, 2))
    return FarMemory(carrier, tensor.view(-1).view(torch.uint8), dtype, tuple(tensor.shape))
