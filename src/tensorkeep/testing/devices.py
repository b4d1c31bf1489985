"""Devices that misbehave on purpose: scripted faults, added latency, a log of calls.

A throttled one is `tensorkeep.devices.RateLimitedDevice`.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from tensorkeep.devices.buffers import byte_views, count_bytes
from tensorkeep.devices.forwarding import ForwardingDevice
from tensorkeep.devices.protocol import Device
from tensorkeep.errors import Integrity
from tensorkeep.runtime import Runtime

T = TypeVar("T")

NamePredicate = Callable[[str], bool]


def any_name(name: str) -> bool:
    """Return True: the predicate that every name meets."""
    del name
    return True


@dataclass(slots=True)
class _Failure:
    method: str
    error: Callable[[str], Exception]
    matching: NamePredicate
    on_call: int | None
    after: bool
    seen: int = 0


class _Flip(NamedTuple):
    matching: NamePredicate
    byte: int
    bit: int


class _Cut(NamedTuple):
    matching: NamePredicate
    size_bytes: int


class FaultyDevice(ForwardingDevice):
    """Does what the device inside does, except for the faults that a test scripts. Thread safe; never hangs."""

    def __init__(self, inner: Device) -> None:
        super().__init__(inner)
        self._lock = threading.Lock()
        self._failures: list[_Failure] = []
        self._flips: list[_Flip] = []
        self._cuts: list[_Cut] = []

    def fail(
        self,
        method: str,
        error: Callable[[str], Exception],
        *,
        matching: NamePredicate = any_name,
        on_call: int | None = None,
        after: bool = False,
    ) -> None:
        """Make calls of a method raise.

        Args:
            method: the method's name, as ``put``.
            error: makes the error from a message; one of our error classes will do.
            matching: which object names (or prefixes; "" for methods without one) are meant.
            on_call: the one call, counted from 1 among those meant from now on, that fails; None: each.
            after: fail when the call has done its work: the answer is lost, not the deed.
        """
        with self._lock:
            self._failures.append(_Failure(method, error, matching, on_call, after))

    def flip_bit(self, matching: NamePredicate, *, byte: int, bit: int = 0) -> None:
        """Read one bit of an object's byte wrongly; what is stored stays right."""
        with self._lock:
            self._flips.append(_Flip(matching, byte, bit))

    def cut(self, matching: NamePredicate, *, size_bytes: int) -> None:
        """Make objects seem to end early."""
        with self._lock:
            self._cuts.append(_Cut(matching, size_bytes))

    def heal(self) -> None:
        """Forget all faults."""
        with self._lock:
            self._failures, self._flips, self._cuts = [], [], []

    def around(self, method: str, name: str, call: Callable[[], T]) -> T:
        """Return what the call returns, unless it is scripted to fail."""
        due = self._due(method, name)
        for failure in due:
            if not failure.after:
                raise failure.error(f"scripted fault: {method} {name!r} on {self.url}")
        result = call()
        for failure in due:
            raise failure.error(f"scripted fault after {method} {name!r} on {self.url}")
        return result

    def read_into(self, name: str, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers, with the scripted damage."""
        views = byte_views(buffers)
        end = offset + count_bytes(views)
        for cut in self._cuts:
            if cut.matching(name) and end > cut.size_bytes:
                raise Integrity(f"{name} on {self.url} is cut to {cut.size_bytes} bytes", device=self.url, object=name)
        super().read_into(name, offset, buffers)
        self._damage(name, offset, views)

    def read(self, name: str) -> bytes:
        """Return a whole object, with the scripted damage."""
        data = bytearray(super().read(name))
        self._damage(name, 0, [memoryview(data)])
        return bytes(data[: self._seeming_size(name, len(data))])

    def size_of(self, name: str) -> int:
        """Return the size that the object seems to have."""
        return self._seeming_size(name, super().size_of(name))

    def _due(self, method: str, name: str) -> list[_Failure]:
        due = []
        with self._lock:
            for failure in self._failures:
                if failure.method == method and failure.matching(name):
                    failure.seen += 1
                    if failure.on_call in (None, failure.seen):
                        due.append(failure)
        return due

    def _seeming_size(self, name: str, size_bytes: int) -> int:
        return min([size_bytes, *(cut.size_bytes for cut in self._cuts if cut.matching(name))])

    def _damage(self, name: str, offset: int, views: Sequence[memoryview]) -> None:
        for flip in self._flips:
            if not flip.matching(name):
                continue
            place = flip.byte - offset
            for view in views:
                if 0 <= place < view.nbytes:
                    view[place] ^= 1 << flip.bit
                place -= view.nbytes


class LatencyDevice(ForwardingDevice):
    """Adds seconds before each call, through the runtime's clock."""

    def __init__(self, inner: Device, *, seconds: float, runtime: Runtime) -> None:
        super().__init__(inner)
        self._seconds = seconds
        self._clock = runtime.clock

    def around(self, method: str, name: str, call: Callable[[], T]) -> T:
        """Return what the call returns, later."""
        del method, name
        self._clock.sleep(self._seconds)
        return call()


class Call(NamedTuple):
    """One call of a device: the method, and the object's name or prefix ("" where it has none)."""

    method: str
    name: str


class RecordingDevice(ForwardingDevice):
    """Keeps a log of the calls, in the order in which they began."""

    def __init__(self, inner: Device) -> None:
        super().__init__(inner)
        self.calls: list[Call] = []

    def around(self, method: str, name: str, call: Callable[[], T]) -> T:
        """Return what the call returns, and note it."""
        self.calls.append(Call(method, name))  # an append is atomic
        return call()
