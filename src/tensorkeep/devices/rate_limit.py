"""A limit on a device's rate: for devices that others use too, and for measuring what several devices give together."""

import threading
from collections.abc import Sequence

from typing_extensions import Buffer

from tensorkeep.devices.buffers import byte_views, count_bytes, iter_chunks
from tensorkeep.devices.forwarding import ForwardingDevice
from tensorkeep.devices.protocol import Device
from tensorkeep.errors import InvalidInput
from tensorkeep.runtime import Clock, Runtime

BURST_S = 0.05
"""How much unused time is credited: enough to make up for a sleep that lasted too long, too little for a visible burst."""

_CHUNK_S = 0.02
_MIN_CHUNK_BYTES = 64 << 10
_MAX_CHUNK_BYTES = 4 << 20


class TokenBucket:
    """A rate that threads share: each reserves the next free stretch of time, in order of arrival, and waits for its end.

    Thread safe, and fair among threads that take pieces of equal size.

    Args:
        rate_bytes_per_s: the limit, over 0.
        clock: tells the time and waits.
    """

    def __init__(self, rate_bytes_per_s: int, clock: Clock) -> None:
        self._rate = rate_bytes_per_s
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at_s = clock.monotonic_s()

    def take(self, size_bytes: int) -> None:
        """Return when that many bytes may have been moved."""
        self._clock.sleep(max(0.0, self.reserve(size_bytes)))

    def reserve(self, size_bytes: int) -> float:
        """Reserve that many bytes and return the seconds to wait; not more than 0 where nothing is to wait for."""
        with self._lock:
            now_s = self._clock.monotonic_s()
            self._free_at_s = max(self._free_at_s, now_s - BURST_S) + size_bytes / self._rate
            return self._free_at_s - now_s


def open_bucket(rate_bytes_per_s: int | None, clock: Clock) -> TokenBucket | None:
    """Return a bucket for a limit that may be None: then nothing is limited."""
    return TokenBucket(rate_bytes_per_s, clock) if rate_bytes_per_s else None


class RateLimitedDevice(ForwardingDevice):
    """Reads and writes objects at no more than a rate, all threads and both directions together.

    Large reads are made in chunks, so that the rate is smooth. A put waits for its whole size in chunks, then is one call:
    it is all or nothing. Listings, sizes and identities are free.

    Args:
        inner: the device to wrap.
        rate_bytes_per_s: the limit.
        runtime: its clock.
    """

    LETS_MAP = False

    def __init__(self, inner: Device, *, rate_bytes_per_s: int, runtime: Runtime) -> None:
        super().__init__(inner)
        if rate_bytes_per_s <= 0:
            raise InvalidInput(
                f"a rate limit of {rate_bytes_per_s} bytes/s for {inner.url} can't be kept: give a number over 0",
                rate_limit=rate_bytes_per_s,
            )
        self._bucket = TokenBucket(rate_bytes_per_s, runtime.clock)
        whole_pages = int(rate_bytes_per_s * _CHUNK_S) // 4096 * 4096
        self._chunk_bytes = min(_MAX_CHUNK_BYTES, max(_MIN_CHUNK_BYTES, whole_pages))

    def put(self, name: str, data: Sequence[Buffer]) -> None:
        """Put an object, after its share of time."""
        left = count_bytes(byte_views(data))
        while left > 0:
            chunk = min(left, self._chunk_bytes)
            self._bucket.take(chunk)
            left -= chunk
        super().put(name, data)

    def read_into(self, name: str, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers, chunk by chunk."""
        views = byte_views(buffers)
        if not views:
            super().read_into(name, offset, buffers)  # nothing to read, but the object must be there
        for chunk in iter_chunks(views, self._chunk_bytes):
            size = count_bytes(chunk)
            self._bucket.take(size)
            super().read_into(name, offset, chunk)
            offset += size

    def read(self, name: str) -> bytes:
        """Return a whole object, read chunk by chunk."""
        data = bytearray(self.size_of(name))
        self.read_into(name, 0, [memoryview(data)])
        return bytes(data)
