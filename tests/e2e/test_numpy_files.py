"""npy and npz files: back byte for byte, and every array, and every slice of it, as numpy loads it."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tensorkeep import Format, InvalidInput
from tests.e2e.workshop import Workshop

DTYPES = ["|b1", "|i1", "|u1", "<M8", "<m8"]
DTYPES += [order + kind for kind in ("i2", "i4", "i8", "u2", "u4", "u8", "f2", "f4", "f8", "f16") for order in "<>"]
DTYPES += [order + kind for kind in ("c8", "c16", "c32", "M8[ns]", "M8[25us]", "m8[D]") for order in "<>"]
SHAPES = {"scalar": (), "empty": (3, 0), "row": (7,), "matrix": (24, 40), "cube": (3, 50, 70)}


@pytest.fixture
def workshop(shared_workshop: Workshop) -> Workshop:
    """One store for all tests here; each pushes what it needs."""
    return shared_workshop


def array_of(dtype: str, shape: tuple[int, ...], order: Any) -> npt.NDArray[Any]:
    kind = np.dtype(dtype)
    raw = np.random.default_rng(3).integers(0, 2 if kind.kind == "b" else 256, int(np.prod(shape)) * kind.itemsize)
    return raw.astype(np.uint8).view(kind).reshape(shape).copy(order=order)


def stem_of(dtype: str) -> str:
    """Return the name of a dtype's files: they may not differ in case alone."""
    order, kind = dtype[0], dtype[1:]
    return {"<": "little ", ">": "big ", "|": ""}[order] + kind.replace("M", "time ").replace("m", "delta ")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Arrays of every dtype, shape and order, each in a file of its own, and all of a dtype in an archive."""
    folder = tmp_path_factory.mktemp("arrays")
    for dtype in DTYPES:
        arrays = {f"{name}{order}": array_of(dtype, shape, order) for name, shape in SHAPES.items() for order in "CF"}
        np.savez(folder / f"{stem_of(dtype)}.npz", allow_pickle=False, **arrays)
        np.save(folder / f"{stem_of(dtype)}.npy", arrays["cubeF"])
    return folder


def assert_same(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
    assert found.dtype.str == expected.dtype.str
    assert found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()


def without_padding(value: Any) -> npt.NDArray[Any]:
    """Return the bytes that count of a single number, else the array: taking one 80-bit float out leaves its padding to chance."""
    array = np.asarray(value)
    if array.ndim or array.dtype.kind not in "fc" or np.finfo(array.dtype).dtype != np.dtype(np.longdouble):
        return array
    assert array.dtype.isnative
    return array.reshape(1).view(np.uint8).reshape(-1, 16)[:, :10]


@pytest.mark.parametrize("split", ["tensor", "size"])
def test_every_array_is_loaded_as_numpy_loads_it(folder: Path, split: str, workshop: Workshop, tmp_path: Path) -> None:
    workshop.store.push(folder, f"numpy/{split}", split=split)
    workshop.store.pull(f"numpy/{split}", tmp_path / "out")
    model = workshop.store.model(f"numpy/{split}")
    paths = sorted(path.name for path in folder.iterdir())
    assert len(paths) == 2 * len(DTYPES)
    expected: dict[str, npt.NDArray[Any]] = {}
    for path in paths:
        assert (tmp_path / "out" / path).read_bytes() == (folder / path).read_bytes()
        if path.endswith(".npy"):
            expected[f"{path}::{path[:-4]}"] = np.load(folder / path)
        else:
            with np.load(folder / path) as archive:
                expected |= {f"{path}::{name}": archive[name] for name in archive.files}
    arrays = model.load(include=list(expected))
    assert sorted(arrays) == sorted(expected)
    for name, array in expected.items():
        assert_same(arrays[name], array)


SLICES: list[Any] = [
    np.s_[:],
    np.s_[1],
    np.s_[-1, 10:20],
    np.s_[:, 7],
    np.s_[..., 3],
    np.s_[0:2, 5:6, 60:],
    np.s_[::-1, ::3, 4:4],
    np.s_[2, 49, 69],
]


@pytest.mark.parametrize("index", SLICES, ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_slice_of_an_array_is_numpys_slice(folder: Path, order: str, index: Any, workshop: Workshop) -> None:
    workshop.store.push(folder, "numpy/slices")
    model = workshop.store.model("numpy/slices")
    for dtype in ("<f4", ">f8", "<c16", ">c32", "<M8[ns]", "|b1"):
        with np.load(folder / f"{stem_of(dtype)}.npz") as archive:
            expected = archive[f"cube{order}"]
        found = model[f"{stem_of(dtype)}.npz::cube{order}"][index]
        assert_same(without_padding(found), without_padding(expected[index]))


def test_torch_gets_the_dtypes_it_has_and_says_which_it_has_not(folder: Path, workshop: Workshop) -> None:
    workshop.store.push(folder, "numpy/torch")
    model = workshop.store.model("numpy/torch")
    for dtype in ("<c16", "<c8", "<f4", "|b1"):
        with np.load(folder / f"{stem_of(dtype)}.npz") as archive:
            expected = torch.from_numpy(np.ascontiguousarray(archive["cubeF"]))
        (found,) = model.load(framework="torch", include=f"{stem_of(dtype)}.npz::cubeF").values()
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert found.view(torch.uint8).equal(expected.view(torch.uint8))
    for dtype in (">f4", "<c32", "<M8[ns]"):
        with pytest.raises(InvalidInput, match="framework='numpy'"):
            model.load(framework="torch", include=f"{stem_of(dtype)}.npz::cubeF")


def test_a_broken_archive_is_refused_or_stored_whole(folder: Path, workshop: Workshop, tmp_path: Path) -> None:
    data = (folder / f"{stem_of('<f4')}.npz").read_bytes()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "cut.npz").write_bytes(data[:-100])
    with pytest.raises(Format, match=r"cut\.npz.*--split size"):
        workshop.store.push(tmp_path / "in", "numpy/cut")
    workshop.store.push(tmp_path / "in", "numpy/cut", split="size")
    assert not workshop.store.model("numpy/cut").tensors
    workshop.store.pull("numpy/cut", tmp_path / "out")
    assert (tmp_path / "out" / "cut.npz").read_bytes() == data[:-100]
