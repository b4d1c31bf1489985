"""GGUF files come back byte for byte, and their tensors are, bit for bit, what the gguf package reads."""

from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import torch

from tensorkeep import Format, Integrity, NotFound
from tests.e2e.conftest import CommandLine, StoreFactory
from tests.e2e.gguf_files import TOKENS, every_tensor, write_gguf, write_pieces
from tests.e2e.trees import safetensors_bytes
from tests.e2e.workshop import Workshop


@pytest.fixture
def workshop(shared_workshop: Workshop) -> Workshop:
    """One store for all tests here; each pushes what it needs."""
    return shared_workshop


def read_by_gguf(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return what the gguf package reads; it has bfloat16 as bytes, which are seen as ours are."""
    return {
        tensor.name: tensor.data.view(ml_dtypes.bfloat16) if tensor.tensor_type.name == "BF16" else tensor.data
        for tensor in gguf.GGUFReader(path).tensors
    }


@pytest.mark.parametrize(
    ("version", "alignment", "split"),
    [(3, None, "tensor"), (2, None, "tensor"), (3, 8, "tensor"), (3, 64, "tensor"), (2, 4096, "size")],
)
def test_every_type_loads_as_the_gguf_package_reads_it(
    version: int, alignment: int | None, split: str, workshop: Workshop, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "model.gguf", version=version, alignment=alignment)
    spec = f"gguf/v{version}-{alignment}"
    workshop.store.push(path, spec, split=split, part_size=1 << 20)
    model = workshop.store.model(spec)
    workshop.store.pull(spec, tmp_path / "out")
    assert (tmp_path / "out/model.gguf").read_bytes() == path.read_bytes()
    expected = read_by_gguf(path)
    arrays = model.load()
    assert sorted(arrays) == sorted(expected) == sorted(every_tensor())
    for name, array in arrays.items():
        assert (array.dtype, array.shape) == (expected[name].dtype, expected[name].shape)
        assert array.tobytes() == expected[name].tobytes()


def test_a_quantised_tensor_says_its_type_and_its_shape_in_elements(workshop: Workshop, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf")
    workshop.store.push(path, "gguf/types")
    infos = workshop.store.model("gguf/types").tensors
    for tensor in gguf.GGUFReader(path).tensors:
        info = infos[tensor.name]
        assert info.shape == tuple(int(size) for size in reversed(tensor.shape))
        assert info.dtype in (tensor.tensor_type.name, f"GGUF:{tensor.tensor_type.name}")
        assert info.size_bytes == tensor.n_bytes
    assert {info.dtype for info in infos.values()} >= {"F32", "BF16", "I64", "GGUF:Q4_K", "GGUF:IQ1_S", "GGUF:MXFP4"}


def test_torch_gets_quantised_tensors_as_their_bytes(workshop: Workshop, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", seed=1)
    workshop.store.push(path, "gguf/torch")
    tensors = workshop.store.model("gguf/torch").load(framework="torch")
    for name, expected in read_by_gguf(path).items():
        tensor = tensors[name]
        assert tensor.dtype == (torch.uint8 if expected.dtype == np.uint8 else tensor.dtype)
        assert tuple(tensor.shape) == expected.shape
        assert tensor.reshape(-1).view(torch.uint8).numpy().tobytes() == expected.tobytes()
    name = next(name for name in tensors if name.endswith("Q4_K.small"))
    with np.errstate(all="ignore"):  # random scales are often no numbers
        numbers = gguf.dequantize(tensors[name].numpy(), gguf.GGMLQuantizationType.Q4_K)
    assert numbers.shape == workshop.store.model("gguf/torch").tensors[name].shape


def test_a_slice_of_rows_reads_those_blocks(workshop: Workshop, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", seed=2)
    workshop.store.push(path, "gguf/rows")
    model = workshop.store.model("gguf/rows")
    name = next(name for name in model.tensors if name.endswith("Q6_K.large"))
    expected = read_by_gguf(path)[name]
    np.testing.assert_array_equal(model[name][1000:1010], expected[1000:1010])
    assert model.report is not None
    assert model.report.bytes_read <= 3 * (256 << 10)
    np.testing.assert_array_equal(model[name][-1, 210:420], expected[-1, 210:420])
    assert model[name].shape == (1100, 256 * expected.shape[1] // 210)


def test_a_model_in_pieces_is_stored_whole_or_refused(workshop: Workshop, tmp_path: Path) -> None:
    paths = write_pieces(tmp_path, 3)
    workshop.store.push(tmp_path, "gguf/pieces")
    assert sorted(workshop.store.model("gguf/pieces").load()) == ["blk.0.w", "blk.1.w", "blk.2.w"]
    paths[1].unlink()
    with pytest.raises(Format, match="number 2 is not in the folder: an incomplete download"):
        workshop.store.push(tmp_path, "gguf/pieces")
    workshop.store.push(tmp_path, "gguf/pieces", split="size")
    assert len(workshop.store.model("gguf/pieces").files) == 2


def test_a_cut_file_is_refused_and_stored_opaque_when_asked(workshop: Workshop, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf")
    path.write_bytes(path.read_bytes()[:-40_000])
    with pytest.raises(Format, match="incomplete download") as refused:
        workshop.store.push(path, "gguf/cut")
    assert refused.value.facts["path"] == "model.gguf"
    workshop.store.push(path, "gguf/cut", split="size")
    assert workshop.store.model("gguf/cut").files[0].format == "opaque"


def test_metadata_is_read_back_from_the_store_as_the_gguf_package_reads_it(workshop: Workshop, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", seed=3)
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes({}, {"format": "pt", "größe": "1"}))
    (tmp_path / "notes.txt").write_text("nothing")
    workshop.store.push(tmp_path, "gguf/metadata")
    model = workshop.store.model("gguf/metadata")
    found = model.metadata()
    fields = gguf.GGUFReader(path).fields
    assert list(found) == ["model.gguf", "model.safetensors"]
    assert found["model.gguf"] == {
        name: field.contents() for name, field in fields.items() if not name.startswith("GGUF.")
    }
    assert found["model.gguf"]["tokenizer.ggml.tokens"] == TOKENS
    assert found["model.safetensors"] == {"format": "pt", "größe": "1"}
    assert model.metadata("model.safetensors") == {"model.safetensors": found["model.safetensors"]}
    assert model.metadata("notes.txt") == {"notes.txt": {}}
    assert model.report is None
    with pytest.raises(NotFound, match=r"no file 'other\.gguf'"):
        model.metadata("other.gguf")


def test_metadata_of_a_damaged_header_is_an_error_and_never_a_wrong_word(workshop: Workshop, tmp_path: Path) -> None:
    path = tmp_path / "damaged.gguf"
    write_gguf(path, seed=4)
    workshop.store.push(path, "gguf/damaged")
    model = workshop.store.model("gguf/damaged")
    header = path.read_bytes()[:4096]
    for name in workshop.devices:
        for part in workshop.objects(name, ["parts"]):
            at = workshop.read(name, part).find(header)
            if at >= 0:
                workshop.flip(name, part, at + 2000)
    with pytest.raises(Integrity):
        model.metadata()


def test_show_prints_metadata_without_reading_tensors(
    command_line: CommandLine, store_factory: StoreFactory, tmp_path: Path
) -> None:
    workshop = store_factory(1)
    path = write_gguf(tmp_path / "model.gguf", seed=5)
    workshop.store.push(path, "gguf/show")
    start = path.read_bytes()[: 2 << 20]
    parts = workshop.objects("disk0", ["parts"])
    far = [part for part in parts if workshop.read("disk0", part)[:1024] not in start]
    assert len(far) > 30
    for part in far:  # what is not there can't be read
        workshop.delete("disk0", part)
    answer = command_line("show", "gguf/show", "--metadata", store=workshop.location)
    assert '[2,000 items] "token 0"' in answer.out
    assert "{{ messages }}\\x1b[31m größe" in answer.out
    document = command_line("show", "gguf/show", "--metadata", "--json", store=workshop.location).json
    assert document["metadata"]["model.gguf"]["tokenizer.ggml.tokens"] == TOKENS
