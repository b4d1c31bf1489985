"""HDF5 files: every dataset of numbers is found where h5py reads it, or the whole file is opaque and says why."""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
import pytest

from tensorkeep.errors import InvalidInput
from tensorkeep.formats import hdf5
from tensorkeep.formats.checking import check_structure
from tensorkeep.formats.hdf5 import Hdf5Reader
from tensorkeep.formats.opaque import OPAQUE, opaque_structure
from tensorkeep.formats.protocol import FileStructure
from tensorkeep.records.dtype import DTYPES
from tests.unit.formats.hdf5_files import Bytes, arrays_of, hdf5_file, some_numbers, write_everything, write_weights


def read(data: bytes) -> FileStructure:
    structure = Hdf5Reader().read_structure("model.h5", Bytes(data))
    check_structure(structure, len(data))
    return structure


def assert_same_as_h5py(data: bytes) -> FileStructure:
    structure = read(data)
    assert structure.format == "hdf5", structure.note
    expected = arrays_of(data)
    assert sorted(tensor.name for tensor in structure.tensors) == sorted(expected)
    for tensor in structure.tensors:
        array = expected[tensor.name]
        assert tensor.shape == array.shape
        assert data[tensor.start : tensor.start + tensor.length] == array.tobytes(), tensor
        known = DTYPES.get(tensor.dtype)
        assert (
            np.dtype(tensor.dtype.removeprefix("NPY:")) == array.dtype if known is None else known.numpy == array.dtype
        )
    return structure


OPTIONS: dict[str, dict[str, Any]] = {
    "earliest": {"libver": "earliest"},
    "latest": {"libver": "latest"},
    "1.8": {"libver": "v108"},
    "a user block": {"userblock_size": 512},
    "a user block of 64 KiB, latest": {"userblock_size": 65536, "libver": "latest"},
    "creation order": {"track_order": True},
    "pages": {"fs_strategy": "page", "fs_persist": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_dtype_and_layout_is_found_where_h5py_reads_it(options: dict[str, Any]) -> None:
    structure = assert_same_as_h5py(hdf5_file(write_everything, **options))
    dtypes = {tensor.dtype for tensor in structure.tensors}
    assert {"BOOL", "I8", "U8", "I16", "F16", "F32", "F64", "C64", "NPY:>f4", "NPY:<c16", "NPY:<f16"} <= dtypes
    assert structure.note == "left out: 'names' (strings)"


def test_bfloat16_as_keras_writes_it_is_found() -> None:
    structure = assert_same_as_h5py(hdf5_file(write_weights))
    assert "BF16" in {tensor.dtype for tensor in structure.tensors}


def test_a_file_without_datasets_has_no_tensors() -> None:
    assert read(hdf5_file(lambda file: None)) == FileStructure("hdf5", ())


def test_many_datasets_in_one_group_are_found() -> None:
    def fill(file: Any) -> None:
        for number in range(1500):
            file[f"{number}.weight"] = np.full(2, number, "i4")

    assert len(assert_same_as_h5py(hdf5_file(fill)).tensors) == 1500
    assert len(assert_same_as_h5py(hdf5_file(fill, libver="latest")).tensors) == 1500


def test_only_headers_are_read() -> None:
    source = Bytes(hdf5_file(lambda file: file.create_dataset("w", data=np.zeros(4 << 20, "u1"))))
    assert len(Hdf5Reader().read_structure("w.h5", source).tensors) == 1
    assert source.bytes_read < 32 << 10


# ----------------------------------------------------------------------------- links


def test_a_dataset_has_all_its_names() -> None:
    def fill(file: Any) -> None:
        file["a/w"] = some_numbers("f4", (3,))
        file["hard"] = file["a/w"]
        file["soft"] = h5py.SoftLink("/a/w")
        file["a/relative"] = h5py.SoftLink("./w")
        file["twice"] = h5py.SoftLink("/soft")
        file["through"] = h5py.SoftLink("also a/w")
        file["also a"] = file["a"]
        file["soft a"] = h5py.SoftLink("a")
        file["through soft"] = h5py.SoftLink("/soft a/w")

    data = hdf5_file(fill)
    structure = read(data)
    names = ["a/relative", "a/w", "hard", "soft", "through", "through soft", "twice"]
    assert [tensor.name for tensor in structure.tensors] == names
    assert len({(tensor.start, tensor.length) for tensor in structure.tensors}) == 1
    assert "'also a' (another name of the group '/a')" in structure.note
    assert "'soft a' (another name of the group '/a')" in structure.note


def test_groups_that_contain_themselves_are_entered_once() -> None:
    def fill(file: Any) -> None:
        file["a/b/w"] = some_numbers("f4", (3,))
        file["a/b/up"] = file["a"]
        file["a/root"] = file["/"]
        file["soft loop"] = h5py.SoftLink("/soft loop")
        file["one"] = h5py.SoftLink("/two")
        file["two"] = h5py.SoftLink("/one")

    structure = read(hdf5_file(fill))
    assert [tensor.name for tensor in structure.tensors] == ["a/b/w"]
    assert "'one' (a link that leads nowhere)" in structure.note


def test_links_to_other_files_and_to_nowhere_are_left_out() -> None:
    def fill(file: Any) -> None:
        file["w"] = some_numbers("f4", (3,))
        file["outside"] = h5py.ExternalLink("/etc/hostname.h5", "/w")
        file["itself"] = h5py.ExternalLink("model.h5", "/w")
        file["nowhere"] = h5py.SoftLink("/gone/w")

    structure = read(hdf5_file(fill))
    assert [tensor.name for tensor in structure.tensors] == ["w"]
    assert structure.note == (
        "left out: 'itself' (a link to another file), 'outside' (a link to another file), "
        "'nowhere' (a link that leads nowhere)"
    )


def test_a_soft_link_through_another_file_is_not_followed() -> None:
    def fill(file: Any) -> None:
        file["a/w"] = some_numbers("f4", (3,))
        file["outside"] = h5py.ExternalLink("other.h5", "/a")
        file["through"] = h5py.SoftLink("/outside/w")

    assert [tensor.name for tensor in read(hdf5_file(fill)).tensors] == ["a/w"]


# --------------------------------------------------------------- what is no tensor


def test_what_is_no_array_of_numbers_is_left_out_and_said() -> None:
    def fill(file: Any) -> None:
        file["w"] = some_numbers("f4", (3,))
        file["a string"] = "text"
        file["fixed strings"] = np.array([b"ab", b"c"])
        file["strings"] = ["a", "bc"]
        file["records"] = np.zeros(2, [("a", "f4"), ("b", "i8")])
        file.create_dataset("lists", (2,), h5py.vlen_dtype("f4"))
        file.create_dataset("references", (2,), h5py.ref_dtype)
        file["also strings"] = file["strings"]
        file["bytes"] = np.zeros(2, "V5")
        file["nothing"] = h5py.Empty("f4")
        file["a type"] = np.dtype("f4")

    structure = read(hdf5_file(fill))
    assert [tensor.name for tensor in structure.tensors] == ["w"]
    assert structure.note == (
        "left out: 'a string' (strings), 'also strings' (strings), 'bytes' (bytes of no known type) and 5 more"
    )


def test_other_enumerations_are_their_integers() -> None:
    colours = h5py.enum_dtype({"red": 1, "blue": 2}, basetype=">i2")
    data = hdf5_file(lambda file: file.create_dataset("e", data=np.array([1, 2], ">i2"), dtype=colours))
    assert assert_same_as_h5py(data).tensors[0].dtype == "NPY:>i2"


# ------------------------------------------------------------------- opaque files


def _odd_integer() -> Any:
    kind = h5py.h5t.STD_I16LE.copy()
    kind.set_precision(12)
    kind.set_offset(2)
    return kind


def _brain_float() -> Any:
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_size(2)
    return kind


def _low_level(name: bytes, kind: Callable[[], Any]) -> Callable[[Any], None]:
    def fill(file: Any) -> None:
        made = h5py.h5d.create(file.id, name, kind(), h5py.h5s.create_simple((3,)))
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.zeros(3, made.dtype))

    return fill


def _virtual(file: Any) -> None:
    file["source"] = some_numbers("f4", (3,))
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource(file["source"])
    file.create_virtual_dataset("v", layout)


def _compact(file: Any) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.COMPACT)
    made = h5py.h5d.create(file.id, b"c", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((3,)), plist)
    made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.zeros(3, "f4"))


UNFIT: dict[str, tuple[Callable[[Any], None], str]] = {
    "gzip": (
        lambda file: file.create_dataset("a/z", data=np.zeros(9), compression="gzip"),
        "the dataset 'a/z' is compressed (deflate)",
    ),
    "checksums": (
        lambda file: file.create_dataset("z", data=np.zeros(9), chunks=(9,), fletcher32=True),
        "the dataset 'z' is compressed (fletcher32)",
    ),
    "chunks": (
        lambda file: file.create_dataset("z", data=np.zeros(9), chunks=(4,)),
        "the dataset 'z' is stored in chunks",
    ),
    "a chunk that is larger": (
        lambda file: file.create_dataset("z", data=np.zeros(9), chunks=(16,), maxshape=(None,)),
        "the dataset 'z' is stored in chunks",
    ),
    "never written": (
        lambda file: file.create_dataset("z", (9,), "f4"),
        "the dataset 'z' was never written: the file has no bytes of it",
    ),
    "a chunk never written": (
        lambda file: file.create_dataset("z", (9,), "f4", chunks=(9,)),
        "the dataset 'z' was never written: the file has no bytes of it",
    ),
    "compact": (_compact, "the dataset 'c' is compact: it lies inside a header"),
    "virtual": (_virtual, "the dataset 'v' is put together from others (virtual)"),
    "in another file": (
        lambda file: file.create_dataset("z", (9,), "f4", external=[("/tmp/x", 0, 36)]),
        "the dataset 'z' lies in another file",
    ),
    "12 bits": (_low_level(b"z", _odd_integer), "numpy has no type for the numbers of the dataset 'z'"),
    "another float": (_low_level(b"z", _brain_float), "numpy has no type for the numbers of the dataset 'z'"),
    "bits": (
        _low_level(b"z", lambda: h5py.h5t.STD_B16LE),
        "numpy has no type for the numbers of the dataset 'z'",
    ),
    "a name that is not UTF-8": (
        lambda file: h5py.h5g.create(file.id, b"\xff"),
        r"the name b'\xff' is not UTF-8",
    ),
}


@pytest.mark.parametrize("options", [{}, {"libver": "latest", "userblock_size": 1024}], ids=["old", "new"])
@pytest.mark.parametrize(("fill", "note"), UNFIT.values(), ids=UNFIT)
def test_one_array_that_cannot_be_mapped_makes_the_file_opaque(
    fill: Callable[[Any], None], note: str, options: dict[str, Any]
) -> None:
    def more(file: Any) -> None:
        file["w"] = some_numbers("f4", (3,))
        fill(file)

    assert read(hdf5_file(more, **options)) == opaque_structure(note)


def test_names_without_end_are_refused() -> None:
    def fill(file: Any) -> None:
        group = file
        for _ in range(50):
            group = group.create_group("x" * 100)

    assert "a name has more than 4096 characters" in read(hdf5_file(fill)).note


GOOD = hdf5_file(write_weights)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x89HDF", b"no HDF5 at all", b"PK\3\4" + bytes(5000), b"\0" * 512 + GOOD[1:]],
    ids=["empty", "cut", "text", "zip", "shifted"],
)
def test_other_files_are_opaque_without_a_process(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    assert read(data) == opaque_structure("it is no HDF5 file")


@pytest.mark.parametrize("size", [8, 100, len(GOOD) // 2, len(GOOD) - 1])
def test_a_truncated_file_is_opaque(size: int) -> None:
    structure = read(GOOD[:size])
    assert structure.format == OPAQUE
    assert structure.note.startswith("HDF5 could not read it: ")


def test_without_h5py_the_note_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5, "find_spec", lambda name: None)
    assert read(GOOD) == opaque_structure("install tensorkeep[hdf5] to know its tensors")


def test_a_source_that_shrinks_is_said() -> None:
    class Shrunk(Bytes):
        def read(self, offset: int, length: int) -> bytes:
            if offset + length > 2048:
                raise InvalidInput("it shrank")
            return super().read(offset, length)

    with pytest.raises(InvalidInput, match="shrank"):
        Hdf5Reader().read_structure("model.h5", Shrunk(GOOD))


def test_importing_the_readers_imports_neither_h5py_nor_processes() -> None:
    program = "import json, sys, tensorkeep.formats.registry; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert not {"h5py", "subprocess", "resource"} & set(json.loads(result.stdout))


@pytest.mark.parametrize("path", ["a.h5", "sub/model.weights.H5", "a.hdf5"])
def test_the_reader_claims_paths_by_their_suffix_in_any_case(path: str) -> None:
    assert Hdf5Reader().claims(path)
    assert not Hdf5Reader().claims(path + ".json")
