"""Keras archives: the datasets of the weights lie in the archive where h5py reads them in the member."""

import zipfile

import pytest

from tensorkeep.errors import Format, InvalidInput
from tensorkeep.formats.checking import check_structure
from tensorkeep.formats.keras import KerasReader
from tensorkeep.formats.opaque import opaque_structure
from tensorkeep.formats.protocol import FileStructure
from tests.unit.formats.hdf5_files import Bytes, arrays_of, hdf5_file, keras_file, write_everything, write_weights

WEIGHTS = hdf5_file(write_weights)


def read(data: bytes) -> FileStructure:
    structure = KerasReader().read_structure("model.keras", Bytes(data))
    check_structure(structure, len(data))
    return structure


@pytest.mark.parametrize("fill", [write_weights, write_everything])
def test_every_dataset_lies_in_the_archive_where_h5py_reads_it(fill: object) -> None:
    weights = hdf5_file(fill)  # type: ignore[arg-type]
    data = keras_file(weights, others={"assets/vocabulary.txt": b"a\nb\n"})
    structure = read(data)
    assert structure.format == "keras"
    expected = arrays_of(weights)
    assert sorted(tensor.name for tensor in structure.tensors) == sorted(expected)
    for tensor in structure.tensors:
        assert data[tensor.start : tensor.start + tensor.length] == expected[tensor.name].tobytes(), tensor
    if fill is write_everything:
        assert structure.note == "left out: 'names' (strings)"


def test_the_version_of_keras_is_metadata() -> None:
    assert KerasReader().read_metadata("model.keras", Bytes(keras_file(WEIGHTS))) == {"keras_version": "3.9.0"}
    assert KerasReader().read_metadata("model.keras", Bytes(keras_file(WEIGHTS, method=zipfile.ZIP_DEFLATED))) == {}


@pytest.mark.parametrize("text", [b"[]", b"", b"\xff", b"[" * 100_000, b'{"a": {}}'])
def test_broken_metadata_is_said(text: bytes) -> None:
    with pytest.raises(Format, match=r"metadata\.json is no JSON object"):
        KerasReader().read_metadata("model.keras", Bytes(keras_file(WEIGHTS, others={"metadata.json": text})))


def test_legacy_hdf5_under_this_name_is_read_as_hdf5() -> None:
    structure = read(WEIGHTS)
    assert structure.format == "hdf5"
    assert len(structure.tensors) == 6


OPAQUE = {
    "compressed": (keras_file(WEIGHTS, method=zipfile.ZIP_DEFLATED), "its model.weights.h5 is compressed"),
    "weights as npz": (
        keras_file(WEIGHTS).replace(b"model.weights.h5", b"model.weights.np"),
        "there is no model.weights.h5 in it",
    ),
    "more arrays": (
        keras_file(WEIGHTS, others={"assets/more.npz": b""}),
        "there are arrays in its 'assets/more.npz' too, beside model.weights.h5",
    ),
    "weights that are no HDF5": (keras_file(b"nothing"), "it is no HDF5 file"),
    "no zip": (b"nothing", "it has no end record: no zip archive, or an incomplete download?"),
    "empty": (b"", "it has no end record: no zip archive, or an incomplete download?"),
}


@pytest.mark.parametrize(("data", "note"), OPAQUE.values(), ids=OPAQUE)
def test_what_cannot_be_read_is_opaque_and_says_why(data: bytes, note: str) -> None:
    assert read(data) == opaque_structure(note)


def test_a_truncated_archive_is_opaque() -> None:
    data = keras_file(WEIGHTS)
    for size in (10, len(data) // 2, len(data) - 1):
        assert read(data[:size]).format == "opaque"


def test_a_source_that_shrinks_is_said() -> None:
    class Shrunk(Bytes):
        def read(self, offset: int, length: int) -> bytes:
            raise InvalidInput("it shrank")

    with pytest.raises(InvalidInput, match="shrank"):
        KerasReader().read_structure("model.keras", Shrunk(keras_file(WEIGHTS)))


@pytest.mark.parametrize("path", ["a.keras", "sub/MODEL.Keras"])
def test_the_reader_claims_paths_by_their_suffix_in_any_case(path: str) -> None:
    assert KerasReader().claims(path)
    assert not KerasReader().claims(path + ".txt")
