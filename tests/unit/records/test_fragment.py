"""The footer of a fragment: its bytes, what it is worth when damaged, and what contradicts itself."""

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorkeep.errors import Format, Integrity, InvalidInput
from tensorkeep.records.fragment import (
    LONGEST_FOOTER_BYTES,
    FragmentFooter,
    decode_footer,
    encode_footer,
    footer_length,
)
from tensorkeep.records.json_text import encode_canonical
from tensorkeep.records.layout import BLOCK_BYTES, KIB, PART_LIMIT_BYTES
from tensorkeep.records.redundancy import (
    ErasureCoded,
    filled_fragments,
    fragment_bytes,
    fragment_length,
    fragment_range,
    parse_policy,
)
from tensorkeep.records.sealing import seal

SIZE = 4 * BLOCK_BYTES
PARITY = FragmentFooter(
    part="ab" * 32, size_bytes=SIZE, data=4, parity=2, index=5, digest="cd" * 32, blocks="0123456789abcdef"
)
DATA = FragmentFooter(part="ab" * 32, size_bytes=SIZE, data=4, parity=2, index=0, digest="cd" * 32, blocks=None)

PARITY_BYTES = (
    b'{"blocks":"0123456789abcdef","data":4,"digest":"' + b"cd" * 32 + b'","format":1,"index":5,"matrix":"cauchy1",'
    b'"parity":2,"part":"' + b"ab" * 32 + b'","size_bytes":1048576,'
    b'"blake3":"c2ab69540c790a7ffbbb691478a3dc1d978286bb3c3c77b6377bf684bb168693"}\n'
)


def ended(body: bytes) -> bytes:
    """Return the bytes of a footer with this JSON, whatever it says."""
    sealed = seal(body, "blake3")
    return sealed + len(sealed).to_bytes(4, "little") + b"tkf1"


def test_the_bytes_of_a_footer_never_change() -> None:
    assert encode_footer(PARITY) == PARITY_BYTES + len(PARITY_BYTES).to_bytes(4, "little") + b"tkf1"


@pytest.mark.parametrize("footer", [PARITY, DATA])
def test_a_footer_is_found_at_the_end_of_any_bytes(footer: FragmentFooter) -> None:
    data = encode_footer(footer)
    assert decode_footer(data, what="x") == footer
    assert decode_footer(b"the fragment's bytes" + data, what="x") == footer
    assert len(data) == footer_length(footer.policy, footer.size_bytes, footer.index)


def test_block_checks_are_little_endian() -> None:
    assert PARITY.block_checks.tolist() == [0xEFCDAB8967452301]
    assert DATA.block_checks.tolist() == []


@pytest.mark.parametrize("footer", [PARITY, DATA])
def test_no_bit_of_a_footer_can_be_flipped_and_none_of_its_bytes_be_missing(footer: FragmentFooter) -> None:
    data = encode_footer(footer)
    for at in range(len(data)):
        flipped = bytearray(data)
        flipped[at] ^= 1 << (at % 8)
        with pytest.raises(Integrity, match="fragment 7"):
            decode_footer(bytes(flipped), what="fragment 7")
        with pytest.raises(Integrity, match="fragment 7"):
            decode_footer(data[:at], what="fragment 7")


@pytest.mark.parametrize(
    "changes",
    [
        {"index": 6},
        {"index": -1},
        {"data": 0},
        {"data": 10**12},
        {"parity": 0},
        {"parity": 300},
        {"size_bytes": 0},
        {"size_bytes": PART_LIMIT_BYTES},
        {"size_bytes": SIZE + 1},
        {"part": "ab"},
        {"digest": "CD" * 32},
        {"blocks": None},
        {"blocks": "0123456789abcdeg"},
        {"blocks": "0123456789abcdef0"},
        {"index": 0},
        {"matrix": "vandermonde"},
        {"format": 2},
    ],
)
def test_a_footer_that_contradicts_itself_is_refused(changes: dict[str, object]) -> None:
    odd = msgspec.structs.replace(PARITY, **changes)
    with pytest.raises(Format):
        decode_footer(encode_footer(odd), what="fragment 7")


@pytest.mark.parametrize("body", [b'{"x":1}', b'{"format":"1"}', b'{"format":1,"data":1}', b'{"format":99999999999}'])
def test_sealed_json_of_another_shape_is_no_footer(body: bytes) -> None:
    with pytest.raises(Format):
        decode_footer(ended(body), what="fragment 7")


def test_fields_that_a_reader_does_not_know_are_ignored() -> None:
    more = {**msgspec.structs.asdict(PARITY), "zz": 1}
    assert decode_footer(ended(encode_canonical(more)), what="x") == PARITY


def test_the_longest_footer_fits_the_limit() -> None:
    longest = max(footer_length(ErasureCoded(k, 1), PART_LIMIT_BYTES - 1, k) for k in range(1, 30))
    assert longest <= LONGEST_FOOTER_BYTES


@settings(max_examples=300)
@given(size=st.integers(1, PART_LIMIT_BYTES - 1), data=st.integers(1, 40), parity=st.integers(1, 10))
def test_data_fragments_are_the_part_one_after_the_other(size: int, data: int, parity: int) -> None:
    policy = ErasureCoded(data, parity)
    each = fragment_bytes(size, data)
    assert each % BLOCK_BYTES == 0
    assert each - 256 * KIB < -(-size // data) <= each
    ranges = [fragment_range(policy, size, i) for i in range(data)]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == size
    assert all(low == high for (_, low), (high, _) in pairwise(ranges))
    lengths = [fragment_length(policy, size, i) for i in range(policy.slots)]
    assert lengths[:data] == [end - start for start, end in ranges]
    assert lengths[data:] == [each] * parity
    filled = filled_fragments(policy, size)
    assert all(lengths[:filled])
    assert not any(lengths[filled:data])


def test_more_fragments_than_the_field_has_elements_are_refused() -> None:
    assert parse_policy("ec=200+56") == ErasureCoded(200, 56)
    with pytest.raises(InvalidInput, match="256 are the most"):
        parse_policy("ec=200+57")
