import pytest

from tensorkeep.devices import MemoryDevice, forget_memory
from tensorkeep.errors import Capacity, Integrity, Unavailable
from tensorkeep.runtime import ManualClock, Runtime
from tensorkeep.testing.device_contract import part
from tensorkeep.testing.devices import Call, FaultyDevice, LatencyDevice, RecordingDevice


@pytest.fixture
def faulty() -> FaultyDevice:
    forget_memory("faulty")
    device = FaultyDevice(MemoryDevice("faulty"))
    device.put(part(1), [b"0123456789"])
    device.put(part(2), [b"abcdefghij"])
    return device


def test_the_scripted_call_fails_and_no_other(faulty: FaultyDevice) -> None:
    faulty.fail("read", Unavailable, matching=lambda name: name == part(1), on_call=2)
    assert faulty.read(part(1)) == b"0123456789"
    assert faulty.read(part(2)) == b"abcdefghij"
    with pytest.raises(Unavailable, match="scripted"):
        faulty.read(part(1))
    assert faulty.read(part(1)) == b"0123456789"


def test_a_fault_without_a_number_lasts_until_healed(faulty: FaultyDevice) -> None:
    faulty.fail("put", Capacity)
    for _ in range(3):
        with pytest.raises(Capacity):
            faulty.put(part(3), [b"x"])
    faulty.heal()
    faulty.put(part(3), [b"x"])


def test_a_lost_answer_is_not_a_lost_deed(faulty: FaultyDevice) -> None:
    faulty.fail("put", Unavailable, after=True)
    with pytest.raises(Unavailable):
        faulty.put(part(3), [b"landed"])
    assert faulty.read(part(3)) == b"landed"


def test_a_flipped_bit_is_seen_by_every_read_that_covers_it(faulty: FaultyDevice) -> None:
    faulty.flip_bit(lambda name: name == part(1), byte=5, bit=1)
    assert faulty.read(part(1)) == b"0123476789"
    buffers = [bytearray(2), bytearray(3)]
    faulty.read_into(part(1), 2, [memoryview(buffer) for buffer in buffers])
    assert b"".join(buffers) == b"23476"
    faulty.read_into(part(1), 6, [memoryview(buffers[0])])
    assert buffers[0] == b"67"
    assert faulty.read(part(2)) == b"abcdefghij"
    assert faulty.inner.read(part(1)) == b"0123456789"


def test_a_cut_object_is_short_for_every_read(faulty: FaultyDevice) -> None:
    faulty.cut(lambda name: name == part(1), size_bytes=4)
    assert faulty.read(part(1)) == b"0123"
    assert faulty.size_of(part(1)) == 4
    faulty.read_into(part(1), 0, [memoryview(bytearray(4))])
    with pytest.raises(Integrity):
        faulty.read_into(part(1), 3, [memoryview(bytearray(2))])
    assert faulty.size_of(part(2)) == 10


def test_each_call_takes_the_latency(faulty: FaultyDevice) -> None:
    clock = ManualClock()
    device = LatencyDevice(faulty, seconds=0.25, runtime=Runtime(clock=clock))
    device.read(part(1))
    list(device.iter_objects(""))
    assert clock.monotonic_s() == 0.5


def test_the_calls_are_recorded_in_order(faulty: FaultyDevice) -> None:
    device = RecordingDevice(faulty)
    device.size_of(part(1))
    device.flush()
    list(device.iter_objects("parts/"))
    assert device.calls == [Call("size_of", part(1)), Call("flush", ""), Call("iter_objects", "parts/")]
