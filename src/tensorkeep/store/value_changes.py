"""How far values moved between two arrays that are given block by block: a running maximum, a norm, and counts.

Two arrays of integers are compared exactly, in 64-bit words and Python's integers; all other numbers as float64 or complex128,
which hold every narrower one exactly. Only elements that changed are computed with. Of what is no number, only the changed
items are counted.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorkeep.store.reports import ComparedUnit, TensorStats

_CHUNK = 1 << 17
"""Elements at a time: the temporary arrays of a chunk stay in the cache, and small."""

Array = npt.NDArray[Any]


class ValueChanges:
    """Compares the elements of two arrays of numbers, of one dtype or of two."""

    def __init__(self, old: np.dtype[Any], new: np.dtype[Any]) -> None:
        self.wide = wide_dtype(old, new)
        self._same_dtype = old == new
        self._compared = self._changed = self._not_finite = 0
        self._max: int | float = 0
        self._squares = 0  # of integers, exactly
        self._norm = 0.0  # of all others

    def add(self, old: Array, new: Array) -> None:
        """Compare two arrays of one shape."""
        old, new = old.reshape(-1), new.reshape(-1)
        # Signalling NaNs stay NaNs; what is over the largest float64, a difference or a norm too, is infinite.
        with np.errstate(invalid="ignore", over="ignore"):
            for start in range(0, old.size, _CHUNK):
                self._add_chunk(old[start : start + _CHUNK], new[start : start + _CHUNK])

    def finish(self, note: str = "") -> TensorStats:
        """Return what was found."""
        norm = math.sqrt(self._squares) if self.wide.kind in "iu" else self._norm
        return TensorStats("elements", self._compared, self._changed, self._max, norm, self._not_finite, note)

    def _add_chunk(self, old: Array, new: Array) -> None:
        self._compared += old.size
        if self._same_dtype:
            changed = np.flatnonzero(differing_bits(old, new))
            was, now = _widen(old[changed], self.wide), _widen(new[changed], self.wide)
        else:
            was, now = _widen(old, self.wide), _widen(new, self.wide)
            changed = np.flatnonzero((was != now) & ~((was != was) & (now != now)))  # noqa: PLR0124 - only NaN is not itself
            was, now = was[changed], now[changed]
        self._changed += changed.size
        if self.wide.kind in "iu":
            self._add_integers(was, now)
        else:
            self._add_floats(was, now)

    def _add_integers(self, was: Array, now: Array) -> None:
        words = was.view(np.uint64), now.view(np.uint64)
        # Modulo 2^64, larger minus smaller is right for signed and unsigned ones.
        apart = np.where(now >= was, words[1] - words[0], words[0] - words[1])
        if apart.size:
            self._max = max(self._max, int(apart.max()))
            self._squares += _sum_of_squares(apart)

    def _add_floats(self, was: Array, now: Array) -> None:
        finite = np.isfinite(was) & np.isfinite(now)
        self._not_finite += int(finite.size - np.count_nonzero(finite))
        apart = np.abs(now[finite] - was[finite])
        if apart.size:
            largest = float(apart.max())
            self._max = max(self._max, largest)
            self._norm = math.hypot(self._norm, _norm(apart, largest))


class ItemChanges:
    """Compares runs of bytes: quantised blocks, bytes of packed types, and elements that are no numbers."""

    def __init__(self, unit: ComparedUnit, item_bytes: int) -> None:
        self._unit = unit
        self._item_bytes = item_bytes
        self._compared = self._changed = 0

    def add(self, old: Array, new: Array) -> None:
        """Compare two arrays of one shape, of whole items."""
        rows = [array.reshape(-1).view(np.uint8).reshape(-1, self._item_bytes) for array in (old, new)]
        self._compared += len(rows[0])
        self._changed += int(np.count_nonzero((rows[0] != rows[1]).any(axis=1)))

    def finish(self, note: str = "") -> TensorStats:
        """Return what was found."""
        return TensorStats(self._unit, self._compared, self._changed, None, None, 0, note)


def wide_dtype(old: np.dtype[Any], new: np.dtype[Any]) -> np.dtype[Any]:
    """Return what two arrays of numbers are compared as: int64, uint64, float64 or complex128."""
    kinds = {old.kind, new.kind}
    if kinds <= set("biu"):
        if not any(dtype.kind == "u" and dtype.itemsize == 8 for dtype in (old, new)):
            return np.dtype(np.int64)
        if "i" not in kinds:
            return np.dtype(np.uint64)
    return np.dtype(np.complex128 if "c" in kinds else np.float64)


def is_numeric(dtype: np.dtype[Any]) -> bool:
    """Return whether arrays of a dtype hold numbers that can be widened."""
    return dtype.kind in "biufc" or dtype.type.__module__.startswith("ml_dtypes")


def differing_bits(old: Array, new: Array) -> Array:
    """Return which elements of two flat arrays of one dtype differ in any bit."""
    size = old.dtype.itemsize
    if size in (1, 2, 4, 8):
        word = np.dtype(f"u{size}")
        return np.asarray(old.view(word) != new.view(word))
    rows = old.view(np.uint8).reshape(-1, size) != new.view(np.uint8).reshape(-1, size)
    return np.asarray(rows.any(axis=1))


def _widen(array: Array, wide: np.dtype[Any]) -> Array:
    if array.dtype.kind == "b":
        array = array.view(np.uint8) != 0  # a bool may hold any byte, and numpy would take it at its word
    return array.astype(wide)


def _sum_of_squares(numbers: Array) -> int:
    """Return the sum of squares of uint64s, exactly."""
    low, high = numbers & np.uint64(0xFFFFFFFF), numbers >> np.uint64(32)
    return _sum(low * low) + (_sum(low * high) << 33) + (_sum(high * high) << 64)


def _sum(numbers: Array) -> int:
    """Return the sum of under 2^32 uint64s, exactly."""
    return int((numbers & np.uint64(0xFFFFFFFF)).sum()) + (int((numbers >> np.uint64(32)).sum()) << 32)


def _norm(numbers: Array, largest: float) -> float:
    """Return the L2 norm; scaled by a power of two, which rounds nothing, so that no square overflows or vanishes."""
    if largest in (0.0, math.inf):
        return largest
    exponent = math.frexp(largest)[1]
    scaled = np.ldexp(numbers, -exponent)
    return float(
        np.ldexp(math.sqrt(float(np.dot(scaled, scaled))), exponent)
    )  # math.ldexp raises where the norm is infinite
