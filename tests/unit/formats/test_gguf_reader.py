"""GGUF headers: what a right one says, and that a wrong one is refused by the rule it breaks."""

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from tensorkeep.errors import Format
from tensorkeep.formats import gguf_header
from tensorkeep.formats.checking import check_structure
from tensorkeep.formats.gguf import GGUF, TENSOR_TYPES, GgufReader, SplitInfo, read_split
from tensorkeep.formats.gguf_header import HEADER_LIMIT_BYTES, MAX_DEPTH, MAX_ENTRIES
from tensorkeep.formats.opaque import OPAQUE
from tensorkeep.formats.protocol import FileStructure, TensorLayout
from tensorkeep.formats.registry import find_reader
from tensorkeep.records.dtype import GGUF_DTYPES, get_dtype, packed_shape
from tests.unit.formats.gguf_bytes import (
    ARRAY,
    BOOL,
    FLOAT32,
    INT32,
    STRING,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
    Info,
    array,
    header,
    number,
    string,
    text,
    whole,
)

F32, Q4_0, Q4_K, BF16 = 0, 2, 12, 30
READER = GgufReader()


class Source:
    """A byte source that notes what is read; past its data it has zeros, up to its size."""

    def __init__(self, data: bytes, size_bytes: int | None = None) -> None:
        self.data = data
        self.size_bytes = len(data) if size_bytes is None else size_bytes
        self.reads: list[int] = []

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= self.size_bytes
        self.reads.append(length)
        return self.data[offset : offset + length].ljust(length, b"\0")


def structure(data: bytes, size_bytes: int | None = None) -> FileStructure:
    source = Source(data, size_bytes)
    found = READER.read_structure("model.gguf", source)
    check_structure(found, source.size_bytes)
    return found


def test_every_type_of_the_gguf_package_is_known_with_its_block() -> None:
    theirs = {int(kind): kind.name for kind in gguf.GGMLQuantizationType}
    assert {number: TENSOR_TYPES[number].removeprefix("GGUF:") for number in theirs} == theirs
    for kind, (elements, size_bytes) in gguf.GGML_QUANT_SIZES.items():
        dtype = get_dtype(TENSOR_TYPES[int(kind)])
        assert (dtype.block_elements, dtype.bits) == (elements, size_bytes * 8)
    assert set(GGUF_DTYPES) == {name for name in TENSOR_TYPES.values() if name.startswith("GGUF:")}


@pytest.mark.parametrize("name", GGUF_DTYPES)
def test_a_quantised_tensor_has_the_shape_that_the_gguf_package_gives_it(name: str) -> None:
    dtype = get_dtype(name)
    shape = (5, 3, 4 * dtype.block_elements)
    kind = gguf.GGMLQuantizationType[name.removeprefix("GGUF:")]
    assert packed_shape(shape, dtype) == gguf.quant_shape_to_byte_shape(shape, kind)
    assert dtype.numpy == np.uint8
    for wrong in ((5, dtype.block_elements + 1), ()):
        with pytest.raises(Format, match=f"whole blocks of {dtype.block_elements}"):
            packed_shape(wrong, dtype)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [None, 1, 8, 32, 64, 4096])
def test_tensors_are_found_in_numpys_order_of_dimensions(version: int, alignment: int | None) -> None:
    step = alignment or 32
    keys = {} if alignment is None else {"general.alignment": number(UINT32, alignment)}
    far = 192 + -192 % step
    infos = [Info("blk.0.q", [256, 3], Q4_K, far), Info("blk.0.w", [4, 3, 2, 2], F32, 0), Info("scalar", [], BF16, far)]
    infos[2] = infos[2]._replace(offset=far + 432 + -432 % step)
    head = header(keys, infos, version=version)
    data = whole(head, bytes(infos[2].offset + 2), alignment=step)
    start = len(data) - infos[2].offset - 2
    assert start % step == 0
    assert structure(data) == FileStructure(
        GGUF,
        (
            TensorLayout("blk.0.w", "F32", (2, 2, 3, 4), None, start, 192),
            TensorLayout("blk.0.q", "GGUF:Q4_K", (3, 256), None, start + far, 432),
            TensorLayout("scalar", "BF16", (), None, start + infos[2].offset, 2),
        ),
    )


def test_a_path_chooses_the_reader_in_any_case() -> None:
    assert find_reader("sub/Model-Q4_K_M.GGUF").name == GGUF
    assert find_reader("model.gguf.txt").name == OPAQUE


def test_a_file_without_tensors_needs_no_padding() -> None:
    assert structure(header({"a": number(UINT8, 1)})) == FileStructure(GGUF, ())


def test_tensors_without_elements_are_tensors_and_share_a_place_with_others() -> None:
    infos = [Info("a", [4], F32, 0), Info("none", [0, 7], F32, 0), Info("no blocks", [0], Q4_0, 0)]
    found = structure(whole(header({}, infos), bytes(16)))
    assert [(t.name, t.shape, t.length) for t in found.tensors] == [
        ("no blocks", (0,), 0),
        ("none", (7, 0), 0),
        ("a", (4,), 16),
    ]


ONE = [Info("w", [4], F32, 0)]


def one(**changes: Any) -> bytes:
    """Return a file with one tensor, changed."""
    return whole(header({}, [ONE[0]._replace(**changes)]), bytes(64))


BROKEN = {
    "empty": (b"", "needs 4 more bytes"),
    "magic": (header(magic=b"GGML"), "starts with b'GGML'"),
    "version 0": (header(version=0), "version 0"),
    "cut in the version": (b"GGUF\3\0", "incomplete download"),
    "cut in the counts": (header()[:20], "incomplete download"),
    "2^63 keys": (header(key_count=1 << 63), f"{1 << 63} keys by its count, and 0 bytes"),
    "2^64 - 1 tensors": (header(tensor_count=(1 << 64) - 1), "tensors by its count"),
    "more tensors than bytes": (header({}, ONE, tensor_count=3), "has 3 tensors by its count"),
    "more keys than there are": (whole(header({"a": string("x" * 40)}, key_count=2)), "key '' is empty"),
    "a key past the end": (header(key_count=1) + (50).to_bytes(8, "little") + bytes(20), "needs 50 more bytes"),
    "a key of 2^63": (header(key_count=1) + (1 << 63).to_bytes(8, "little") + bytes(20), "limit is 65535"),
    "an empty key": (header({"": number(UINT32, 1)}), "key '' is empty"),
    "a key twice": (header([("a", number(UINT8, 1)), ("a", number(UINT32, 2))]), "key 'a' is there twice"),
    "a key that is not UTF-8": (header([(b"\xff\xfe", number(UINT32, 1))]), "not UTF-8"),
    "an unknown type": (header({"a": struct.pack("<I", 13) + bytes(8)}), "key 'a' has a value of the unknown type 13"),
    "an array of an unknown type": (header({"a": array(99, [bytes(8)])}), "key 'a' is an array of the unknown type 99"),
    "a text past the end": (header({"a": string("xyz")})[:-1], "key 'a' needs 3 more bytes"),
    "a text of 2^63": (header({"a": struct.pack("<IQ", STRING, 1 << 63) + bytes(9)}), f"needs {1 << 63} more bytes"),
    "2^63 texts": (header({"a": array(STRING, [text("x")], 1 << 63)}), f"{1 << 63} texts by its count"),
    "2^63 numbers": (header({"a": array(UINT32, [bytes(4)], 1 << 63)}), "key 'a' needs"),
    "2^63 arrays": (header({"a": array(ARRAY, [bytes(12)], 1 << 63)}), f"{1 << 63} arrays by its count"),
    "one text too many": (header({"a": array(STRING, [text("x"), text("y")], 3)}), "key 'a' has 3 texts by its count"),
    "a text in an array past the end": (header({"a": array(STRING, [text("x"), b"\xff" * 8])}), "key 'a' needs"),
    "arrays too deep": (header({"a": struct.pack("<I", ARRAY) + struct.pack("<IQ", ARRAY, 1) * 30}), "8 deep"),
    "alignment 0": (header({"general.alignment": number(UINT32, 0)}), "'general.alignment' is 0"),
    "alignment 48": (header({"general.alignment": number(UINT32, 48)}), "no power of two"),
    "alignment of 8 bytes": (header({"general.alignment": number(UINT64, 32)}), "it is a UINT32"),
    "alignment of a list": (header({"general.alignment": array(UINT32, [bytes(4)])}), "it is a UINT32"),
    "a tensor twice": (whole(header({}, [ONE[0], ONE[0]._replace(offset=32)]), bytes(64)), "tensor 'w' is there twice"),
    "five dimensions": (one(dims=[1, 1, 1, 1, 1]), "tensor 'w' has 5 dimensions"),
    "no whole block": (one(type=Q4_0, dims=[33]), "tensor 'w' of type GGUF:Q4_0 .* whole blocks of 32"),
    "a scalar of blocks": (one(type=Q4_0, dims=[]), "whole blocks of 32"),
    "a size of 2^63": (one(dims=[1 << 63]), "tensor 'w' has a shape whose product overflows"),
    "a product that wraps": (one(dims=[1 << 32, 1 << 31, 2]), "product overflows"),
    "a product that wraps behind a zero": (one(dims=[1 << 62, 0]), "product overflows"),
    "an unaligned offset": (one(offset=16), "tensor 'w' starts at 16 of the data"),
    "an offset out of the file": (one(offset=64), "tensor 'w' ends at byte"),
    "an offset that wraps": (one(offset=(1 << 64) - 32), "tensor 'w' ends at byte"),
    "a tensor longer than the file": (one(dims=[17]), "ends at byte .* incomplete download"),
    "two tensors in one place": (
        whole(header({}, [Info("a", [9], F32, 0), Info("b", [4], F32, 32)]), bytes(64)),
        "tensor 'b' overlaps 'a'",
    ),
    "a name past the end": (header(tensor_count=1) + (1 << 40).to_bytes(8, "little") + bytes(40), "limit is 65535"),
    "an entry cut short": (header({}, ONE)[:-1], "has 1 tensors by its count|tensor 'w' needs"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_is_refused_by_the_rule_it_breaks(what: str) -> None:
    data, words = BROKEN[what]
    with pytest.raises(Format, match=words):
        READER.read_structure("model.gguf", Source(data))


def test_the_refusal_names_its_key_or_tensor_as_a_fact() -> None:
    for what, facts in (("a key twice", {"key": "a"}), ("five dimensions", {"tensor": "w"})):
        with pytest.raises(Format) as refused:
            READER.read_structure("model.gguf", Source(BROKEN[what][0]))
        assert refused.value.facts == facts


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (header(version=1), "version 1"),
        (header(version=4), "version 4"),
        (header(version=3 << 24), "big-endian"),
        (one(type=31), "tensor 'w' has the type 31"),
        (one(type=4_000_000_000), "tensor 'w' has the type 4000000000"),
    ],
)
def test_a_valid_file_that_is_not_understood_is_opaque_and_says_why(data: bytes, words: str) -> None:
    found = structure(data)
    assert (found.format, found.tensors) == (OPAQUE, ())
    assert words in found.note


def test_a_big_endian_file_of_the_gguf_package_is_opaque(tmp_path: Path) -> None:
    path = tmp_path / "big.gguf"
    writer = gguf.GGUFWriter(path, "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_tensor("w", np.arange(4, dtype="f4"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "big-endian" in structure(path.read_bytes()).note


def test_a_vocabulary_is_skipped_through_a_small_window() -> None:
    tokens = [text("x" * (index % 20)) for index in range(60_000)]
    keys = {"tokens": array(STRING, tokens), "scores": array(FLOAT32, [bytes(4)] * 3_000_000), "end": string("done")}
    source = Source(whole(header(keys, ONE), bytes(16)))
    assert len(READER.read_structure("model.gguf", source).tensors) == 1
    assert max(source.reads) <= 4 << 20
    assert sum(source.reads) < 3 << 20  # the scores, 12 MB, are not read


@pytest.mark.parametrize("kind", [UINT8, FLOAT32, STRING, ARRAY])
def test_a_count_that_a_huge_file_could_hold_ends_at_the_limit_of_headers(kind: int) -> None:
    data = header({"a": array(kind, [], 1 << 32)})
    source = Source(data, 1 << 50)
    with pytest.raises(Format, match=r"header ends at the latest|by its count"):
        READER.read_structure("model.gguf", source)
    assert sum(source.reads) <= 1 << 20


def test_a_header_has_at_most_a_million_keys_tensors_and_arrays() -> None:
    for data in (
        header(key_count=MAX_ENTRIES + 1),
        header(tensor_count=MAX_ENTRIES + 1),
        header({"a": array(ARRAY, [], MAX_ENTRIES + 1) + bytes(100)}),
    ):
        source = Source(data, HEADER_LIMIT_BYTES)
        with pytest.raises(Format, match=f"{MAX_ENTRIES}"):
            READER.read_structure("model.gguf", source)


def test_arrays_nest_as_deep_as_allowed() -> None:
    value = array(UINT16, [b"\1\0", b"\2\0"])[4:]
    for _ in range(MAX_DEPTH - 1):
        value = struct.pack("<IQ", ARRAY, 1) + value
    data = header({"a": struct.pack("<I", ARRAY) + value, "b": number(BOOL, True)})
    assert structure(data).format == GGUF
    nested = READER.read_metadata("model.gguf", Source(data))["a"]
    for _ in range(MAX_DEPTH - 1):
        (nested,) = nested
    assert nested == [1, 2]


def test_metadata_has_every_value_in_the_order_of_the_file() -> None:
    keys = {
        "z.text": string("größe"),
        "bytes": string(b"half \xe2\x98"),
        "general.alignment": number(UINT32, 64),
        "minus": number(INT32, -7),
        "large": number(UINT64, (1 << 64) - 1),
        "eps": number(FLOAT32, 0.5),
        "yes": number(BOOL, True),
        "list": array(STRING, [text("a"), text("")]),
        "flags": array(BOOL, [b"\1", b"\0", b"\2"]),
        "none": array(FLOAT32, []),
        "deep": array(ARRAY, [struct.pack("<IQ", UINT8, 2) + b"\1\2", struct.pack("<IQ", STRING, 0)]),
    }
    found = READER.read_metadata("model.gguf", Source(whole(header(keys, ONE), bytes(64), alignment=64)))
    assert list(found) == list(keys)
    assert found == {
        "z.text": "größe",
        "bytes": "half \\xe2\\x98",
        "general.alignment": 64,
        "minus": -7,
        "large": (1 << 64) - 1,
        "eps": 0.5,
        "yes": True,
        "list": ["a", ""],
        "flags": [True, False, True],
        "none": [],
        "deep": [[1, 2], []],
    }
    assert found["yes"] is True


def test_metadata_of_a_broken_or_unknown_file_is_refused() -> None:
    for what in ("2^63 texts", "2^63 numbers", "2^63 arrays", "a text of 2^63", "an unknown type", "arrays too deep"):
        with pytest.raises(Format, match="key 'a'"):
            READER.read_metadata("model.gguf", Source(BROKEN[what][0]))
    with pytest.raises(Format, match="it is big-endian"):
        READER.read_metadata("model.gguf", Source(header(version=3 << 24)))


def test_metadata_makes_a_bounded_number_of_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_header, "MAX_VALUES", 10)
    right = header({"a": array(UINT8, [b"x"] * 6), "b": array(STRING, [text("")] * 4)})
    assert len(READER.read_metadata("model.gguf", Source(right))) == 2
    wrong = header({"a": array(UINT8, [b"x"] * 6), "b": array(STRING, [text("")] * 5)})
    with pytest.raises(Format, match="key 'b' makes over 10 values"):
        READER.read_metadata("model.gguf", Source(wrong))
    assert structure(wrong).format == GGUF


def test_what_a_file_says_of_its_being_split_is_read() -> None:
    keys = {"split.no": number(UINT16, 1), "split.count": number(UINT16, 3), "split.tensors.count": number(INT32, 9)}
    assert read_split(Source(header(keys))) == SplitInfo(1, 3, 9)
    del keys["split.tensors.count"]
    assert read_split(Source(header(keys))) == SplitInfo(1, 3, None)
    assert read_split(Source(header(keys | {"split.no": string("1")}))) is None
    assert read_split(Source(header({}))) is None
    assert read_split(Source(header(keys, version=1))) is None
