"""Loads into arrays that the caller has: bit for bit, whatever their strides; refused before a byte where they do not fit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tensorkeep import Integrity, InvalidInput, NotFound
from tensorkeep.store.model import Model
from tests.faults.store_world import MIB, MODEL, Arrays, World, flip

ODD_DTYPES = (torch.bfloat16, torch.float16, torch.bool, torch.int64, torch.uint8, torch.float8_e4m3fn, torch.complex64)


def weights() -> Arrays:
    chance = np.random.default_rng(0)
    return {
        "embed": chance.standard_normal((1500, 512), np.float32),
        "half": chance.standard_normal((64, 48)).astype(ml_dtypes.bfloat16),
        "norm": chance.standard_normal(333, np.float32),
        "one": np.array(7, np.int64),
        "none": np.empty((0, 5), np.float16),
    }


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path / "world", devices=2, replicas=1)
    world.create().push(weights(), MODEL, part_size=MIB)
    yield world
    world.end()


@pytest.fixture
def model(world: World) -> Model:
    return world.open().model(MODEL)


def test_numpy_arrays_are_filled_and_returned(model: Model) -> None:
    into = {name: np.ones_like(array) for name, array in weights().items()}
    loaded = model.load(into=into)
    assert loaded.keys() == into.keys()
    for name, array in weights().items():
        assert loaded[name] is into[name]
        assert into[name].tobytes() == array.tobytes(), name
    assert model.report is not None
    assert model.report.mapped_bytes == 0


def test_arrays_of_any_strides_are_filled_and_nothing_beside_them(model: Model) -> None:
    wide = np.full((1500, 2, 512), 5, np.float32)
    across = np.full((48, 64), 5, ml_dtypes.bfloat16)
    backwards = np.full(333, 5, np.float32)
    model.load(into={"embed": wide[:, 1], "half": across.T, "norm": backwards[::-1]})
    assert np.array_equal(wide[:, 1], weights()["embed"])
    assert (wide[:, 0] == 5).all()
    assert np.array_equal(across.T, weights()["half"])
    assert np.array_equal(backwards[::-1], weights()["norm"])


def test_a_state_dict_is_filled_through_parameters_and_views(model: Model) -> None:
    module = torch.nn.Module()
    module.embed = torch.nn.Parameter(torch.zeros(1500, 512))
    across = torch.zeros(48, 64, dtype=torch.bfloat16).T
    module.register_buffer("across", across)
    one = torch.zeros((), dtype=torch.int64)
    module.register_buffer("one", one)
    state = module.state_dict()
    state["half"] = state.pop("across")
    model.load(into=state)
    assert module.embed.requires_grad
    assert torch.equal(module.embed.detach(), torch.from_numpy(weights()["embed"]))
    half = torch.from_numpy(weights()["half"].view(np.int16)).view(torch.bfloat16)
    assert torch.equal(across.view(torch.int16), half.view(torch.int16))
    assert one.item() == 7


@pytest.mark.parametrize("dtype", ODD_DTYPES, ids=str)
def test_tensors_of_every_kind_of_dtype_are_filled(world: World, tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = (torch.arange(600) % 2).reshape(20, 30).to(dtype)
    save_file({"w": tensor}, tmp_path / "w.safetensors")
    store = world.open()
    store.push(tmp_path / "w.safetensors", "acme/odd")
    empty = torch.zeros(20, 30, dtype=dtype)
    store.model("acme/odd").load(into={"w": empty})
    assert torch.equal(empty.view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8))


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("embed", np.zeros((512, 1500), np.float32), "shape"),
        ("embed", np.zeros((1500, 512), np.float64), "float64"),
        ("norm", torch.zeros(334), "shape"),
        ("norm", torch.zeros(333, dtype=torch.bfloat16), "bfloat16"),
        ("norm", np.frombuffer(bytes(4 * 333), np.float32), "read-only"),
        ("norm", [0.0] * 333, "'norm' is to be loaded into is a list"),
        ("norm", None, "NoneType"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_read(model: Model, name: str, array: Any, message: str) -> None:
    good = np.zeros(333 if name == "embed" else (1500, 512), np.float32)
    with pytest.raises(InvalidInput, match=message):
        model.load(into={("norm" if name == "embed" else "embed"): good, name: array})
    assert not good.any()


def test_a_name_that_is_not_there_is_not_found(model: Model) -> None:
    with pytest.raises(NotFound, match="nope"):
        model.load(into={"nope": np.zeros(1)})


@pytest.mark.parametrize("other", [{"include": "norm"}, {"framework": "torch"}, {"device": "cpu"}, {"mode": "read"}])
def test_what_the_arrays_say_is_not_said_twice(model: Model, other: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="leave the other arguments out"):
        model.load(into={"norm": np.zeros(333, np.float32)}, **other)


def test_tied_names_of_equal_tensors_share_their_memory(world: World) -> None:
    same = np.random.default_rng(1).standard_normal((100, 100), np.float32)
    store = world.open()
    store.push({"embed": same, "head": same.copy(), "other": same + 1}, "acme/tied")
    tied = store.model("acme/tied")
    array = np.zeros((100, 100), np.float32)
    tied.load(into={"embed": array, "head": array})
    assert np.array_equal(array, same)
    with pytest.raises(InvalidInput, match="'embed' and 'other' share memory"):
        tied.load(into={"embed": array, "other": array})
    with pytest.raises(InvalidInput, match="share memory"):
        tied.load(into={"embed": array, "head": array.T})


def test_arrays_that_overlap_are_refused_and_interleaved_ones_are_not(world: World) -> None:
    chance = np.random.default_rng(2)
    arrays = {name: chance.standard_normal((50, 40), np.float32) for name in ("a", "b")}
    store = world.open()
    store.push(arrays, "acme/pair")
    pair = store.model("acme/pair")
    memory = np.zeros(3000, np.float32)
    with pytest.raises(InvalidInput, match="'a' and 'b' share memory"):
        pair.load(into={"a": memory[:2000].reshape(50, 40), "b": memory[1000:].reshape(50, 40)})
    assert not memory.any()
    both = np.zeros((50, 2, 40), np.float32)
    pair.load(into={"a": both[:, 0], "b": both[:, 1]})
    assert np.array_equal(both[:, 0], arrays["a"])
    assert np.array_equal(both[:, 1], arrays["b"])


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(1).expand(333), "elements that share memory"),
        (torch.zeros(333, device="meta"), "on meta"),
        (torch.zeros(333).to_sparse(), "sparse"),
        (torch.zeros(333, dtype=torch.complex64).conj(), "conjugate"),
    ],
    ids=["expanded", "meta", "sparse", "conjugate"],
)
def test_tensors_without_memory_of_their_own_are_refused(model: Model, tensor: torch.Tensor, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        model.load(into={"norm": tensor})


def test_damage_is_an_error_and_no_other_tensor_is_wrong(world: World, model: Model) -> None:
    [path] = [each for each in world.part_files() if each.read_bytes()[:64] == weights()["embed"].tobytes()[:64]]
    flip(path, 70_000, 0x10)
    with pytest.raises(Integrity):
        model.load(into={"embed": np.zeros((1500, 512), np.float32)})
