"""Which tensors a filter means, in which order, and which layer a tensor is of."""

import pytest

from tensorkeep.errors import InvalidInput
from tensorkeep.store.reports import TensorInfo
from tensorkeep.store.selection import TensorFilter, layer_name, natural_key, select_tensors


def tensor(
    name: str, dtype: str = "F32", shape: tuple[int, ...] = (4,), size: int = 16, file: str = "m.safetensors"
) -> TensorInfo:
    return TensorInfo(name=name, dtype=dtype, shape=shape, size_bytes=size, file=file, start=0, digest="")


TENSORS = [
    tensor("norm", shape=(), size=4),
    tensor("layers.10.w", "BF16", (4096, 128), 1 << 20),
    tensor("layers.2.w", "GGUF:Q4_K", (4096, 4096), 9 << 20),
    tensor("encoder.2.w", "F16", (128,), 256),
]


def chosen(wanted: TensorFilter, sort: str | None = None) -> list[str]:
    return [found.name for found in select_tensors(TENSORS, wanted, sort=sort)]


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (TensorFilter(), ["norm", "layers.10.w", "layers.2.w", "encoder.2.w"]),
        (TensorFilter(names=["layers.*"]), ["layers.10.w", "layers.2.w"]),
        (TensorFilter(names=["LAYERS.*"]), []),
        (TensorFilter(names=["norm", "enc*"]), ["norm", "encoder.2.w"]),
        (TensorFilter(dtypes=["gguf:*"]), ["layers.2.w"]),
        (TensorFilter(dtypes=["f16", "BF16"]), ["layers.10.w", "encoder.2.w"]),
        (TensorFilter(dtypes=["F"]), []),
        (TensorFilter(shapes=[(4096, None)]), ["layers.10.w", "layers.2.w"]),
        (TensorFilter(shapes=[(None, 128)]), ["layers.10.w"]),
        (TensorFilter(shapes=[(None,)]), ["encoder.2.w"]),
        (TensorFilter(shapes=[()]), ["norm"]),
        (TensorFilter(shapes=[(), (128,)]), ["norm", "encoder.2.w"]),
        (TensorFilter(layers=["2"]), ["layers.2.w", "encoder.2.w"]),
        (TensorFilter(layers=["layers.*"]), ["layers.10.w", "layers.2.w"]),
        (TensorFilter(layers=["1"]), []),
        (TensorFilter(min_size_bytes=256), ["layers.10.w", "layers.2.w", "encoder.2.w"]),
        (TensorFilter(max_size_bytes=256), ["norm", "encoder.2.w"]),
        (TensorFilter(min_size_bytes=0, max_size_bytes=0), []),
        (TensorFilter(min_size_bytes=5, layers=["2"], dtypes=["F*"]), ["encoder.2.w"]),
    ],
)
def test_a_tensor_is_meant_if_one_value_of_every_field_fits(wanted: TensorFilter, names: list[str]) -> None:
    assert chosen(wanted) == names
    assert wanted.is_empty == (wanted == TensorFilter())


def test_names_sort_with_their_numbers_as_such_and_sizes_from_the_largest() -> None:
    assert chosen(TensorFilter(), "name") == ["encoder.2.w", "layers.2.w", "layers.10.w", "norm"]
    assert chosen(TensorFilter(), "size") == ["layers.2.w", "layers.10.w", "encoder.2.w", "norm"]
    with pytest.raises(InvalidInput, match="name or size"):
        chosen(TensorFilter(), "age")


def test_any_two_names_can_be_compared() -> None:
    names = ["", "1", "a", "1a", "a1", "a01", "10", "9", "٣", "a.1.b", "a.1", "0", "00", "a" + "9" * 5000]
    assert sorted(sorted(names, reverse=True), key=natural_key) == sorted(names, key=natural_key)
    assert sorted(["a10", "a9", "a09", "a" + "1" * 5000, "a100"], key=natural_key)[-2:] == ["a100", "a" + "1" * 5000]


@pytest.mark.parametrize(
    ("found", "layer"),
    [
        (tensor("model.layers.7.mlp.w"), "model.layers.7"),
        (tensor("h.0"), "h.0"),
        (tensor("3.bias"), "3"),
        (tensor("layers.1.experts.5.w"), "layers.1"),
        (tensor("lm_head.weight"), None),
        (tensor("layer1.w"), None),
        (tensor("a.2.bin::h.5.w", file="a.2.bin"), "a.2.bin::h.5"),
        (tensor("a.2.bin::w", file="a.2.bin"), None),
    ],
)
def test_a_layer_is_named_by_what_leads_to_its_number(found: TensorInfo, layer: str | None) -> None:
    assert layer_name(found) == layer
