"""Devices of a simulation: objects in memory that are lost when the power goes before a flush, answers that never come, deeds that land late.

A `Disk` is what there is once; each process has handles of its own on it (`SimulatedDevice`), as with a folder that is mounted on
several machines. What is not flushed by the handle that did it may be undone by a power cut, and then that handle is suspect for good,
as a local device is after an fsync that failed.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from typing_extensions import Buffer

from tensorkeep.devices.buffers import byte_views
from tensorkeep.devices.forwarding import ForwardingDevice
from tensorkeep.devices.memory import MemoryDevice, forget_memory
from tensorkeep.errors import AlreadyExists, TensorkeepError, Unavailable
from tensorkeep.records.device import Durability
from tensorkeep.testing.simulation_threads import Scheduler

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chances:
    """How likely each fault is, of one call of a device."""

    put_late: float = 0.006
    put_lost: float = 0.003
    answer_lost: float = 0.003
    delete_late: float = 0.08
    flush_fails: float = 0.003
    passes: float = 0.5
    """Of a put that fails: whether the device says that it may be tried again."""
    lands: float = 0.35
    """Of a turn of the weather: whether one late thing lands. What has not landed does when everybody has ended."""


class _NearMemory(MemoryDevice):
    """One put after the other, as on a local disk."""


class _FarMemory(MemoryDevice):
    """Several puts at once, as across a network."""

    put_concurrency = 2


@dataclass(slots=True)
class Disk:
    """What is on a device, whoever looks: its objects, what of them is not durable, and what is still on its way."""

    name: str
    scheduler: Scheduler
    chances: Chances
    is_far: bool
    memory: MemoryDevice = field(init=False)
    is_away: bool = False
    unflushed_puts: dict[str, "SimulatedDevice"] = field(default_factory=dict)
    unflushed_deletes: dict[str, tuple[bytes, "SimulatedDevice"]] = field(default_factory=dict)
    late: list[tuple[str, Callable[[], None]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        forget_memory(self.name)
        self.memory = (_FarMemory if self.is_far else _NearMemory)(self.name)

    def holds(self, name: str) -> bool:
        """Return whether it has an object that will survive a power cut."""
        return name not in self.unflushed_puts and self._has(name)

    def land_one(self) -> str | None:
        """Do one of the things that are late; return what, None where there is none."""
        if not self.late:
            return None
        what, land = self.late.pop(int(self.scheduler.random.random() * len(self.late)))
        land()
        return what

    def cut_power(self) -> None:
        """Undo, or not, each thing that was not flushed; whoever did it finds the device suspect from now on."""
        for name, device in self.unflushed_puts.items():
            device.is_suspect = True
            if self.scheduler.random.random() < 0.7:
                self.memory.delete(name)
        for name, (data, device) in self.unflushed_deletes.items():
            device.is_suspect = True
            if self.scheduler.random.random() < 0.7 and not self._has(name):
                self.memory.put(name, [data])
        self.unflushed_puts, self.unflushed_deletes = {}, {}

    def _has(self, name: str) -> bool:
        try:
            self.memory.size_of(name)
        except TensorkeepError:
            return False
        return True

    def note_put(self, name: str, device: "SimulatedDevice") -> None:
        """Note that an object is there, not durable yet."""
        self.unflushed_puts[name] = device

    def remove(self, name: str, device: "SimulatedDevice | None") -> None:
        """Remove an object, which is durable once the device is flushed; at once where there is none."""
        if not self._has(name):
            return
        data = self.memory.read(name)
        self.memory.delete(name)
        if self.unflushed_puts.pop(name, None) is None and device is not None:
            self.unflushed_deletes[name] = data, device

    def note_flush(self, device: "SimulatedDevice") -> None:
        """Note that what a handle did is durable."""
        self.unflushed_puts = {n: owner for n, owner in self.unflushed_puts.items() if owner is not device}
        self.unflushed_deletes = {n: each for n, each in self.unflushed_deletes.items() if each[1] is not device}


class SimulatedDevice(ForwardingDevice):
    """A process's handle on a disk. Each call begins with a switch point."""

    LETS_MAP = False

    def __init__(self, disk: Disk) -> None:
        super().__init__(disk.memory)
        self._disk = disk
        self.is_suspect = False

    @property
    def durability(self) -> Durability:
        """Durable, as far as what is flushed goes."""
        return "durable"

    def put(self, name: str, data: Sequence[Buffer]) -> None:
        """Put an object; it may land later though the call fails, or never, or have landed."""
        disk, chances, content = self._disk, self._disk.chances, b"".join(byte_views(data))

        def put() -> None:
            drawn = self._draw()
            if drawn < chances.put_lost:
                raise self._failure(f"the put of {name} is lost")
            if drawn < chances.put_lost + chances.put_late:
                disk.late.append((f"{disk.name} put {name}", lambda: _land(disk, name, content, self)))
                raise self._failure(f"the put of {name} is late")
            self.inner.put(name, [content])
            disk.note_put(name, self)
            if drawn > 1 - chances.answer_lost:
                raise self._failure(f"the answer to the put of {name} is lost")

        self.around("put", name, put)

    def delete(self, name: str) -> None:
        """Remove an object, or fail and remove it later."""
        disk = self._disk

        def delete() -> None:
            if self._draw() < disk.chances.delete_late:
                disk.late.append((f"{disk.name} delete {name}", lambda: disk.remove(name, None)))
                raise Unavailable(f"the deletion of {name} is late", device=self.url)
            disk.remove(name, self)

        self.around("delete", name, delete)

    def flush(self) -> None:
        """Make what this handle did durable."""

        def flush() -> None:
            if self._draw() < self._disk.chances.flush_fails:
                self.is_suspect = True
                raise Unavailable("a flush failed", device=self.url)
            self._disk.note_flush(self)

        self.around("flush", "", flush)

    def adopt_names(self) -> None:
        """Make all that is there durable."""
        self.around("adopt_names", "", self._disk.unflushed_puts.clear)

    def around(self, method: str, name: str, call: Callable[[], T]) -> T:
        """Return what the call returns, after a switch point, unless the device is away."""
        scheduler, disk = self._disk.scheduler, self._disk
        scheduler.switch(f"{disk.name} {method} {name}")
        if (disk.is_away or self.is_suspect) and scheduler.is_running:
            raise Unavailable(f"{disk.name} does not answer", device=self.url)
        return call()

    def _draw(self) -> float:
        return self._disk.scheduler.random.random() if self._disk.scheduler.is_running else 0.5

    def _failure(self, message: str) -> Unavailable:
        return Unavailable(message, device=self.url, passing=self._draw() < self._disk.chances.passes)


def _land(disk: Disk, name: str, content: bytes, device: SimulatedDevice) -> None:
    with suppress(AlreadyExists):
        disk.memory.put(name, [content])
        disk.note_put(name, device)
