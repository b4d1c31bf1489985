"""How many reads of a local device run at once: more where checks wait for its disk, and only there."""

import threading

import pytest

from tensorkeep.records.layout import MIB
from tensorkeep.runtime import ThreadWorkers
from tensorkeep.transfer.device_queue import LEAST_READERS, MOST_WAITING_READERS, DeviceQueue, checkers_per_device
from tensorkeep.transfer.job import Attempt


def check(size_bytes: int, took_s: float, disk_bytes: int) -> Attempt:
    return Attempt(size_bytes, 10.0, 10.0 + took_s, disk_bytes=disk_bytes)


WAITED = check(16 * MIB, 0.1, 15 * MIB)


def test_checks_that_wait_for_a_disk_get_more_readers_up_to_a_limit() -> None:
    with ThreadWorkers().open_leavable_pool(4, "test") as pool:
        queue = DeviceQueue("d0", local_readers=4, pool=pool)
        found = []
        for _ in range(40):
            queue.count_check(WAITED, 1)
            found.append(queue.local_readers)
        assert found[:12] == [4, 4, 4, *[8] * 8, MOST_WAITING_READERS]
        assert found[-1] == MOST_WAITING_READERS
        together = threading.Barrier(MOST_WAITING_READERS)
        for future in [pool.submit(together.wait, 30) for _ in range(MOST_WAITING_READERS)]:
            future.result(30)  # all of them run at once


@pytest.mark.parametrize(
    "attempt",
    [check(16 * MIB, 0.01, 15 * MIB), check(16 * MIB, 0.1, 0), check(0, 0.0, 0)],
    ids=["fast", "from memory", "nothing"],
)
def test_others_do_not(attempt: Attempt) -> None:
    with ThreadWorkers().open_leavable_pool(4, "test") as pool:
        queue = DeviceQueue("d0", local_readers=4, pool=pool)
        for _ in range(3):
            queue.count_check(WAITED, 1)
        queue.count_check(attempt, 1)  # they have to wait one after another
        for _ in range(3):
            queue.count_check(WAITED, 1)
        for _ in range(20):
            queue.count_check(attempt, 1)
        assert queue.local_readers == 4


def test_the_first_check_that_comes_from_a_disk_brings_as_many_readers_as_reads_have() -> None:
    with ThreadWorkers().open_leavable_pool(2, "test") as pool:
        queue = DeviceQueue("d0", local_readers=2, pool=pool)
        for _ in range(20):
            queue.count_check(check(16 * MIB, 0.1, 0), 1)
        assert queue.local_readers == 2
        queue.count_check(check(16 * MIB, 0.01, 15 * MIB), 9)
        assert queue.local_readers == LEAST_READERS


@pytest.mark.parametrize(
    ("devices", "processors", "checkers"), [(1, 1, 2), (1, 2, 2), (1, 4, 4), (2, 8, 4), (1, 16, 8), (0, 2, 2)]
)
def test_as_many_checks_run_at_first_as_processors_hash(devices: int, processors: int, checkers: int) -> None:
    assert checkers_per_device(devices, processors) == checkers


def test_many_devices_share_the_readers() -> None:
    with ThreadWorkers().open_leavable_pool(4, "test") as pool:
        for devices, most in ((2, 8), (4, 4), (9, 4)):
            queue = DeviceQueue("d0", local_readers=4, pool=pool)
            for _ in range(40):
                queue.count_check(WAITED, devices)
            assert queue.local_readers == most
