"""The long measurement of a device: all numbers follow from a clock that the device itself moves."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tensorkeep.devices import LocalDevice, MemoryDevice, RateLimitedDevice, forget_memory, open_device
from tensorkeep.devices.bench import ReaderRate, best_of, climb, measure
from tensorkeep.errors import Capacity, InvalidInput, PermissionDenied, TensorkeepError, Unavailable
from tensorkeep.records.layout import MIB
from tensorkeep.runtime import ManualClock, Runtime
from tensorkeep.testing.device_contract import listed
from tensorkeep.testing.devices import Call, FaultyDevice, RecordingDevice
from tests.unit.devices.modelled import Modelled, RemoteMemory, manual_runtime


@pytest.fixture
def memory() -> MemoryDevice:
    forget_memory("bench")
    return MemoryDevice("bench")


def knee(readers: int) -> Callable[[int], float]:
    """Return the rate of a device that gets no faster beyond so many readers."""
    return lambda at_once: 100e6 * min(at_once, readers)


def test_rates_latency_and_the_best_number_of_readers_are_what_the_device_does(memory: MemoryDevice) -> None:
    runtime, clock, workers = manual_runtime()
    device = Modelled(memory, clock, workers, read_rate=knee(6), write_rate=50e6, latency_s=0.003, flush_s=1.0)
    found = measure(device, runtime=runtime, size_bytes=32 * MIB)
    assert found.size_bytes == 32 * MIB
    assert found.write_rate == pytest.approx(32 * MIB / (32 * MIB / 50e6 + 1.0), rel=1e-6)
    assert found.read_latency_s == pytest.approx(0.003 + 4096 / 100e6)
    assert [each.readers for each in found.read_rates] == [1, 2, 4, 8, 16]
    one, best = found.read_rates[0], found.best
    assert one.rate == pytest.approx(4 * MIB / (4 * MIB / 100e6 + 0.003), rel=1e-6)
    assert best.readers == 8
    assert best.rate == pytest.approx(4 * MIB / (4 * MIB / 600e6 + 0.003 / 8), rel=1e-6)
    assert listed(memory, "tmp/") == {}


def test_a_remote_device_is_tried_with_more_readers_and_written_by_several_at_once() -> None:
    forget_memory("far")
    far = RemoteMemory("far")
    runtime, clock, workers = manual_runtime()
    pools: list[int] = []
    opened = workers.open_pool

    def note(max_workers: int, name: str) -> object:
        pools.append(max_workers)
        return opened(max_workers, name)

    workers.open_pool = note  # type: ignore[method-assign, assignment]
    device = Modelled(far, clock, workers, read_rate=knee(40), write_rate=50e6)
    found = measure(device, runtime=runtime, size_bytes=20 * MIB)
    assert pools == [3, 1, 2, 4, 8, 16, 32, 64]
    assert found.best == ReaderRate(64, pytest.approx(4e9, rel=1e-6))  # type: ignore[arg-type]
    assert listed(far, "tmp/") == {}


def test_a_device_with_a_limit_is_measured_within_it(memory: MemoryDevice) -> None:
    runtime, _, _ = manual_runtime()
    device = RateLimitedDevice(memory, rate_bytes_per_s=50_000_000, runtime=runtime)
    found = measure(device, runtime=runtime, size_bytes=64 * MIB)
    assert found.write_rate == pytest.approx(50e6, rel=0.05)
    assert [each.readers for each in found.read_rates] == [1, 2, 4]
    assert found.best.readers == 1
    assert found.best.rate == pytest.approx(50e6, rel=0.05)


def test_a_slow_device_is_given_less(memory: MemoryDevice) -> None:
    runtime, clock, workers = manual_runtime()
    log = RecordingDevice(Modelled(memory, clock, workers, read_rate=lambda _: 1e6, write_rate=1e6))
    found = measure(log, runtime=runtime, size_bytes=256 * MIB)
    assert found.size_bytes == 16 * MIB  # 16.8 s: the next object is not begun
    assert found.write_rate == pytest.approx(1e6, rel=1e-3)
    assert [each.rate for each in found.read_rates] == [pytest.approx(1e6, rel=1e-3)] * 3
    large = len([call for call in log.calls if call.method == "read_into"]) - 15
    assert large == 1 + 2 + 4  # each reader reads once


def test_threads_read_together_and_nothing_stays(memory: MemoryDevice) -> None:
    found = measure(memory, runtime=Runtime(), size_bytes=9 * MIB)
    assert found.size_bytes == 9 * MIB
    assert min(found.write_rate, *(each.rate for each in found.read_rates)) > 0
    assert listed(memory, "tmp/") == {}


def test_a_local_file_is_dropped_from_the_cache_before_each_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, clock, workers = manual_runtime()
    local = open_device(str(tmp_path / "disk"), runtime=runtime)
    local.prepare()
    log = RecordingDevice(Modelled(local, clock, workers, read_rate=knee(1), write_rate=1e8))
    drop = LocalDevice.drop_cached

    def note(self: LocalDevice, name: str) -> None:
        log.calls.append(Call("drop", name))
        drop(self, name)

    monkeypatch.setattr(LocalDevice, "drop_cached", note)
    measure(log, runtime=runtime, size_bytes=17 * MIB)
    names = list(dict.fromkeys(call.name for call in log.calls if call.method == "put"))
    assert len(names) == 2
    runs = "".join({"drop": "d", "read_into": "r", "put": "p"}.get(call.method, "") for call in log.calls)
    assert runs.replace("r", "") == "pp" + 4 * "dd"  # small reads, then 1, 2 and 4 readers
    assert all(part and set(part) == {"r"} for part in runs.removeprefix("ppdd").split("dd"))
    assert os.listdir(tmp_path / "disk" / "tmp") == []


@pytest.mark.parametrize(
    ("method", "call", "error"),
    [
        ("put", 1, PermissionDenied),
        ("put", 2, Capacity),
        ("flush", 1, Unavailable),
        ("read_into", 1, Unavailable),
        ("read_into", 17, Unavailable),
    ],
)
def test_errors_are_the_callers_and_nothing_stays(
    memory: MemoryDevice, method: str, call: int, error: type[TensorkeepError]
) -> None:
    runtime, clock, workers = manual_runtime()
    faulty = FaultyDevice(Modelled(memory, clock, workers, read_rate=knee(1), write_rate=1e8))
    faulty.fail(method, error, on_call=call)
    with pytest.raises(error, match=f"scripted fault: {method}"):
        measure(faulty, runtime=runtime, size_bytes=32 * MIB)
    assert listed(memory, "tmp/") == {}


def test_what_can_not_be_deleted_is_told_and_the_rest_is_deleted(memory: MemoryDevice) -> None:
    runtime, clock, workers = manual_runtime()
    faulty = FaultyDevice(Modelled(memory, clock, workers, read_rate=knee(1), write_rate=1e8))
    faulty.fail("delete", Unavailable, on_call=1)
    with pytest.raises(Unavailable, match="scripted fault: delete"):
        measure(faulty, runtime=runtime, size_bytes=48 * MIB)
    assert len(listed(memory, "tmp/")) == 1


def test_the_first_error_is_told_where_the_objects_can_not_be_deleted_either(memory: MemoryDevice) -> None:
    runtime, clock, workers = manual_runtime()
    faulty = FaultyDevice(Modelled(memory, clock, workers, read_rate=knee(1), write_rate=1e8))
    faulty.fail("read_into", Unavailable)
    faulty.fail("delete", PermissionDenied)
    with pytest.raises(Unavailable, match="scripted fault: read_into") as caught:
        measure(faulty, runtime=runtime, size_bytes=MIB)
    assert "could not be deleted" in caught.value.__notes__[0]


def test_where_no_time_passes_no_rate_is_made_up(memory: MemoryDevice) -> None:
    with pytest.raises(Unavailable, match="the clock did not move"):
        measure(memory, runtime=Runtime(clock=ManualClock()), size_bytes=MIB)
    assert listed(memory, "tmp/") == {}


def test_too_little_is_refused_before_anything_is_written(memory: MemoryDevice) -> None:
    log = RecordingDevice(memory)
    with pytest.raises(InvalidInput, match="at least"):
        measure(log, runtime=Runtime(), size_bytes=MIB - 1)
    assert log.calls == []


@pytest.mark.parametrize(
    ("rates", "tried", "best"),
    [
        ([100, 200, 400, 420, 400, 400], 5, 4),  # 5 % more is noise: the fewest that are as fast
        ([100, 100, 100, 900], 3, 1),
        ([100, 90, 200, 300, 300, 300], 6, 8),  # one bad step does not end the climb
        ([100, 50, 30], 3, 1),
        ([100, 200, 400, 800, 1600, 3200], 6, 32),
    ],
)
def test_the_climb_ends_where_more_readers_bring_nothing_more(rates: Sequence[int], tried: int, best: int) -> None:
    found = climb(lambda readers: rates[readers.bit_length() - 1], most=32)
    assert [each.rate for each in found] == list(rates[:tried])
    assert best_of(found).readers == best
