"""A short measurement of a device's rates, for placing parts before any real transfer is known."""

from typing import NamedTuple

from tensorkeep.devices.forwarding import innermost
from tensorkeep.devices.local import LocalDevice
from tensorkeep.devices.object_names import UNFINISHED_FOLDER
from tensorkeep.devices.protocol import Device
from tensorkeep.errors import Capacity
from tensorkeep.records.layout import MIB
from tensorkeep.records.ulid import RANDOM_BYTES, make_ulid
from tensorkeep.runtime import Runtime

_REQUEST_BYTES = 4 * MIB


class Rates(NamedTuple):
    """Bytes per second of one reader and of one writer, whose object is durable when its time is taken."""

    read: int
    write: int


def measure_bandwidth(device: Device, *, runtime: Runtime, size_bytes: int = 16 * MIB) -> int | None:
    """Return the rate of one reader, in bytes/s, as `measure_rates` finds it; None where it can't be measured."""
    rates = measure_rates(device, runtime=runtime, size_bytes=size_bytes)
    return None if rates is None else rates.read


def measure_rates(device: Device, *, runtime: Runtime, size_bytes: int = 16 * MIB) -> Rates | None:
    """Return the rates of one object written, and read once in order; None where they can't be measured.

    Writes one object of random bytes under ``tmp``, reads it back and deletes it. On a local device the kernel is first
    asked to drop it from its cache; the disk's own cache, the host of a virtual machine or a file system of another
    machine may still hold it, so that this is a guess to start from, which real transfers refine. A device too full for
    ``size_bytes`` is measured with less, down to 1 MiB.

    Args:
        device: prepared, and not necessarily empty.
        runtime: clock and randomness.
        size_bytes: how much to write and read.

    Raises:
        Unavailable, PermissionDenied: the device does not answer, or can't be written.
    """
    size = size_bytes
    while size >= MIB:
        try:
            return _measure(device, runtime, size)
        except Capacity:
            size //= 2
    return None


def _measure(device: Device, runtime: Runtime, size_bytes: int) -> Rates | None:
    ulid = make_ulid(runtime.clock.now(), runtime.randomness.random_bytes(RANDOM_BYTES))
    name = f"{UNFINISHED_FOLDER}/bandwidth-{ulid}"
    data = runtime.randomness.random_bytes(size_bytes)
    try:
        start_s = runtime.clock.monotonic_s()
        device.put(name, [data])
        device.flush()
        writing_s = runtime.clock.monotonic_s() - start_s
        if isinstance(local := innermost(device), LocalDevice):
            local.drop_cached(name)
        buffer = memoryview(bytearray(_REQUEST_BYTES))
        start_s = runtime.clock.monotonic_s()
        for offset in range(0, size_bytes, _REQUEST_BYTES):
            device.read_into(name, offset, [buffer[: size_bytes - offset]])
        reading_s = runtime.clock.monotonic_s() - start_s
    finally:
        device.delete(name)
    if reading_s <= 0 or writing_s <= 0:
        return None
    return Rates(read=int(size_bytes / reading_s), write=int(size_bytes / writing_s))
