"""Which files of a folder are converted, and what they are called then."""

import pytest

from tensorkeep.errors import InvalidInput
from tensorkeep.formats.hub_index import WeightIndex
from tensorkeep.planning.export_folder import (
    check_names,
    index_path,
    is_foreign_index,
    may_be_model,
    plan_folder,
    safetensors_path,
)
from tensorkeep.records.manifest import File, Tensor

TENSOR = Tensor(name="w", dtype="U8", shape=(1,), start=0, length=1, digest="")


def file_of(path: str, format_name: str = "pytorch") -> File:
    tensors = () if format_name == "opaque" else (TENSOR,)
    return File(path=path, size_bytes=1, format=format_name, extents=(), tensors=tensors, items=(), sha256="")


def index_of(*shards: str) -> WeightIndex:
    return WeightIndex({f"w{number}": shard for number, shard in enumerate(shards)}, {})


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("pytorch_model.bin", "model.safetensors"),
        ("sub/pytorch_model-00001-of-00002.bin", "sub/model-00001-of-00002.safetensors"),
        ("pytorch_model.fp16.bin", "model.fp16.safetensors"),
        ("pytorch_models.bin", "pytorch_models.safetensors"),
        ("unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.safetensors"),
        ("weights.npz", "weights.safetensors"),
        ("Llama-3.2-1B.F16.gguf", "Llama-3.2-1B.F16.safetensors"),
        ("noending", "noending.safetensors"),
        ("v1.5/model", "v1.5/model.safetensors"),
    ],
)
def test_a_converted_file_gets_the_name_that_transformers_looks_for(path: str, name: str) -> None:
    assert safetensors_path(path) == name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("pytorch_model.bin.index.json", "model.safetensors.index.json"),
        ("a/pytorch_model.bin.index.fp16.json", "a/model.safetensors.index.fp16.json"),
        ("big.pt.index.json", "big.safetensors.index.json"),
    ],
)
def test_an_index_is_called_after_its_checkpoint(path: str, name: str) -> None:
    assert is_foreign_index(path)
    assert index_path(path) == name


@pytest.mark.parametrize(
    "path",
    ["model.safetensors.index.json", "M.SAFETENSORS.index.fp16.json", "index.json", "config.json", ".index.json"],
)
def test_other_files_are_no_index_to_rewrite(path: str) -> None:
    assert not is_foreign_index(path)


def test_known_formats_are_converted_and_all_else_keeps_its_name() -> None:
    files = [
        file_of("pytorch_model.bin"),
        file_of("w.npz", "npz"),
        file_of("model-1.safetensors", "safetensors"),
        file_of("config.json", "opaque"),
    ]
    plan = plan_folder(files, {})
    assert plan.converted == {"pytorch_model.bin", "w.npz"}
    assert plan.names == {
        "pytorch_model.bin": "model.safetensors",
        "w.npz": "w.safetensors",
        "model-1.safetensors": "model-1.safetensors",
        "config.json": "config.json",
    }
    assert plan.warnings == {}


def test_files_that_look_like_models_and_have_no_known_tensors_are_warned_of() -> None:
    plan = plan_folder([file_of("training_args.bin", "opaque"), file_of("tokenizer.json", "opaque")], {})
    assert plan.converted == frozenset()
    assert list(plan.warnings) == ["training_args.bin"]
    assert "'training_args.bin' may be a model" in plan.warnings["training_args.bin"]
    assert may_be_model(file_of("A.ONNX", "opaque"))
    assert not may_be_model(file_of("bin", "opaque"))
    assert not may_be_model(file_of("a.bin"))


def test_shards_are_converted_with_their_index_or_not_at_all() -> None:
    good, bad = "m/good.bin.index.json", "m/bad.bin.index.json"
    files = [file_of(f"m/{name}.bin") for name in ("1", "2", "3", "free")]
    files += [file_of("m/4.bin", "opaque"), file_of(good, "opaque"), file_of(bad, "opaque")]
    whole = plan_folder(files, {good: index_of("1.bin", "2.bin")})
    assert whole.converted == {"m/1.bin", "m/2.bin", "m/3.bin", "m/free.bin"}
    assert list(whole.indexes) == [good]
    assert whole.names[good] == "m/good.safetensors.index.json"
    # One shard of an index is opaque, and the other index shares a shard with it: neither is touched.
    mixed = plan_folder(files, {good: index_of("1.bin", "2.bin"), bad: index_of("2.bin", "4.bin", "3.bin")})
    assert mixed.converted == {"m/free.bin"}
    assert mixed.indexes == {}
    assert mixed.names[bad] == bad
    assert sorted(mixed.warnings) == ["m/4.bin", bad, good]
    assert "no tensors of 'm/4.bin'" in mixed.warnings[bad]
    assert "no tensors of 'm/2.bin'" not in mixed.warnings[bad]


@pytest.mark.parametrize("other", ["model.safetensors", "MODEL.safetensors", "model.npz"])
def test_two_files_of_one_name_are_refused_naming_both(other: str) -> None:
    plan = plan_folder(
        [file_of("pytorch_model.bin"), file_of(other, "npz" if other.endswith("npz") else "safetensors")], {}
    )
    with pytest.raises(InvalidInput, match=rf"'pytorch_model\.bin' and '{other}' would both be written as"):
        check_names(plan, ["pytorch_model.bin", other])
    check_names(plan, [other])
    check_names(plan, ["pytorch_model.bin"])
