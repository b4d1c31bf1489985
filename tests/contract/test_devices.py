"""Every device, and every wrapper around each, keeps the contract of devices."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tensorkeep.devices import Device, RateLimitedDevice, RetryDevice, forget_memory, open_device
from tensorkeep.runtime import ManualClock, Runtime
from tensorkeep.testing.device_contract import DeviceContract, Place
from tensorkeep.testing.devices import FaultyDevice, LatencyDevice, RecordingDevice

Wrapper = Callable[[Device], Device]


def wrap_in_nothing(device: Device) -> Device:
    return device


WRAPPERS: dict[str, Wrapper] = {
    "bare": wrap_in_nothing,
    "retry": lambda device: RetryDevice(device, runtime=Runtime(clock=ManualClock())),
    "rate limit": lambda device: RateLimitedDevice(
        device, rate_bytes_per_s=100_000_000, runtime=Runtime(clock=ManualClock())
    ),
    "faults": FaultyDevice,
    "latency": lambda device: LatencyDevice(device, seconds=0.1, runtime=Runtime(clock=ManualClock())),
    "recording": RecordingDevice,
}


@pytest.fixture(params=WRAPPERS)
def wrapper(request: pytest.FixtureRequest) -> Wrapper:
    return WRAPPERS[request.param]


class TestLocalDevice(DeviceContract):
    @pytest.fixture
    def place(self, tmp_path: Path, wrapper: Wrapper) -> Place:
        root = tmp_path / "disk"
        unfinished = root / "tmp" / "unfinished"

        @contextmanager
        def living_write() -> Iterator[None]:
            descriptor = os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)

        def leave_dead_write() -> int:
            with living_write():
                return 1

        return Place(
            open_device=lambda: wrapper(open_device(str(root), runtime=Runtime())),
            lose=lambda: os.rename(root, tmp_path / "elsewhere"),
            living_write=living_write,
            leave_dead_write=leave_dead_write,
        )


class TestMemoryDevice(DeviceContract):
    @pytest.fixture
    def place(self, wrapper: Wrapper) -> Iterator[Place]:
        name = "contract"
        yield Place(
            open_device=lambda: wrapper(open_device(f"memory://{name}", runtime=Runtime())),
            lose=lambda: forget_memory(name),
        )
        forget_memory(name)
