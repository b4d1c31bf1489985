"""Reads that hang, in small worlds: whoever can answer is asked, errors and deadlines come through, and nothing is kept alive."""

import threading
import weakref
from collections.abc import Iterator

import numpy as np
import pytest

from tensorkeep.errors import Integrity, Unavailable
from tensorkeep.planning.read_plan import PartRange
from tensorkeep.records.layout import BLOCK_BYTES
from tensorkeep.records.manifest import Extent
from tensorkeep.runtime import Runtime
from tensorkeep.transfer import lateness, schedule
from tensorkeep.transfer.boxes import Box
from tensorkeep.transfer.reader import read_boxes, read_parts
from tests.unit.transfer.small_world import FakeDevice, World, make_file, make_tensor, seeded_bytes

PART = 4 * BLOCK_BYTES

pytestmark = pytest.mark.timeout(60)


class Device(FakeDevice):
    """A device with a URL of its own."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.url = f"memory://{name}-{id(self)}"


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lateness, "LATE_S", 0.05)
    monkeypatch.setattr(lateness, "LATE_ALONE_S", 0.1)
    monkeypatch.setattr(schedule, "LEAVE_AFTER_S", 0.2)


@pytest.fixture
def never() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def make(placement: list[list[str]], *, parts: int | None = None) -> World:
    data = [seeded_bytes(PART, seed) for seed in range(parts or len(placement))]
    names = sorted({name for names in placement for name in names})
    return World(data, {name: Device(name) for name in names}, placement)


def hang(world: World, names: str, never: threading.Event) -> None:
    for name in names:
        world.devices[name].before_read = never.wait  # type: ignore[assignment]


def read_all(world: World, **more: object) -> dict[int, bytes]:
    """Return the first block of every part."""
    found: dict[int, bytes] = {}

    def consume(request: PartRange, data: memoryview) -> None:
        found[request.part] = bytes(data)

    requests = [PartRange(part, 0, BLOCK_BYTES) for part in range(len(world.parts))]
    read_parts(requests, consume, parts=world.table(), runtime=Runtime(), **more)  # type: ignore[arg-type]
    assert found == {part: data[:BLOCK_BYTES] for part, data in enumerate(world.parts)}
    return found


def test_a_third_copy_is_asked_where_two_hang(never: threading.Event) -> None:
    world = make([["a", "b", "c"]])
    hang(world, "ab", never)
    read_all(world)


def test_a_deadline_ends_a_load_whose_copies_all_hang(never: threading.Event) -> None:
    world = make([["a", "b"]])
    hang(world, "ab", never)
    with pytest.raises(Unavailable, match="waiting for 1 of device a, 1 of device b"):
        read_all(world, deadline_s=0.5)


@pytest.mark.parametrize("where", ["consume", "progress"])
def test_what_a_caller_raises_comes_through_while_a_read_hangs(never: threading.Event, where: str) -> None:
    world = make([["a", "b"]])
    hang(world, "a", never)

    def refuse(*_: object) -> None:
        raise ValueError("disk full")

    consume = refuse if where == "consume" else lambda *_: None
    progress = refuse if where == "progress" else None
    requests = [PartRange(0, 0, BLOCK_BYTES)]
    with pytest.raises(ValueError, match="disk full"):
        read_parts(requests, consume, parts=world.table(), runtime=Runtime(), progress=progress)


def test_an_error_of_another_part_comes_through_while_a_read_hangs(never: threading.Event) -> None:
    world = make([["a", "b"], ["c"]])
    hang(world, "ab", never)
    world.flip("c", 1, 5)
    with pytest.raises(Integrity):
        read_all(world)


@pytest.mark.parametrize("verify", ["blocks", "digest"])
def test_a_device_that_hangs_cannot_hold_all_memory(never: threading.Event, verify: str) -> None:
    world = make([["a", "b"] if part % 2 else ["b", "a"] for part in range(8)])
    hang(world, "a", never)
    read_all(world, verify=verify, memory_limit_bytes=PART * 3 // 2)


def test_a_device_whose_read_hangs_is_asked_last_in_later_loads(
    never: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make([["a", "b"]])
    hang(world, "a", never)
    read_all(world)
    monkeypatch.setattr(lateness, "LATE_S", 60.0)  # this machine may stall too
    before = threading.active_count()
    for _ in range(3):
        read_all(world)
    assert threading.active_count() == before
    never.set()
    while threading.active_count() >= before:
        threading.Event().wait(0.01)
    world.devices["a"].reads.clear()
    read_all(world)
    assert world.devices["a"].reads


def test_a_read_that_hangs_keeps_no_array_alive(never: threading.Event) -> None:
    world = make([["a", "b"]])
    hang(world, "a", never)
    tensor = make_tensor("w", "U8", (PART,), 0, PART)
    array = np.zeros(PART, np.uint8)
    box = Box(make_file(world.parts[0], [Extent(0, 0, PART)], [tensor]), tensor, (0,), (PART,), array)
    report = read_boxes([box], parts=world.table(), runtime=Runtime())
    assert report.hedged == 1
    assert array.tobytes() == world.parts[0]
    alive = weakref.ref(array)
    del array, box
    assert alive() is None
