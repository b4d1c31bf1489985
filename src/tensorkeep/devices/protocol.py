"""The contract of a device: a flat place that keeps objects under names, each written once and never changed.

Every implementation passes ``tensorkeep.testing.device_contract``. Errors are ours, translated at the boundary:

- `NotFound`: the device answers and the object is not there;
- `Unavailable`: the device does not answer, or is suspect (an fsync failed), or the system reported an I/O error: "cannot
  tell" is never "absent". With ``passing=True`` the device knows that its trouble may pass: a put is worth another try then,
  under a new name;
- `Integrity`: an object is shorter than asked for;
- `Capacity`: no room (bytes or inodes); `PermissionDenied`: read-only, or not allowed.
"""

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from typing_extensions import Buffer

from tensorkeep.errors import TensorkeepError
from tensorkeep.records.device import Durability


class ObjectInfo(NamedTuple):
    """One object in a listing."""

    name: str
    size_bytes: int


class ReadableDevice(Protocol):
    """What loads need of a device. Thread safe."""

    @property
    def url(self) -> str:
        """Where it is, without credentials."""

    def read_into(self, name: str, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers, in order, with the bytes of an object from ``offset``. All bytes or an error."""


class Device(Protocol):
    """A place that keeps objects. All methods are blocking and thread safe."""

    @property
    def url(self) -> str:
        """Where it is, without credentials."""

    @property
    def durability(self) -> Durability:
        """Whether what `flush` returned for survives a power cut (``durable``) or may not (``soft``)."""

    def prepare(self) -> None:
        """Make what the layout needs before the first object (folders), durably. Idempotent.

        Only for a device that is being added. In a place that is not prepared every call about objects may raise
        `Unavailable` (``reason="not_prepared"``), listings too: an empty mount point looks the same. `read_identity` answers.
        """

    def read_identity(self) -> bytes | None:
        """Return the bytes of ``tensorkeep.json``, or None where the device answers and has none."""

    def replace_identity(self, data: bytes) -> None:
        """Write ``tensorkeep.json``, atomically and durably: the one object that is ever replaced."""

    def put(self, name: str, data: Sequence[Buffer]) -> None:
        """Write a new object, the concatenation of ``data``; all or nothing, durable once `flush` has returned.

        Raises:
            AlreadyExists: the name is taken (physical names are never reused: a bug above).
        """

    def flush(self) -> None:
        """Return when every object put before, by any thread, is durable."""

    def adopt_names(self) -> None:
        """Make the names of all objects that are there durable, whoever put them: a writer that died before its `flush` too."""

    def read_into(self, name: str, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers, in order, with the bytes of an object from ``offset``. All bytes or an error."""

    def read(self, name: str) -> bytes:
        """Return a whole object."""

    def size_of(self, name: str) -> int:
        """Return the size of an object in bytes."""

    def iter_objects(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield every object whose name starts with a folder prefix (``parts/``, ``journal/``…), in no order."""

    def delete(self, name: str) -> None:
        """Remove an object; an absent one is no error. Durable once `flush` has returned."""

    def sweep_unfinished(self, older_than_s: float) -> int:
        """Remove unfinished writes that no living writer holds and that are older; return how many."""

    def free_bytes(self) -> int | None:
        """Return how many bytes can still be written, or None where nobody knows."""


FileIdentity = tuple[int, int]
"""A file whatever its name: the numbers of its file system and of its inode."""


def identity_of(found: os.stat_result) -> FileIdentity:
    """Return which file was looked at."""
    return found.st_dev, found.st_ino


class OpenObject(Protocol):
    """An object that is read run by run, by one thread. Whoever has it closes it."""

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers as `Device.read_into` does; an absent object is an error of the first read."""

    def keep_length(self, size_bytes: int) -> bool:
        """Have the system let nobody shorten it until it is closed, at most for 45 s.

        Returns:
            Whether it does, and the object has at least that many bytes: then a mapping of the same file that is populated can be
            read without a fault.
        """

    def file_identity(self) -> FileIdentity | None:
        """Return which file it is, None where it is none.

        Raises:
            NotFound, Unavailable, Integrity: as reads do.
        """

    def close(self) -> None:
        """Let go of it; nothing is read any more."""


class OpenFile(OpenObject, Protocol):
    """An object that is an open file, with exactly the bytes that were asked for. Any thread may use it; the last reference that dies closes it."""

    @property
    def descriptor(self) -> int:
        """What the system calls it, to be mapped by; not to be closed."""

    def file_identity(self) -> FileIdentity:
        """Return which file it is."""

    def keeps_length(self) -> bool:
        """Return whether the system has kept its length since `keep_length`, and nobody waits for it to stop: then it goes on for 45 s."""


@runtime_checkable
class OpeningDevice(Protocol):
    """What devices also have that find an object once, and read it at less cost then."""

    def open_object(self, name: str) -> OpenObject:
        """Return an object to read; nothing of it is looked at yet."""


@runtime_checkable
class CachingDevice(Protocol):
    """What devices also have whose objects the system keeps in memory once they were read."""

    def drop_cached(self, name: str) -> None:
        """Ask the system to forget an object's pages, so that the next read comes from the disk: a hint, no promise."""


@runtime_checkable
class BatchPuts(Protocol):
    """What a device has besides that takes several objects together at less cost than one after another."""

    def put_batch(self, objects: Sequence[tuple[str, Sequence[Buffer]]]) -> tuple[int, TensorkeepError | None]:
        """Put objects, each a name and its data, as `Device.put` does.

        Returns:
            How many of them, from the first, were put; and why the next was not. Where it is None all were put.
        """


@runtime_checkable
class ParallelPuts(Protocol):
    """What a device has besides that lies across a network: it is quicker with several puts at once."""

    @property
    def put_concurrency(self) -> int:
        """How many puts at once it is quickest with."""


@runtime_checkable
class ThrottlingDevice(Protocol):
    """What remote devices also have: the best number of reads at once is found by trying, and they say when it is too high."""

    @property
    def url(self) -> str:
        """As in `Device`."""

    @property
    def throttled(self) -> int:
        """How often the store has asked for fewer requests since the device was opened."""


@runtime_checkable
class MappableDevice(Protocol):
    """What devices also have whose objects are files that can be mapped."""

    @property
    def maps_files(self) -> bool:
        """Whether they can be here: a file system of this machine."""

    def open_to_map(self, name: str, size_bytes: int) -> OpenFile:
        """Return an object that has exactly that many bytes, opened.

        Raises:
            NotFound, Unavailable: as reads do.
            Integrity: it has another size.
        """
