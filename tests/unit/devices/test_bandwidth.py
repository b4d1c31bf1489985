import os
from pathlib import Path

import pytest

from tensorkeep.devices import MemoryDevice, RateLimitedDevice, forget_memory, measure_bandwidth, open_device
from tensorkeep.errors import Capacity, PermissionDenied, Unavailable
from tensorkeep.records.layout import MIB
from tensorkeep.runtime import ManualClock, Runtime
from tensorkeep.testing.device_contract import listed
from tensorkeep.testing.devices import FaultyDevice, RecordingDevice


@pytest.fixture
def memory() -> MemoryDevice:
    forget_memory("bandwidth")
    return MemoryDevice("bandwidth")


def test_the_rate_of_a_limited_device_is_its_limit(memory: MemoryDevice) -> None:
    runtime = Runtime(clock=ManualClock())
    device = RateLimitedDevice(memory, rate_bytes_per_s=50_000_000, runtime=runtime)
    rate = measure_bandwidth(device, runtime=runtime)
    assert rate == pytest.approx(50_000_000, rel=0.01)
    assert listed(memory, "tmp/") == {}


def test_a_local_device_is_measured_and_nothing_stays(tmp_path: Path) -> None:
    device = open_device(str(tmp_path / "disk"), runtime=Runtime())
    device.prepare()
    rate = measure_bandwidth(device, runtime=Runtime(), size_bytes=5 * MIB)
    assert rate is not None
    assert rate > 0
    assert os.listdir(tmp_path / "disk" / "tmp") == []
    assert listed(device) == {}


def test_a_device_with_little_room_is_measured_with_less(memory: MemoryDevice) -> None:
    runtime = Runtime(clock=ManualClock())
    faulty = FaultyDevice(RateLimitedDevice(memory, rate_bytes_per_s=1_000_000, runtime=runtime))
    for call in (1, 2, 3):
        faulty.fail("put", Capacity, on_call=call)
    recorder = RecordingDevice(faulty)
    assert measure_bandwidth(recorder, runtime=runtime) == pytest.approx(1_000_000, rel=0.05)
    assert len([call for call in recorder.calls if call.method == "put"]) == 4
    assert listed(memory, "tmp/") == {}


def test_a_full_device_is_not_measured(memory: MemoryDevice) -> None:
    faulty = FaultyDevice(memory)
    faulty.fail("put", Capacity)
    assert measure_bandwidth(faulty, runtime=Runtime()) is None


def test_where_no_time_passes_no_rate_is_made_up(memory: MemoryDevice) -> None:
    assert measure_bandwidth(memory, runtime=Runtime(clock=ManualClock())) is None


@pytest.mark.parametrize(("method", "error"), [("put", PermissionDenied), ("read_into", Unavailable)])
def test_other_errors_are_the_callers_and_nothing_stays(
    memory: MemoryDevice, method: str, error: type[Exception]
) -> None:
    faulty = FaultyDevice(memory)
    faulty.fail(method, error)
    with pytest.raises(error):
        measure_bandwidth(faulty, runtime=Runtime())
    assert listed(memory, "tmp/") == {}
