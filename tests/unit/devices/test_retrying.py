from collections.abc import Callable

import pytest

from tensorkeep.devices import MemoryDevice, RetryDevice, RetryPolicy, forget_memory
from tensorkeep.errors import Integrity, NotFound, Unavailable
from tensorkeep.runtime import ManualClock, Runtime, SeededRandomness
from tensorkeep.testing.device_contract import part
from tensorkeep.testing.devices import FaultyDevice, RecordingDevice


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def faulty() -> FaultyDevice:
    forget_memory("retrying")
    device = MemoryDevice("retrying")
    device.put(part(1), [b"0123456789"])
    return FaultyDevice(device)


def retrying(faulty: FaultyDevice, clock: ManualClock, policy: RetryPolicy | None = None) -> RetryDevice:
    return RetryDevice(faulty, runtime=Runtime(clock=clock, randomness=SeededRandomness(1)), policy=policy)


CALLS: dict[str, Callable[[RetryDevice], object]] = {
    "read": lambda device: device.read(part(1)),
    "read_into": lambda device: device.read_into(part(1), 0, [memoryview(bytearray(1))]),
    "size_of": lambda device: device.size_of(part(1)),
    "iter_objects": lambda device: list(device.iter_objects("parts/")),
    "delete": lambda device: device.delete(part(1)),
    "read_identity": lambda device: device.read_identity(),
    "sweep_unfinished": lambda device: device.sweep_unfinished(0),
    "free_bytes": lambda device: device.free_bytes(),
    "prepare": lambda device: device.prepare(),
}


@pytest.mark.parametrize("method", CALLS)
def test_a_call_that_may_be_repeated_is(faulty: FaultyDevice, clock: ManualClock, method: str) -> None:
    faulty.fail(method, Unavailable, on_call=1)
    faulty.fail(method, Unavailable, on_call=2)
    CALLS[method](retrying(faulty, clock))
    assert clock.monotonic_s() > 0


@pytest.mark.parametrize("method", ["put", "flush", "replace_identity"])
def test_a_call_whose_failure_is_ambiguous_is_made_once(faulty: FaultyDevice, clock: ManualClock, method: str) -> None:
    faulty.fail(method, Unavailable, after=True, on_call=1)
    device = retrying(faulty, clock)
    calls: dict[str, Callable[[], object]] = {
        "put": lambda: device.put(part(2), [b"landed"]),
        "flush": device.flush,
        "replace_identity": lambda: device.replace_identity(b"{}"),
    }
    with pytest.raises(Unavailable):
        calls[method]()
    assert clock.monotonic_s() == 0


@pytest.mark.parametrize("error", [NotFound, Integrity])
def test_an_answer_is_not_asked_for_again(
    faulty: FaultyDevice, clock: ManualClock, error: Callable[[str], Exception]
) -> None:
    faulty.fail("read", error, on_call=1)
    with pytest.raises((NotFound, Integrity)):
        retrying(faulty, clock).read(part(1))
    assert clock.monotonic_s() == 0


@pytest.mark.parametrize("fact", ["suspect", "final"])
def test_a_suspect_device_or_a_final_answer_is_not_asked_again(
    faulty: FaultyDevice, clock: ManualClock, fact: str
) -> None:
    faulty.fail("delete", lambda message: Unavailable(message, **{fact: True}))
    with pytest.raises(Unavailable):
        retrying(faulty, clock).delete(part(1))
    assert clock.monotonic_s() == 0


def test_the_attempts_are_bounded_and_spread(faulty: FaultyDevice, clock: ManualClock) -> None:
    faulty.fail("read", Unavailable)
    recorder = RecordingDevice(faulty)
    device = RetryDevice(
        recorder,
        runtime=Runtime(clock=clock, randomness=SeededRandomness(1)),
        policy=RetryPolicy(attempts=5, first_delay_s=1, max_delay_s=3, total_s=100),
    )
    with pytest.raises(Unavailable):
        device.read(part(1))
    assert len(recorder.calls) == 5
    assert (1 + 2 + 3 + 3) / 2 <= clock.monotonic_s() < 1 + 2 + 3 + 3


def test_the_time_of_all_attempts_is_bounded(faulty: FaultyDevice, clock: ManualClock) -> None:
    faulty.fail("read", Unavailable)
    policy = RetryPolicy(attempts=1000, first_delay_s=1, max_delay_s=4, total_s=10)
    with pytest.raises(Unavailable):
        retrying(faulty, clock, policy).read(part(1))
    assert 5 < clock.monotonic_s() <= 10


def test_the_delays_double_up_to_a_limit_and_half_of_each_is_chance() -> None:
    policy = RetryPolicy(first_delay_s=1, max_delay_s=5)
    assert [policy.delay_s(failures, 0.0) for failures in range(1, 6)] == [0.5, 1, 2, 2.5, 2.5]
    assert policy.delay_s(2, 0.5) == 1.5
    assert policy.delay_s(10_000, 0.5) == 3.75
