import pytest

from tensorkeep.devices import MemoryDevice, RateLimitedDevice, forget_memory
from tensorkeep.devices.rate_limit import BURST_S, TokenBucket
from tensorkeep.errors import InvalidInput
from tensorkeep.records.layout import MIB
from tensorkeep.runtime import ManualClock, Runtime, ThreadWorkers
from tensorkeep.testing.device_contract import content, part
from tensorkeep.testing.devices import RecordingDevice

RATE = 10 * MIB


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def recorder() -> RecordingDevice:
    forget_memory("rate")
    return RecordingDevice(MemoryDevice("rate"))


@pytest.fixture
def device(recorder: RecordingDevice, clock: ManualClock) -> RateLimitedDevice:
    return RateLimitedDevice(recorder, rate_bytes_per_s=RATE, runtime=Runtime(clock=clock))


def test_reads_and_writes_together_keep_to_the_rate(device: RateLimitedDevice, clock: ManualClock) -> None:
    data = content(5 * MIB)
    device.put(part(1), [data[:MIB], data[MIB:]])
    assert clock.monotonic_s() == pytest.approx(0.5, abs=BURST_S)
    target = bytearray(4 * MIB)
    device.read_into(part(1), MIB, [memoryview(target)[:100], memoryview(target)[100:]])
    assert clock.monotonic_s() == pytest.approx(0.9, abs=BURST_S)
    assert target == data[MIB:]
    assert device.read(part(1)) == data
    assert clock.monotonic_s() == pytest.approx(1.4, abs=BURST_S)


def test_a_large_read_is_made_in_chunks_and_a_put_in_one_piece(
    device: RateLimitedDevice, recorder: RecordingDevice
) -> None:
    device.put(part(1), [content(5 * MIB)])
    assert [call.method for call in recorder.calls] == ["put"]
    recorder.calls.clear()
    device.read_into(part(1), 0, [memoryview(bytearray(5 * MIB))])
    assert len(recorder.calls) == 26  # 5 MiB in chunks of 51 pages, 20 ms each


def test_what_moves_no_object_is_free(device: RateLimitedDevice, clock: ManualClock) -> None:
    device.put(part(1), [])
    device.read_into(part(1), 0, [])
    device.flush()
    list(device.iter_objects(""))
    device.size_of(part(1))
    device.delete(part(1))
    assert clock.monotonic_s() == 0


def test_unused_time_is_not_saved_up(device: RateLimitedDevice, clock: ManualClock) -> None:
    device.put(part(1), [content(MIB)])
    clock.advance(1000)
    start = clock.monotonic_s()
    device.read(part(1))
    assert clock.monotonic_s() - start >= 0.1 - BURST_S


def test_a_sleep_that_lasts_too_long_is_made_up_for() -> None:
    class Sleepy(ManualClock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds + 0.01 if seconds > 0 else 0)

    clock = Sleepy()
    bucket = TokenBucket(1000, clock)
    for _ in range(100):
        bucket.take(50)
    assert clock.monotonic_s() == pytest.approx(5.0, abs=BURST_S + 0.01)


def test_a_small_reader_between_chunks_of_a_large_one_waits_for_one_chunk_only() -> None:
    bucket = TokenBucket(1000, ManualClock())
    waits = [bucket.reserve(100) for _ in range(4)]
    assert waits == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert bucket.reserve(10) == pytest.approx(0.41)


def test_threads_share_the_rate_evenly(recorder: RecordingDevice) -> None:
    class Watch(ManualClock):
        """Time passes only as reserved: what each thread waited for is what counts."""

        def sleep(self, seconds: float) -> None:
            del seconds

    bucket = TokenBucket(1_000_000, Watch())

    def take(chunks: int) -> list[float]:
        return [bucket.reserve(1000) for _ in range(chunks)]

    with ThreadWorkers().open_pool(4, "test") as pool:
        ends = [end for task in [pool.submit(take, 500) for _ in range(4)] for end in task.result()]
    assert sorted(ends) == pytest.approx([0.001 * (number + 1) for number in range(2000)])


@pytest.mark.parametrize("rate", [0, -1])
def test_a_rate_that_nothing_could_keep_is_refused(recorder: RecordingDevice, rate: int) -> None:
    with pytest.raises(InvalidInput):
        RateLimitedDevice(recorder, rate_bytes_per_s=rate, runtime=Runtime())
