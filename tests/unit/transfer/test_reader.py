"""Loads from several devices: other copies on damage, limits kept, failures named, work ended before the call returns."""

import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import numpy as np
import pytest

from tensorkeep.errors import Capacity, Integrity, InvalidInput, NotEnoughCopies, TensorkeepError, Unavailable
from tensorkeep.planning.read_plan import PartRange
from tensorkeep.records.checks import Checks
from tensorkeep.records.layout import BLOCK_BYTES
from tensorkeep.records.manifest import Extent
from tensorkeep.runtime import InlineWorkers, LeavablePool, ManualClock, Runtime, ThreadWorkers
from tensorkeep.transfer.boxes import Box
from tensorkeep.transfer.device_queue import readers_per_device
from tensorkeep.transfer.reader import read_boxes, read_parts
from tensorkeep.transfer.report import LoadReport, Verify
from tensorkeep.transfer.sources import SUSPECT
from tests.unit.transfer.small_world import (
    World,
    array_in,
    array_of,
    make_file,
    make_tensor,
    make_world,
    same_bits,
    seeded_bytes,
    whole_box,
)

PART = 3 * BLOCK_BYTES + 1


def threads_of_loads() -> list[threading.Thread]:
    """Return our threads, those apart that simulations keep for the next one."""
    ours = [thread for thread in threading.enumerate() if thread.name.startswith("tensorkeep-")]
    return [thread for thread in ours if not thread.name.startswith("tensorkeep-simulation")]


def load(world: World, *, runtime: Runtime | None = None, verify: Verify = "blocks", reachable: list[str] | None = None,
         deadline_s: float | None = None) -> LoadReport:  # fmt: skip
    """Load one tensor that runs over all parts, and hold it to what was stored."""
    content = b"".join(world.parts)
    tensor = make_tensor("t", "U8", (len(content),), 0, len(content))
    file = make_file(content, [Extent(index, 0, len(part)) for index, part in enumerate(world.parts)], [tensor])
    box = whole_box(file, tensor)
    report = read_boxes(
        [box], parts=world.table(reachable), verify=verify, runtime=runtime or Runtime(), deadline_s=deadline_s
    )
    if verify != "off":
        assert same_bits(array_in(box.destination), array_of(content, tensor))
    return report


def make_parts(count: int, size: int = PART) -> list[bytes]:
    return [seeded_bytes(size, seed) for seed in range(count)]


def test_a_load_reports_each_device_and_the_slowest() -> None:
    report = load(make_world(make_parts(4), names={"d0": "nvme0"}, rates={"d0": 1e9, "d1": 1e9}))
    assert [(device.id, device.name, device.bytes) for device in report.devices] == [
        ("d0", "nvme0", 2 * PART),
        ("d1", "d1", 2 * PART),
    ]
    assert report.devices[0].predicted_seconds == pytest.approx(2 * PART / 1e9)
    assert report.slowest_seconds == max(device.seconds for device in report.devices) > 0
    assert report.bytes_needed == report.bytes_read == 4 * PART
    assert report.rate_bytes_per_s == pytest.approx(4 * PART / report.seconds)


def test_what_was_loaded_is_freed_with_its_last_reference() -> None:
    content = make_parts(1)[0]
    tensor = make_tensor("t", "U8", (PART,), 0, PART)
    box = whole_box(make_file(content, [Extent(0, 0, PART)], [tensor]), tensor)
    left = weakref.ref(box.destination)
    gc.disable()  # gigabytes must not wait for a collection
    try:
        read_boxes([box], parts=make_world([content]).table(None), runtime=Runtime())
        del box
        assert left() is None
    finally:
        gc.enable()


def test_a_load_of_nothing_reports_nothing() -> None:
    report = read_boxes([], parts=make_world(make_parts(1)).table(), runtime=Runtime())
    assert (report.bytes_needed, report.bytes_read, report.devices, report.slowest_seconds) == (0, 0, (), 0.0)


def test_l_is_the_time_from_the_first_byte_asked_to_the_last_verified() -> None:
    clock = ManualClock()
    world = make_world(make_parts(3))
    world.devices["d0"].before_read = lambda: clock.sleep(2.0)
    report = load(world, runtime=Runtime(clock=clock, workers=InlineWorkers()))
    assert {device.id: device.seconds for device in report.devices}["d0"] == 4.0
    assert report.slowest_seconds == 4.0
    assert report.seconds >= 4.0


@pytest.mark.parametrize("verify", ["blocks", "digest"])
def test_a_flipped_byte_is_served_from_the_other_copy_and_named(verify: Verify) -> None:
    world = make_world(make_parts(2), copies=2, names={"d0": "nvme0"})
    world.flip("d0", 0, BLOCK_BYTES + 5)
    report = load(world, verify=verify)
    (damage,) = report.damaged
    assert (damage.location, damage.part, damage.device, damage.device_name, damage.kind) == (
        0,
        0,
        "d0",
        "nvme0",
        "corrupt",
    )
    assert damage.confirmed
    assert report.retried == 1
    if verify == "blocks":
        assert damage.reason == "block 1 does not fit its check"


@pytest.mark.parametrize("verify", ["blocks", "digest"])
def test_a_bit_that_flipped_on_the_way_is_read_again_and_no_copy_is_blamed(verify: Verify) -> None:
    world = make_world(make_parts(1), copies=2)
    device = world.devices["d0"]
    world.flip("d0", 0, BLOCK_BYTES + 5)

    def mend_after_the_first() -> None:
        if len(device.reads) == 2:
            world.flip("d0", 0, BLOCK_BYTES + 5)

    device.before_read = mend_after_the_first
    report = load(world, verify=verify)
    assert report.damaged == ()
    assert report.retried == 0
    assert world.devices["d1"].reads == []
    if verify == "blocks":
        assert device.reads[1:] == [("p0", BLOCK_BYTES, BLOCK_BYTES)]
    assert report.bytes_read == sum(length for _, _, length in device.reads)


def test_only_the_bad_block_is_read_from_the_other_copy() -> None:
    world = make_world(make_parts(1), copies=2)
    world.flip("d0", 0, BLOCK_BYTES + 5)
    load(world)
    assert world.devices["d1"].reads == [("p0", BLOCK_BYTES, BLOCK_BYTES)]


def test_copies_damaged_in_different_blocks_still_make_one_good_part() -> None:
    world = make_world(make_parts(1), copies=2)
    world.flip("d0", 0, 1)
    world.flip("d1", 0, 2 * BLOCK_BYTES)
    assert [damage.device for damage in load(world).damaged] == ["d0"]


def test_no_good_copy_is_an_integrity_error_that_names_part_file_and_devices() -> None:
    world = make_world(
        make_parts(1), copies=2, names={"d0": "nvme0", "d1": "nvme1"}, describe=lambda part: f"w.bin (part {part})"
    )
    world.flip("d0", 0, 7)
    del world.devices["d1"].objects["p0"]
    with pytest.raises(Integrity) as caught:
        load(world)
    for word in (world.checks.digest(0).hex(), "nvme0", "nvme1", "w.bin (part 0)", "block 0 does not fit", "not there"):
        assert word in caught.value.message
    assert caught.value.facts["part"] == world.checks.digest(0).hex()


def test_a_missing_copy_is_replaced_and_named() -> None:
    world = make_world(make_parts(1, 20 << 20), copies=2)
    del world.devices["d0"].objects["p0"]
    report = load(world, runtime=Runtime(workers=InlineWorkers()))
    assert [(damage.kind, damage.device) for damage in report.damaged] == [("missing", "d0")]


def test_a_short_copy_is_corrupt() -> None:
    world = make_world(make_parts(1), copies=2)
    del world.devices["d0"].objects["p0"][-10:]
    assert [damage.kind for damage in load(world).damaged] == ["corrupt"]


def test_a_copy_whose_length_the_catalog_has_wrong_is_not_read() -> None:
    world = make_world(make_parts(1), copies=2)
    table = world.table()
    wrong = replace(table.sources[0][0], length=PART - 1)
    table = replace(table, sources={0: [wrong, table.sources[0][1]]})
    request = PartRange(0, 0, PART)
    report = read_parts([request], lambda _, data: None, parts=table, runtime=Runtime())
    assert [damage.reason for damage in report.damaged] == [f"the copy has {PART - 1} bytes, the part {PART}"]
    assert not world.devices["d0"].reads


def test_a_suspect_copy_is_read_only_when_no_other_is_left() -> None:
    world = make_world(make_parts(1), copies=3, devices=3)
    world.flip("d0", 0, 0)
    table = world.table()
    first, second, third = table.sources[0]
    table = replace(table, sources={0: [first, replace(second, rank=SUSPECT), third]})
    requests = [PartRange(0, 0, PART)]
    got: list[bytes] = []
    read_parts(requests, lambda _, data: got.append(bytes(data)), parts=table, runtime=Runtime())
    assert got == world.parts
    assert [len(world.devices[device].reads) for device in ("d0", "d1", "d2")] == [2, 0, 1]  # the bad one twice
    world.flip("d2", 0, 0)
    read_parts(requests, lambda _, data: got.append(bytes(data)), parts=table, runtime=Runtime())
    assert got == world.parts * 2
    assert len(world.devices["d1"].reads) == 1


def test_missing_everywhere_is_not_enough_copies() -> None:
    world = make_world(make_parts(1))
    world.devices["d0"].objects.clear()
    with pytest.raises(NotEnoughCopies, match="not there"):
        load(world)


def test_a_copy_on_an_unreachable_device_is_not_tried() -> None:
    world = make_world(make_parts(4), copies=2)
    report = load(world, reachable=["d1"])
    assert [device.id for device in report.devices] == ["d1"]
    assert not report.retried


def test_copies_only_on_unreachable_devices_are_not_enough() -> None:
    with pytest.raises(NotEnoughCopies, match="device d0: is not reachable"):
        load(make_world(make_parts(2)), reachable=["d1"])


def test_a_part_that_nobody_keeps_is_not_enough_copies() -> None:
    world = make_world(make_parts(1))
    world.placement[0] = []
    with pytest.raises(NotEnoughCopies, match="knows no copy"):
        load(world)


def test_a_device_that_does_not_answer_is_given_up() -> None:
    world = make_world(make_parts(40), copies=2)
    world.devices["d0"].error = Unavailable("no answer")
    report = load(world, runtime=Runtime(workers=InlineWorkers()))
    assert {damage.kind for damage in report.damaged} == {"unreachable"}
    assert len(world.devices["d0"].reads) <= 12
    assert report.retried >= 20


def test_damage_found_before_the_checks_were_confirmed_is_judged_by_the_confirmed_ones() -> None:
    world = make_world(make_parts(1))
    good = world.checks
    blocks = good.blocks.copy()
    blocks[1] ^= np.uint64(1)
    world.checks = Checks(good.digests, blocks, good.first_block)
    asked = []

    def confirm() -> Checks:
        asked.append(1)
        return good

    world.confirm_checks = confirm
    report = load(world)
    assert not report.damaged
    assert len(asked) == 1


def test_checks_are_confirmed_once_before_any_copy_is_blamed() -> None:
    world = make_world(make_parts(3), copies=2, devices=2)
    for part in range(3):
        world.flip(world.placement[part][0], part, 0)
    asked = []

    def confirm() -> Checks:
        asked.append(1)
        return world.true_checks()

    world.confirm_checks = confirm
    report = load(world)
    assert len(report.damaged) == 3
    assert len(asked) == 1


def test_a_copy_is_not_blamed_for_sure_while_the_checks_cannot_be_confirmed() -> None:
    def refuse() -> Checks:
        raise Unavailable("the checks are away")

    world = make_world(make_parts(1), copies=2, confirm_checks=refuse)
    world.flip("d0", 0, 0)
    (damage,) = load(world).damaged
    assert not damage.confirmed
    assert "the checks are away" in damage.reason


def test_verify_off_checks_nothing_and_reads_no_more_than_needed() -> None:
    world = make_world(make_parts(1))
    world.flip("d0", 0, 0)
    assert not load(world, verify="off").damaged
    request = PartRange(0, 10, 20)
    report = read_parts([request], lambda _, data: None, parts=world.table(), verify="off", runtime=Runtime())
    assert report.bytes_read == 20


def test_a_slice_verifies_only_the_blocks_it_touches() -> None:
    world = make_world(make_parts(1))
    world.flip("d0", 0, 0)
    tensor = make_tensor("t", "U8", (PART,), 0, PART)
    file = make_file(world.parts[0], [Extent(0, 0, PART)], [tensor])
    box = Box(file, tensor, (2 * BLOCK_BYTES + 5,), (10,), np.zeros(10, np.uint8))
    report = read_boxes([box], parts=world.table(), runtime=Runtime())
    assert array_in(box.destination).tobytes() == world.parts[0][2 * BLOCK_BYTES + 5 :][:10]
    assert report.bytes_read == BLOCK_BYTES


def test_the_deadline_ends_the_load() -> None:
    clock = ManualClock()
    world = make_world(make_parts(40))
    for device in world.devices.values():
        device.before_read = lambda: clock.sleep(1.0)
    with pytest.raises(Unavailable, match="deadline"):
        load(world, runtime=Runtime(clock=clock, workers=InlineWorkers()), deadline_s=5.5)
    assert sum(len(device.reads) for device in world.devices.values()) <= 12


def test_a_load_that_ends_before_its_deadline_is_right() -> None:
    load(make_world(make_parts(3)), deadline_s=60.0)


def test_the_first_fatal_error_wins_and_others_are_notes() -> None:
    world = make_world(make_parts(8))
    for part in range(8):
        world.flip(world.placement[part][0], part, 0)
    with pytest.raises(Integrity) as caught:
        load(world, runtime=Runtime(workers=InlineWorkers()))
    notes = caught.value.__notes__
    assert notes
    assert all(note.startswith("also: part ") for note in notes)


def test_threads_have_ended_when_a_load_fails() -> None:
    world = make_world(make_parts(30))
    for part in range(30):
        world.flip(world.placement[part][0], part, 0)
    with pytest.raises(Integrity):
        load(world)
    assert not threads_of_loads()


def test_a_bug_in_a_device_ends_the_load_as_it_is() -> None:
    world = make_world(make_parts(30))

    def break_down() -> None:
        raise ZeroDivisionError

    world.devices["d1"].before_read = break_down
    with pytest.raises(ZeroDivisionError):
        load(world)
    assert not threads_of_loads()


def test_a_slow_device_does_not_delay_another() -> None:
    world = make_world(make_parts(20))
    others_done = threading.Event()
    fast, slow = world.devices["d0"], world.devices["d1"]

    def wait_for_others() -> None:
        assert others_done.wait(30)

    def count() -> None:
        if len(fast.reads) == 10:
            others_done.set()

    slow.before_read, fast.before_read = wait_for_others, count
    assert len(load(world).devices) == 2


def void(_: object) -> None: ...


class CountedWorkers(ThreadWorkers):
    """Threads whose tasks are counted from submission to end."""

    def __init__(self) -> None:
        self.outstanding = 0
        self.most = 0
        self._lock = threading.Lock()

    def open_leavable_pool(self, max_workers: int, name: str) -> LeavablePool:
        return _CountedPool(self, super().open_leavable_pool(max_workers, name))

    def change(self, by: int) -> None:
        with self._lock:
            self.outstanding += by
            self.most = max(self.most, self.outstanding)


class _CountedPool:
    def __init__(self, workers: CountedWorkers, pool: LeavablePool) -> None:
        self._workers = workers
        self._pool = pool

    def submit(self, task: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        def run() -> Any:
            try:
                return task(*args, **kwargs)
            finally:  # a done callback would come after whoever waits has gone on
                self._workers.change(-1)

        self._workers.change(1)
        return self._pool.submit(run)

    def abandon(self) -> None:
        self._pool.abandon()

    def grow(self, max_workers: int) -> None:
        self._pool.grow(max_workers)

    def __enter__(self) -> Self:
        self._pool.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> bool | None:
        return self._pool.__exit__(kind, error, trace)


@pytest.mark.parametrize("verify", ["blocks", "digest", "off"])
def test_bytes_in_flight_stay_under_the_limit_and_use_it(verify: Verify) -> None:
    world = make_world(make_parts(24), devices=1)
    workers, three = CountedWorkers(), threading.Barrier(3)
    world.devices["d0"].before_read = lambda: void(three.wait(30))
    seen: list[int] = []
    read_parts(
        [PartRange(part, 0, PART) for part in range(24)],
        lambda request, data: seen.append(len(data)),
        parts=world.table(),
        verify=verify,
        memory_limit_bytes=3 * PART,
        runtime=Runtime(workers=workers),
    )
    assert seen == [PART] * 24
    assert workers.most == 3


@pytest.mark.parametrize("make_runtime", [Runtime, lambda: Runtime(workers=InlineWorkers())])
def test_every_range_is_consumed_once_whole_and_verified(make_runtime: Callable[[], Runtime]) -> None:
    world = make_world(make_parts(3), copies=2)
    world.flip("d0", 0, 100)
    requests = [
        PartRange(0, 0, PART, key=1),
        PartRange(0, 90, 20, key=2),
        PartRange(0, 0, PART, key=3),
        PartRange(2, PART, 0, key=4),
        PartRange(1, BLOCK_BYTES - 1, 2, key=5),
    ]
    got: dict[int, bytes] = {}
    lock = threading.Lock()

    def consume(request: PartRange, data: memoryview) -> None:
        assert data.readonly
        with lock:
            assert request.key not in got
            got[request.key] = bytes(data)

    landed: list[int] = []
    report = read_parts(requests, consume, parts=world.table(), runtime=make_runtime(), progress=landed.append)
    assert got == {each.key: world.parts[each.part][each.start : each.start + each.length] for each in requests}
    assert sum(landed) == report.bytes_needed == sum(request.length for request in requests)


def test_what_a_consumer_raises_ends_the_load() -> None:
    def full(request: PartRange, data: memoryview) -> None:
        raise Capacity("the disk is full")

    world = make_world(make_parts(20))
    with pytest.raises(Capacity, match="full"):
        read_parts([PartRange(part, 0, 9) for part in range(20)], full, parts=world.table(), runtime=Runtime())
    assert not threads_of_loads()


@pytest.mark.parametrize(
    "wrong", [PartRange(0, 0, PART + 1), PartRange(1, 0, 0), PartRange(0, -1, 2), PartRange(-1, 0, 1)]
)
def test_a_range_outside_its_part_is_refused(wrong: PartRange) -> None:
    with pytest.raises(InvalidInput):
        read_parts([wrong], lambda _, data: None, parts=make_world(make_parts(1)).table(), runtime=Runtime())


def test_one_part_in_two_tensors_is_read_once() -> None:
    content = seeded_bytes(PART)
    first, second = make_tensor("a", "U8", (PART,), 0, PART), make_tensor("b", "U8", (PART,), PART, PART)
    file = make_file(content * 2, [Extent(0, 0, PART), Extent(0, 0, PART)], [first, second])
    world = make_world([content])
    boxes = [whole_box(file, first), whole_box(file, second)]
    report = read_boxes(boxes, parts=world.table(), runtime=Runtime())
    assert [array_in(box.destination).tobytes() for box in boxes] == [content, content]
    assert report.bytes_read == PART


def test_any_error_of_a_device_but_absence_means_that_nobody_can_tell() -> None:
    world = make_world(make_parts(1), copies=2)
    world.devices["d0"].error = TensorkeepError("strange")
    assert [damage.kind for damage in load(world).damaged] == ["unreachable"]


@pytest.mark.parametrize(
    ("devices", "processors", "readers"),
    [(1, 1, 4), (1, 2, 4), (1, 8, 4), (1, 16, 8), (1, 64, 8), (2, 32, 8), (8, 32, 4), (0, 2, 4)],
)
def test_a_local_device_has_four_to_eight_readers(devices: int, processors: int, readers: int) -> None:
    assert readers_per_device(devices, processors) == readers
