"""Plans of a safetensors file: names, ties, batches, and where each byte goes."""

import math
from itertools import pairwise

import numpy as np
import pytest

from tensorkeep.errors import InvalidInput
from tensorkeep.planning.export import BoxRead, Run, merge_metadata, plan_batches, plan_export, plan_runs
from tensorkeep.records.manifest import File, Tensor


def tensor(
    name: str,
    shape: tuple[int, ...] = (2, 3),
    *,
    start: int = 0,
    dtype: str = "F32",
    strides: tuple[int, ...] | None = None,
) -> Tensor:
    length = math.prod(shape) * 4
    return Tensor(name=name, dtype=dtype, shape=shape, strides=strides, start=start, length=length, digest="")


def file_of(*tensors: Tensor, path: str = "model.bin", format_name: str = "pytorch") -> File:
    return File(path=path, size_bytes=1 << 40, format=format_name, extents=(), tensors=tensors, items=(), sha256="")


def pairs(*files: File) -> list[tuple[File, Tensor]]:
    return [(file, each) for file in files for each in file.tensors]


def test_names_of_one_tensor_are_written_once_under_the_first_by_sorting() -> None:
    file = file_of(tensor("wte"), tensor("lm_head"), tensor("other", start=24), tensor("again"))
    plan = plan_export(pairs(file), {"format": "pt"})
    assert [each.tensor.name for each in plan.tensors] == ["again", "other"]
    assert plan.aliases == {"wte": "again", "lm_head": "again"}
    assert b'{"__metadata__":{"format":"pt","lm_head":"again","wte":"again"},"again"' in plan.header
    assert plan.size_bytes == len(plan.header) + 48
    assert plan.data_bytes == 48


@pytest.mark.parametrize(
    "other",
    [
        tensor("b", start=4),
        tensor("b", (3, 2)),
        tensor("b", dtype="I32"),
        tensor("b", (2, 2)),
        tensor("b", strides=(1, 2)),
    ],
    ids=["start", "shape", "dtype", "length", "strides"],
)
def test_tensors_that_are_not_the_same_in_everything_are_written_apart(other: Tensor) -> None:
    plan = plan_export(pairs(file_of(tensor("a"), other)))
    assert plan.aliases == {}
    assert len(plan.tensors) == 2
    assert b"__metadata__" not in plan.header


def test_the_same_place_in_another_file_and_empty_tensors_are_no_ties() -> None:
    first = file_of(tensor("a"), tensor("none", (0, 2)), tensor("nothing", (0, 2)))
    second = file_of(tensor("b"), path="other.bin")
    assert plan_export(pairs(first, second)).aliases == {}


def test_a_tensor_named_format_is_never_an_alias_because_readers_look_for_another_format() -> None:
    plan = plan_export(pairs(file_of(tensor("a"), tensor("format"))), {"format": "pt"})
    assert plan.aliases == {"a": "format"}
    assert b'"__metadata__":{"a":"format","format":"pt"}' in plan.header


@pytest.mark.parametrize("dtype", ["GGUF:Q4_K", "NPY:>f4", "NPY:<c16"])
def test_a_dtype_that_the_format_lacks_is_refused_naming_tensor_file_and_dtype(dtype: str) -> None:
    with pytest.raises(InvalidInput, match=rf"'bad' of 'model\.bin' has the dtype {dtype}") as refused:
        plan_export(pairs(file_of(tensor("good"), tensor("bad", dtype=dtype))))
    assert refused.value.facts["dtype"] == dtype


def test_two_files_with_a_tensor_of_one_name_are_refused_naming_both() -> None:
    with pytest.raises(InvalidInput, match=r"'a\.bin' and 'b\.bin' both have a tensor 'w'"):
        plan_export(pairs(file_of(tensor("w"), path="a.bin"), file_of(tensor("w"), path="b.bin")))


def test_a_header_over_the_limit_is_refused() -> None:
    with pytest.raises(InvalidInput, match="over the limit"):
        plan_export(pairs(file_of(tensor("a"), tensor("b" * 100_000_000))))


@pytest.mark.parametrize(
    ("found", "merged"),
    [
        ([{"format": "pt"}, {"format": "pt", "a": "1"}], {"format": "pt", "a": "1"}),
        ([{"format": "pt"}, {}], None),
        ([{"format": "pt", "a": "1"}, {"format": "np", "a": "1"}], {"a": "1"}),
        ([{"a": "1", "b": "2"}, {"a": "2"}, {"a": "1"}], {"b": "2"}),
        ([], None),
    ],
)
def test_metadata_of_several_files_is_what_they_agree_on(
    found: list[dict[str, str]], merged: dict[str, str] | None
) -> None:
    assert merge_metadata(found) == merged


@pytest.mark.parametrize("limit", [8, 24, 40, 96, 1000])
@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((7, 5), (5, 1)),
        ((7, 5), (1, 7)),
        ((3, 4, 5), (1, 15, 3)),
        ((2, 1, 6), (1, 99, 2)),
        ((4, 6), (0, 1)),
        ((4, 6), (1, 0)),
        ((30,), (3,)),
        ((1, 30), (7, 2)),
    ],
    ids=str,
)
def test_boxes_are_within_the_limit_and_bring_each_element_to_its_place(
    shape: tuple[int, ...], strides: tuple[int, ...], limit: int
) -> None:
    tensors = [
        tensor("a", (3,), strides=(2,)),
        tensor("c", (2, 2), start=50, strides=(1, 2)),
        tensor("plain", start=70),
    ]
    file = file_of(*tensors, tensor("b", shape, start=100, strides=strides))
    plan = plan_export(pairs(file))
    written = np.zeros(plan.data_bytes // 4, np.uint32)
    values = {
        each.name: np.arange(math.prod(each.shape), dtype=np.uint32).reshape(each.shape) + 1 for each in file.tensors
    }
    for batch in plan_batches(plan, limit_bytes=limit):
        data = b"".join(values[box.placed.tensor.name][_slices(box)].tobytes() for box in batch)
        assert [box.length for box in batch] == [math.prod(box.sizes) * 4 for box in batch]
        assert 0 < len(data) <= limit
        for run in plan_runs(batch):
            start = (run.start - len(plan.header)) // 4
            target = written[start : start + run.length // 4]
            assert not target.any()
            target[:] = np.frombuffer(data, np.uint32, run.length // 4, run.at)
    values["plain"][:] = 0  # a tensor in C order is copied, not read in boxes
    assert written.tobytes() == b"".join(values[each.tensor.name].tobytes() for each in plan.tensors)


def _slices(box: BoxRead) -> tuple[slice, ...]:
    return tuple(slice(start, start + size) for start, size in zip(box.starts, box.sizes, strict=True))


def test_a_transposed_matrix_is_read_by_its_columns_so_that_no_byte_is_read_twice() -> None:
    file = file_of(tensor("a", (100, 80), strides=(1, 100)))
    boxes = [box for batch in plan_batches(plan_export(pairs(file)), limit_bytes=4000) for box in batch]
    assert [(box.starts, box.sizes) for box in boxes] == [((0, start), (100, 10)) for start in range(0, 80, 10)]


def test_whole_tensors_that_follow_each_other_are_one_write() -> None:
    file = file_of(*(tensor(f"{index:03d}", start=index * 24, strides=(1, 2)) for index in range(100)))
    plan = plan_export(pairs(file))
    batches = list(plan_batches(plan, limit_bytes=240))
    assert [len(batch) for batch in batches] == [10] * 10
    runs = [run for batch in batches for run in plan_runs(batch)]
    assert runs[0] == Run(0, len(plan.header), 240)
    assert all(one.start + one.length == two.start for one, two in pairwise(runs))
    assert len(runs) == 10
