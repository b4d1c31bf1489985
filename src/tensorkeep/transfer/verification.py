"""Judges bytes by their checks, and the checks by their digest before any copy is blamed."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import xxhash
from blake3 import blake3

from tensorkeep.errors import TensorkeepError
from tensorkeep.records.layout import BLOCK_BYTES
from tensorkeep.transfer.image import PartImage
from tensorkeep.transfer.sources import PartTable


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Bytes ``[start, end)`` of a part that do not fit their check; ``confirmed`` as in `Damage`."""

    start: int
    end: int
    reason: str
    confirmed: bool


class Judge:
    """Compares images with the checks of a version. Thread safe; each caller hashes in its own thread."""

    def __init__(self, parts: PartTable) -> None:
        self._parts = parts
        self._checks = parts.checks
        self._lock = threading.Lock()
        self._asked = False
        self._problem: str | None = None

    def judge_blocks(self, image: PartImage, part: int, start: int, end: int) -> list[Mismatch]:
        """Return the blocks of ``[start, end)`` that do not fit; the range is whole blocks of the part."""
        first = start // BLOCK_BYTES
        found = block_checks_of(image, start, end)
        if not self._misfits(part, first, found):
            return []
        self._confirm()
        return [
            self._mismatch(
                (first + i) * BLOCK_BYTES,
                min((first + i + 1) * BLOCK_BYTES, end),
                f"block {first + i} does not fit its check",
            )
            for i in self._misfits(part, first, found)
        ]

    def judge_digest(self, part: int, found: bytes) -> list[Mismatch]:
        """Return the whole part as a mismatch where this is not its digest."""
        if found == self._checks.digest(part):
            return []
        self._confirm()
        if found == self._checks.digest(part):
            return []
        return [self._mismatch(0, self._parts.sizes[part], f"its BLAKE3 is {found.hex()}")]

    def digest(self, part: int) -> bytes:
        """Return the digest that a part should have."""
        return self._checks.digest(part)

    def _misfits(self, part: int, first: int, found: list[int]) -> list[int]:
        expected = self._checks.block_checks(part)[first : first + len(found)].tolist()
        if found == expected:
            return []
        return [i for i, (is_, should) in enumerate(zip(found, expected, strict=True)) if is_ != should]

    def _confirm(self) -> None:
        with self._lock:  # whoever comes second waits for the answer that the first one asked for
            if self._asked or self._parts.confirm_checks is None:
                return
            self._asked = True
            try:
                self._checks = self._parts.confirm_checks()
            except TensorkeepError as error:
                self._problem = error.message

    def _mismatch(self, start: int, end: int, reason: str) -> Mismatch:
        if self._problem:
            reason += f" (and the checks could not be confirmed: {self._problem})"
        return Mismatch(start, end, reason, confirmed=self._problem is None)


def block_checks_of(image: PartImage, start: int, end: int) -> list[int]:
    """Return the XXH3-64 of each block of a range that begins with one."""
    whole = image.views(start, end)
    if len(whole) == 1:  # all that lies in one piece, which is nearly all
        (view,) = whole
        return [xxhash.xxh3_64_intdigest(view[at : at + BLOCK_BYTES]) for at in range(0, end - start, BLOCK_BYTES)]
    return [xxh3_of(image.views(low, min(low + BLOCK_BYTES, end))) for low in range(start, end, BLOCK_BYTES)]


def xxh3_of(views: Sequence[memoryview]) -> int:
    """Return the XXH3-64 of the concatenation of some views."""
    if len(views) == 1:
        return xxhash.xxh3_64_intdigest(views[0])
    hasher = xxhash.xxh3_64()
    for view in views:
        hasher.update(view)
    return hasher.intdigest()


class DigestStream:
    """BLAKE3 of a part as its windows arrive in order."""

    def __init__(self) -> None:
        self._hasher = blake3()

    def update(self, views: Sequence[memoryview]) -> None:
        """Take the next bytes."""
        for view in views:
            self._hasher.update(view)

    def digest(self) -> bytes:
        """Return the digest of all bytes taken."""
        return self._hasher.digest()


def iter_windows(ranges: Sequence[tuple[int, int]], size_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges cut into windows of at most that size, counted from each range's start."""
    for start, end in ranges:
        for low in range(start, end, size_bytes):
            yield low, min(low + size_bytes, end)
