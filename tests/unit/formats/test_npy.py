"""The readers of npy and npz files, held to what numpy reads and refuses."""

import io
import warnings
import zipfile
import zlib
from typing import Any

import ml_dtypes
import numpy as np
import numpy.lib.format as npy_format
import numpy.typing as npt
import pytest

from tensorkeep.errors import Format, InvalidInput
from tensorkeep.formats.checking import check_structure
from tensorkeep.formats.npy import NpyReader
from tensorkeep.formats.npy_header import HEADER_LIMIT_BYTES, MAX_RANK, parse_literal
from tensorkeep.formats.npz import NpzReader
from tensorkeep.formats.opaque import OPAQUE
from tensorkeep.formats.protocol import FileStructure, RangeSource, TensorLayout
from tensorkeep.records.dtype import DTYPES, find_dtype
from tests.unit.formats.zip_bytes import Fields, MadeMember, make_zip

NUMBERS = ["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "f16", "c8", "c16", "c32"]
TIMES = ["M8", "M8[ns]", "M8[25us]", "M8[D]", "m8", "m8[as]", "m8[7Y]"]
EVERY_DTYPE = sorted({np.dtype(order + kind).str for order in "<>" for kind in (*NUMBERS, *TIMES)} - {">M8", ">m8"})
SHAPES: list[tuple[int, ...]] = [(), (0,), (1,), (5,), (3, 4), (3, 0, 2), (2, 3, 4), (1, 5), (5, 1), (1, 1), (2, 1, 3)]


class Bytes:
    """A byte source over bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        assert offset >= 0
        assert offset + length <= len(self.data), "a reader must not read past the end"
        return self.data[offset : offset + length]


def read(data: bytes, path: str = "w.npy") -> FileStructure:
    structure = (NpzReader() if path.endswith("npz") else NpyReader()).read_structure(path, Bytes(data))
    check_structure(structure, len(data))
    return structure


def saved(array: Any, version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # numpy warns of versions above 1.0
        npy_format.write_array(file, np.asanyarray(array), version)
    return file.getvalue()


def filled(dtype: str, shape: tuple[int, ...], *, fortran: bool = False) -> npt.NDArray[Any]:
    kind = np.dtype(dtype)
    count = int(np.prod(shape))
    raw = np.arange(count, dtype=np.uint8) % 2 if kind.kind == "b" else np.arange(count * kind.itemsize, dtype=np.uint8)
    return raw.view(kind).reshape(shape).copy(order="F" if fortran else "C")


def as_laid_out(data: bytes, tensor: TensorLayout) -> npt.NDArray[Any]:
    """Return the array that a layout says lies in the bytes."""
    dtype = find_dtype(tensor.dtype)
    assert dtype is not None
    stored = data[tensor.start : tensor.start + tensor.length]
    strides = None if tensor.strides is None else [stride * dtype.numpy.itemsize for stride in tensor.strides]
    return np.ndarray(tensor.shape, dtype.numpy, stored, strides=strides)


def assert_same(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
    assert found.dtype == expected.dtype
    assert found.dtype.str == expected.dtype.str
    assert found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize("dtype", EVERY_DTYPE)
def test_every_dtype_shape_and_order_is_read_as_numpy_reads_it(dtype: str, fortran: bool) -> None:
    for shape in SHAPES:
        data = saved(filled(dtype, shape, fortran=fortran))
        (tensor,) = read(data, "folder/w.npy").tensors
        assert tensor.name == "w"
        assert_same(as_laid_out(data, tensor), np.load(io.BytesIO(data)))
        c_too = 0 in shape or sum(size > 1 for size in shape) < 2
        assert (tensor.strides is None) == (not fortran or c_too)


def test_an_array_without_elements_has_no_strides_whatever_its_header_says() -> None:
    (tensor,) = read(simple(order="True", shape="(3, 0, 2)", data=b"")).tensors
    assert tensor == TensorLayout("w", "F32", (3, 0, 2), None, tensor.start, 0)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_format_is_read(version: tuple[int, int]) -> None:
    data = saved(filled("<f4", (3, 4)), version)
    (tensor,) = read(data).tensors
    assert_same(as_laid_out(data, tensor), np.load(io.BytesIO(data)))


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
def test_a_dtype_has_one_name_and_the_name_one_dtype(dtype: str) -> None:
    (tensor,) = read(saved(filled(dtype, (2,)))).tensors
    found = find_dtype(tensor.dtype)
    assert found is not None
    assert found.numpy == np.dtype(dtype)
    assert found.bits == 8 * np.dtype(dtype).itemsize
    assert (tensor.dtype in DTYPES) == (np.dtype(dtype) in [kind.numpy for kind in DTYPES.values()])
    assert tensor.dtype in DTYPES or tensor.dtype == f"NPY:{dtype}"


# Not canonical; not numbers; not of numpy; of numpy only while no array has it.
OTHER_SPELLINGS = [
    "<f4",
    "|b1",
    "=c16",
    "c16",
    "|c16",
    "<M8[1ns]",
    "<M8[0ns]",
    "|O",
    "<U3",
    "<V2",
    "f12",
    "<f1",
    "i4,f4",
    "float32",
    "NPY:<c16",
    "<M8[B]",
    ">M8",
    ">m8",
]


@pytest.mark.parametrize("name", [*OTHER_SPELLINGS, "<M8[9999999999s]", "", "<c16 ", "<c16\n", "<c\u0661\u0666"])
def test_no_other_spelling_names_a_dtype(name: str) -> None:
    assert find_dtype(f"NPY:{name}") is None


def header(text: str | bytes, data: bytes = b"", version: bytes = b"\1\0") -> bytes:
    raw = text if isinstance(text, bytes) else text.encode("utf-8" if version == b"\3\0" else "latin-1")
    return b"\x93NUMPY" + version + len(raw).to_bytes(2 if version == b"\1\0" else 4, "little") + raw + data


def simple(descr: str = "'<f4'", order: str = "False", shape: str = "(2,)", data: bytes = bytes(8)) -> bytes:
    return header(f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n", data)


LEGAL = {
    "plain": simple(),
    "no last comma": header("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", bytes(8)),
    "another order of keys": header('{"shape":(2,),"descr":"<f4","fortran_order":False}', bytes(8)),
    "new lines and tabs": header("{'descr':\n'<f4',\t'fortran_order':False,'shape':(\r2,)}  \n\n", bytes(8)),
    "python 2": simple(shape="(2L,)"),
    "no byte order": simple(descr="'f4'"),
    "the machine's byte order": simple(descr="'=f4'"),
    "no order for more bytes": simple(descr="'|f4'"),
    "an order for one byte": simple(descr="'<u1'", shape="(8,)"),
    "no padding and two dimensions": simple(shape="(1,2)"),
}


@pytest.mark.parametrize("kind", LEGAL)
def test_headers_of_other_writers_are_read_as_numpy_reads_them(kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of headers that Python 2 wrote
        expected = np.load(io.BytesIO(LEGAL[kind]))
    (tensor,) = read(LEGAL[kind]).tensors
    assert_same(as_laid_out(LEGAL[kind], tensor), expected)


CODE = "__import__('os').system('touch /tmp/executed')"
REFUSED = {
    "an empty file": (b"", "starts with"),
    "other bytes": (b"not numpy at all", "starts with"),
    "the magic alone": (b"\x93NUMPY", "version"),
    "version 4.0": (header("{}", version=b"\4\0"), "version 4.0"),
    "version 1.1": (header("{}", version=b"\1\1"), "version 1.1"),
    "a length past the end": (header("{}")[:8] + b"\xff\xff{}", "65535 bytes"),
    "a huge length": (b"\x93NUMPY\2\0\xff\xff\xff\xff" + bytes(200), "4294967295 bytes"),
    "a length over the limit": (header(b" " * (HEADER_LIMIT_BYTES + 1), version=b"\2\0"), "limit"),
    "no text": (header(""), "literal"),
    "spaces": (header(" " * 100), "literal"),
    "not UTF-8": (header(b"{'\xff'}", version=b"\3\0"), "UTF-8"),
    "a list": (header("[]"), "exactly"),
    "an empty dict": (header("{}"), "exactly"),
    "a key too few": (header("{'descr':'<f4','shape':()}", bytes(4)), "exactly"),
    "a key too many": (header("{'descr':'<f4','fortran_order':False,'shape':(),'x':1}", bytes(4)), "exactly"),
    "a key twice": (header("{'descr':'<f4','descr':'<f4','fortran_order':False,'shape':()}", bytes(4)), "twice"),
    "a number as key": (header("{1:2}"), "no text"),
    "a list as key": (header("{[]:2}"), "no text"),
    "text after the dict": (simple(order="False").replace(b"}\n", b"};"), "literal"),
    "an open dict": (header("{'descr':"), "its end"),
    "an open text": (header("{'descr"), "literal"),
    "two commas": (header("{'descr':'<f4',,}"), "literal"),
    "no comma": (header("{'descr':'<f4' 'shape':()}"), "literal"),
    "texts in a row": (simple(descr="'<' 'f4'"), "literal"),
    "code": (header(CODE), "literal"),
    "code as descr": (simple(descr=CODE), "literal"),
    "code as shape": (simple(shape=f"({CODE},)"), "literal"),
    "a name": (simple(order="false"), "literal"),
    "a comprehension": (simple(shape="tuple(2 for _ in '1')"), "literal"),
    "a sum": (simple(shape="(1+1,)"), "literal"),
    "a power": (simple(shape="(9**9**9,)"), "literal"),
    "a number in hexadecimal": (simple(shape="(0x2,)"), "literal"),
    "a number with a line": (simple(shape="(1_0,)"), "literal"),
    "a number with zeros before it": (simple(shape="(02,)"), "literal"),
    "a number of Python 2 in a version after it": (
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (2L,)}", bytes(8), b"\3\0"),
        "literal",
    ),
    "a fraction": (simple(shape="(2.0,)"), "literal"),
    "an endless number": (simple(shape=f"({'9' * 20},)"), "literal"),
    "None": (simple(shape="None"), "literal"),
    "nested tuples": (header("(" * 30_000), "deep"),
    "nested dicts": (header("{'a':" * 10_000), "deep"),
    "nested lists in a descr": (simple(descr="[" * 100 + "]" * 100), "deep"),
    "a number as descr": (simple(descr="4"), "descr"),
    "a truth as descr": (simple(descr="True"), "descr"),
    "a number as order": (simple(order="0"), "fortran_order"),
    "a list as shape": (simple(shape="[2]"), "shape"),
    "a number as shape": (simple(shape="(2)"), "shape"),
    "a negative size": (simple(shape="(-2,)"), "shape"),
    "a truth as size": (simple(shape="(True,)", data=bytes(4)), "shape"),
    "a text as size": (simple(shape="('2',)"), "shape"),
    "too many dimensions": (simple(shape=f"({'1,' * (MAX_RANK + 1)})", data=bytes(4)), "64 dimensions"),
    "a shape that overflows": (simple(shape="(4294967296,4294967296)", data=b""), "overflows"),
    "a shape that overflows beside a zero": (simple(shape="(0,4294967296,4294967296)", data=b""), "overflows"),
    "too few bytes": (simple(data=bytes(7)), "7 bytes of data"),
    "too many bytes": (simple(data=bytes(9)), "9 bytes of data"),
    "no bytes": (simple(data=b""), "0 bytes of data"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_broken_npy_file_is_refused_and_the_rule_named(kind: str) -> None:
    data, words = REFUSED[kind]
    with pytest.raises(Format) as refused:
        read(data)
    assert words in refused.value.message
    assert len(refused.value.message) < 400


def test_literals_are_read_as_python_reads_them() -> None:
    for text in (
        "()",
        "(1,)",
        "(1)",
        "((1),)",
        "[1, 'a', (True,)]",
        "{'a': {}, 'b': [(), ('x', '<f4', (2, 3))],}",
        "-7",
    ):
        assert parse_literal(text) == eval(text)  # the texts above
    assert parse_literal("(u'a', b'a', 2L)", python2=True) == ("a", "a", 2)


NO_TENSOR: dict[str, tuple[Any, str]] = {
    "objects": (np.array([{}, None], object), "pickled objects"),
    "bytes": (np.array([b"ab"]), "texts"),
    "texts": (np.array(["ä"]), "texts"),
    "records": (np.zeros(2, [("x", "<f4"), ("größe", "<i4", (2, 3)), ("in", [("y", "u1")])]), "records"),
    "raw bytes": (np.zeros(2, "V7"), "records"),
}
UNTYPED = {
    "bfloat16": np.zeros(2, ml_dtypes.bfloat16),
    "float8_e4m3fn": np.zeros(2, ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.zeros(2, ml_dtypes.float8_e5m2),
    "int4": np.zeros(2, ml_dtypes.int4),
}


@pytest.mark.parametrize("kind", NO_TENSOR)
def test_what_is_no_number_is_opaque_and_says_what_it_is(kind: str) -> None:
    array, words = NO_TENSOR[kind]
    assert read(saved(array)) == FileStructure(OPAQUE, (), f"it holds {words}")


@pytest.mark.parametrize("kind", UNTYPED)
def test_arrays_of_ml_dtypes_lost_their_type_when_they_were_saved(kind: str) -> None:
    structure = read(saved(UNTYPED[kind]))
    assert structure.format == OPAQUE
    assert "ml_dtypes" in structure.note


def test_a_dtype_that_nobody_writes_is_opaque() -> None:
    structure = read(simple(descr="'float32'"))
    assert structure.format == OPAQUE
    assert "'float32'" in structure.note


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def with_members(data: bytes, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO(data)
    with zipfile.ZipFile(file, "a", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def test_every_array_of_an_npz_file_is_a_tensor() -> None:
    arrays = {f"{dtype}/{shape}": filled(dtype, shape, fortran=True) for dtype in EVERY_DTYPE for shape in SHAPES[:6]}
    data = npz(**arrays, größe=np.ones(3), **{"": np.ones(2)})
    structure = read(data, "a.npz")
    assert (structure.format, structure.note) == ("npz", "")
    with np.load(io.BytesIO(data)) as expected:
        assert {tensor.name for tensor in structure.tensors} == set(expected.files)
        for tensor in structure.tensors:
            assert_same(as_laid_out(data, tensor), expected[tensor.name])


def test_an_npz_file_without_arrays_has_no_tensors() -> None:
    assert read(npz(), "a.npz") == FileStructure("npz", ())


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compressed_array_is_one_whatever_its_name(method: int) -> None:
    array = np.random.default_rng(1).normal(size=1000)
    data = with_members(npz(x=np.ones(3)), {"hidden": saved(array)}, method)
    with np.load(io.BytesIO(data)) as loaded:
        assert_same(loaded["hidden"], array)
    assert read(data, "a.npz") == FileStructure(OPAQUE, (), "it is compressed (np.savez_compressed)")


@pytest.mark.parametrize("content", [b"", b"read me", bytes(range(256)) * 500, b"\x93NUM"])
def test_what_is_deflated_and_no_array_is_left_out(content: bytes) -> None:
    structure = read(with_members(npz(x=np.ones(3)), {"README": content}, zipfile.ZIP_DEFLATED), "a.npz")
    assert [tensor.name for tensor in structure.tensors] == ["x"]
    assert structure.note == "left out, being no arrays of numbers: README"


def test_what_is_deflated_and_begins_with_nothing_for_long_may_be_an_array() -> None:
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    array = saved(np.ones(3))
    data = b"\0\0\0\xff\xff" * 1000 + deflater.compress(array) + deflater.flush()  # blocks of no bytes come first
    said: Fields = {"method": 8, "full_size": len(array), "crc": zlib.crc32(array)}
    archive = make_zip(MadeMember(b"hidden", data, local=said, central=said))
    with np.load(io.BytesIO(archive)) as loaded:
        assert loaded["hidden"].shape == (3,)
    assert read(archive, "a.npz").format == OPAQUE


def test_what_is_left_out_is_named_in_a_line_that_can_be_shown() -> None:
    note = read(npz(**{"esc\x1b[31m" * 1000: np.array(["a"])}), "a.npz").note
    assert note.isprintable()
    assert len(note) < 200


def test_a_compressed_array_makes_the_whole_file_opaque() -> None:
    opaque = FileStructure(OPAQUE, (), "it is compressed (np.savez_compressed)")
    file = io.BytesIO()
    np.savez_compressed(file, x=np.ones(3))
    assert read(file.getvalue(), "a.npz") == opaque
    one = with_members(npz(x=np.ones(3)), {"y.npy": saved(np.ones(3))}, zipfile.ZIP_DEFLATED)
    assert read(one, "a.npz") == opaque


def test_what_is_no_array_of_numbers_is_left_out_and_named() -> None:
    data = npz(x=np.ones(3), texts=np.array(["a"]), objects=np.array([{}]))
    structure = read(with_members(data, {"README": b"read me", "more": b"", "most": b"1"}), "a.npz")
    assert [tensor.name for tensor in structure.tensors] == ["x"]
    for words in ("texts.npy (texts)", "objects.npy (pickled objects)", "README", "2 more"):
        assert words in structure.note


@pytest.mark.parametrize("kind", UNTYPED)
def test_half_a_model_is_opaque(kind: str) -> None:
    structure = read(npz(x=np.ones(3), weights=UNTYPED[kind]), "a.npz")
    assert structure.format == OPAQUE
    assert "'weights.npy'" in structure.note
    assert "ml_dtypes" in structure.note


def test_a_member_that_numpy_takes_for_an_array_is_one_whatever_its_name() -> None:
    data = with_members(npz(x=np.ones(3)), {"y": saved(np.arange(4))})
    structure = read(data, "a.npz")
    with np.load(io.BytesIO(data)) as expected:
        for tensor in structure.tensors:
            assert_same(as_laid_out(data, tensor), expected[tensor.name])
    assert [tensor.name for tensor in structure.tensors] == ["x", "y"]
    assert read(with_members(data, {"x": saved(np.ones(3))}), "a.npz").format == OPAQUE


@pytest.mark.parametrize(
    "member", [b"", b"no magic", saved(np.ones(3))[:-1], saved(np.ones(3)) + b"x", simple(descr=CODE)]
)
def test_a_broken_array_in_an_npz_file_is_refused_and_named(member: bytes) -> None:
    with pytest.raises(Format, match=r"'folder/bad\.npy'"):
        read(with_members(npz(x=np.ones(3)), {"folder/bad.npy": member}), "a.npz")


@pytest.mark.parametrize("path", ["w.npy", "w.npz"])
def test_a_file_that_shrinks_is_invalid_input(path: str) -> None:
    data = saved(np.ones(300)) if path == "w.npy" else npz(x=np.ones(300))
    reader = NpyReader() if path == "w.npy" else NpzReader()
    with pytest.raises(InvalidInput):
        reader.read_structure(path, RangeSource(RangeSource(Bytes(data), 0, 20), 0, len(data)))


@pytest.mark.parametrize(
    ("path", "name"), [("a/w.npy", "w"), ("W.NPY", "W"), ("a.b.npy", "a.b"), (".npy", ".npy"), ("größe.npy", "größe")]
)
def test_the_tensor_of_a_file_has_its_name(path: str, name: str) -> None:
    assert NpyReader().claims(path)
    (tensor,) = NpyReader().read_structure(path, Bytes(saved(np.ones(2)))).tensors
    assert tensor.name == name


def test_paths_of_other_files_are_not_claimed() -> None:
    assert NpzReader().claims("folder/A.NpZ")
    assert not NpzReader().claims("a.npy")
    assert not NpyReader().claims("a.npz")
    assert not NpyReader().claims("npy")
