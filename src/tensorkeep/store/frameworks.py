"""Frameworks: who makes the arrays that a load fills. numpy is built in; others come by the entry point group.

``store`` never imports torch: the package registers ``tensorkeep.integrations.torch`` under the entry point group
``tensorkeep.frameworks``, and third parties can register theirs. See ``docs/design/001-rooms-and-runtime.md``.
"""

import math
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from tensorkeep.errors import InvalidInput, NotFound
from tensorkeep.records.dtype import get_dtype, packed_shape
from tensorkeep.transfer.far_memory import FarMemory
from tensorkeep.transfer.memory import allocate

ENTRY_POINT_GROUP = "tensorkeep.frameworks"


class Destination(NamedTuple):
    """An empty array of a framework, and its memory that a load fills (packed shape and dtype): a numpy view, or far memory."""

    array: Any
    view: npt.NDArray[Any] | FarMemory


class Framework(Protocol):
    """Makes and reads a framework's arrays. Implementations are classes without arguments."""

    def make_empty(
        self, dtype: str, shape: tuple[int, ...], device: str | None, memory: memoryview | None = None
    ) -> Destination:
        """Return an empty array of that safetensors dtype and shape (elements); over ``memory``, if that is given.

        Raises:
            InvalidInput: the framework has no such dtype or device.
        """

    def finish(self, destination: Destination, device: str | None) -> Any:
        """Return the array that the caller gets, once the view is filled."""

    def to_numpy(self, array: Any) -> npt.NDArray[Any] | None:
        """Return a numpy array over or of the same bytes, or None if it isn't one of this framework's."""

    def memory_of(self, array: Any) -> npt.NDArray[Any] | FarMemory | None:
        """Return the memory of an array, to be filled; None if it isn't one of this framework's.

        Raises:
            InvalidInput: it is, and can't be filled.
        """


class NumpyFramework:
    """numpy arrays; bfloat16 and 8-bit floats by ml_dtypes, narrower types as packed bytes."""

    def make_empty(
        self, dtype: str, shape: tuple[int, ...], device: str | None, memory: memoryview | None = None
    ) -> Destination:
        """Return an empty array, in memory of its own where none is given."""
        if device not in (None, "cpu"):
            raise InvalidInput(f"numpy has no device {device!r}: leave it out", device=device)
        array = empty_array(dtype, shape, memory)
        return Destination(array, array)

    def finish(self, destination: Destination, device: str | None) -> Any:  # noqa: ARG002 - the protocol's names
        """Return the array itself."""
        return destination.array

    def to_numpy(self, array: Any) -> npt.NDArray[Any] | None:
        """Return the array if it is numpy's."""
        return array if isinstance(array, np.ndarray) else None

    def memory_of(self, array: Any) -> npt.NDArray[Any] | FarMemory | None:
        """Return the array if it is numpy's."""
        return array if isinstance(array, np.ndarray) else None


def empty_array(dtype: str, shape: tuple[int, ...], memory: memoryview | None = None) -> npt.NDArray[Any]:
    """Return an empty numpy array for a tensor: over ``memory``, or in page-aligned memory that the array alone keeps."""
    kind = get_dtype(dtype)
    packed = packed_shape(shape, kind)
    count = math.prod(packed)  # not numpy's: 15 µs each, and a model may have 60,000 tensors
    if count == 0:
        return np.empty(packed, dtype=kind.numpy)
    if memory is None:
        memory = allocate(count * kind.numpy.itemsize)
    return np.ndarray(packed, kind.numpy, memory)  # one call: `frombuffer` and `reshape` are two arrays


def get_framework(name: str) -> Framework:
    """Return the framework of that name.

    Raises:
        NotFound: none is registered, or its package is not installed.
    """
    return NumpyFramework() if name == "numpy" else _registered_class(name)()


@cache
def _registered_class(name: str) -> Callable[[], Framework]:
    """Return who makes a framework; asked once, since looking through all packages takes 7 ms."""
    found = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if name not in found:
        known = ", ".join(sorted(["numpy", *found]))
        raise NotFound(f"no framework {name!r}: known are {known}", framework=name)
    try:
        made: Callable[[], Framework] = found[name].load()
    except ImportError as error:
        raise NotFound(f"framework {name!r} is not installed: pip install {name}", framework=name) from error
    return made


def to_numpy(value: Any) -> npt.NDArray[Any]:
    """Return the numpy array of a value from memory: numpy's own, or one of a framework that is registered.

    Raises:
        InvalidInput: nobody knows it.
    """
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, np.generic):
        return np.asarray(value)
    try:
        framework = _registered_framework(type(value).__module__.partition(".")[0])
    except NotFound:
        framework = None
    if framework is not None and (array := framework.to_numpy(value)) is not None:
        return array
    raise InvalidInput(
        f"{type(value).__name__} is no array that can be stored: give numpy arrays", type=str(type(value))
    )


def existing_memory(array: Any, name: str) -> npt.NDArray[Any] | FarMemory:
    """Return the memory of an array that is to get the tensor of that name: numpy's, or one of a framework that is registered.

    Raises:
        InvalidInput: nobody knows it, or it can't be filled.
    """
    if isinstance(array, np.ndarray):
        return array
    try:
        framework = _registered_framework(type(array).__module__.partition(".")[0])
    except NotFound:
        framework = None
    if framework is not None and (memory := framework.memory_of(array)) is not None:
        return memory
    raise InvalidInput(
        f"what {name!r} is to be loaded into is a {type(array).__name__}: give a numpy array, or a tensor of a framework",
        tensor=name,
    )


@cache
def _registered_framework(package: str) -> Framework:
    """Return what `get_framework` does, one for all tensors of a model."""
    return get_framework(package)
