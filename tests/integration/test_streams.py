"""Tensors handed over one after another: the right ones, in order of use, early, few at a time, and errors after what was whole."""

import itertools
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tensorkeep import Integrity, InvalidInput, NotFound
from tensorkeep.runtime import InlineWorkers, Runtime
from tensorkeep.store.model import Model
from tests.faults.store_world import MIB, MODEL, Arrays, World, flip

LAYERS = 12


def weights() -> Arrays:
    chance = np.random.default_rng(0)
    return {
        "embed.weight": chance.standard_normal((3000, 512), np.float32),
        **{f"layers.{n}.w": chance.standard_normal((512, 1024), np.float32) for n in range(LAYERS)},
        **{f"layers.{n}.norm": chance.standard_normal(333, np.float32) for n in range(LAYERS)},
        "norm.weight": chance.standard_normal(512, np.float32),
        "zero": np.empty((0, 5), np.float16),
    }


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path / "world", devices=3, replicas=1)
    world.create().push(weights(), MODEL, part_size=MIB)
    yield world
    world.end()


@pytest.fixture(params=[Runtime, lambda: Runtime(workers=InlineWorkers())], ids=["threads", "inline"])
def model(request: pytest.FixtureRequest, world: World) -> Model:
    return world.open(runtime=request.param()).model(MODEL)


@pytest.mark.parametrize("limit", [None, 1, 3 * MIB])
def test_every_tensor_comes_once_with_its_bits(model: Model, limit: int | None) -> None:
    found = dict(model.stream(memory_limit=limit))
    expected = weights()
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes(), name
    assert model.report is not None
    assert model.report.bytes_needed == sum(array.nbytes for array in expected.values())
    assert model.report.mapped_bytes == 0


def test_layers_come_in_order_of_use(model: Model) -> None:
    names = [name for name, _ in model.stream(memory_limit=1)]
    assert names[0] == "embed.weight"
    layers = [int(name.split(".")[1]) for name in names if name.startswith("layers.")]
    assert layers == sorted(layers)
    assert set(names[-2:]) == {"norm.weight", "zero"}


def test_patterns_come_in_the_order_they_are_given(model: Model) -> None:
    patterns = ["norm.weight", "layers.7.*", "layers.2.w"]
    names = [name for name, _ in model.stream(include=patterns, memory_limit=1)]
    assert names[0] == "norm.weight"
    assert set(names[1:3]) == {"layers.7.w", "layers.7.norm"}
    assert names[3] == "layers.2.w"


def test_torch_tensors_are_streamed_too(model: Model) -> None:
    for name, tensor in model.stream(framework="torch", include="layers.3.*"):
        assert torch.equal(tensor, torch.from_numpy(weights()[name]))


def test_what_is_dropped_is_freed_while_the_stream_goes_on(model: Model) -> None:
    limit = 6 * MIB
    alive: list[weakref.ref[object]] = []
    most = 0
    for _, array in model.stream(memory_limit=limit):
        alive.append(weakref.ref(array))
        del array
        most = max(most, sum(each() is not None for each in alive))
    assert most <= 1 + limit // (2 * MIB) + LAYERS  # one group of big ones, and small ones beside


def test_a_stream_that_is_closed_early_ends_its_threads(model: Model) -> None:
    before = threading.active_count()
    stream = model.stream(memory_limit=1)
    assert len(list(itertools.islice(stream, 3))) == 3
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() <= before
    assert model.report is not None
    assert model.report.bytes_needed < sum(array.nbytes for array in weights().values())


def test_damage_is_an_error_after_what_was_whole_before(world: World, model: Model) -> None:
    bad = f"layers.{LAYERS - 1}.w"
    [path] = [each for each in world.part_files() if each.read_bytes()[:4096] == weights()[bad].tobytes()[:4096]]
    flip(path, 1000, 0x10)
    found: Arrays = {}
    with pytest.raises(Integrity):
        found.update(model.stream(memory_limit=1))
    assert bad not in found
    assert f"layers.{LAYERS - 2}.w" in found
    for name, array in found.items():
        assert array.tobytes() == weights()[name].tobytes()


def test_wrong_arguments_are_refused_before_the_first_tensor(model: Model) -> None:
    with pytest.raises(NotFound, match="no tensor"):
        model.stream(include="nothing.*")
    with pytest.raises(NotFound, match="no framework"):
        model.stream(framework="abacus")
    with pytest.raises(InvalidInput, match="no way to verify"):
        model.stream(verify="maybe")  # type: ignore[arg-type]
