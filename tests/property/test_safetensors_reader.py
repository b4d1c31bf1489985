"""Whatever bytes a `.safetensors` file has, the reader gives its structure or a Format error, and never more than the library reads."""

import json
import random
from typing import Any

import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorkeep.errors import Format
from tensorkeep.formats.protocol import FileStructure
from tensorkeep.formats.safetensors import SafetensorsReader
from tensorkeep.records.dtype import DTYPES


class Source:
    """A byte source over bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= len(self.data)
        return self.data[offset : offset + length]


def check(data: bytes) -> bool:
    """Return whether the reader accepts a file; assert that the library then finds the same in it."""
    try:
        structure = SafetensorsReader().read_structure("model.safetensors", Source(data))
    except Format:
        return False
    found: dict[str, Any] = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
    assert {tensor.name for tensor in structure.tensors} == set(found)
    for tensor in structure.tensors:
        assert (tensor.dtype, list(tensor.shape)) == (found[tensor.name]["dtype"], found[tensor.name]["shape"])
        assert data[tensor.start : tensor.start + tensor.length] == bytes(found[tensor.name]["data"])
    assert_covers(structure, data)
    return True


def assert_covers(structure: FileStructure, data: bytes) -> None:
    position = 8 + int.from_bytes(data[:8], "little")
    for tensor in structure.tensors:
        assert tensor.start == position
        position += tensor.length
    assert position == len(data)


def file_of(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


NUMBERS: st.SearchStrategy[Any] = st.one_of(
    st.integers(-2, 9), st.sampled_from([2**31, 2**32, 2**63 - 1, 2**63, 2**64, 1.0, True, None, "1", []])
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.one_of(st.sampled_from(list(DTYPES)), st.sampled_from(["F128", "u8", "", None, 3, "a:b"])),
        "shape": st.one_of(st.lists(NUMBERS, max_size=4), NUMBERS),
        "data_offsets": st.one_of(st.lists(NUMBERS, max_size=3), st.tuples(st.just(0), st.integers(0, 9))),
        "extra": st.none(),
    },
)
HEADERS = st.dictionaries(
    st.sampled_from(["a", "b", "ö:\u0000", "", "__metadata__"]),
    st.one_of(FIELDS, st.dictionaries(st.text(max_size=2), st.one_of(st.text(max_size=2), NUMBERS)), NUMBERS),
    max_size=3,
)


@settings(max_examples=1500, deadline=None)
@given(
    header=HEADERS,
    ascii_only=st.booleans(),
    padding=st.sampled_from([b"", b"  ", b"\n", b"x"]),
    data=st.binary(max_size=20),
)
def test_no_header_crashes_the_reader(header: dict[str, Any], ascii_only: bool, padding: bytes, data: bytes) -> None:
    text = json.dumps(header, ensure_ascii=ascii_only).encode()
    check(file_of(text + padding, data))


@settings(max_examples=1500, deadline=None)
@given(data=st.binary(max_size=64))
def test_no_bytes_crash_the_reader(data: bytes) -> None:
    check(data)
    check(file_of(data, b""))
    check(file_of(b"{" + data, b"x"))
    check(file_of(b'{"a":' + data + b"}", b"x"))


@st.composite
def legal_files(draw: st.DrawFn) -> bytes:
    """Files that follow every rule, their tensors in any order of the header."""
    fields: dict[str, Any] = {}
    offset = 0
    for name in draw(
        st.lists(st.text(max_size=5).filter(lambda name: name != "__metadata__"), max_size=5, unique=True)
    ):
        dtype = draw(st.sampled_from(list(DTYPES)))
        shape = [*draw(st.lists(st.integers(0, 3), max_size=3)), 8]
        length = DTYPES[dtype].bits
        for size in shape[:-1]:
            length *= size
        fields[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + length]}
        offset += length
    if draw(st.booleans()):
        fields["__metadata__"] = draw(st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2))
    order = draw(st.permutations(sorted(fields)))
    text = json.dumps({name: fields[name] for name in order}, ensure_ascii=draw(st.booleans())).encode()
    return file_of(text + b" " * draw(st.integers(0, 9)), random.Random(offset).randbytes(offset))


@settings(max_examples=300, deadline=None)
@given(data=legal_files())
def test_every_legal_file_is_read(data: bytes) -> None:
    assert check(data)


def test_a_hundred_thousand_damaged_files_give_structures_or_format_errors() -> None:
    rng = random.Random(20260)
    header = (
        b'{"__metadata__":{"format":"pt"},"a.0.w":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},'
        b'"b":{"dtype":"F4","shape":[4],"data_offsets":[8,10]},"\xc3\xb6":{"dtype":"U8","shape":[0],"data_offsets":[10,10]}}  '
    )
    good = file_of(header, bytes(range(10)))
    assert check(good)
    accepted = sum(check(_damage(good, rng)) for _ in range(100_000))
    assert 1_000 < accepted < 50_000, "damage to data and names passes, damage to the structure does not"


def _damage(good: bytes, rng: random.Random) -> bytes:
    data = bytearray(good)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data))
        match rng.randrange(5):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at] = rng.choice(b'{}[]",:0123456789-.eE\\ \0\xff')
            case 2:
                del data[at : at + rng.randint(1, 8)]
            case 3:
                data[at:at] = data[at : at + rng.randint(1, 30)]
            case _:
                data[0] = rng.randrange(256)
        data = data or bytearray(1)
    return bytes(data)
