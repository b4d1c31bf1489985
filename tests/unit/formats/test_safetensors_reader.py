"""The reader of safetensors headers, held to what the safetensors library reads and refuses."""

import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch

from tensorkeep.errors import Format
from tensorkeep.formats.protocol import FileStructure
from tensorkeep.formats.safetensors import HEADER_LIMIT_BYTES, MAX_RANK, SafetensorsReader
from tensorkeep.records.dtype import DTYPES

TORCH_DTYPES = {
    "BOOL": torch.bool,
    "F4": torch.float4_e2m1fn_x2,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "C64": torch.complex64,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}


class Bytes:
    """A byte source over bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        assert offset + length <= len(self.data), "a reader must not read past the end"
        return self.data[offset : offset + length]


def read(data: bytes) -> FileStructure:
    return SafetensorsReader().read_structure("model.safetensors", Bytes(data))


def info(dtype: Any = "U8", shape: Any = (1,), offsets: Any = (0, 1)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def file_of(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def library_reads(data: bytes) -> dict[str, Any] | None:
    """Return the tensors that the safetensors library finds, or None where it refuses the file."""
    try:
        return dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError:
        return None


def assert_same_as_library(data: bytes) -> None:
    expected = library_reads(data)
    assert expected is not None
    structure = read(data)
    assert {tensor.name for tensor in structure.tensors} == set(expected)
    for tensor in structure.tensors:
        found = expected[tensor.name]
        assert tensor.dtype == found["dtype"]
        assert list(tensor.shape) == found["shape"]
        assert data[tensor.start : tensor.start + tensor.length] == bytes(found["data"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (4,), (3, 8), (2, 3, 4)])
def test_every_dtype_and_shape_is_read_as_the_library_reads_it(dtype: str, shape: tuple[int, ...]) -> None:
    bits = math.prod(shape) * DTYPES[dtype].bits
    length = bits // 8
    data = file_of({"w": info(dtype, shape, (0, length))}, bytes(range(length)))
    if bits % 8:
        assert library_reads(data) is None
        with pytest.raises(Format, match="'w'"):
            read(data)
    else:
        assert_same_as_library(data)


def test_the_library_knows_no_other_dtype() -> None:
    with pytest.raises(safetensors.SafetensorError) as refused:
        safetensors.deserialize(file_of({"w": info("NO_SUCH", (0,), (0, 0))}))  # type: ignore[no-untyped-call]
    known = str(refused.value).partition("expected one of ")[2].partition(" at line")[0]
    assert [name.strip(" `") for name in known.split(",")] == list(DTYPES)


@pytest.mark.parametrize("dtype", TORCH_DTYPES)
def test_files_that_torch_wrote_are_read(dtype: str, tmp_path: Path) -> None:
    raw = torch.arange(64, dtype=torch.uint8).bitwise_and(1 if dtype == "BOOL" else 255)
    tensors = {"a.weight": raw.view(TORCH_DTYPES[dtype]), "b": raw[:16].clone().view(TORCH_DTYPES[dtype])}
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    data = path.read_bytes()
    assert_same_as_library(data)
    loaded = safetensors.torch.load_file(path)
    for tensor in read(data).tensors:
        assert tensor.dtype == dtype
        stored = data[tensor.start : tensor.start + tensor.length]
        assert stored == bytes(loaded[tensor.name].view(torch.uint8).tolist())


@pytest.mark.parametrize("dtype", [name for name, dtype in DTYPES.items() if dtype.bits >= 8])
def test_files_that_numpy_wrote_give_the_same_array(dtype: str) -> None:
    numpy_dtype = DTYPES[dtype].numpy
    written = {"x": np.arange(24).astype(np.uint8).repeat(numpy_dtype.itemsize).view(numpy_dtype).reshape(4, 6)}
    try:
        data = safetensors.numpy.save(written)
    except (KeyError, ValueError, TypeError):  # numpy's part of the library does not know every ml_dtypes type
        assert numpy_dtype.type.__module__.startswith(ml_dtypes.__name__)
        data = file_of({"x": info(dtype, [4, 6], [0, 24 * numpy_dtype.itemsize])}, written["x"].tobytes())
    assert_same_as_library(data)
    (tensor,) = read(data).tensors
    array = np.frombuffer(data, numpy_dtype, offset=tensor.start, count=24).reshape(tensor.shape)
    assert array.tobytes() == written["x"].tobytes()


ONE = {"a": info()}
LEGAL = {
    "no tensors": file_of({}),
    "spaces after the header": file_of(b"{}     "),
    "other white space after the header": file_of(b"{}\n\t\r "),
    "white space inside": file_of(b'{ "a" : { "dtype" : "U8",\n"shape" : [ 1 ] , "data_offsets":[0 ,1]} } ', b"x"),
    "metadata": file_of({"__metadata__": {"format": "pt", "ä:": '"'}, "a": info()}, b"x"),
    "only metadata": file_of({"__metadata__": {}}),
    "any order": file_of({"b": info(offsets=(1, 2)), "a": info()}, b"xy"),
    "zero-size tensors": file_of({"a": info(shape=(0,), offsets=(0, 0)), "b": info("F32", (3, 0), (0, 0))}),
    "a zero-size tensor first": file_of({"b": info(), "a": info("F32", (3, 0), (0, 0))}, b"x"),
    "a zero-size tensor last": file_of({"a": info("F32", (3, 0), (1, 1)), "b": info()}, b"x"),
    "an escaped field name": file_of(b'{"a":{"d\\u0074ype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"),
    "an empty name": file_of({"": info()}, b"x"),
    "a name with NUL and colons": file_of({"a\0:b:": info()}, b"x"),
    "a name beyond ASCII": file_of('{"größe.😀":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'.encode(), b"x"),
    "an unaligned header": file_of(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}} ', b"xxxx"),
    "rows of half bytes": file_of({"a": info("F4", (2, 3), (0, 3))}, b"xxx"),
}

REFUSED_BY_BOTH = {
    "an empty file": (b"", "0 bytes"),
    "less than a length": (b"\1\0\0", "3 bytes"),
    "an empty header": (file_of(b""), "starts with"),
    "a length past the end": (file_of(b"{}", length=100), "100 bytes"),
    "a huge length": (file_of(b"{}", length=2**64 - 1), "limit"),
    "a length over the limit": (file_of(b"{}", length=HEADER_LIMIT_BYTES + 1), "limit"),
    "an array": (file_of(b"[]"), "starts with"),
    "a byte order mark": (file_of(b"\xef\xbb\xbf{}"), "starts with"),
    "text after the header": (file_of(b"{}x"), "JSON"),
    "an open brace": (file_of(b'{"a":'), "JSON"),
    "a trailing comma": (file_of(b'{"__metadata__":{},}'), "JSON"),
    "deep nesting": (file_of(b'{"a":' * 100_000), "JSON"),
    "a name that is not UTF-8": (file_of(b'{"\xff":1}'), "JSON"),
    "a value that is not UTF-8": (file_of(b'{"__metadata__":{"a":"\xff"}}'), "JSON"),
    "a lone surrogate": (file_of(b'{"\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"), "JSON"),
    "a control character": (file_of(b'{"\x01":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"), "JSON"),
    "metadata of numbers": (file_of({"__metadata__": {"a": 1}}), "__metadata__"),
    "metadata of nulls": (file_of({"__metadata__": {"a": None}}), "__metadata__"),
    "metadata of lists": (file_of({"__metadata__": []}), "__metadata__"),
    "metadata twice": (file_of(b'{"__metadata__":{},"__metadata__":{}}'), "'__metadata__' twice"),
    "a tensor of null": (file_of({"a": None}), "'a'"),
    "a tensor of a number": (file_of({"a": 3}), "'a'"),
    "no offsets": (file_of({"a": {"dtype": "U8", "shape": [1]}}, b"x"), "'a'.*data_offsets"),
    "one offset": (file_of({"a": info(offsets=[0])}, b"x"), "'a'"),
    "three offsets": (file_of({"a": info(offsets=[0, 1, 2])}, b"x"), "'a'"),
    "a dtype twice": (
        file_of(b'{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"),
        "'a'.*twice",
    ),
    "an unknown dtype": (file_of({"a": info("F128")}, b"x"), "'a'.*F128"),
    "a lower-case dtype": (file_of({"a": info("u8")}, b"x"), "'a'.*u8"),
    "a float in the shape": (file_of({"a": info(shape=[1.0])}, b"x"), "'a'"),
    "a boolean in the shape": (file_of({"a": info(shape=[True])}, b"x"), "'a'"),
    "a negative shape": (file_of({"a": info(shape=[-1, -1])}, b"x"), "'a'.*negative"),
    "minus zero": (file_of(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[-0,1]}}', b"x"), "'a'.*negative"),
    "an overflowing product": (file_of({"a": info(shape=[2**32, 2**32], offsets=[0, 0])}), "'a'.*overflow"),
    "an overflow before a zero": (file_of({"a": info(shape=[2**63, 2**63, 0], offsets=[0, 0])}), "'a'.*overflow"),
    "an offset of 2^64": (file_of({"a": info(offsets=[2**64 - 1, 2**64])}, b"x"), "'a'"),
    "an endless number": (file_of(b'{"a":{"dtype":"U8","shape":[' + b"9" * 9999 + b'],"data_offsets":[0,1]}}'), "'a'"),
    "an end before the start": (file_of({"a": info(offsets=[1, 0])}, b"x"), "'a'.*before its start"),
    "a shape of more bytes": (file_of({"a": info(shape=[2])}, b"x"), "'a'.*16 bits"),
    "a shape of fewer bytes": (file_of({"a": info(shape=[])}, b"xx"), "'a'|no tensor"),
    "half a byte": (file_of({"a": info("F4", [3], [0, 2])}, b"xx"), "'a'.*12 bits"),
    "a hole": (file_of({"a": info(), "b": info(offsets=[2, 3])}, b"xyz"), "'b'.*hole"),
    "a hole at the start": (file_of({"a": info(offsets=[1, 2])}, b"xy"), "'a'.*hole"),
    "an overlap": (file_of({"a": info(shape=[2], offsets=[0, 2]), "b": info(offsets=[1, 2])}, b"xy"), "'b'.*overlap"),
    "the same bytes twice": (file_of({"a": info(), "b": info()}, b"x"), "'b'.*overlap"),
    "a zero-size tensor inside": (
        file_of({"a": info(shape=[2], offsets=[0, 2]), "b": info(shape=[0], offsets=[1, 1])}, b"xy"),
        "'b'.*overlap",
    ),
    "a truncated file": (file_of({"a": info(shape=[2], offsets=[0, 2])}, b"x"), "'a'.*incomplete"),
    "bytes after the last tensor": (file_of(ONE, b"xy"), "no tensor owns"),
}

REFUSED_BY_US_ONLY = {
    "a space before the header": (file_of(b" {}"), "starts with"),
    "no metadata": (file_of({"__metadata__": None}), "__metadata__"),
    "a name twice": (
        file_of(
            b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
            b"x",
        ),
        "'a' twice",
    ),
    "an escaped name twice": (
        file_of(
            b'{":":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"\\u003a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
            b"x",
        ),
        "':' twice",
    ),
    "a metadata key twice": (file_of(b'{"__metadata__":{"k":"1","k":"2"}}'), "__metadata__.*'k' twice"),
    "another field": (file_of({"a": {**info(), "strides": [1]}}, b"x"), "'a'.*strides"),
    "a tensor as a list": (file_of(b'{"a":["U8",[1],[0,1]]}', b"x"), "'a'"),
    "more dimensions than arrays have": (file_of({"a": info(shape=[1] * (MAX_RANK + 1))}, b"x"), "'a'.*65 dim"),
    "an overflow after a zero": (file_of({"a": info(shape=[0, 2**63], offsets=[0, 0])}), "'a'.*overflow"),
}


@pytest.mark.parametrize("data", LEGAL.values(), ids=LEGAL)
def test_legal_files_are_read_as_the_library_reads_them(data: bytes) -> None:
    assert_same_as_library(data)


@pytest.mark.parametrize(("data", "rule"), REFUSED_BY_BOTH.values(), ids=REFUSED_BY_BOTH)
def test_what_the_library_refuses_is_refused_naming_tensor_and_rule(data: bytes, rule: str) -> None:
    assert library_reads(data) is None
    with pytest.raises(Format, match=rule):
        read(data)


@pytest.mark.parametrize(("data", "rule"), REFUSED_BY_US_ONLY.values(), ids=REFUSED_BY_US_ONLY)
def test_what_the_specification_forbids_is_refused_though_the_library_reads_it(data: bytes, rule: str) -> None:
    assert library_reads(data) is not None
    with pytest.raises(Format, match=rule):
        read(data)


def test_metadata_is_read_as_it_stands_in_the_header() -> None:
    metadata = {"format": "pt", "ä:": '"', "lm_head": "wte"}
    read_metadata = SafetensorsReader().read_metadata
    assert read_metadata("x", Bytes(file_of({"__metadata__": metadata, "a": info()}, b"x"))) == metadata
    assert read_metadata("x", Bytes(file_of({"a": info()}, b"x"))) == {}
    with pytest.raises(Format, match="'k' twice"):
        read_metadata("x", Bytes(file_of(b'{"__metadata__":{"k":"1","k":"2"}}')))


def test_starts_count_from_the_file_and_tensors_are_ordered_by_them() -> None:
    data = file_of({"b": info(offsets=(1, 2)), "z": info(shape=(0,), offsets=(1, 1)), "a": info()}, b"xy")
    tensors = read(data).tensors
    assert [tensor.name for tensor in tensors] == ["a", "z", "b"]
    assert [data[tensor.start : tensor.start + tensor.length] for tensor in tensors] == [b"x", b"", b"y"]
    assert all(tensor.strides is None for tensor in tensors)


@pytest.mark.parametrize("path", ["a.safetensors", "sub/B.SafeTensors"])
def test_the_reader_claims_paths_by_their_suffix_in_any_case(path: str) -> None:
    assert SafetensorsReader().claims(path)
    assert not SafetensorsReader().claims(path + ".index.json")


def test_the_largest_header_is_read() -> None:
    assert read(file_of(b"{}" + b" " * (HEADER_LIMIT_BYTES - 2))).tensors == ()


def test_sixty_thousand_tensors_are_read() -> None:
    count = 60_000
    header = {f"layers.{i % 80}.experts.{i}.weight": info("BF16", [2, 2], [8 * i, 8 * i + 8]) for i in range(count)}
    data = file_of(header, bytes(8 * count))
    assert len(read(data).tensors) == count
