"""Devices in memory and versions made by hand, for tests of the read path."""

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorkeep.devices.protocol import ObjectInfo
from tensorkeep.errors import Integrity, NotFound, TensorkeepError
from tensorkeep.records.checks import Checks, decode_checks, encode_checks
from tensorkeep.records.device import Durability
from tensorkeep.records.digest import blake3_256, block_checks
from tensorkeep.records.manifest import Extent, File, Tensor
from tensorkeep.transfer.boxes import Box, tensor_array
from tensorkeep.transfer.far_memory import FarMemory
from tensorkeep.transfer.sources import PartSource, PartTable


class FakeDevice:
    """Objects in a dict; counts reads, may fail on each, may call back before each."""

    def __init__(self) -> None:
        self.objects: dict[str, bytearray] = {}
        self.reads: list[tuple[str, int, int]] = []
        self.error: TensorkeepError | None = None
        self.before_read: Callable[[], None] | None = None
        self._lock = threading.Lock()

    url = "memory://test"
    durability: Durability = "soft"

    def prepare(self) -> None: ...

    def read_identity(self) -> bytes | None:
        return None

    def replace_identity(self, data: bytes) -> None: ...

    def put(self, name: str, data: Sequence[Any]) -> None:
        self.objects[name] = bytearray(b"".join(data))

    def flush(self) -> None: ...

    def adopt_names(self) -> None: ...

    def read_into(self, name: str, offset: int, buffers: Sequence[memoryview]) -> None:
        length = sum(len(buffer) for buffer in buffers)
        with self._lock:
            self.reads.append((name, offset, length))
        if self.before_read:
            self.before_read()
        if self.error:
            raise self.error
        if name not in self.objects:
            raise NotFound(f"{name} is not there")
        data = self.objects[name]
        if offset + length > len(data):
            raise Integrity(f"{name} has {len(data)} bytes, {offset + length} were asked for")
        for buffer in buffers:
            buffer[:] = data[offset : offset + len(buffer)]
            offset += len(buffer)

    def read(self, name: str) -> bytes:
        return bytes(self.objects[name])

    def size_of(self, name: str) -> int:
        return len(self.objects[name])

    def iter_objects(self, prefix: str) -> Iterator[ObjectInfo]:
        return iter(())

    def delete(self, name: str) -> None:
        self.objects.pop(name, None)

    def sweep_unfinished(self, older_than_s: float) -> int:
        return 0

    def free_bytes(self) -> int | None:
        return None


@dataclass
class World:
    """Parts on fake devices: part i's copy on device d is object ``p<i>`` there, location 100 * i + (position of d)."""

    parts: list[bytes]
    devices: dict[str, FakeDevice]
    placement: list[list[str]]
    names: dict[str, str] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    confirm_checks: Callable[[], Checks] | None = None
    describe: Callable[[int], str] | None = None
    checks: Checks = field(init=False)

    def __post_init__(self) -> None:
        for index, data in enumerate(self.parts):
            for device in self.placement[index]:
                self.devices[device].put(f"p{index}", [data])
        self.checks = self.true_checks()

    def true_checks(self) -> Checks:
        encoded = encode_checks([blake3_256(part) for part in self.parts], [block_checks(part) for part in self.parts])
        return decode_checks(encoded, [len(part) for part in self.parts])

    def table(self, reachable: Sequence[str] | None = None) -> PartTable:
        return PartTable(
            sizes=[len(part) for part in self.parts],
            checks=self.checks,
            sources={
                index: [
                    PartSource(
                        location=100 * index + at, device=device, name=f"p{index}", length=len(self.parts[index])
                    )
                    for at, device in enumerate(devices)
                ]
                for index, devices in enumerate(self.placement)
            },
            devices={name: device for name, device in self.devices.items() if reachable is None or name in reachable},
            names=self.names,
            rates=self.rates,
            confirm_checks=self.confirm_checks,
            describe=self.describe,
        )

    def flip(self, device: str, part: int, at: int) -> None:
        self.devices[device].objects[f"p{part}"][at] ^= 0x40


class LateCarrier:
    """Far memory that is numpy's; copies are made when the thread that began them waits for them, as late as they may be."""

    def __init__(self) -> None:
        self.prepared = 0
        self.buffers: list[int] = []
        self._begun = threading.local()

    def prepare(self) -> None:
        self.prepared += 1

    def allocate(self, size_bytes: int) -> memoryview:
        self.buffers.append(size_bytes)
        return memoryview(bytearray(size_bytes))

    @contextmanager
    def copies(self) -> Iterator[None]:
        assert getattr(self._begun, "copies", None) is None
        self._begun.copies = []
        try:
            yield
        finally:
            for target, offset, data in self._begun.copies:
                target[offset : offset + len(data)] = np.frombuffer(data, np.uint8)
            self._begun.copies = None

    def copy(self, target: npt.NDArray[np.uint8], offset: int, data: memoryview) -> None:
        self._begun.copies.append((target, offset, data))

    def memory(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> FarMemory:
        return FarMemory(self, np.zeros(prod(shape) * dtype.itemsize, np.uint8), dtype, shape)


def array_in(destination: npt.NDArray[Any] | FarMemory) -> npt.NDArray[Any]:
    """Return what a destination holds."""
    if isinstance(destination, FarMemory):
        found: npt.NDArray[Any] = destination.target.view(destination.dtype).reshape(destination.shape)
        return found
    return destination


def make_world(parts: Sequence[bytes], copies: int = 1, devices: int = 2, **more: Any) -> World:
    """Return parts placed round robin, with that many copies each."""
    names = [f"d{number}" for number in range(devices)]
    placement = [[names[(index + copy) % devices] for copy in range(copies)] for index in range(len(parts))]
    return World(list(parts), {name: FakeDevice() for name in names}, placement, **more)


def seeded_bytes(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def make_file(content: bytes, extents: Sequence[Extent], tensors: Sequence[Tensor], path: str = "w.bin") -> File:
    return File(
        path=path,
        size_bytes=len(content),
        format="opaque",
        extents=tuple(extents),
        tensors=tuple(tensors),
        items=(),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def make_tensor(
    name: str, dtype: str, shape: tuple[int, ...], start: int, length: int, strides: tuple[int, ...] | None = None
) -> Tensor:
    return Tensor(name=name, dtype=dtype, shape=shape, strides=strides, start=start, length=length, digest="0" * 64)


def whole_box(file: File, tensor: Tensor) -> Box:
    dtype, shape = tensor_array(tensor)
    return Box(file, tensor, (0,) * len(shape), shape, np.zeros(shape, dtype))


def array_of(content: bytes, tensor: Tensor) -> npt.NDArray[Any]:
    """Return the tensor as numpy makes it from the file's bytes: the slow path that the fast one is held to."""
    dtype, shape = tensor_array(tensor)
    data = content[tensor.start : tensor.start + tensor.length]
    if tensor.strides is None:
        return np.frombuffer(data, dtype).reshape(shape)
    return np.ndarray(shape, dtype, data, 0, [stride * dtype.itemsize for stride in tensor.strides])


def same_bits(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> bool:
    """Return whether two arrays are equal bit for bit (NaNs too)."""
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
