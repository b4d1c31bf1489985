"""Tensors that are loaded onto a CUDA device are, bit for bit, those that safetensors loads there."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bench.make_models import make_model
from tensorkeep import InvalidInput, Shard
from tests.e2e.trees import every_dtype, write_tree
from tests.e2e.workshop import Workshop

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_a_model_is_loaded_onto_a_cuda_device(workshop: Workshop, tmp_path: Path) -> None:
    folder = make_model("tiny", tmp_path / "tiny")
    workshop.store.push(folder, "acme/tiny")
    tensors = workshop.store.model("acme/tiny").load(framework="torch", device="cuda:0")
    expected = {
        name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path, "cuda:0").items()
    }
    assert sorted(tensors) == sorted(expected)
    for name, tensor in tensors.items():
        assert_same_on_device(tensor, expected[name])


def test_every_dtype_is_loaded_onto_a_cuda_device_as_onto_the_cpu(workshop: Workshop, tmp_path: Path) -> None:
    workshop.store.push(write_tree(tmp_path / "odd", every_dtype()), "acme/odd")
    model = workshop.store.model("acme/odd")
    names = [name for name, spec in model.tensors.items() if hasattr(torch, _TORCH_NAMES.get(spec.dtype, ""))]
    assert len(names) > 10
    for name in names:
        there = model.load(include=name, framework="torch", device="cuda:0")[name]
        here = model.load(include=name, framework="torch")[name]
        assert_same_on_device(there, here.to("cuda:0"))


def test_rows_of_a_tensor_on_a_cuda_device_are_those_rows(workshop: Workshop, tmp_path: Path) -> None:
    folder = make_model("tiny", tmp_path / "tiny")
    workshop.store.push(folder, "acme/tiny")
    model = workshop.store.model("acme/tiny")
    name = next(name for name, spec in model.tensors.items() if len(spec.shape) == 2)
    whole = model.load(include=name, framework="torch", device="cuda:0")[name]
    rows = torch.from_numpy(model[name][3:9].view("uint16").copy()).view(torch.bfloat16)
    assert torch.equal(whole[3:9].view(torch.int16).cpu(), rows.view(torch.int16))


def test_a_stream_a_shard_and_tensors_of_ones_own_are_filled_on_a_cuda_device(
    workshop: Workshop, tmp_path: Path
) -> None:
    folder = make_model("tiny", tmp_path / "tiny")
    workshop.store.push(folder, "acme/tiny")
    model = workshop.store.model("acme/tiny")
    expected = {
        name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path, "cuda:0").items()
    }
    streamed = dict(model.stream(framework="torch", device="cuda:0", memory_limit=16 << 20))
    assert streamed.keys() == expected.keys()
    own = {name: torch.empty_like(tensor) for name, tensor in expected.items()}
    model.load(into=own)
    for name, tensor in expected.items():
        assert_same_on_device(streamed[name], tensor)
        assert_same_on_device(own[name], tensor)
    parts = [
        model.load(framework="torch", device="cuda:0", shard=Shard(tensor_parallel=(rank, 2))) for rank in range(2)
    ]
    for name in (each for each in expected if "o_proj" in each or "q_proj" in each):
        axis = 1 if "o_proj" in name else 0
        assert_same_on_device(torch.cat([part[name] for part in parts], axis), expected[name])


def test_tensors_that_share_memory_of_a_cuda_device_get_one_tensor_only(workshop: Workshop, tmp_path: Path) -> None:
    workshop.store.push(make_model("tiny", tmp_path / "tiny"), "acme/tiny")
    model = workshop.store.model("acme/tiny")
    first, second = [name for name, spec in model.tensors.items() if name.endswith("q_proj.weight")][:2]
    memory = torch.empty(model.tensors[first].shape, dtype=torch.bfloat16, device="cuda:0")
    with pytest.raises(InvalidInput, match="share memory"):
        model.load(into={first: memory, second: memory})


_TORCH_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "C64": "complex64",
}


def assert_same_on_device(tensor: torch.Tensor, expected: torch.Tensor) -> None:
    """Assert that two tensors lie on one CUDA device and are equal byte by byte."""
    assert tensor.device == expected.device == torch.device("cuda:0")
    assert (tensor.dtype, tensor.shape) == (expected.dtype, expected.shape)
    flat = [each.contiguous().reshape(-1).view(torch.uint8) for each in (tensor, expected)]
    assert torch.equal(*flat)
