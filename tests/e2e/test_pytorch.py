"""PyTorch files: they come back byte for byte, and their tensors are, bit for bit, what ``torch.load`` loads."""

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import blake3
import pytest
import safetensors.torch
import torch
from transformers import BertConfig, BertModel

from tensorkeep import Format
from tensorkeep.records.manifest import Manifest
from tests.e2e.conftest import CommandLine, Models
from tests.e2e.workshop import Workshop


@pytest.fixture
def workshop(shared_workshop: Workshop) -> Workshop:
    """One store for all tests here; each pushes what it needs."""
    return shared_workshop


@pytest.fixture(scope="module")
def bert(models: Models) -> BertModel:
    """The real MiniLM as transformers builds it."""
    model = BertModel(BertConfig.from_pretrained(models.minilm))
    missing = model.load_state_dict(safetensors.torch.load_file(models.minilm / "model.safetensors"), strict=False)
    assert missing.missing_keys == []
    return model


@pytest.fixture(scope="module")
def optimizer(bert: BertModel) -> torch.optim.Adam:
    """Its Adam optimizer after a step."""
    optimizer = torch.optim.Adam(bert.parameters(), lr=1e-5)
    output = bert(input_ids=torch.tensor([[101, 7592, 2088, 102]]))
    output.last_hidden_state.square().mean().backward()
    optimizer.step()
    return optimizer


def flatten(value: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """Return every tensor of a checkpoint by the keys on the way to it."""
    if isinstance(value, torch.Tensor):
        return {prefix: value}
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    found: dict[str, torch.Tensor] = {}
    for key, item in items:
        found |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return found


def check_same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert sorted(found) == sorted(expected)
    for name, tensor in found.items():
        other = expected[name].detach()
        assert tensor.dtype == other.dtype, name
        assert tensor.shape == other.shape, name
        assert tensor.is_contiguous()
        assert torch.equal(bits(tensor), bits(other.contiguous())), name


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8) if tensor.numel() else torch.empty(0, dtype=torch.uint8)


def push_and_compare(workshop: Workshop, path: Path, folder: Path, name: str, *, weights_only: bool = True) -> Manifest:
    """Push a file; it comes back, and its tensors are what torch loads. Return its manifest."""
    workshop.store.push(path, f"torch/{name}")
    model = workshop.store.model(f"torch/{name}")
    assert [file.format for file in model.files] == ["pytorch"]
    workshop.store.pull(f"torch/{name}", folder / "out")
    assert (folder / "out" / path.name).read_bytes() == path.read_bytes()
    loaded = torch.load(path, weights_only=weights_only)
    alone = isinstance(loaded, torch.Tensor)
    check_same(model.load(framework="torch"), flatten(loaded, path.stem if alone else ""))
    manifest: Manifest = model.manifest
    check_digests(manifest, path.read_bytes())
    return manifest


def check_digests(manifest: Manifest, data: bytes) -> None:
    for tensor in manifest.files[0].tensors:
        digest = blake3.blake3(data[tensor.start : tensor.start + tensor.length]).hexdigest()
        assert tensor.digest == digest, tensor.name


def test_the_state_of_a_real_model(workshop: Workshop, bert: BertModel, tmp_path: Path) -> None:
    torch.save(bert.state_dict(), tmp_path / "pytorch_model.bin")
    push_and_compare(workshop, tmp_path / "pytorch_model.bin", tmp_path, "minilm")
    names = set(workshop.store.model("torch/minilm").tensors)
    assert set(bert.state_dict()) == names


def test_the_state_of_an_optimizer(workshop: Workshop, optimizer: torch.optim.Adam, tmp_path: Path) -> None:
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    push_and_compare(workshop, tmp_path / "optimizer.pt", tmp_path, "optimizer")
    model = workshop.store.model("torch/optimizer")
    assert model.tensors["state.0.step"].shape == ()
    assert len(model.tensors) == 3 * len(optimizer.state_dict()["state"])


def test_a_nested_checkpoint(workshop: Workshop, bert: BertModel, optimizer: torch.optim.Adam, tmp_path: Path) -> None:
    checkpoint = {"model": bert.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    torch.save(checkpoint, tmp_path / "last.ckpt")
    push_and_compare(workshop, tmp_path / "last.ckpt", tmp_path, "nested")
    rows = workshop.store.model("torch/nested")["model.embeddings.word_embeddings.weight"][1000:1010]
    assert torch.equal(torch.from_numpy(rows), bert.embeddings.word_embeddings.weight[1000:1010].detach())


EVERY_DTYPE = [
    torch.bool,
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.complex64, torch.complex128),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
    torch.float4_e2m1fn_x2,
]


def of_dtype(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    count = torch.Size(shape).numel() * dtype.itemsize
    data = torch.tensor(list(random.Random(seed).randbytes(count)), dtype=torch.uint8)
    data = data & 1 if dtype == torch.bool else data
    return data.view(dtype).reshape(shape)


def dtypes() -> Any:
    return {
        str(dtype): {
            "matrix": of_dtype(dtype, (8, 6), seed),
            "vector": of_dtype(dtype, (32,), seed + 100),
            "empty": torch.empty(0, 4, dtype=dtype),
        }
        | ({} if dtype == torch.float4_e2m1fn_x2 else {"scalar": of_dtype(dtype, (), seed)})
        for seed, dtype in enumerate(EVERY_DTYPE)
    }


def views() -> Any:
    base = torch.arange(600_000, dtype=torch.float32).reshape(1000, 600)
    small = torch.arange(120, dtype=torch.int16).reshape(2, 3, 4, 5)
    return {
        "base": base,
        "tied": base,
        "transposed": base.t(),
        "rows": base[100:700],
        "columns": base[:, 13:400],
        "stepped": base[5::7, ::11],
        "expanded": base[3:4].expand(50, 600),
        "broadcast": base[0, :1].expand(40, 30),
        "reversed dims": small.permute(3, 1, 0, 2),
        "inner": small[:, 1, :, 2],
        "windows": torch.arange(100.0).unfold(0, 10, 3),
        "scalar": base[999, 599],
        "ones": small[1:2, 2:3, 3:4, 4:5],
        "empty": base[10:10],
        "complex": torch.view_as_complex(torch.arange(200.0).reshape(-1, 2))[::3],
    }


def ties() -> Any:
    embedding = torch.nn.Embedding(500, 64)
    head = torch.nn.Linear(64, 500, bias=False)
    head.weight = embedding.weight
    return torch.nn.ModuleDict({"embedding": embedding, "head": head}).state_dict()


def parameters() -> Any:
    frozen = torch.nn.Parameter(torch.randn(4, 5), requires_grad=False)
    marked = torch.nn.Parameter(torch.randn(3))
    marked.tensor_parallel = True  # type: ignore[attr-defined]
    return [torch.nn.Parameter(torch.randn(7, 2)), frozen, marked, torch.nn.Buffer(torch.ones(2))]


MAKERS: dict[str, Callable[[], Any]] = {
    "dtypes": dtypes,
    "views": views,
    "ties": ties,
    "parameters": parameters,
    "alone": lambda: torch.randn(3, 4).t(),
}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("protocol", [2, 4])
def test_made_checkpoints(kind: str, protocol: int, workshop: Workshop, tmp_path: Path) -> None:
    torch.manual_seed(4)
    torch.save(MAKERS[kind](), tmp_path / "made file.pth", pickle_protocol=protocol)
    push_and_compare(  # torch itself reads only protocol 2 where it may not execute
        workshop, tmp_path / "made file.pth", tmp_path, f"{kind}-{protocol}", weights_only=protocol == 2
    )


def test_slices_of_strided_tensors_are_torchs_slices(workshop: Workshop, tmp_path: Path) -> None:
    torch.save(views(), tmp_path / "views.pt")
    workshop.store.push(tmp_path / "views.pt", "torch/slices")
    model = workshop.store.model("torch/slices")
    loaded = torch.load(tmp_path / "views.pt", weights_only=True)
    for name in ("transposed", "columns", "stepped", "expanded", "windows"):
        assert torch.equal(torch.from_numpy(model[name][3:9, 2:7]), loaded[name][3:9, 2:7]), name


def test_tied_tensors_are_stored_once(workshop: Workshop, tmp_path: Path) -> None:
    torch.save(ties(), tmp_path / "tied.pt")
    manifest = push_and_compare(workshop, tmp_path / "tied.pt", tmp_path, "tied")
    first, second = manifest.files[0].tensors
    assert (first.name, second.name) == ("embedding.weight", "head.weight")
    assert (first.start, first.length, first.digest) == (second.start, second.length, second.digest)


@pytest.mark.parametrize("count", [300, 3000])
def test_many_overlapping_views_have_their_own_digests(count: int, workshop: Workshop, tmp_path: Path) -> None:
    generator = random.Random(count)
    base = torch.arange(1 << 20, dtype=torch.int32)
    value = {}
    for number in range(count):
        start = generator.randrange(1 << 20)
        start -= start % generator.choice((1, 1000))  # many start where others do, and end elsewhere
        value[f"layers.{number % 7}.view{number}"] = base[start : start + generator.randrange(1, 4000)]
    value |= {"all": base, "half": base[: 1 << 19], "most": base[5:]}
    torch.save(value, tmp_path / "views.pt")
    push_and_compare(workshop, tmp_path / "views.pt", tmp_path, f"overlapping-{count}")
    workshop.store.push(tmp_path / "views.pt", f"torch/overlapping-{count}", split="size")
    model = workshop.store.model(f"torch/overlapping-{count}")
    check_digests(model.manifest, (tmp_path / "views.pt").read_bytes())


def shards(folder: Path) -> Path:
    """Write a checkpoint in two shards with its index, as transformers does."""
    first, second = {"a.weight": torch.ones(3), "b.weight": torch.ones(4)}, {"c.weight": torch.ones(5)}
    folder.mkdir()
    torch.save(first, folder / "pytorch_model-00001-of-00002.bin")
    torch.save(second, folder / "pytorch_model-00002-of-00002.bin")
    weight_map = dict.fromkeys(first, "pytorch_model-00001-of-00002.bin")
    weight_map |= dict.fromkeys(second, "pytorch_model-00002-of-00002.bin")
    index = {"metadata": {"total_size": 48}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def test_a_sharded_checkpoint_is_checked_by_its_index(workshop: Workshop, tmp_path: Path) -> None:
    folder = shards(tmp_path / "model")
    workshop.store.push(folder, "torch/sharded")
    assert sorted(workshop.store.model("torch/sharded").load()) == ["a.weight", "b.weight", "c.weight"]
    torch.save({"b.weight": torch.ones(4)}, folder / "pytorch_model-00001-of-00002.bin")
    with pytest.raises(
        Format, match=r"'a\.weight' is in 'pytorch_model-00001-of-00002\.bin', which has no such tensor"
    ):
        workshop.store.push(folder, "torch/sharded")
    (folder / "pytorch_model-00001-of-00002.bin").unlink()
    with pytest.raises(Format, match=r"pytorch_model-00001-of-00002\.bin.*not in the folder"):
        workshop.store.push(folder, "torch/sharded")


def test_a_file_that_cannot_be_described_is_stored_whole(workshop: Workshop, tmp_path: Path) -> None:
    torch.save({"x": torch.ones(5)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save(torch.nn.Linear(2, 3), tmp_path / "whole model.pt")
    workshop.store.push(tmp_path, "torch/opaque")
    assert [file.format for file in workshop.store.model("torch/opaque").files] == ["opaque", "opaque"]
    workshop.store.pull("torch/opaque", tmp_path / "out")
    for name in ("old.pt", "whole model.pt"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_a_load_says_which_pieces_of_a_model_it_is_without(command_line: CommandLine, tmp_path: Path) -> None:
    pieces = [tmp_path / "source" / f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    pieces[0].parent.mkdir()
    torch.save({"a": torch.ones(2)}, pieces[0])
    torch.save({"b": torch.ones(2).to_sparse()}, pieces[1])
    torch.save({"c": torch.ones(2).to_sparse()}, pieces[0].parent / "training_args.bin")
    command_line("push", pieces[0].parent, "acme/half")
    said = command_line("load", "acme/half").err
    assert f"{pieces[1].name!r} is a piece of a model" in said
    assert pieces[0].name not in said
    assert "training_args" not in said
    assert "piece" not in command_line("load", "acme/half", "--include", "a").err
