"""One pass gives the same hashes as each library alone."""

import hashlib
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorkeep.errors import Internal
from tensorkeep.records.digest import blake3_256, block_checks
from tensorkeep.records.layout import BLOCK_BYTES, GIT_SHA1_LIMIT_BYTES
from tensorkeep.transfer.hashing import FileHasher, RangeHasher, hash_part
from tests.unit.transfer.small_world import seeded_bytes


@pytest.mark.parametrize("size", [0, 1, *(n * BLOCK_BYTES + off for n in (1, 2, 5) for off in (-1, 0, 1))])
def test_a_part_is_hashed_as_the_records_say(size: int) -> None:
    data = seeded_bytes(size)
    hashed = hash_part(memoryview(data))
    assert (hashed.digest, hashed.checks) == (blake3_256(data), block_checks(data))


def test_a_file_has_its_sha256_and_its_git_blob_id() -> None:
    hasher = FileHasher(12)
    hasher.update(memoryview(b"hello "))
    hasher.update(memoryview(b"world\n"))
    assert hasher.sha256 == hashlib.sha256(b"hello world\n").hexdigest()
    assert hasher.git_sha1 == "3b18e512dba79e4c8300dd08aeb37f8e728b8dad"  # git hash-object


def test_large_files_have_no_git_blob_id() -> None:
    data = memoryview(bytes(GIT_SHA1_LIMIT_BYTES))
    large, small = FileHasher(len(data)), FileHasher(len(data) - 1)
    large.update(data)
    small.update(data[1:])
    assert large.git_sha1 is None
    assert small.git_sha1 is not None


def test_a_file_fed_in_part_has_no_hash() -> None:
    hasher = FileHasher(3)
    hasher.update(memoryview(b"ab"))
    with pytest.raises(Internal):
        _ = hasher.sha256


@settings(deadline=None)
@given(
    content=st.binary(max_size=300),
    cuts=st.lists(st.integers(0, 300), max_size=8),
    data=st.data(),
)
def test_ranges_are_hashed_as_if_alone(content: bytes, cuts: list[int], data: st.DataObject) -> None:
    starts = st.integers(0, len(content))
    ranges = sorted(
        (start, data.draw(st.integers(0, len(content) - start))) for start in data.draw(st.lists(starts, max_size=10))
    )
    hasher = RangeHasher(ranges)
    edges = sorted({0, len(content), *(cut for cut in cuts if cut < len(content))})
    for low, high in itertools.pairwise(edges):
        hasher.update(memoryview(content)[low:high])
    assert hasher.digests() == [blake3_256(content[start : start + length]) for start, length in ranges]


def test_a_range_past_the_end_has_no_hash() -> None:
    hasher = RangeHasher([(0, 1), (2, 5)])
    hasher.update(memoryview(b"abcd"))
    with pytest.raises(Internal):
        hasher.digests()


def test_ranges_out_of_order_are_refused() -> None:
    with pytest.raises(Internal):
        RangeHasher([(5, 1), (0, 1)])
