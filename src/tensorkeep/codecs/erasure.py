"""Erasure coding: from any k of the k + m fragments of a part, any others. Parity is just the others of the data.

Bytes of equal offset in their fragments depend on each other and on nothing else, so that any range of a lost fragment is
restored from the same range of k others. Source: ``docs/format-v1.md``, section 12.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Protocol

from typing_extensions import Buffer

from tensorkeep.codecs import galois
from tensorkeep.codecs.galois import Matrix
from tensorkeep.codecs.isal import find_isal
from tensorkeep.errors import InvalidInput
from tensorkeep.records.layout import MIB
from tensorkeep.records.redundancy import ErasureCoded

_COLUMN_BYTES = 1 * MIB
"""Of each fragment at once: a column of all of them stays in the cache."""


class Combine(Protocol):
    """Writes Σ_j matrix[i, j] · sources[j] to targets[i]; all of one length."""

    def __call__(self, matrix: Matrix, sources: Sequence[memoryview], targets: Sequence[memoryview]) -> None:
        """Do so."""


class ErasureCode:
    """The code of one policy. Thread safe; the interpreter lock is free while it calculates.

    Args:
        policy: k and m.
        combine: the arithmetic; ISA-L's where it is found, else numpy's.
    """

    def __init__(self, policy: ErasureCoded, *, combine: Combine | None = None) -> None:
        isal = find_isal() if combine is None else None
        self._combine: Combine = combine or (isal.combine if isal else galois.combine)
        self._policy = policy

    def restore(self, known: Mapping[int, Buffer], wanted: Mapping[int, Buffer]) -> None:
        """Fill each of ``wanted`` with the bytes that its fragment has where ``known`` were taken from theirs.

        Args:
            known: by number, the same range of exactly k fragments, contiguous. What one lacks beside the longest is zeros:
                the last data fragments of a part may be shorter than the others, or empty.
            wanted: by number, writable and contiguous buffers for other fragments, any number of them; overlapping nothing.

        Raises:
            InvalidInput: other than k fragments are known, or one is both known and wanted, or of no such number.
        """
        sources, targets = _views(known), _views(wanted)
        self._check(sources, targets)
        factors = _factors(self._policy, tuple(sources), tuple(targets))
        start = 0
        for end in sorted({len(view) for view in (*sources.values(), *targets.values())} - {0}):
            columns = [column for column, view in enumerate(sources.values()) if len(view) >= end]
            rows = [row for row, view in enumerate(targets.values()) if len(view) >= end]
            if rows:
                self._restore_between(
                    start,
                    end,
                    factors[rows][:, columns],
                    [view for view in sources.values() if len(view) >= end],
                    [view for view in targets.values() if len(view) >= end],
                )
            start = end

    def _restore_between(
        self, start: int, end: int, factors: Matrix, sources: Sequence[memoryview], targets: Sequence[memoryview]
    ) -> None:
        for low in range(start, end, _COLUMN_BYTES):
            high = min(low + _COLUMN_BYTES, end)
            read, written = [view[low:high] for view in sources], [view[low:high] for view in targets]
            if read:
                self._combine(factors, read, written)
            else:  # all that is known is zeros here
                for view in written:
                    view[:] = bytes(len(view))

    def _check(self, sources: Mapping[int, memoryview], targets: Mapping[int, memoryview]) -> None:
        policy = self._policy
        if len(sources) != policy.data:
            raise InvalidInput(f"{policy} restores from {policy.data} fragments, {len(sources)} are given")
        odd = [number for number in (*sources, *targets) if not 0 <= number < policy.slots]
        if odd or sources.keys() & targets.keys():
            raise InvalidInput(f"fragments {sorted(sources)} can't give {sorted(targets)} under {policy}")


def _views(buffers: Mapping[int, Buffer]) -> dict[int, memoryview]:
    return {number: memoryview(buffer).cast("B") for number, buffer in buffers.items()}


@lru_cache(maxsize=1024)
def _factors(policy: ErasureCoded, known: tuple[int, ...], wanted: tuple[int, ...]) -> Matrix:
    """Return the matrix, shape (wanted, known), that makes the one of the other."""
    matrix = galois.cauchy_matrix(policy.data, policy.parity)
    return galois.multiply_matrices(matrix[list(wanted)], galois.invert_matrix(matrix[list(known)]))
