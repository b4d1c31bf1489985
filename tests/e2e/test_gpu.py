"""Tensors that are loaded onto a CUDA device are, bit for bit, those that safetensors loads there."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bench.make_models import make_model
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
