"""Real files of other formats leave as safetensors files that other libraries load as the same tensors."""

import json
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import gguf
import h5py
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from safetensors import safe_open

from tensorkeep import InvalidInput
from tests.e2e.conftest import CommandLine, Models
from tests.e2e.gguf_files import write_gguf
from tests.e2e.workshop import Workshop


@pytest.fixture
def workshop(shared_workshop: Workshop) -> Workshop:
    """One store for all tests here; each pushes what it needs."""
    return shared_workshop


class Tied(torch.nn.Module):
    """A model whose head is its embedding, as most language models have it."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embed = torch.nn.Embedding(50, 16, _weight=torch.randn(50, 16, generator=generator))
        self.norm = torch.nn.LayerNorm(16)
        self.lm_head = torch.nn.Linear(16, 50, bias=False)
        self.lm_head.weight = self.embed.weight
        self.register_buffer("steps", torch.tensor(seed))
        self.register_buffer("mask", torch.randn(6, 4, generator=generator) > 0)


def test_tied_and_transposed_weights_load_as_torch_loads_them(workshop: Workshop, tmp_path: Path) -> None:
    model = Tied(1)
    state = model.state_dict()
    state["turned"] = torch.randn(30, 20).t()
    state["sliced"] = torch.arange(100).reshape(10, 10)[2:8:2, 3:]
    state["half"] = torch.randn(9, 5).bfloat16()
    state["scale"] = torch.randn(4, 4).to(torch.float8_e4m3fn)
    state["empty"] = torch.zeros(0, 3)
    (tmp_path / "in").mkdir()
    torch.save(state, tmp_path / "in/pytorch_model.bin")
    workshop.store.push(tmp_path / "in", "formats/tied")
    report = workshop.store.pull("formats/tied", tmp_path / "out", format="safetensors")
    out = tmp_path / "out/model.safetensors"
    assert (report.converted_files, report.warnings) == (1, ())
    expected = torch.load(tmp_path / "in/pytorch_model.bin", weights_only=True)
    expected.pop("lm_head.weight")
    assert_same_tensors(safetensors.torch.load_file(out), expected)
    with safe_open(out, "pt") as file:
        assert file.metadata() == {"format": "pt", "lm_head.weight": "embed.weight"}
    saved = workshop.store.model("formats/tied").save(tmp_path / "one.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == out.read_bytes()
    assert saved.aliases == {"lm_head.weight": "embed.weight"}


def test_a_model_with_ties_is_the_file_that_save_model_writes_and_load_model_gives_them_back(
    workshop: Workshop, tmp_path: Path
) -> None:
    model = Tied(2)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    workshop.store.push(tmp_path / "weights.pt", "formats/load_model")
    workshop.store.pull("formats/load_model", tmp_path, format="safetensors", force=True)
    safetensors.torch.save_model(model, str(tmp_path / "theirs.safetensors"), {"format": "pt"})
    ours, theirs = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("weights", "theirs"))
    size = 8 + int.from_bytes(ours[:8], "little")
    assert json.loads(ours[8:size]) == json.loads(theirs[8:size])  # the library writes metadata in a random order
    assert ours[size:] == theirs[size:]
    fresh = Tied(3)
    missing, unexpected = safetensors.torch.load_model(fresh, tmp_path / "weights.safetensors")
    assert not missing
    assert not unexpected
    assert_same_tensors(fresh.state_dict(), model.state_dict())
    assert fresh.lm_head.weight is fresh.embed.weight


def test_an_optimizers_state_leaves_its_tensors_and_nothing_else(workshop: Workshop, tmp_path: Path) -> None:
    model = torch.nn.Linear(7, 5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(2, 7)).sum().backward()
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "last.ckpt")
    workshop.store.push(tmp_path / "last.ckpt", "formats/optimizer")
    workshop.store.model("formats/optimizer").save(tmp_path / "out.safetensors")
    found = safetensors.torch.load_file(tmp_path / "out.safetensors")
    assert_same_tensors(found, workshop.store.model("formats/optimizer").load(framework="torch"))
    assert torch.equal(found["model.weight"], model.weight)
    assert torch.equal(found["optimizer.state.0.exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])


def test_a_pickle_that_needs_more_comes_as_it_is_with_a_warning(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    torch.save({"w": torch.ones(3)}, tmp_path / "in/good.bin")
    torch.save({"w": torch.ones(3), "path": Path("x")}, tmp_path / "in/training_args.bin")
    torch.save({"last_epoch": 3}, tmp_path / "in/scheduler.pt")
    workshop.store.push(tmp_path / "in", "formats/opaque")
    report = workshop.store.pull("formats/opaque", tmp_path / "out", format="safetensors")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "good.safetensors",
        "scheduler.pt",
        "training_args.bin",
    ]
    for name in ("scheduler.pt", "training_args.bin"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "in" / name).read_bytes()
    assert [warning.split("'")[1] for warning in report.warnings] == ["scheduler.pt", "training_args.bin"]


def test_shards_of_pytorch_become_shards_that_torch_loads_by_their_index(workshop: Workshop, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    state = {f"layers.{number}.w": torch.randn(40, 30) for number in range(4)}
    names = [f"pytorch_model-{number:05}-of-00002.bin" for number in (1, 2)]
    for shard, name in enumerate(names):
        torch.save(OrderedDict(list(state.items())[shard * 2 : shard * 2 + 2]), folder / name)
    weight_map = {name: names[number // 2] for number, name in enumerate(state)}
    index = {"metadata": {"total_size": 4 * 4800}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    workshop.store.push(folder, "formats/shards")
    workshop.store.pull("formats/shards", tmp_path / "out", format="safetensors")
    written = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert written["metadata"] == index["metadata"]
    found = {}
    for name, shard in written["weight_map"].items():
        with safe_open(tmp_path / "out" / shard, "pt") as file:
            found[name] = file.get_tensor(name)
    assert_same_tensors(found, state)


def test_numpy_and_hdf5_files_load_as_their_own_libraries_load_them(workshop: Workshop, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    random = np.random.default_rng(0)
    arrays = {
        "c": random.standard_normal((30, 20)),
        "fortran": np.asfortranarray(random.standard_normal((30, 20)).astype("f4")),
        "mask": random.integers(0, 2, 11).astype(bool),
        "scalar": np.array(7),
        "empty": np.zeros((0, 4), "f2"),
    }
    np.savez(folder / "weights.npz", **arrays)  # type: ignore[arg-type]
    np.save(folder / "bias.npy", arrays["fortran"])
    with h5py.File(folder / "net.h5", "w") as file:
        file["layers/dense"] = arrays["c"]
    workshop.store.push(folder, "formats/numpy")
    report = workshop.store.pull("formats/numpy", tmp_path / "out", format="safetensors")
    assert (report.files, report.converted_files) == (3, 3)
    out = tmp_path / "out"
    assert_same_arrays(safetensors.numpy.load_file(out / "weights.safetensors"), arrays)
    assert_same_arrays(safetensors.numpy.load_file(out / "bias.safetensors"), {"bias": arrays["fortran"]})
    (name,) = safetensors.numpy.load_file(out / "net.safetensors")
    assert np.array_equal(safetensors.numpy.load_file(out / "net.safetensors")[name], arrays["c"])


@pytest.mark.parametrize("kind", [">f4", "<c16"])
def test_numpy_dtypes_that_safetensors_lacks_are_refused(kind: str, workshop: Workshop, tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", good=np.ones(3), odd=np.ones(3, kind))
    spec = f"formats/{kind[1:]}"
    workshop.store.push(tmp_path / "w.npz", spec)
    with pytest.raises(InvalidInput, match=f"'odd' of 'w.npz' has the dtype NPY:{kind}"):
        workshop.store.pull(spec, tmp_path / "out", format="safetensors")
    assert not (tmp_path / "out").exists()
    workshop.store.model(spec).save(tmp_path / "good.safetensors", include="good")
    assert_same_arrays(safetensors.numpy.load_file(tmp_path / "good.safetensors"), {"good": np.ones(3)})


def test_gguf_files_leave_unless_they_are_quantised(workshop: Workshop, tmp_path: Path) -> None:
    quantised = write_gguf(tmp_path / "all.gguf")
    workshop.store.push(quantised, "formats/quantised")
    with pytest.raises(InvalidInput, match=r"of 'all\.gguf' has the dtype GGUF:"):
        workshop.store.pull("formats/quantised", tmp_path / "none", format="safetensors")
    assert not (tmp_path / "none").exists()
    writer = gguf.GGUFWriter(tmp_path / "half.gguf", "llama")
    random = np.random.default_rng(0)
    arrays = {"token_embd.weight": random.standard_normal((30, 64)).astype("f2"), "norm.weight": np.ones(64, "f4")}
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    workshop.store.push(tmp_path / "half.gguf", "formats/half")
    workshop.store.pull("formats/half", tmp_path / "out", format="safetensors")
    assert_same_arrays(safetensors.numpy.load_file(tmp_path / "out/half.safetensors"), arrays)


_SAVE = """
import sys, torch, transformers
model = transformers.BertModel.from_pretrained(sys.argv[1])
model.config.save_pretrained(sys.argv[2])
torch.save(model.state_dict(), sys.argv[2] + "/pytorch_model.bin")
"""

_COMPARE = """
import sys, torch, transformers
ours = transformers.BertModel.from_pretrained(sys.argv[1]).state_dict()
theirs = torch.load(sys.argv[2], weights_only=True)
assert ours.keys() == theirs.keys() and len(ours) > 100
assert all(torch.equal(ours[name], tensor) and ours[name].dtype == tensor.dtype for name, tensor in theirs.items())
print("equal")
"""


def test_transformers_loads_what_is_pulled_of_a_real_model(
    models: Models, workshop: Workshop, command_line: CommandLine, tmp_path: Path
) -> None:
    def run(script: str, *words: Path) -> str:
        environment = command_line.environment(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
        command = [sys.executable, "-c", script, *map(str, words)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    (tmp_path / "in").mkdir()
    run(_SAVE, models.minilm, tmp_path / "in")
    workshop.store.push(tmp_path / "in", "formats/minilm")
    workshop.store.pull("formats/minilm", tmp_path / "out", format="safetensors")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    assert run(_COMPARE, tmp_path / "out", tmp_path / "in/pytorch_model.bin").endswith("equal\n")


def assert_same_tensors(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert found[name].contiguous().view(-1).view(torch.uint8).tolist() == (
            tensor.contiguous().view(-1).view(torch.uint8).tolist()
        ), name


def assert_same_arrays(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert sorted(found) == sorted(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes(), name
