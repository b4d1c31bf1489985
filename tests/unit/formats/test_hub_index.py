"""Indexes of sharded checkpoints."""

import json
from typing import Any

import pytest

from tensorkeep.errors import Format
from tensorkeep.formats.hub_index import INDEX_LIMIT_BYTES, check_index, is_index
from tensorkeep.formats.opaque import OPAQUE
from tensorkeep.formats.protocol import FileStructure, TensorLayout

INDEX = "sub/model.safetensors.index.json"


def shard(*names: str) -> FileStructure:
    return FileStructure("safetensors", tuple(TensorLayout(name, "U8", (0,), None, 8, 0) for name in names))


FILES = {"sub/a.safetensors": shard("x", "y"), "sub/b.safetensors": shard("z"), "a.safetensors": shard("other")}


def index(weight_map: Any) -> bytes:
    return json.dumps({"metadata": {"total_size": 1.5}, "weight_map": weight_map}).encode()


def test_a_complete_checkpoint_passes() -> None:
    check_index(INDEX, index({"x": "a.safetensors", "z": "b.safetensors"}), FILES)
    check_index(INDEX, index({"other": "../a.safetensors"}), FILES)
    check_index(INDEX, index({}), FILES)


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        ({"x": "c.safetensors"}, "'sub/c.safetensors', which is not in the folder: an incomplete download"),
        ({"x": "sub/a.safetensors"}, "'sub/sub/a.safetensors'"),
        ({"x": "/sub/a.safetensors"}, "not in the folder"),
        ({"x": "../../sub/a.safetensors"}, "not in the folder"),
        ({"x": ""}, "not in the folder"),
        ({"x": "b.safetensors"}, "'x' is in 'b.safetensors', which has no such tensor"),
        ({"x": 1}, "weight_map"),
        (["x"], "weight_map"),
    ],
)
def test_what_is_missing_is_named(weight_map: Any, words: str) -> None:
    with pytest.raises(Format, match=INDEX) as refused:
        check_index(INDEX, index(weight_map), FILES)
    assert words in refused.value.message


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"weight_map":', b"\xff", b'{"a":' * 100_000])
def test_invalid_json_is_refused(data: bytes) -> None:
    with pytest.raises(Format, match="weight_map"):
        check_index(INDEX, data, FILES)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"weight_map": 1}', b'{"weight_map": {"x": 1}}', b"\xff"])
def test_another_index_without_a_weight_map_is_somebody_elses_json(data: bytes) -> None:
    check_index("sub/fonts.index.json", data, FILES)


@pytest.mark.parametrize("suffix", ["bin", "ckpt", "h5", "msgpack"])
def test_every_kind_of_index_names_shards_that_are_missing(suffix: str) -> None:
    path = f"sub/model.{suffix}.index.json"
    with pytest.raises(Format, match="not in the folder"):
        check_index(path, index({"x": f"model-1.{suffix}"}), FILES)


def test_tensors_are_looked_for_where_the_hub_names_them_as_we_do() -> None:
    files = {path: FileStructure(kind, ()) for path, kind in (("a.bin", "pytorch"), ("a.h5", "hdf5"), ("a.npz", "npz"))}
    check_index("x.h5.index.json", index({"x": "a.h5", "y": "a.npz"}), files)
    with pytest.raises(Format, match=r"'x' is in 'a\.bin', which has no such tensor"):
        check_index("x.bin.index.json", index({"x": "a.bin"}), files)


def test_an_endless_index_is_refused() -> None:
    with pytest.raises(Format, match="limit"):
        check_index(INDEX, bytes(INDEX_LIMIT_BYTES + 1), FILES)


def test_of_an_opaque_shard_only_its_being_there_is_checked() -> None:
    check_index(INDEX, index({"x": "a.safetensors"}), {"sub/a.safetensors": FileStructure(OPAQUE, ())})


def test_indexes_are_known_by_their_name() -> None:
    assert is_index(INDEX)
    assert is_index("Model.SafeTensors.Index.JSON")
    assert is_index("pytorch_model.bin.index.json")
    assert not is_index("index.json")
    assert not is_index("model.safetensors")
