"""Randomness: bytes for ulids and jitter for retries, from the system or from a seed."""

import os
import random
import threading
from typing import Protocol


class Randomness(Protocol):
    """A source of random bytes."""

    def random_bytes(self, count: int) -> bytes:
        """Return that many random bytes. Thread safe."""

    def uniform(self) -> float:
        """Return a float in [0, 1). Thread safe."""


class SystemRandomness:
    """The operating system's randomness."""

    def random_bytes(self, count: int) -> bytes:
        """Return that many random bytes."""
        return os.urandom(count)

    def uniform(self) -> float:
        """Return a float in [0, 1)."""
        return int.from_bytes(os.urandom(7), "little") / (1 << 56)


class SeededRandomness:
    """Repeatable randomness, for tests and simulations."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - repeatable on purpose
        self._lock = threading.Lock()

    def random_bytes(self, count: int) -> bytes:
        """Return that many bytes of the seeded sequence."""
        with self._lock:
            return self._random.randbytes(count)

    def uniform(self) -> float:
        """Return the next float of the seeded sequence, in [0, 1)."""
        with self._lock:
            return self._random.random()
