"""The models that tests and benches are made with: the right bytes, the same ones each time, readable by safetensors."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from bench.make_models import SMALL, make_model
from bench.tensors import read_header


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("tiny", tmp_path_factory.mktemp("models") / "tiny")


def _tensors(folder: Path) -> dict[str, bytes]:
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        data = path.read_bytes()
        for spec, start in read_header(path).items():
            tensors[spec.name] = data[start : start + spec.size_bytes]
    return tensors


def test_tiny_has_a_tenth_of_a_gigabyte_in_hub_layout(tiny: Path) -> None:
    assert 99e6 < sum(len(data) for data in _tensors(tiny).values()) < 102e6
    names = {path.name for path in tiny.iterdir()}
    assert {"config.json", "model.safetensors.index.json", "tokenizer.json"} <= names


def test_the_same_seed_makes_the_same_bytes_on_every_machine(tiny: Path) -> None:
    digest = hashlib.sha256(_tensors(tiny)["model.layers.3.mlp.up_proj.weight"]).hexdigest()
    assert digest == "0d3fed4283e44817c978f8b16deb8884633111ca5b6f56642451847652dafaf2"


def test_safetensors_reads_what_the_writer_wrote(tmp_path: Path) -> None:
    out = make_model("steps", tmp_path / "steps", size_bytes=100_000)
    moments = load_file(out / "checkpoint-0100" / "optimizer.safetensors")
    mean = moments["exp_avg.lm_head.weight"]
    assert mean.dtype == np.float32
    assert 0.018 < float(mean.std()) < 0.022


def test_steps_are_ten_checkpoints_whose_weights_move(tmp_path: Path) -> None:
    out = make_model("steps", tmp_path / "steps", size_bytes=100_000)
    folders = sorted(out.iterdir())
    assert [folder.name for folder in folders] == [f"checkpoint-{step:04d}" for step in range(100, 1001, 100)]
    weights = {_tensors(folder)["lm_head.weight"] for folder in folders}
    assert len(weights) == 10


def test_small_is_a_llama_of_201_tensors_and_2_2_gigabytes() -> None:
    specs = SMALL.specs()
    assert len(specs) == 201
    assert sum(spec.size_bytes for spec in specs) == 2_200_096_768


def test_frozen_changes_at_most_a_twentieth_of_the_bytes(tiny: Path, tmp_path: Path) -> None:
    before = _tensors(tiny)
    after = _tensors(make_model("frozen", tmp_path / "frozen", base=tiny))
    assert before.keys() == after.keys()
    changed = [name for name in before if before[name] != after[name]]
    assert changed
    total = sum(len(data) for data in before.values())
    assert 0.03 < sum(len(before[name]) for name in changed) / total <= 0.05


def test_finetune_changes_every_weight_a_little(tiny: Path, tmp_path: Path) -> None:
    before = _tensors(tiny)
    after = _tensors(make_model("finetune", tmp_path / "finetune", base=tiny))
    for name, data in before.items():
        flipped = np.frombuffer(data, "<u2") ^ np.frombuffer(after[name], "<u2")
        assert flipped.min() >= 1
        assert flipped.max() <= 3


def test_a_folder_with_something_in_it_is_left_alone(tiny: Path) -> None:
    with pytest.raises(FileExistsError, match="not empty"):
        make_model("tiny", tiny)
