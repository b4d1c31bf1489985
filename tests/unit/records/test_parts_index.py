"""The index of parts: cuts and names, and nothing believed that does not fit."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorkeep.errors import Format, Integrity, InvalidInput
from tensorkeep.records.digest import blake3_256
from tensorkeep.records.json_text import encode_canonical
from tensorkeep.records.parts_index import (
    INDEX_LIMIT_BYTES,
    PARTS_LIMIT,
    PartEntry,
    PartsIndex,
    decode_index,
    encode_index,
    iter_cuts,
    part_name,
)

DIGEST = "0123456789abcdef" * 4


def make_index(sizes: tuple[int, ...] = (3, 4)) -> PartsIndex:
    parts = tuple(
        PartEntry(
            name=part_name("model.bin", number + 1, len(sizes)),
            folder=".",
            start=sum(sizes[:number]),
            size_bytes=size,
            blake3=DIGEST,
            sha256=DIGEST,
        )
        for number, size in enumerate(sizes)
    )
    return PartsIndex(name="model.bin", size_bytes=sum(sizes), blake3=DIGEST, sha256=DIGEST, parts=parts)


def sealed(fields: Any) -> bytes:
    body = encode_canonical(fields)
    return body[:-1] + b',"index_blake3":"' + blake3_256(body).hex().encode() + b'"}\n'


def fields_of(index: PartsIndex) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(encode_index(index))
    del fields["index_blake3"]
    return fields


@given(size=st.integers(0, 2**63 - 1), count=st.integers(1, 300))
def test_cuts_cover_a_file_once_at_the_floors(size: int, count: int) -> None:
    cuts = list(iter_cuts(size, count))
    assert [start for start, _ in cuts] == [i * size // count for i in range(count)]
    assert [start + length for start, length in cuts] == [i * size // count for i in range(1, count + 1)]
    assert max(length for _, length in cuts) - min(length for _, length in cuts) <= 1


@pytest.mark.parametrize("count", [1, 9, 10, 99, 100, 1000, PARTS_LIMIT])
def test_names_of_parts_sort_as_their_numbers(count: int) -> None:
    names = [part_name("model.bin", number, count) for number in range(1, count + 1)]
    assert names == sorted(names)
    assert len(set(names)) == count
    assert names[0] == f"model.bin.part-{'1'.zfill(len(str(count)))}-of-{count}"


def test_an_index_is_read_as_it_was_written_and_ends_with_its_seal() -> None:
    data = encode_index(make_index())
    assert decode_index(data, what="x") == make_index()
    assert data == sealed(fields_of(make_index()))
    assert list(json.loads(data))[-1] == "index_blake3"


def test_every_flip_of_one_bit_of_an_index_is_detected() -> None:
    data = encode_index(make_index())
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Integrity, match=r"model.*each folder of parts has a copy"):
            decode_index(bytes(damaged), what="model.bin.parts.json")


def test_every_truncation_of_an_index_is_detected() -> None:
    data = encode_index(make_index())
    for size in range(len(data)):
        with pytest.raises(Integrity):
            decode_index(data[:size], what="x")


@given(data=st.binary(max_size=200))
def test_garbage_is_no_index(data: bytes) -> None:
    with pytest.raises(Integrity):
        decode_index(data, what="x")


@pytest.mark.parametrize("value", [None, [], "x", 1, {"format": "1"}, {"format": 1}, {"format": 1, "parts": 5}])
def test_what_is_sealed_and_no_index_breaks_the_format(value: Any) -> None:
    with pytest.raises((Format, Integrity)):
        decode_index(sealed(value), what="x")


def test_an_index_of_a_newer_format_is_refused_whatever_else_it_holds() -> None:
    with pytest.raises(Format, match="format 2, this tensorkeep knows 1: upgrade tensorkeep"):
        decode_index(sealed({"format": 2, "pieces": []}), what="x")


def test_fields_that_a_later_writer_adds_are_passed_over() -> None:
    assert decode_index(sealed(fields_of(make_index()) | {"zeal": 1}), what="x") == make_index()


BROKEN: dict[str, dict[str, Any]] = {
    "no parts": {"parts": [], "size_bytes": 0},
    "a size that is not the parts'": {"size_bytes": 8},
    "a negative size": {"size_bytes": -1},
    "a size past 2^63": {"size_bytes": 2**63},
    "a name with a folder": {"name": "../model.bin"},
    "no name": {"name": ""},
    "a name that is a folder": {"name": ".."},
    "a name with a NUL": {"name": "a\0b"},
    "a digest that is none": {"sha256": "xyz"},
    "a digest in capitals": {"blake3": DIGEST.upper()},
}
BROKEN_PARTS: dict[str, dict[str, Any]] = {
    "a gap": {"start": 4},
    "an overlap": {"start": 2},
    "a negative size": {"size_bytes": -4},
    "a size past the end": {"size_bytes": 5},
    "a name with a folder": {"name": "/etc/passwd"},
    "the name of another part": {"name": "model.bin.part-1-of-2"},
    "no folder": {"folder": ""},
    "a folder with a NUL": {"folder": "a\0b"},
    "a digest that is none": {"blake3": "00"},
    "a size that is a float": {"size_bytes": 4.5},
}


@pytest.mark.parametrize("what", BROKEN)
def test_an_index_that_contradicts_itself_is_refused(what: str) -> None:
    with pytest.raises(Format):
        decode_index(sealed(fields_of(make_index()) | BROKEN[what]), what="x")


@pytest.mark.parametrize("what", BROKEN_PARTS)
def test_an_index_with_a_broken_part_is_refused(what: str) -> None:
    fields = fields_of(make_index())
    fields["parts"][1] |= BROKEN_PARTS[what]
    with pytest.raises(Format):
        decode_index(sealed(fields), what="x")


def test_an_index_of_too_many_parts_is_refused() -> None:
    with pytest.raises(Format, match="10001 parts"):
        decode_index(sealed(fields_of(make_index((1,) * (PARTS_LIMIT + 1)))), what="x")


def test_an_index_over_its_limit_is_not_written() -> None:
    index = make_index((1,) * PARTS_LIMIT)
    assert len(encode_index(index)) < INDEX_LIMIT_BYTES
    fields = fields_of(index)
    long = tuple(
        PartEntry(**{**part, "folder": "/" + "x" * 2000})  # so deep a folder is no use to anybody
        for part in fields["parts"]
    )
    with pytest.raises(InvalidInput, match="make fewer parts"):
        encode_index(PartsIndex(name="m", size_bytes=PARTS_LIMIT, blake3=DIGEST, sha256=DIGEST, parts=long))


def test_a_name_that_is_not_unicode_is_not_written() -> None:
    with pytest.raises(InvalidInput, match="not valid Unicode"):
        encode_index(PartsIndex(name="\udcff", size_bytes=0, blake3=DIGEST, sha256=DIGEST, parts=()))
