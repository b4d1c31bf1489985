"""What is loaded is, bit for bit, what safetensors itself loads; and a part of it is that part."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from tensorkeep import InvalidInput, NotFound
from tensorkeep.records.dtype import DTYPES
from tests.e2e.conftest import Models, StoreFactory
from tests.e2e.trees import safetensors_bytes, seeded_bytes
from tests.e2e.workshop import Workshop


@pytest.fixture
def workshop(shared_workshop: Workshop) -> Workshop:
    """One store for all tests here; each pushes what it needs."""
    return shared_workshop


PACKED = ("F4", "F6_E2M3", "F6_E3M2")


@pytest.mark.parametrize("name", ["minilm", "tiny"])
def test_loaded_arrays_are_those_that_safetensors_loads(name: str, models: Models, workshop: Workshop) -> None:
    folder: Path = getattr(models, name)
    workshop.store.push(folder, "acme/model")
    arrays = workshop.store.model("acme/model").load()
    expected: dict[str, Any] = {}
    for path in folder.glob("*.safetensors"):
        expected |= safetensors.numpy.load_file(path)
    assert sorted(arrays) == sorted(expected)
    for key, array in arrays.items():
        assert_same_array(array, expected[key])


@pytest.mark.parametrize("name", ["minilm", "tiny"])
def test_loaded_torch_tensors_are_those_that_safetensors_loads(name: str, models: Models, workshop: Workshop) -> None:
    folder: Path = getattr(models, name)
    workshop.store.push(folder, "acme/model", split="size")
    tensors = workshop.store.model("acme/model").load(framework="torch")
    expected: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        expected |= safetensors.torch.load_file(path)
    assert sorted(tensors) == sorted(expected)
    for key, tensor in tensors.items():
        assert_same_tensor(tensor, expected[key])


def test_every_dtype_that_safetensors_loads_is_loaded_alike(models: Models, workshop: Workshop) -> None:
    workshop.store.push(models.odd, "acme/odd")
    model = workshop.store.model("acme/odd")
    compared = {"np": set[str](), "pt": set[str]()}
    for dtype in DTYPES:
        path = f"dtypes/{dtype}.safetensors"
        for framework, theirs in (("np", "numpy"), ("pt", "torch")):
            expected = _load_by_safetensors(models.odd / path, framework)
            if expected is None:
                continue
            ours = model.load(framework=theirs, include=[f"{path}::{name}" for name in expected])
            for name, value in expected.items():
                found = ours[f"{path}::{name}"]
                assert_same_array(found, value) if framework == "np" else assert_same_tensor(found, value)
            compared[framework].add(dtype)
    # What the installed safetensors has no type for is compared as bytes in the next test.
    assert {"BOOL", "BF16", "C64", "F64", "I64", "U64", "U16"} <= compared["np"]
    assert set(DTYPES) - compared["pt"] == {"F6_E2M3", "F6_E3M2"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_loads_as_the_bytes_of_its_file(dtype: str, models: Models, workshop: Workshop) -> None:
    source = models.odd / f"dtypes/{dtype}.safetensors"
    workshop.store.push(source, f"dtypes/{dtype}")
    model = workshop.store.model(f"dtypes/{dtype}")
    arrays = model.load()
    data = source.read_bytes()
    body = memoryview(data)[8 + int.from_bytes(data[:8], "little") :]
    assert b"".join(arrays[name].tobytes() for name in _in_file_order(model.tensors, arrays)) == body
    for array in arrays.values():
        assert array.dtype == DTYPES[dtype].numpy
        assert array.flags.writeable
        assert array.flags.owndata or array.base is not None
    assert arrays["empty"].size == 0
    assert ("scalar" in arrays) == (dtype not in PACKED)


def test_globs_choose_tensors_and_only_their_bytes_are_read(models: Models, workshop: Workshop) -> None:
    workshop.store.push(models.tiny, "acme/tiny")
    model = workshop.store.model("acme/tiny")
    arrays = model.load(include="model.layers.3.*")
    assert sorted(arrays) == sorted(name for name in model.tensors if name.startswith("model.layers.3."))
    assert len(arrays) == 9
    assert model.report is not None
    assert model.report.bytes_needed == sum(array.nbytes for array in arrays.values())
    assert model.report.bytes_read < 1.5 * model.report.bytes_needed
    both = model.load(include=["model.norm.weight", "*.layers.14.*layernorm.weight"])
    assert len(both) == 3
    with pytest.raises(NotFound, match=r"'nothing\.\*'"):
        model.load(include="nothing.*")


SLICES: list[Any] = [
    np.s_[:],
    np.s_[100:200],
    np.s_[-7:],
    np.s_[5],
    np.s_[-1],
    np.s_[10:10],
    np.s_[3:200:7],
    np.s_[::-3],
    np.s_[..., 17],
    np.s_[40:60, 100:130],
    np.s_[:, ::2],
    np.s_[7, 9],
    np.s_[1000000:],
]


@pytest.mark.parametrize("index", SLICES, ids=str)
@pytest.mark.parametrize("split", ["tensor", "size"])
def test_a_slice_of_a_tensor_is_numpys_slice(index: Any, split: str, workshop: Workshop, matrix_file: Path) -> None:
    workshop.store.push(matrix_file, f"matrix/{split}", split=split, part_size=1 << 20)
    model = workshop.store.model(f"matrix/{split}")
    expected = safetensors.numpy.load_file(matrix_file)["w"]
    assert_same_array(model["w"][index], expected[index])


@pytest.fixture(scope="session")
def matrix_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("matrix") / "m.safetensors"
    path.write_bytes(safetensors_bytes({"w": ("F32", (1200, 700), seeded_bytes(1200 * 700 * 4))}))
    return path


def test_a_slice_reads_only_the_rows_it_needs(workshop: Workshop, matrix_file: Path) -> None:
    workshop.store.push(matrix_file, "acme/rows", part_size=4 << 20)
    model = workshop.store.model("acme/rows")
    rows = model["w"][100:150]
    assert rows.shape == (50, 700)
    assert model["w"].shape == (1200, 700)
    assert model["w"].dtype == "F32"
    assert model.report is not None
    assert model.report.bytes_read <= 50 * 700 * 4 + 2 * (256 << 10)
    with pytest.raises(InvalidInput, match="out of range"):
        model["w"][1200]
    with pytest.raises(NotFound, match="show --tensors"):
        model["no such tensor"]


def arrays_in_memory() -> dict[str, npt.NDArray[Any]]:
    random = np.random.default_rng(11)
    return {
        "layers.0.w": random.standard_normal((300, 500)).astype("f4"),
        "layers.0.half": random.standard_normal((64, 64)).astype("f2"),
        "layers.1.bf16": random.standard_normal((600, 1000)).astype(ml_dtypes.bfloat16),
        "layers.1.e4m3": random.standard_normal((32, 8)).astype(ml_dtypes.float8_e4m3fn),
        "layers.1.e5m2": random.standard_normal((32, 8)).astype(ml_dtypes.float8_e5m2),
        "layers.2.big endian": random.standard_normal((10, 10)).astype(">f8"),
        "layers.2.strided": random.integers(0, 255, (40, 60), dtype=np.uint8)[::2, ::3],
        "layers.2.fortran": np.asfortranarray(random.standard_normal((20, 30))),
        "bool": random.integers(0, 2, 17).astype(bool),
        "complex": (random.standard_normal(5) + 1j).astype("c8"),
        "scalar": np.array(2.5, "f4"),
        "empty": np.zeros((0, 4), "i8"),
        "größe": np.arange(3, dtype="u2"),
    }


def test_arrays_in_memory_come_back(workshop: Workshop, tmp_path: Path) -> None:
    arrays = arrays_in_memory()
    version = workshop.store.push(arrays, "acme/arrays", message="from memory")
    loaded = workshop.store.model("acme/arrays").load()
    assert sorted(loaded) == sorted(arrays)
    for name, array in arrays.items():
        assert_same_array(loaded[name], array.astype(array.dtype.newbyteorder("=")))
    workshop.store.pull("acme/arrays", tmp_path)
    read = safetensors.torch.load_file(tmp_path / "model.safetensors")  # what other programs see of it
    assert sorted(read) == sorted(arrays)
    assert read["layers.1.bf16"].view(torch.int16).numpy().tobytes() == arrays["layers.1.bf16"].tobytes()
    again = workshop.store.push(arrays, "acme/arrays")
    assert again.id == version.id


def test_the_same_arrays_from_memory_and_from_a_file_of_safetensors_are_the_same_bytes(
    workshop: Workshop, tmp_path: Path
) -> None:
    arrays = {"b": np.arange(1000, dtype="f4").reshape(10, 100), "a": np.arange(7, dtype="i2")}
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    version = workshop.store.push(arrays, "acme/same")
    assert workshop.store.push(tmp_path / "model.safetensors", "acme/same").id == version.id


def test_torch_tensors_come_back(workshop: Workshop) -> None:
    torch.manual_seed(5)
    tensors = {
        "w": torch.randn(200, 300, dtype=torch.bfloat16),
        "transposed": torch.randn(20, 30).t(),
        "fp8": torch.randn(16, 16).to(torch.float8_e4m3fn),
        "grad": torch.nn.Parameter(torch.randn(3)),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "empty": torch.zeros(0, 3),
    }
    workshop.store.push(tensors, "acme/torch")
    loaded = workshop.store.model("acme/torch").load(framework="torch")
    for name, tensor in tensors.items():
        assert_same_tensor(loaded[name], tensor.detach().contiguous())


@pytest.mark.parametrize("verify", ["blocks", "digest", "off"])
@pytest.mark.parametrize("memory_limit", [None, 1 << 20])
def test_all_ways_to_verify_and_any_memory_give_the_same(
    verify: Any, memory_limit: int | None, workshop: Workshop, models: Models
) -> None:
    workshop.store.push(models.odd / "shapes.safetensors", "acme/shapes")
    model = workshop.store.model("acme/shapes")
    expected = safetensors.numpy.load_file(models.odd / "shapes.safetensors")
    arrays = model.load(verify=verify, memory_limit=memory_limit, mode="read")
    for name, array in expected.items():
        assert_same_array(arrays[name], array)
    assert model.report is not None
    assert model.report.verify == verify


def test_what_a_load_cannot_do_is_said(workshop: Workshop, models: Models) -> None:
    workshop.store.push(models.odd / "shapes.safetensors", "acme/shapes")
    model = workshop.store.model("acme/shapes")
    with pytest.raises(NotFound, match="known are numpy, torch"):
        model.load(framework="abacus")
    with pytest.raises(InvalidInput, match="'auto' or 'read'"):
        model.load(mode="map")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="'sometimes'"):
        model.load(verify="sometimes")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="device"):
        model.load(device="tpu:9")


def test_where_a_device_is_marked_untrusted_loads_verify_by_digest(store_factory: StoreFactory, models: Models) -> None:
    workshop = store_factory(1)
    workshop.add_device(untrusted=True)
    workshop.store.push(models.odd / "shapes.safetensors", "acme/shapes")
    model = workshop.store.model("acme/shapes")
    model.load()
    assert model.report is not None
    assert model.report.verify == "digest"


def _load_by_safetensors(path: Path, framework: str) -> dict[str, Any] | None:
    """Return what safetensors loads, or None where it has no such type in that framework."""
    try:
        with safe_open(path, framework) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (AttributeError, SafetensorError):
        return None


def _in_file_order(tensors: Mapping[str, Any], arrays: Mapping[str, Any]) -> list[str]:
    # `tensor_data` files hold their tensors in this order.
    return [
        name for name in ("layers.0.matrix", "layers.1.large", "empty", "scalar") if name in arrays and name in tensors
    ]


def assert_same_array(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tobytes() == np.ascontiguousarray(expected).tobytes()


def assert_same_tensor(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert torch.equal(found.reshape(-1).view(torch.uint8), expected.reshape(-1).view(torch.uint8))
