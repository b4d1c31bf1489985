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


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One prepared folder for all tests: making and removing its 774 folders anew took most of their time."""
    root = tmp_path_factory.mktemp("devices") / "disk"
    open_device(str(root), runtime=Runtime()).prepare()
    return root


def remove_objects(root: Path) -> None:
    for folder, _, files in os.walk(root):
        for name in files:
            os.unlink(os.path.join(folder, name))
    for model in (root / "versions").iterdir():
        model.rmdir()


class TestLocalDevice(DeviceContract):
    @pytest.fixture
    def place(self, disk: Path, tmp_path: Path, wrapper: Wrapper) -> Iterator[Place]:
        root = tmp_path / "disk"
        os.rename(disk, root)  # a place of each test's own: nobody finds what another left
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

        yield Place(
            open_device=lambda: wrapper(open_device(str(root), runtime=Runtime())),
            lose=lambda: os.rename(root, tmp_path / "elsewhere"),
            living_write=living_write,
            leave_dead_write=leave_dead_write,
        )
        os.rename(root if root.exists() else tmp_path / "elsewhere", disk)
        remove_objects(disk)


class TestMemoryDevice(DeviceContract):
    @pytest.fixture
    def place(self, wrapper: Wrapper) -> Iterator[Place]:
        name = "contract"
        yield Place(
            open_device=lambda: wrapper(open_device(f"memory://{name}", runtime=Runtime())),
            lose=lambda: forget_memory(name),
        )
        forget_memory(name)
