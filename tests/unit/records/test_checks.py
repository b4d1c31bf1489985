"""The checks object: parts' digests and blocks' checks, found again by part."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorkeep.errors import Integrity
from tensorkeep.records.checks import decode_checks, encode_checks
from tensorkeep.records.digest import block_checks
from tensorkeep.records.layout import BLOCK_BYTES, block_count

part_sizes = st.lists(st.integers(1, 4 * BLOCK_BYTES), max_size=8)


@given(part_sizes)
def test_digests_and_checks_are_found_by_part(sizes: list[int]) -> None:
    digests = [index.to_bytes(32, "big") for index in range(len(sizes))]
    checks = [[index * 1000 + block for block in range(block_count(size))] for index, size in enumerate(sizes)]
    decoded = decode_checks(encode_checks(digests, checks), sizes)
    for index in range(len(sizes)):
        assert decoded.digest(index) == digests[index]
        assert decoded.block_checks(index).tolist() == checks[index]


@pytest.mark.parametrize("size", [1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES])
def test_a_part_has_a_check_for_each_block_begun(size: int) -> None:
    assert len(block_checks(bytes(size))) == block_count(size) == (size + BLOCK_BYTES - 1) // BLOCK_BYTES


def test_a_version_without_parts_has_empty_checks() -> None:
    assert encode_checks([], []) == b""
    assert decode_checks(b"", []).digests.shape == (0, 32)


@given(part_sizes, st.binary(max_size=200))
def test_an_object_of_another_size_is_refused(sizes: list[int], data: bytes) -> None:
    if len(data) == sum(32 + 8 * block_count(size) for size in sizes):
        data += b"\0"
    with pytest.raises(Integrity, match="needs"):
        decode_checks(data, sizes)


def test_the_largest_check_is_kept() -> None:
    assert decode_checks(encode_checks([bytes(32)], [[2**64 - 1]]), [1]).block_checks(0).tolist() == [2**64 - 1]
