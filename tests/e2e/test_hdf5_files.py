"""HDF5 and Keras files: back byte for byte, and every dataset, and every slice of it, as h5py loads it."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.e2e.workshop import Workshop
from tests.unit.formats.hdf5_files import (
    NUMBERS,
    OTHER_NUMBERS,
    arrays_of,
    hdf5_file,
    keras_file,
    some_numbers,
    write_everything,
    write_weights,
)


@pytest.fixture
def workshop(shared_workshop: Workshop) -> Workshop:
    """One store for all tests here; each pushes what it needs."""
    return shared_workshop


def assert_same(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
    assert found.dtype.str == expected.dtype.str
    assert found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()


def write_large(file: Any) -> None:
    """Write a network with arrays over and under the sizes of parts and packs, and everything else."""
    file.create_group("model_weights").attrs["layer_names"] = ["dense", "dense_1"]
    for number in range(4):
        group = file.create_group(f"model_weights/dense_{number}/dense_{number}")
        group["kernel:0"] = some_numbers("<f4", (1200, 700), number)
        group["bias:0"] = some_numbers("<f4", (700,), number + 10)
        group.create_dataset("embedding:0", data=some_numbers("<f2", (900, 1000), number), chunks=(900, 1000))
    file["model_weights/tied"] = file["model_weights/dense_1/dense_1/kernel:0"]
    file["model_weights/soft"] = h5py.SoftLink("/model_weights/dense_2/dense_2/bias:0")
    write_everything(file)


OPTIONS: dict[str, dict[str, Any]] = {
    "earliest": {"libver": "earliest"},
    "latest": {"libver": "latest"},
    "user block": {"userblock_size": 4096},
}


@pytest.mark.parametrize("split", ["tensor", "size"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_dataset_is_loaded_as_h5py_loads_it(
    options: dict[str, Any], split: str, workshop: Workshop, tmp_path: Path
) -> None:
    path = tmp_path / "model.h5"
    path.write_bytes(hdf5_file(write_large, **options))
    spec = f"hdf5/{'-'.join(options)}-{split}"
    workshop.store.push(path, spec, split=split, part_size=1 << 20)
    workshop.store.pull(spec, tmp_path / "out")
    assert (tmp_path / "out/model.h5").read_bytes() == path.read_bytes()
    model = workshop.store.model(spec)
    expected = arrays_of(path.read_bytes())
    arrays = model.load()
    assert sorted(arrays) == sorted(expected)
    assert len(arrays) > 3 * len(NUMBERS + OTHER_NUMBERS)
    for name, array in arrays.items():
        assert_same(array, expected[name])
    assert {file.format for file in model.files} == {"hdf5"}


def test_a_slice_of_a_dataset_is_h5pys_slice_and_reads_only_that(workshop: Workshop, tmp_path: Path) -> None:
    path = tmp_path / "model.hdf5"
    path.write_bytes(hdf5_file(write_large))
    workshop.store.push(path, "hdf5/slices")
    model = workshop.store.model("hdf5/slices")
    name = "model_weights/dense_3/dense_3/kernel:0"
    with h5py.File(path, "r") as file:
        for index in (np.s_[100:120], np.s_[-1], np.s_[5:9, 3], np.s_[..., 17]):
            assert_same(model[name][index], np.asarray(file[name][...][index]))
    model[name][100:120]
    assert model.report is not None
    assert model.report.bytes_read <= 20 * 700 * 4 + 2 * (256 << 10)


def test_a_dataset_of_two_names_loads_by_both(workshop: Workshop, tmp_path: Path) -> None:
    path = tmp_path / "model.h5"
    path.write_bytes(hdf5_file(write_large))
    workshop.store.push(path, "hdf5/tied")
    tensors = workshop.store.model("hdf5/tied").tensors
    one, other = tensors["model_weights/tied"], tensors["model_weights/dense_1/dense_1/kernel:0"]
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    arrays = workshop.store.model("hdf5/tied").load(include=["model_weights/tied", "*dense_1/kernel:0"])
    assert_same(arrays["model_weights/tied"], arrays["model_weights/dense_1/dense_1/kernel:0"])


def test_datasets_load_as_torch_tensors(workshop: Workshop, tmp_path: Path) -> None:
    path = tmp_path / "model.weights.h5"
    path.write_bytes(hdf5_file(write_weights))
    workshop.store.push(path, "hdf5/torch")
    tensors = workshop.store.model("hdf5/torch").load(framework="torch")
    expected = arrays_of(path.read_bytes())
    assert sorted(tensors) == sorted(expected)
    assert tensors["layers/half/vars/0"].dtype == torch.bfloat16
    for name, tensor in tensors.items():
        assert tensor.reshape(-1).view(torch.uint8).numpy().tobytes() == expected[name].tobytes()


def test_a_keras_archive_is_loaded_as_h5py_loads_its_weights(workshop: Workshop, tmp_path: Path) -> None:
    def fill(file: Any) -> None:
        write_weights(file)
        file["layers/embedding/vars/0"] = some_numbers("f4", (1500, 1000))

    weights = hdf5_file(fill)
    path = tmp_path / "model.keras"
    path.write_bytes(keras_file(weights, others={"assets/vocabulary.txt": b"a\nb\n"}))
    workshop.store.push(path, "keras/model")
    workshop.store.pull("keras/model", tmp_path / "out")
    assert (tmp_path / "out/model.keras").read_bytes() == path.read_bytes()
    model = workshop.store.model("keras/model")
    arrays = model.load()
    expected = arrays_of(weights)
    assert sorted(arrays) == sorted(expected)
    for name, array in arrays.items():
        assert_same(array, expected[name])
    assert arrays["layers/half/vars/0"].dtype == ml_dtypes.bfloat16
    assert model.files[0].format == "keras"


def _compressed(file: Any) -> None:
    file["w"] = some_numbers("f4", (300, 300))
    file.create_dataset("z", data=some_numbers("f4", (300, 300)), compression="gzip")


OPAQUE: dict[str, tuple[str, Callable[[], bytes]]] = {
    "compressed": ("model.h5", lambda: hdf5_file(_compressed)),
    "truncated": ("model.h5", lambda: hdf5_file(write_everything)[:-100]),
    "not HDF5": ("model.hdf5", lambda: b"something else"),
    "empty": ("model.h5", lambda: b""),
    "a compressed archive": (
        "model.keras",
        lambda: keras_file(hdf5_file(write_weights), method=zipfile.ZIP_DEFLATED),
    ),
    "a broken archive": ("model.keras", lambda: keras_file(hdf5_file(write_weights))[:-5]),
}


@pytest.mark.parametrize(("name", "make"), OPAQUE.values(), ids=OPAQUE)
def test_what_cannot_be_read_is_stored_whole(
    name: str, make: Callable[[], bytes], workshop: Workshop, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(make())
    spec = f"opaque/{len(path.read_bytes())}"
    workshop.store.push(path, spec)
    workshop.store.pull(spec, tmp_path / "out")
    assert (tmp_path / "out" / name).read_bytes() == path.read_bytes()
    model = workshop.store.model(spec)
    assert (model.files[0].format, len(model.tensors)) == ("opaque", 0)
