"""Puts a batch of objects on one device in the way that suits it, and says of each what became of it.

A local device takes the batch together, so that its fsyncs are few; one across a network takes several puts at once, in
threads of its own, so that no device waits for another; any other takes one after the other.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

from typing_extensions import Buffer

from tensorkeep.catalog.protocol import Location
from tensorkeep.devices.forwarding import concurrency_of, is_far
from tensorkeep.devices.protocol import BatchPuts, Device
from tensorkeep.errors import TensorkeepError
from tensorkeep.runtime import Runtime, WorkerPool
from tensorkeep.store.read_back import compare_stored


class Upload(NamedTuple):
    """Bytes, in one buffer or several, and the row that says where they go."""

    data: Sequence[Buffer]
    location: Location


@dataclass(frozen=True, slots=True)
class UploadResult:
    """What is durable on the device, what is not, and why."""

    stored: Sequence[Upload]
    failed: Sequence[Upload]
    error: TensorkeepError | None


class Uploader:
    """Puts objects on the devices of a push. Thread safe; a context manager, which owns the threads.

    Args:
        devices: by id.
        runtime: workers and failpoints.
        read_back: whether what is durable is also read from the device and compared with what was sent, before it counts.
    """

    def __init__(self, devices: Mapping[str, Device], *, runtime: Runtime, read_back: bool = False) -> None:
        self._devices = devices
        self._runtime = runtime
        self._read_back = read_back
        self._stack = ExitStack()
        self._pools: dict[str, WorkerPool] = {}
        for number, (device_id, device) in enumerate(devices.items()):
            if is_far(device):
                pool = runtime.workers.open_pool(concurrency_of([device]), f"put-{number}")
                self._pools[device_id] = self._stack.enter_context(pool)

    def close(self) -> None:
        """Return when no put is under way any more."""
        self._stack.close()

    def upload(self, device_id: str, uploads: Sequence[Upload]) -> UploadResult:
        """Put objects on a device and return when they are durable there, or have failed."""
        device = self._devices[device_id]
        errors = self._put(device_id, device, uploads)
        for error in errors:
            if error is None:
                self._runtime.failpoints.hit("push.part_written")
        try:
            device.flush()
        except TensorkeepError as error:
            return UploadResult([], uploads, error)
        self._runtime.failpoints.hit("push.part_flushed")
        if self._read_back:
            errors = self._compare(device_id, device, uploads, errors)
        failures = [error for error in errors if error is not None]
        # Where one of them is for good, so is the device.
        failures.sort(key=lambda error: bool(error.facts.get("passing")))
        return UploadResult(
            [upload for upload, error in zip(uploads, errors, strict=True) if error is None],
            [upload for upload, error in zip(uploads, errors, strict=True) if error is not None],
            failures[0] if failures else None,
        )

    def _compare(
        self,
        device_id: str,
        device: Device,
        uploads: Sequence[Upload],
        errors: Sequence[TensorkeepError | None],
    ) -> list[TensorkeepError | None]:
        """Return the errors, with those of objects that do not read back as they were sent."""
        pool = self._pools.get(device_id)
        if pool is None:
            return [
                error or compare_stored(device, upload.location.name, upload.data)
                for upload, error in zip(uploads, errors, strict=True)
            ]
        tasks = [
            None if error else pool.submit(compare_stored, device, upload.location.name, upload.data)
            for upload, error in zip(uploads, errors, strict=True)
        ]
        return [error or (task.result() if task else None) for error, task in zip(errors, tasks, strict=True)]

    def _put(self, device_id: str, device: Device, uploads: Sequence[Upload]) -> list[TensorkeepError | None]:
        pool = self._pools.get(device_id)
        if pool is not None:
            puts = [pool.submit(_put_one, device, upload) for upload in uploads]
            return [put.result() for put in puts]
        if isinstance(device, BatchPuts):
            done, error = device.put_batch([(upload.location.name, upload.data) for upload in uploads])
            return [None] * done + [error] * (len(uploads) - done)
        errors: list[TensorkeepError | None] = []
        for upload in uploads:
            errors.append(errors[-1] if errors and errors[-1] else _put_one(device, upload))
        return errors


def _put_one(device: Device, upload: Upload) -> TensorkeepError | None:
    try:
        device.put(upload.location.name, upload.data)
    except TensorkeepError as error:
        return error
    return None
