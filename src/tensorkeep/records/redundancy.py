"""Redundancy policies: how many losses of devices the bytes of a version survive, and in which form.

``replicas=N`` keeps N whole copies and survives N-1 losses; ``ec=K+M`` keeps K data and M parity fragments and survives
M. The text form is what users type and what the catalog and the journal store.
"""

import re
from dataclasses import dataclass

from tensorkeep.errors import InvalidInput
from tensorkeep.records.layout import BLOCK_BYTES

MOST_FRAGMENTS = 256
"""Of a part, data and parity together: each needs an element of GF(2⁸) of its own."""

_REPLICAS = re.compile(r"replicas=([1-9][0-9]{0,2})\Z")
_ERASURE = re.compile(r"ec=([1-9][0-9]{0,2})\+([1-9][0-9]{0,2})\Z")


@dataclass(frozen=True, slots=True)
class Replicas:
    """N whole copies, each on a device of its own."""

    copies: int

    @property
    def losses(self) -> int:
        """How many lost devices the bytes survive."""
        return self.copies - 1

    @property
    def slots(self) -> int:
        """How many devices a part needs."""
        return self.copies

    def __str__(self) -> str:
        return f"replicas={self.copies}"


@dataclass(frozen=True, slots=True)
class ErasureCoded:
    """K data fragments and M parity fragments, each on a device of its own."""

    data: int
    parity: int

    @property
    def losses(self) -> int:
        """How many lost devices the bytes survive."""
        return self.parity

    @property
    def slots(self) -> int:
        """How many devices a part needs."""
        return self.data + self.parity

    def __str__(self) -> str:
        return f"ec={self.data}+{self.parity}"


Policy = Replicas | ErasureCoded


def parse_policy(text: str) -> Policy:
    """Return the policy that a text like ``replicas=2`` or ``ec=4+2`` names.

    Raises:
        InvalidInput: it names none.
    """
    if match := _REPLICAS.match(text):
        return Replicas(int(match[1]))
    if match := _ERASURE.match(text):
        policy = ErasureCoded(int(match[1]), int(match[2]))
        if policy.slots > MOST_FRAGMENTS:
            raise InvalidInput(f"{text} makes {policy.slots} fragments, {MOST_FRAGMENTS} are the most", policy=text)
        return policy
    raise InvalidInput(f"{text!r} is no redundancy policy: write replicas=N (N ≥ 1) or ec=K+M", policy=text)


def fragment_bytes(size_bytes: int, data: int) -> int:
    """Return F, the size of a fragment of a part cut into that many data fragments: whole blocks.

    Data fragment i is bytes [i·F, (i+1)·F) of the part, so the last ones may be shorter, or empty.
    """
    share = -(-size_bytes // data)
    return -(-share // BLOCK_BYTES) * BLOCK_BYTES


def fragment_range(policy: ErasureCoded, size_bytes: int, index: int) -> tuple[int, int]:
    """Return which bytes [start, end) of a part data fragment ``index`` is; the last ones may be none."""
    each = fragment_bytes(size_bytes, policy.data)
    return min(index * each, size_bytes), min((index + 1) * each, size_bytes)


def fragment_length(policy: ErasureCoded, size_bytes: int, index: int) -> int:
    """Return how many bytes fragment ``index`` of a part of that size has, its footer apart."""
    if index >= policy.data:
        return fragment_bytes(size_bytes, policy.data)
    start, end = fragment_range(policy, size_bytes, index)
    return end - start


def filled_fragments(policy: ErasureCoded, size_bytes: int) -> int:
    """Return how many data fragments of a part are not empty. Empty ones are stored nowhere: everybody knows their bytes."""
    return -(-size_bytes // fragment_bytes(size_bytes, policy.data))


def stored_fragments(policy: ErasureCoded, size_bytes: int) -> tuple[int, ...]:
    """Return the numbers of the fragments of a part that devices keep: data that is not empty, then parity."""
    return (*range(filled_fragments(policy, size_bytes)), *range(policy.data, policy.slots))


def form_name(policy: ErasureCoded) -> str:
    """Return what the catalog calls the form of fragments of this policy: ``ec-k-m``."""
    return f"ec-{policy.data}-{policy.parity}"


def parse_form(form: str) -> ErasureCoded:
    """Return the policy of fragments that the catalog calls this."""
    data, parity = form.removeprefix("ec-").split("-")
    return ErasureCoded(int(data), int(parity))


def form_of(policy: Policy, size_bytes: int) -> Policy:
    """Return what a part of that size is kept as: a part under K blocks is kept as M+1 copies, since fragments save nothing."""
    if isinstance(policy, ErasureCoded) and size_bytes < policy.data * BLOCK_BYTES:
        return Replicas(policy.parity + 1)
    return policy


def metadata_copies(policy: Policy, device_count: int) -> int:
    """Return how many copies a manifest, checks or version record owes: losses + 1, at least two where two devices are."""
    return max(1, min(device_count, max(policy.losses + 1, 2)))
