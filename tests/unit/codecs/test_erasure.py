"""Any k fragments give any others, by both arithmetics alike, over any range, whatever the last fragments lack."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorkeep.codecs import galois, isal
from tensorkeep.codecs.erasure import Combine, ErasureCode
from tensorkeep.codecs.galois import Matrix
from tensorkeep.errors import InvalidInput
from tensorkeep.records.redundancy import ErasureCoded

POLICIES = [ErasureCoded(1, 1), ErasureCoded(2, 1), ErasureCoded(4, 2), ErasureCoded(3, 3), ErasureCoded(10, 4)]


def fragments_of(policy: ErasureCoded, lengths: Sequence[int], seed: int, combine: Combine | None) -> list[bytes]:
    """Return all fragments of random data fragments of these lengths."""
    rng = np.random.default_rng(seed)
    data = [rng.bytes(length) for length in lengths]
    parity = [bytearray(max(lengths)) for _ in range(policy.parity)]
    numbered = {policy.data + i: each for i, each in enumerate(parity)}
    ErasureCode(policy, combine=combine).restore(dict(enumerate(data)), numbered)
    return [*data, *map(bytes, parity)]


def test_every_loss_of_m_fragments_is_restored() -> None:
    for policy in (ErasureCoded(4, 2), ErasureCoded(8, 4)):
        whole = fragments_of(policy, [1000] * (policy.data - 2) + [700, 0], 1, None)
        code = ErasureCode(policy)
        for lost in combinations(range(policy.slots), policy.parity):
            known = {i: each for i, each in enumerate(whole) if i not in lost}
            wanted = {i: bytearray(len(whole[i])) for i in lost}
            code.restore(known, wanted)
            assert {i: bytes(each) for i, each in wanted.items()} == {i: whole[i] for i in lost}, lost


@settings(max_examples=150, deadline=None)
@given(data=st.data(), policy=st.sampled_from(POLICIES), seed=st.integers(0, 1000))
def test_any_range_of_any_fragments_comes_back_from_any_k_others(
    data: st.DataObject, policy: ErasureCoded, seed: int
) -> None:
    length = data.draw(st.integers(1, 300))
    full = data.draw(st.integers(1, policy.data))
    tail = data.draw(st.integers(0, length))
    lengths = [*([length] * full), tail, *([0] * policy.data)][: policy.data]
    whole = fragments_of(policy, lengths, seed, None)
    assert whole == fragments_of(policy, lengths, seed, galois.combine)
    start = data.draw(st.integers(0, length - 1))
    end = data.draw(st.integers(start + 1, length))
    order = data.draw(st.permutations(range(policy.slots)))
    known = {i: whole[i][start:end] for i in order[: policy.data]}
    wanted = {i: bytearray(len(whole[i][start:end])) for i in order[policy.data :]}
    ErasureCode(policy).restore(known, wanted)
    assert {i: bytes(each) for i, each in wanted.items()} == {i: whole[i][start:end] for i in wanted}


def test_columns_longer_than_one_step_of_the_coder_come_back() -> None:
    policy = ErasureCoded(2, 2)
    whole = fragments_of(policy, [(2 << 20) + 77, (1 << 20) + 5], 3, None)
    wanted = {i: bytearray(len(whole[i])) for i in (0, 1)}
    ErasureCode(policy).restore({2: whole[2], 3: whole[3]}, wanted)
    assert [bytes(wanted[0]), bytes(wanted[1])] == whole[:2]


def test_what_no_code_can_do_is_refused() -> None:
    code = ErasureCode(ErasureCoded(2, 1))
    with pytest.raises(InvalidInput, match="restores from 2 fragments, 1 are given"):
        code.restore({0: b"a"}, {1: bytearray(1)})
    with pytest.raises(InvalidInput, match="can't give"):
        code.restore({0: b"a", 1: b"b"}, {1: bytearray(1)})
    with pytest.raises(InvalidInput, match="can't give"):
        code.restore({0: b"a", 3: b"b"}, {1: bytearray(1)})


@pytest.mark.parametrize("policy", POLICIES)
def test_the_matrix_is_the_one_of_the_format(policy: ErasureCoded) -> None:
    matrix = galois.cauchy_matrix(policy.data, policy.parity)
    assert matrix[: policy.data].tolist() == np.eye(policy.data).tolist()
    for i in range(policy.data, policy.slots):
        assert all(galois.multiply(int(matrix[i, j]), i ^ j) == 1 for j in range(policy.data))


def test_the_field_multiplies_as_its_polynomial_says() -> None:
    def slowly(a: int, b: int) -> int:
        product = 0
        for bit in range(8):
            product ^= (a << bit) * (b >> bit & 1)
        for bit in range(14, 7, -1):
            product ^= (0x11D << (bit - 8)) * (product >> bit & 1)
        return product

    assert galois.PRODUCTS.tolist() == [[slowly(a, b) for b in range(256)] for a in range(256)]


def test_a_library_that_calculates_wrongly_is_not_used() -> None:
    class Wrong(isal.Isal):
        def __init__(self) -> None:
            """Load nothing."""

        def combine(self, matrix: Matrix, sources: Sequence[memoryview], targets: Sequence[memoryview]) -> None:
            galois.combine(matrix, sources, targets)
            if len(targets[0]) == 65:
                targets[-1][64] ^= 1

    found = isal.find_isal()
    assert found is not None, "pyeclib brings it"
    assert isal.is_right(found)
    assert not isal.is_right(Wrong())
