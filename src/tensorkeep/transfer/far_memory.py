"""Memory that the processor can't write to, such as a GPU's: what is loaded there is read and verified in buffers of the host first.

A framework brings a `Carrier`, which copies from such buffers; this room knows no framework. Only bytes that have been verified are
copied.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from math import prod
from typing import Any, NoReturn, Protocol

import numpy as np

from tensorkeep.errors import Internal


class Carrier(Protocol):
    """Copies bytes of the host to memory of one device. Thread safe, save `prepare`."""

    def prepare(self) -> None:
        """Get ready for copies to targets that exist now; called once by each load, in the caller's thread."""

    def allocate(self, size_bytes: int) -> memoryview:
        """Return memory of the host that copies are quick from, freed when its last view dies; its content is undefined.

        Raises:
            MemoryError: the system has no room.
        """

    def copies(self) -> AbstractContextManager[None]:
        """Return what a thread begins its copies in; all of them have ended when it is left, by an error too."""

    def copy(self, target: Any, offset: int, data: memoryview) -> None:
        """Begin to copy to byte ``offset`` of a target; within `copies`. The data is left as it is until that is left."""


@dataclass(frozen=True, slots=True, eq=False)
class FarMemory:
    """An array in memory that only a carrier reaches: C-contiguous, of a packed shape and a numpy dtype, as `Box` counts them.

    Attributes:
        carrier: who copies there; arrays of one device share one.
        target: what the carrier knows the memory by.
        dtype: numpy's.
        shape: in elements of it.
        address: of its first byte on the device, to tell whether two share memory; None where nobody knows.
    """

    carrier: Carrier
    target: Any
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    address: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return prod(self.shape) * self.dtype.itemsize


class _Nobody:
    """Carries nothing anywhere: for boxes that are planned and never read."""

    def prepare(self) -> NoReturn:
        raise Internal("a box that is only planned was read")

    def allocate(self, size_bytes: int) -> NoReturn:  # noqa: ARG002 - the protocol's names
        self.prepare()

    def copies(self) -> NoReturn:
        self.prepare()

    def copy(self, target: Any, offset: int, data: memoryview) -> NoReturn:  # noqa: ARG002 - the protocol's names
        self.prepare()


def nowhere(dtype: np.dtype[Any], shape: tuple[int, ...]) -> FarMemory:
    """Return a destination that takes no memory: for a box that is planned only."""
    return FarMemory(_Nobody(), None, dtype, shape)


def copies_of(carriers: Iterable[Carrier]) -> ExitStack:
    """Return what a thread begins copies of all these carriers in; entered already."""
    with ExitStack() as stack:
        for carrier in carriers:
            stack.enter_context(carrier.copies())
        return stack.pop_all()
