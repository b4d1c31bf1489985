"""What each kind of shard has of a model: tensors, boxes, and errors that say what to do."""

import math
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tensorkeep.errors import Format, InvalidInput
from tensorkeep.planning.shards import Shard, TensorPart, chunk_of, cut_tensors
from tensorkeep.planning.tensor_parallel import usual_axis
from tensorkeep.records.dtype import get_dtype, packed_shape
from tensorkeep.records.manifest import Tensor
from tests.unit.transfer.small_world import array_of, make_tensor, same_bits, seeded_bytes

AXES: dict[str, tuple[tuple[int, ...], int | None]] = {
    "model.embed_tokens.weight": ((64, 16), 0),
    "model.layers.3.self_attn.q_proj.weight": ((16, 16), 0),
    "model.layers.3.self_attn.q_proj.bias": ((16,), 0),
    "model.layers.3.self_attn.k_proj.weight": ((4, 16), 0),
    "model.layers.3.self_attn.v_proj.bias": ((4,), 0),
    "model.layers.3.self_attn.o_proj.weight": ((16, 16), 1),
    "model.layers.3.self_attn.o_proj.bias": ((16,), None),
    "model.layers.3.self_attn.q_norm.weight": ((4,), None),
    "model.layers.3.mlp.gate_proj.weight": ((32, 16), 0),
    "model.layers.3.mlp.up_proj.weight": ((32, 16), 0),
    "model.layers.3.mlp.down_proj.weight": ((16, 32), 1),
    "model.layers.3.input_layernorm.weight": ((16,), None),
    "model.norm.weight": ((16,), None),
    "lm_head.weight": ((64, 16), 0),
    # Mixtral and DeepSeek
    "model.layers.3.block_sparse_moe.gate.weight": ((8, 16), None),
    "model.layers.3.block_sparse_moe.experts.7.w1.weight": ((32, 16), 0),
    "model.layers.3.block_sparse_moe.experts.7.w2.weight": ((16, 32), 1),
    "model.layers.3.mlp.shared_experts.down_proj.weight": ((16, 32), 1),
    "model.layers.3.self_attn.q_a_proj.weight": ((8, 16), None),
    "model.layers.3.self_attn.kv_b_proj.weight": ((32, 8), 0),
    # Meta's own names
    "layers.3.attention.wq.weight": ((16, 16), 0),
    "layers.3.attention.wo.weight": ((16, 16), 1),
    "tok_embeddings.weight": ((64, 16), 0),
    "output.weight": ((64, 16), 0),
    # GGUF
    "blk.3.attn_output.weight": ((16, 16), 1),
    "blk.3.ffn_up.weight": ((32, 16), 0),
    "blk.3.ffn_down_exps.weight": ((8, 16, 32), 2),
    "blk.3.ffn_gate_exps.weight": ((8, 32, 16), 1),
    "output_norm.weight": ((16,), None),
    # names that only look alike, and tensors of one element
    "encoder.layer.3.output.weight": ((16, 16), None),
    "model.layers.3.self_attn.q_proj.lora_A.weight": ((4, 16), None),
    "model.layers.3.self_attn.q_proj.input_scale": ((), None),
    "model.layers.3.self_attn.o_proj.weight_scale": ((1,), None),
}

UNKNOWN: dict[str, tuple[int, ...]] = {
    "model.layers.3.self_attn.qkv_proj.weight": (48, 16),
    "model.layers.3.mlp.gate_up_proj.weight": (64, 16),
    "transformer.h.3.attn.c_attn.weight": (16, 48),
    "gpt_neox.layers.3.attention.query_key_value.bias": (48,),
    "encoder.self_attn.in_proj_weight": (48, 16),
    "blk.3.attn_qkv.weight": (48, 16),
    "model.layers.3.mlp.experts.gate_up_proj": (8, 16, 64),
    "model.layers.3.mlp.experts.down_proj": (8, 32, 16),
    "model.layers.3.self_attn.q_proj.qweight": (16, 2),
    "model.layers.3.self_attn.q_proj.weight_scale_inv": (2, 2),
}


@pytest.mark.parametrize("name", AXES)
def test_the_preset_knows_which_axis_of_a_usual_tensor_is_cut(name: str) -> None:
    shape, axis = AXES[name]
    assert usual_axis(name, shape) == axis


@pytest.mark.parametrize("name", UNKNOWN)
def test_the_preset_refuses_what_no_single_run_is_a_share_of(name: str) -> None:
    with pytest.raises(InvalidInput, match=r"rules=") as raised:
        usual_axis(name, UNKNOWN[name])
    assert repr(name) in raised.value.message


def tensor_of(name: str, shape: tuple[int, ...], dtype: str = "F32", strides: tuple[int, ...] | None = None) -> Tensor:
    packed = packed_shape(shape, get_dtype(dtype))
    count = math.prod(packed) if strides is None else 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    return make_tensor(name, dtype, shape, 24, count * get_dtype(dtype).numpy.itemsize, strides)


def array_of_part(content: bytes, part: TensorPart) -> npt.NDArray[Any]:
    """Return what a reader would return that reads the tensor, or the box of it, that a part says."""
    array = array_of(content, part.tensor)
    if part.box is None:
        return array
    return array[tuple(slice(start, start + size) for start, size in zip(*part.box, strict=True))]


def cut(tensor: Tensor, shard: Shard) -> TensorPart:
    return cut_tensors({tensor.name: tensor}, shard)[tensor.name]


# ------------------------------------------------------------------ shards of all ranks are the tensor

DTYPES = ["F32", "BF16", "U8", "F4", "F6_E2M3", "GGUF:Q8_0", "GGUF:Q4_K", "NPY:<c16"]


@given(data=st.data(), dtype=st.sampled_from(DTYPES), ranks=st.integers(1, 9))
def test_the_runs_of_all_ranks_side_by_side_are_the_tensor(data: st.DataObject, dtype: str, ranks: int) -> None:
    unit = {"F4": 2, "F6_E2M3": 4, "GGUF:Q8_0": 32, "GGUF:Q4_K": 256}.get(dtype, 1)
    shape = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=4))
    axis = data.draw(st.integers(0, len(shape) - 1))
    shape[axis] *= ranks
    shape[-1] *= unit
    tensor = tensor_of("w", tuple(shape), dtype)
    content = seeded_bytes(tensor.start + tensor.length)
    sign = data.draw(st.sampled_from([0, len(shape)]))
    parts = [cut(tensor, Shard(tensor_parallel=(rank, ranks), rules={"w": axis - sign})) for rank in range(ranks)]
    arrays = [array_of_part(content, part) for part in parts]
    assert same_bits(np.concatenate(arrays, axis), array_of(content, tensor))
    for rank, (part, array) in enumerate(zip(parts, arrays, strict=True)):
        assert packed_shape(part.shape, get_dtype(dtype)) == array.shape
        assert part.starts[axis] == rank * shape[axis] // ranks
        assert part.full_shape == tensor.shape


@given(data=st.data(), ranks=st.integers(1, 9))
def test_the_runs_of_strided_tensors_side_by_side_are_the_tensor(data: st.DataObject, ranks: int) -> None:
    shape = [ranks * data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5))]
    strides = data.draw(st.sampled_from([(1, shape[0]), (0, 1), (shape[1] + 2, 1)]))
    tensor = tensor_of("w", tuple(shape), strides=strides)
    content = seeded_bytes(tensor.start + tensor.length)
    parts = [cut(tensor, Shard(tensor_parallel=(rank, ranks), rules={"w": 0})) for rank in range(ranks)]
    assert same_bits(np.concatenate([array_of_part(content, part) for part in parts]), array_of(content, tensor))


@given(shape=st.lists(st.integers(0, 40), min_size=1, max_size=3), ranks=st.integers(1, 12))
def test_fsdp_cuts_as_torch_does(shape: list[int], ranks: int) -> None:
    tensor = tensor_of("w", tuple(shape))
    content = seeded_bytes(tensor.start + tensor.length)
    whole = torch.from_numpy(array_of(content, tensor).view(np.int32).copy())
    chunks = list(torch.chunk(whole, ranks)) if shape[0] else []
    chunks += [whole[:0]] * (ranks - len(chunks))  # as `fully_shard` fills up
    for rank, chunk in enumerate(chunks):
        part = cut(tensor, Shard(fsdp=(rank, ranks)))
        assert array_of_part(content, part).tobytes() == chunk.numpy().tobytes()
        assert part.shape == tuple(chunk.shape)


@given(rows=st.integers(0, 200), ranks=st.integers(1, 20))
def test_chunks_cover_all_rows_once(rows: int, ranks: int) -> None:
    covered = [row for rank in range(ranks) for row in range(*_ends(chunk_of(rows, rank, ranks)))]
    assert covered == list(range(rows))


def _ends(chunk: tuple[int, int]) -> tuple[int, int]:
    return chunk[0], chunk[0] + chunk[1]


@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    ranks=st.integers(1, 4),
    chunks=st.integers(1, 5),
    axis=st.integers(0, 1),
)
def test_fsdp_cuts_again_what_tensor_parallelism_left(
    rows: int, columns: int, ranks: int, chunks: int, axis: int
) -> None:
    shape = (rows * ranks, columns * ranks)
    tensor = tensor_of("w", shape)
    content = seeded_bytes(tensor.start + tensor.length)
    whole = array_of(content, tensor)
    for rank in range(ranks):
        run = np.split(whole, ranks, axis)[rank]
        found = [
            array_of_part(
                content, cut(tensor, Shard(tensor_parallel=(rank, ranks), rules={"w": axis}, fsdp=(i, chunks)))
            )
            for i in range(chunks)
        ]
        assert same_bits(np.concatenate(found), run)
        assert len(found[0]) == -(-len(run) // chunks)


def test_tensors_without_a_dimension_are_whole_on_every_rank() -> None:
    tensor = tensor_of("layers.0.norm.num_batches_tracked", (), "I64")
    for rank in range(4):
        assert cut(tensor, Shard(fsdp=(rank, 4), tensor_parallel=(rank, 4))).tensor == tensor


def test_a_run_of_rows_is_a_tensor_of_its_own_and_a_run_of_columns_a_box() -> None:
    tensor = tensor_of("w", (8, 6), "BF16")
    rows = cut(tensor, Shard(tensor_parallel=(3, 4), rules={"w": 0}))
    assert rows.box is None
    assert (rows.tensor.start, rows.tensor.length, rows.tensor.shape) == (24 + 6 * 6 * 2, 2 * 6 * 2, (2, 6))
    columns = cut(tensor, Shard(tensor_parallel=(2, 3), rules={"w": 1}))
    assert columns.tensor == tensor
    assert columns.box == ((0, 4), (8, 2))


# --------------------------------------------------------------------------------- which tensors

MOE = (
    "model.embed_tokens.weight",
    *(f"model.layers.{layer}.input_layernorm.weight" for layer in range(4)),
    *(f"model.layers.{layer}.mlp.experts.{expert}.w1.weight" for layer in range(4) for expert in range(3)),
    *(f"model.layers.{layer}.mlp.shared_experts.up_proj.weight" for layer in range(4)),
    "model.norm.weight",
    "lm_head.weight",
)


def chosen(shard: Shard, names: Sequence[str] = MOE) -> list[str]:
    return list(cut_tensors({name: tensor_of(name, (2, 2)) for name in names}, shard))


def test_a_stage_has_its_layers_and_what_belongs_to_none() -> None:
    wanted = [name for name in MOE if ".layers." not in name or ".layers.1." in name or ".layers.2." in name]
    assert chosen(Shard(layers=range(1, 3))) == wanted
    assert chosen(Shard(layers=[1, 2])) == wanted
    assert chosen(Shard(layers=range(1, 3), outside_layers=False)) == [name for name in wanted if ".layers." in name]
    assert chosen(Shard(outside_layers=False)) == [name for name in MOE if ".layers." in name]


def test_experts_that_were_not_asked_for_are_left_out_and_all_else_stays() -> None:
    assert chosen(Shard(experts=[0, 2])) == [name for name in MOE if ".experts.1." not in name]
    assert len(chosen(Shard(experts=[7]))) == len(MOE) - 12


def test_layers_and_experts_combine_with_cuts() -> None:
    shard = Shard(layers=range(1), experts=range(1), outside_layers=False, tensor_parallel=(1, 2), fsdp=(0, 1))
    parts = cut_tensors({name: tensor_of(name, (4, 2)) for name in MOE}, shard)
    assert {name: part.shape for name, part in parts.items()} == {
        "model.layers.0.input_layernorm.weight": (4, 2),
        "model.layers.0.mlp.experts.0.w1.weight": (2, 2),
        "model.layers.0.mlp.shared_experts.up_proj.weight": (2, 2),
    }


def test_layers_are_named_by_a_pattern_where_one_is_given() -> None:
    names = ["stage0.w", "stage1.w", "rest.w"]
    assert chosen(Shard(layers=[1], layer_pattern=r"stage(\d+)"), names) == ["stage1.w", "rest.w"]
    with pytest.raises(InvalidInput, match="no regular expression"):
        Shard(layers=[1], layer_pattern="(")


# ---------------------------------------------------------------------------------------- rules


def test_the_first_rule_that_fits_holds_then_the_preset() -> None:
    tensor = tensor_of("a.o_proj.weight", (8, 8))
    rules = {"a.*.bias": None, "a.*": 0, "*": 1}
    assert cut(tensor, Shard(tensor_parallel=(0, 2), rules=rules)).shape == (4, 8)
    assert cut(tensor, Shard(tensor_parallel=(0, 2), rules={"a.*": None})).shape == (8, 8)
    assert cut(tensor, Shard(tensor_parallel=(0, 2), rules={"b.*": 0})).shape == (8, 4)
    assert cut(tensor, Shard(tensor_parallel=(0, 2), preset=False)).shape == (8, 8)


def test_rules_are_about_the_name_that_a_load_returns_and_the_preset_about_the_tensors_own() -> None:
    tensor = tensor_of("q_proj.weight", (8, 8))
    found = cut_tensors({"b.safetensors::q_proj.weight": tensor}, Shard(tensor_parallel=(0, 2)))
    assert [part.shape for part in found.values()] == [(4, 8)]
    found = cut_tensors({"b.safetensors::q_proj.weight": tensor}, Shard(tensor_parallel=(0, 2), rules={"b.*": 1}))
    assert [part.shape for part in found.values()] == [(8, 4)]


def test_a_rule_makes_a_fused_matrix_possible() -> None:
    tensor = tensor_of("h.0.query_key_value.weight", (12, 4))
    with pytest.raises(InvalidInput, match="several matrices in one"):
        cut(tensor, Shard(tensor_parallel=(0, 2)))
    assert cut(tensor, Shard(tensor_parallel=(0, 2), rules={"*.query_key_value.*": 0})).shape == (6, 4)
    assert cut(tensor, Shard(tensor_parallel=(0, 1))).shape == (12, 4)


def test_a_size_that_does_not_divide_names_tensor_axis_size_and_remedy() -> None:
    tensor = tensor_of("a.q_proj.weight", (10, 4))
    with pytest.raises(InvalidInput, match=r"axis 0 of 'a\.q_proj\.weight' has 10 elements.*4 ranks") as raised:
        cut(tensor, Shard(tensor_parallel=(0, 4)))
    assert "rules={'a.q_proj.weight': None}" in raised.value.message
    assert raised.value.facts == {"tensor": "a.q_proj.weight", "axis": 0, "size": 10, "ranks": 4}
    assert cut(tensor, Shard(tensor_parallel=(0, 4), rules={"a.q_proj.weight": None})).shape == (10, 4)


@pytest.mark.parametrize(("axis", "shape"), [(2, (4, 4)), (-3, (4, 4)), (1, (4,)), (0, ())])
def test_a_rule_for_an_axis_that_is_not_there_is_refused(axis: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match="has no such axis"):
        cut(tensor_of("w", shape), Shard(tensor_parallel=(0, 2), rules={"*": axis}))


@pytest.mark.parametrize(
    ("dtype", "shape", "axis", "ranks"),
    [("GGUF:Q8_0", (4, 64), 1, 4), ("GGUF:Q4_K", (2, 256), 1, 2), ("F4", (3, 6), 1, 6), ("F6_E3M2", (12,), 0, 4)],
)
def test_a_cut_through_a_byte_or_a_quantised_block_is_refused(
    dtype: str, shape: tuple[int, ...], axis: int, ranks: int
) -> None:
    with pytest.raises(InvalidInput, match=r"packs \d+ elements together: axis \d of 'w'"):
        cut(tensor_of("w", shape, dtype), Shard(tensor_parallel=(1, ranks), rules={"w": axis}))


def test_a_dtype_that_is_not_known_is_whole_or_refused() -> None:
    tensor = make_tensor("w", "FP3_OF_THE_FUTURE", (8, 8), 0, 24)
    assert cut(tensor, Shard(layers=[0])).tensor == tensor
    with pytest.raises(Format, match="FP3_OF_THE_FUTURE"):
        cut(tensor, Shard(fsdp=(0, 2)))


# --------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    "words",
    [
        {"tensor_parallel": (2, 2)},
        {"tensor_parallel": (-1, 2)},
        {"tensor_parallel": (0, 0)},
        {"tensor_parallel": (0,)},
        {"tensor_parallel": 4},
        {"tensor_parallel": (0, 2.0)},
        {"fsdp": (8, 8)},
        {"fsdp": "0/8"},
        {"fsdp": (False, True)},
        {"rules": {"*": 0}},
        {"tensor_parallel": (0, 2), "rules": {"*": "0"}},
        {"layers": []},
        {"layers": range(3, 3)},
        {"layers": [-1]},
        {"layers": range(-1, 4)},
        {"layers": "12"},
        {"experts": ["1"]},
        {"experts": 3},
        {"experts": []},
    ],
    ids=str,
)
def test_values_that_make_no_sense_are_refused_when_the_shard_is_made(words: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        Shard(**words)


def test_a_shard_is_a_value() -> None:
    rules: dict[str, int | None] = {"*.w": 0}
    shard = Shard(tensor_parallel=(np.int64(0), 2), rules=rules, layers=range(2), experts={1})  # type: ignore[arg-type]
    same = Shard(tensor_parallel=(0, 2), rules={"*.w": 0}, layers=range(2), experts=[1, 1])
    assert shard == same
    assert hash(shard) == hash(same)
    assert pickle.loads(pickle.dumps(shard)) == shard
    rules["*.v"] = 1
    assert shard == same
    with pytest.raises(AttributeError):
        shard.fsdp = (0, 2)  # type: ignore[misc]


def test_ranges_of_any_length_cost_nothing() -> None:
    assert chosen(Shard(layers=range(3, 10**12), outside_layers=False)) == [n for n in MOE if ".layers.3." in n]
