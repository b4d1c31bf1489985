"""Loads of a part of a model: each rank's arrays are numpy's slices, few bytes more are read than needed, and no flip passes."""

import itertools
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import torch

from tensorkeep import Integrity, InvalidInput, LoadReport, Model, NotFound, Shard
from tensorkeep.integrations.torch import TorchFramework
from tensorkeep.planning.shards import chunk_of
from tensorkeep.planning.tensor_parallel import usual_axis
from tensorkeep.records.layout import BLOCK_BYTES
from tensorkeep.store.frameworks import Destination
from tests.e2e.gguf_files import every_tensor, write_gguf
from tests.faults.store_world import MIB, MODEL, Arrays, World, flip
from tests.unit.transfer.small_world import LateCarrier, array_in, same_bits

BF16 = np.dtype(ml_dtypes.bfloat16)


def llama(*, vocabulary: int, hidden: int, inner: int, key_value: int, layers: int, experts: int = 0) -> Arrays:
    """Return the arrays of a Llama-shaped model, with experts of a Mixtral in place of its MLP where there are some."""
    chance = np.random.default_rng(5)

    def weight(*shape: int) -> npt.NDArray[Any]:
        return np.frombuffer(chance.bytes(2 * math.prod(shape)), BF16).reshape(shape)

    arrays: Arrays = {"model.embed_tokens.weight": weight(vocabulary, hidden)}
    for layer in range(layers):
        block: Arrays = {
            "self_attn.q_proj.weight": weight(hidden, hidden),
            "self_attn.q_proj.bias": weight(hidden),
            "self_attn.k_proj.weight": weight(key_value, hidden),
            "self_attn.v_proj.weight": weight(key_value, hidden),
            "self_attn.o_proj.weight": weight(hidden, hidden),
            "self_attn.o_proj.bias": weight(hidden),
            "input_layernorm.weight": weight(hidden),
            "post_attention_layernorm.weight": weight(hidden),
        }
        for name in [f"block_sparse_moe.experts.{expert}." for expert in range(experts)] or ["mlp."]:
            first, second, third = ("w1", "w3", "w2") if experts else ("gate_proj", "up_proj", "down_proj")
            block[f"{name}{first}.weight"] = weight(inner, hidden)
            block[f"{name}{second}.weight"] = weight(inner, hidden)
            block[f"{name}{third}.weight"] = weight(hidden, inner)
        arrays |= {f"model.layers.{layer}.{name}": array for name, array in block.items()}
    arrays["model.norm.weight"] = weight(hidden)
    arrays["lm_head.weight"] = weight(vocabulary, hidden)
    arrays["steps"] = np.array(7, np.int64)
    return arrays


DENSE = llama(vocabulary=1000, hidden=240, inner=720, key_value=120, layers=3)
MOE = llama(vocabulary=240, hidden=240, inner=480, key_value=120, layers=2, experts=4)
"""Sizes that 2, 3, 4, 5 and 8 divide, if vocabulary is left out of it."""


def parallel(rank: int, size: int) -> Callable[[str, npt.NDArray[Any]], npt.NDArray[Any]]:
    def part(name: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        axis = usual_axis(name, array.shape)
        return array if axis is None else np.split(array, size, axis)[rank]

    return part


def chunked(rank: int, size: int) -> Callable[[str, npt.NDArray[Any]], npt.NDArray[Any]]:
    def part(name: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        del name
        return array[rank * -(-len(array) // size) :][: -(-len(array) // size)] if array.ndim else array

    return part


def part_of(arrays: Arrays, shard: Shard) -> Arrays:
    """Return what a shard has of arrays, by numpy."""
    found: Arrays = {}
    for name, array in arrays.items():
        words = name.split(".")
        if shard.layers is not None and "layers" in words and int(words[2]) not in shard.layers:
            continue
        if shard.experts is not None and "experts" in words and int(words[5]) not in shard.experts:
            continue
        part = parallel(*shard.tensor_parallel)(name, array) if shard.tensor_parallel else array
        found[name] = chunked(*shard.fsdp)(name, part) if shard.fsdp else part
    return found


def assert_equal(found: dict[str, Any], expected: Arrays) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        loaded = found[name]
        if isinstance(loaded, torch.Tensor):
            assert loaded.is_contiguous()
            numpy = TorchFramework().to_numpy(loaded)
            assert numpy is not None
            loaded = numpy
        assert same_bits(loaded, array.copy(order="C")), name
        assert loaded.flags.c_contiguous


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Model]]:
    """The two models on three devices, in parts that cut their larger tensors."""
    world = World(tmp_path_factory.mktemp("shards") / "world", devices=3, replicas=1)
    store = world.create()
    store.push(DENSE, "dense", split="tensor", part_size=MIB)
    store.push(DENSE, "sized", split="size", part_size=MIB)
    store.push(DENSE, "shares", split="parts=5")
    store.push(MOE, "moe", split="layer", part_size=4 * MIB)
    yield {name: store.model(name) for name in ("dense", "sized", "shares", "moe")}
    world.close()


SHARDS = {
    "tensor parallel": [Shard(tensor_parallel=(rank, size)) for size in (1, 2, 4, 8) for rank in range(size)],
    "fsdp": [Shard(fsdp=(rank, size)) for size in (1, 2, 7) for rank in range(size)],
    "empty chunks": [Shard(fsdp=(rank, 300)) for rank in (0, 119, 239, 240, 299)],
    "stages": [Shard(layers=range(first, first + 1)) for first in range(3)],
    "both": [Shard(tensor_parallel=(rank, 4), fsdp=(chunk, 3)) for rank in range(4) for chunk in range(3)],
    "all": [Shard(tensor_parallel=(rank, 2), fsdp=(1, 2), layers=range(1, 3), experts=[1, 3]) for rank in range(2)],
}


@pytest.mark.parametrize("kind", SHARDS)
@pytest.mark.parametrize("split", ["dense", "sized", "shares"])
@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_each_rank_has_what_numpy_slices(models: dict[str, Model], split: str, kind: str, framework: str) -> None:
    for shard in SHARDS[kind]:
        for mode in ("auto", "read"):
            loaded = models[split].load(shard=shard, framework=framework, mode=mode)
            assert_equal(loaded, part_of(DENSE, shard))


@pytest.mark.parametrize(
    "shard",
    [
        Shard(experts=[0]),
        Shard(experts=[1, 3]),
        Shard(experts=range(2), tensor_parallel=(1, 2)),
        Shard(experts=[2], tensor_parallel=(2, 4), layers=range(1), fsdp=(1, 3)),
    ],
    ids=str,
)
@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_each_rank_of_experts_has_its_own_and_what_all_share(
    models: dict[str, Model], shard: Shard, framework: str
) -> None:
    assert_equal(models["moe"].load(shard=shard, framework=framework), part_of(MOE, shard))


@pytest.mark.parametrize("shard", [Shard(tensor_parallel=(1, 4)), Shard(tensor_parallel=(1, 2), fsdp=(2, 3))], ids=str)
def test_memory_of_another_device_gets_the_same(
    models: dict[str, Model], shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    carrier = LateCarrier()

    def make_far(self: TorchFramework, dtype: str, shape: tuple[int, ...], *more: Any) -> Destination:
        from tensorkeep.records.dtype import get_dtype

        memory = carrier.memory(get_dtype(dtype).numpy, shape)
        return Destination(memory, memory)

    monkeypatch.setattr(TorchFramework, "make_far", make_far)
    loaded = models["dense"].load(shard=shard, framework="torch", device="meta")
    assert_equal({name: array_in(memory) for name, memory in loaded.items()}, part_of(DENSE, shard))


def test_ranks_put_together_are_the_model(models: dict[str, Model]) -> None:
    ranks = [models["dense"].load(shard=Shard(tensor_parallel=(rank, 8))) for rank in range(8)]
    for name, array in DENSE.items():
        axis = usual_axis(name, array.shape)
        whole = ranks[3][name] if axis is None else np.concatenate([rank[name] for rank in ranks], axis)
        assert same_bits(whole, array), name


def test_include_chooses_before_the_shard_does(models: dict[str, Model]) -> None:
    shard = Shard(tensor_parallel=(0, 3), layers=[1], outside_layers=False)
    names = {f"model.layers.1.self_attn.{name}_proj.weight" for name in "qkv"}
    include = "*.[qkv]_proj.weight"
    loaded = models["dense"].load(include=include, shard=shard)
    assert_equal(loaded, {name: np.split(DENSE[name], 3)[0] for name in DENSE if name in names})
    with pytest.raises(NotFound, match="belongs to"):
        models["dense"].load(include=include, shard=Shard(layers=[17]))
    with pytest.raises(InvalidInput, match="7 ranks"):
        models["dense"].load(shard=Shard(tensor_parallel=(0, 7)))


def test_runs_of_rows_lie_over_files_where_they_can(models: dict[str, Model]) -> None:
    model = models["dense"]
    array = model.load(include="lm_head.weight", shard=Shard(tensor_parallel=(1, 2)))["lm_head.weight"]
    assert model.report is not None
    assert model.report.mapped_bytes == array.nbytes == DENSE["lm_head.weight"].nbytes // 2
    array[...] = 0  # stays in this process
    again = model.load(include="lm_head.weight", shard=Shard(tensor_parallel=(1, 2)))["lm_head.weight"]
    assert same_bits(again, DENSE["lm_head.weight"][500:])


def test_quantised_gguf_tensors_are_cut_between_blocks(tmp_path: Path) -> None:
    world = World(tmp_path / "world", devices=2, replicas=1)
    store = world.create()
    store.push(write_gguf(tmp_path / "m.gguf"), MODEL)
    model = store.model(MODEL)
    whole = model.load()
    cut = 0
    for name, info in model.tensors.items():
        rows = len(info.shape) > 1
        if rows and info.dtype.startswith("GGUF:"):
            found = [model.load(include=name, shard=Shard(fsdp=(rank, 3)))[name] for rank in range(3)]
            assert same_bits(np.concatenate(found), whole[name])
            cut += 1
    assert cut > 5
    assert set(every_tensor()) <= set(whole)
    blocks = next(name for name, info in model.tensors.items() if info.dtype == "GGUF:Q8_0" and len(info.shape) > 1)
    size, unit = model.tensors[blocks].shape[-1], gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.Q8_0][0]
    columns = [
        model.load(include=blocks, shard=Shard(tensor_parallel=(rank, size // unit), rules={"*": -1}))[blocks]
        for rank in range(size // unit)
    ]
    assert same_bits(np.concatenate(columns, -1), whole[blocks])
    with pytest.raises(InvalidInput, match=f"packs {unit} elements"):
        model.load(include=blocks, shard=Shard(tensor_parallel=(1, size), rules={"*": -1}))
    world.end()


# --------------------------------------------------------------------------------------- plans


@pytest.mark.parametrize("split", ["dense", "sized", "shares", "moe"])
def test_a_plan_reads_what_the_load_then_reads(models: dict[str, Model], split: str) -> None:
    model = models[split]
    shards = [None, *itertools.chain.from_iterable(SHARDS.values())]
    for shard in shards if split != "moe" else [None, Shard(experts=[1], tensor_parallel=(1, 4))]:
        for verify in ("blocks", "digest", "off"):
            plan = model.plan_load(shard=shard, verify=verify)
            loaded = model.load(shard=shard, verify=verify, mode="read")
            report = model.report
            assert report is not None
            assert (plan.bytes_needed, plan.bytes_read) == (report.bytes_needed, report.bytes_read)
            assert {device.name: device.bytes for device in plan.devices} == {
                device.name: device.bytes for device in report.devices
            }
            assert {each.id: each.predicted_seconds for each in plan.devices} == {
                each.id: each.predicted_seconds for each in report.devices
            }
            assert [(each.name, each.size_bytes) for each in plan.tensors] == [
                (name, array.nbytes) for name, array in loaded.items()
            ]
            assert plan.verify == verify
            assert plan.load_seconds == max((each.predicted_seconds for each in plan.devices), default=0)


def test_a_plan_says_which_run_of_which_tensor(models: dict[str, Model]) -> None:
    plan = models["dense"].plan_load(shard=Shard(tensor_parallel=(1, 2)), include="model.layers.0.mlp.*")
    found = [(each.name.split(".")[4], each.full_shape, each.starts, each.shape) for each in plan.tensors]
    assert sorted(found) == [
        ("down_proj", (240, 720), (0, 360), (240, 360)),
        ("gate_proj", (720, 240), (360, 0), (360, 240)),
        ("up_proj", (720, 240), (360, 0), (360, 240)),
    ]
    assert all(each.dtype == "BF16" for each in plan.tensors)


def test_a_plan_reads_no_part(tmp_path: Path) -> None:
    world = World(tmp_path / "world", devices=2, replicas=1)
    world.create().push(MOE, MODEL)
    model = world.open().model(MODEL)
    for path in part_files(world):
        path.unlink()
    plan = model.plan_load(shard=Shard(tensor_parallel=(0, 2)))
    assert plan.bytes_read >= plan.bytes_needed > 0
    assert sum(device.bytes for device in plan.devices) == plan.bytes_read
    world.unmount("d0")
    away = world.open().model(MODEL).plan_load()
    assert {device.name for device in away.devices} <= {"d1"}
    assert sum(device.bytes for device in away.devices) < away.bytes_read


# ------------------------------------------------------------------------- bytes read / needed

LARGE = {"vocabulary": 4096, "hidden": 2048, "inner": 4608, "key_value": 256, "layers": 2}
"""Every matrix but those of keys and values is over 8 MB, those of the MLP and the vocabulary over 16."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    world = World(tmp_path_factory.mktemp("large") / "world", devices=2, replicas=1)
    store = world.create()
    store.push(llama(**LARGE), MODEL, split="tensor")
    yield store.model(MODEL)
    world.end()


def read(model: Model, shard: Shard | None = None, include: str | None = None) -> LoadReport:
    model.load(shard=shard, include=include, mode="read")
    assert model.report is not None
    return model.report


def test_one_tensor_and_one_layer_cost_hardly_more_than_their_bytes(large: Model) -> None:
    for report in (
        read(large, include="model.layers.1.mlp.up_proj.weight"),
        read(large, Shard(layers=[1], outside_layers=False)),
    ):
        assert report.bytes_needed >= 16e6
        assert report.bytes_read <= 1.02 * report.bytes_needed


BY_COLUMNS = [
    "model.embed_tokens.weight",
    "lm_head.weight",
    "*.q_proj.*",
    "*.k_proj.*",
    "*.v_proj.*",
    "*.gate_proj.*",
    "*.up_proj.*",
]


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("kind", ["fsdp", "tensor_parallel"])
def test_dim_0_shards_cost_hardly_more_than_their_bytes(large: Model, kind: str, ranks: int) -> None:
    include = None if kind == "fsdp" else BY_COLUMNS
    for rank in range(ranks):
        plan = large.plan_load(shard=Shard(**{kind: (rank, ranks)}), include=include)  # type: ignore[arg-type]
        long = sum(each.size_bytes for each in plan.tensors if each.size_bytes >= 2 * MIB)
        short = sum(0 < each.size_bytes < 2 * MIB for each in plan.tensors)
        rest = plan.bytes_needed - long
        assert long > plan.bytes_needed / 2
        assert plan.bytes_read <= 1.02 * long + rest + 2 * BLOCK_BYTES * short
        only_long = [each.name for each in plan.tensors if each.size_bytes >= 2 * MIB]
        plan = large.plan_load(shard=Shard(**{kind: (rank, ranks)}), include=only_long)  # type: ignore[arg-type]
        assert plan.bytes_read <= 1.02 * plan.bytes_needed
        for name in (each.name for each in large.plan_load(include=include).tensors):
            (run,) = (alone := large.plan_load(shard=Shard(**{kind: (rank, ranks)}), include=name)).tensors  # type: ignore[arg-type]
            if run.size_bytes < 2 * MIB:
                assert alone.bytes_read <= run.size_bytes + 2 * BLOCK_BYTES, name
    report = read(large, Shard(**{kind: (ranks - 1, ranks)}), None)  # type: ignore[arg-type]
    assert report.bytes_read == large.plan_load(shard=Shard(**{kind: (ranks - 1, ranks)})).bytes_read  # type: ignore[arg-type]


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_dim_1_shards_read_each_tensor_that_they_cut_at_most_once(large: Model, ranks: int) -> None:
    names = [name for name in large.tensors if name.endswith(("o_proj.weight", "down_proj.weight"))]
    assert len(names) == 4
    report = read(large, Shard(tensor_parallel=(ranks - 1, ranks)), "*[on]_proj.weight")
    plan = large.plan_load(shard=Shard(tensor_parallel=(ranks - 1, ranks)), include=names)
    assert plan.bytes_read <= sum(large.tensors[name].size_bytes for name in names)
    assert report.bytes_read >= plan.bytes_read
    for name in names:
        plan = large.plan_load(shard=Shard(tensor_parallel=(0, ranks)), include=name)
        assert plan.bytes_needed == large.tensors[name].size_bytes // ranks
        assert plan.bytes_read <= large.tensors[name].size_bytes


def test_rows_that_are_longer_than_blocks_are_not_read_whole(tmp_path: Path) -> None:
    world = World(tmp_path / "world", devices=1, replicas=1)
    store = world.create()
    array = np.random.default_rng(1).integers(0, 256, (4, 2 << 20), np.uint8)
    store.push({"w2.weight": array}, MODEL)
    model = store.model(MODEL)
    for ranks in (2, 4):
        report = read(model, Shard(tensor_parallel=(1, ranks)))
        assert report.bytes_read == report.bytes_needed == array.nbytes // ranks
    world.end()


# ---------------------------------------------------------------------------------------- flips


def part_files(world: World) -> list[Path]:
    return sorted(path for name in world.names for path in world.files(name) if "/parts/" in str(path))


FLIPPED = [
    Shard(tensor_parallel=(1, 4)),
    Shard(fsdp=(2, 3)),
    Shard(layers=[1]),
    Shard(experts=[0, 3], tensor_parallel=(0, 2)),
    Shard(layers=[0], tensor_parallel=(1, 2), fsdp=(0, 2), experts=[2]),
]


@pytest.mark.parametrize("count", [30, pytest.param(300, marks=pytest.mark.soak)])
@pytest.mark.parametrize("copies", [1, 2])
def test_no_flip_passes_into_a_shard(tmp_path: Path, count: int, copies: int) -> None:
    world = World(tmp_path / "world", devices=2, replicas=copies)
    world.create().push(MOE, MODEL, part_size=MIB)
    chance = random.Random(3)
    files = part_files(world)
    outcomes = {"refused": 0, "healed": 0, "not touched": 0}
    for number in range(count):
        path = chance.choice(files)
        at, mask = chance.randrange(path.stat().st_size), chance.randrange(1, 256)
        flip(path, at, mask)
        shard = FLIPPED[number % len(FLIPPED)]
        model = world.open().model(MODEL)
        try:
            loaded = model.load(
                shard=shard, mode="auto" if number % 2 else "read", framework=chance.choice(["numpy", "torch"])
            )
        except Integrity:
            assert copies == 1
            outcomes["refused"] += 1
        else:
            assert_equal(loaded, part_of(MOE, shard))
            assert model.report is not None
            outcomes["healed" if model.report.damaged else "not touched"] += 1
        flip(path, at, mask)
        world.close()
        with world.open() as store:  # what was noted of the copy is put right
            store.verify(MODEL)
    assert outcomes["refused" if copies == 1 else "healed"]
    world.end()


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("mode", ["auto", "read"])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_flip_in_a_block_that_a_shard_reads_is_never_loaded(
    tmp_path: Path, copies: int, mode: Any, axis: int
) -> None:
    """Every block of the shard in turn; a flip beside it, in blocks that are not read, does not fail it."""
    world = World(tmp_path / "world", devices=copies, replicas=copies)
    array = np.random.default_rng(2).integers(0, 256, (16, 4 * BLOCK_BYTES // 8), np.uint8)
    world.create().push({"w": array}, MODEL, split="tensor")
    (path, *_) = (path for path in part_files(world) if path.stat().st_size >= array.nbytes)
    shard = Shard(tensor_parallel=(1, 2), rules={"w": axis})
    refused = []
    for block in range(array.nbytes // BLOCK_BYTES):
        flip(path, block * BLOCK_BYTES + 9, 1)
        model = world.open().model(MODEL)
        try:
            loaded = model.load(shard=shard, mode=mode)["w"]
        except Integrity:
            refused.append(block)
            assert copies == 1
        else:
            assert same_bits(loaded, np.split(array, 2, axis)[1].copy(order="C"))
        flip(path, block * BLOCK_BYTES + 9, 1)
        world.close()
        with world.open() as store:
            store.verify(MODEL)
    blocks = list(range(array.nbytes // BLOCK_BYTES))
    reads = blocks[len(blocks) // 2 :] if axis == 0 else blocks
    assert refused == (reads if copies == 1 else [])
    world.end()


def test_chunks_are_those_that_the_tests_above_cut() -> None:
    assert [chunk_of(10, rank, 4) for rank in range(4)] == [(0, 3), (3, 3), (6, 3), (9, 1)]
    assert [chunk_of(2, rank, 4) for rank in range(4)] == [(0, 1), (1, 1), (2, 0), (2, 0)]
