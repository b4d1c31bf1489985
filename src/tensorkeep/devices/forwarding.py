"""The base of devices that wrap another: every call goes through one method, which a wrapper overrides."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import chain, islice
from typing import TypeVar, cast

from typing_extensions import Buffer

from tensorkeep.devices.protocol import (
    Device,
    MappableDevice,
    ObjectInfo,
    OpeningDevice,
    OpenObject,
    ParallelPuts,
    ReadableDevice,
)
from tensorkeep.records.device import Durability

T = TypeVar("T")


class ForwardingDevice:
    """Does what the device inside does. Thread safe as that one is.

    Args:
        inner: the device to wrap.
    """

    LETS_MAP = True
    """Whether objects of the device inside may be mapped past this one. What is mapped is also read, through it."""

    def __init__(self, inner: Device) -> None:
        self.inner = inner

    def around(self, method: str, name: str, call: Callable[[], T]) -> T:
        """Return what the call returns. Wrappers override this.

        Args:
            method: the name of the device's method.
            name: the object's name or prefix; "" for calls that concern no object.
            call: calls that method of the device inside; may be called again.
        """
        del method, name
        return call()

    @property
    def url(self) -> str:
        """The URL of the device inside."""
        return self.inner.url

    @property
    def durability(self) -> Durability:
        """The durability of the device inside."""
        return self.inner.durability

    def prepare(self) -> None:
        """Prepare the device inside."""
        self.around("prepare", "", self.inner.prepare)

    def read_identity(self) -> bytes | None:
        """Return the identity, or None."""
        return self.around("read_identity", "", self.inner.read_identity)

    def replace_identity(self, data: bytes) -> None:
        """Replace the identity."""
        self.around("replace_identity", "", lambda: self.inner.replace_identity(data))

    def put(self, name: str, data: Sequence[Buffer]) -> None:
        """Put an object."""
        self.around("put", name, lambda: self.inner.put(name, data))

    def flush(self) -> None:
        """Flush the device inside."""
        self.around("flush", "", self.inner.flush)

    def adopt_names(self) -> None:
        """Adopt the names on the device inside."""
        self.around("adopt_names", "", self.inner.adopt_names)

    def read_into(self, name: str, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers."""
        self.around("read_into", name, lambda: self.inner.read_into(name, offset, buffers))

    def read(self, name: str) -> bytes:
        """Return a whole object."""
        return self.around("read", name, lambda: self.inner.read(name))

    def size_of(self, name: str) -> int:
        """Return the size of an object in bytes."""
        return self.around("size_of", name, lambda: self.inner.size_of(name))

    def iter_objects(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield objects; the first of them inside `around`, so that an error of the start of a listing is seen there."""
        return self.around("iter_objects", prefix, lambda: _started(self.inner.iter_objects(prefix)))

    def delete(self, name: str) -> None:
        """Remove an object."""
        self.around("delete", name, lambda: self.inner.delete(name))

    def sweep_unfinished(self, older_than_s: float) -> int:
        """Sweep the device inside."""
        return self.around("sweep_unfinished", "", lambda: self.inner.sweep_unfinished(older_than_s))

    def free_bytes(self) -> int | None:
        """Return the free bytes of the device inside."""
        return self.around("free_bytes", "", self.inner.free_bytes)


def innermost(device: ReadableDevice) -> ReadableDevice:
    """Return the device inside all wrappers."""
    while isinstance(device, ForwardingDevice):
        device = device.inner
    return device


def is_far(device: Device) -> bool:
    """Return whether a device lies across a network."""
    return isinstance(innermost(device), ParallelPuts)


def concurrency_of(devices: Iterable[Device]) -> int:
    """Return how many small requests at once the one of these devices is quickest with that is farthest away; 1: all are at hand."""
    inner = [innermost(device) for device in devices]
    return max((each.put_concurrency for each in inner if isinstance(each, ParallelPuts)), default=1)


def mappable(device: ReadableDevice) -> MappableDevice | None:
    """Return the device inside all wrappers if its objects may be mapped: a mapping goes past wrappers, a limit of its rate too."""
    while isinstance(device, ForwardingDevice):
        if not device.LETS_MAP:
            return None
        device = device.inner
    return device if isinstance(device, MappableDevice) and device.maps_files else None


def open_object(device: ReadableDevice, name: str) -> OpenObject:
    """Return an object to read run by run: opened once where its device can do that, else asked for by name for each run."""
    if _opens(type(device)):
        return cast("OpeningDevice", device).open_object(name)
    return _NamedObject(device, name)


@cache
def _opens(kind: type[ReadableDevice]) -> bool:
    """Return whether devices of this class open objects: to ask `OpeningDevice` takes longer than to open a file."""
    return issubclass(kind, OpeningDevice)


class _NamedObject:
    def __init__(self, device: ReadableDevice, name: str) -> None:
        self._device = device
        self._name = name

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> None:
        self._device.read_into(self._name, offset, buffers)

    def keep_length(self, size_bytes: int) -> bool:
        del size_bytes
        return False

    def file_identity(self) -> None:
        return None

    def close(self) -> None: ...


def _started(objects: Iterator[ObjectInfo]) -> Iterator[ObjectInfo]:
    return chain(list(islice(objects, 1)), objects)
