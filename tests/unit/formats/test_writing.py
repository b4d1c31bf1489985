"""Headers written for arrays from memory, held to what the safetensors library writes and reads."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from tensorkeep.errors import InvalidInput
from tensorkeep.formats.protocol import FileStructure
from tensorkeep.formats.safetensors import SafetensorsReader
from tensorkeep.formats.writing import NamedShape, safetensors_header
from tensorkeep.records.dtype import DTYPES


class Source:
    """A byte source over bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]


def every_dtype() -> list[NamedShape]:
    shapes: list[tuple[int, ...]] = [(), (0,), (4,), (3, 8), (1, 2, 4)]
    return [
        (f'{dtype}.{shape}.größe\n\t\x01"\\', dtype, shape)
        for dtype, known in DTYPES.items()
        for shape in shapes
        if math.prod(shape) * known.bits % 8 == 0
    ]


def test_every_dtype_is_read_back_by_us_and_by_the_library() -> None:
    tensors = every_dtype()
    header, layouts = safetensors_header(tensors)
    assert sorted((layout.name, layout.dtype, layout.shape) for layout in layouts) == sorted(tensors)
    data = header + random.Random(1).randbytes(sum(layout.length for layout in layouts))
    assert SafetensorsReader().read_structure("model.safetensors", Source(data)) == FileStructure(
        "safetensors", tuple(sorted(layouts, key=lambda layout: (layout.start, layout.length, layout.name)))
    )
    found = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
    for layout in layouts:
        assert found[layout.name]["dtype"] == layout.dtype
        assert found[layout.name]["shape"] == list(layout.shape)
        assert bytes(found[layout.name]["data"]) == data[layout.start : layout.start + layout.length]


def test_the_file_is_the_librarys_own_byte_for_byte() -> None:
    rng = np.random.default_rng(2)
    known = [name for name in DTYPES if np.dtype(DTYPES[name].numpy).kind in "biufc" and DTYPES[name].bits >= 8]
    arrays = {
        f"{index % 3}.ä.{name}": rng.integers(0, 2, size=(index % 4, 3)).astype(DTYPES[name].numpy)
        for index, name in enumerate(known * 2)
    }
    names = {array: DTYPES_BY_NUMPY[values.dtype] for array, values in arrays.items()}
    header, layouts = safetensors_header([(name, names[name], values.shape) for name, values in arrays.items()])
    written = header + b"".join(arrays[layout.name].tobytes() for layout in layouts)
    assert written == safetensors.numpy.save(arrays)


DTYPES_BY_NUMPY = {dtype.numpy: name for name, dtype in DTYPES.items() if dtype.bits >= 8}


@pytest.mark.parametrize(
    "metadata", [None, {}, {"format": "pt"}, {'größe\n"\\': "\x7f/\u2028☃"}], ids=["none", "empty", "format", "odd"]
)
def test_metadata_stands_where_the_library_writes_it(metadata: dict[str, str] | None) -> None:
    header, _ = safetensors_header([("a", "F32", (2,)), ("b", "U8", ())], metadata)
    arrays: dict[str, np.ndarray] = {"a": np.zeros(2, np.float32), "b": np.zeros((), np.uint8)}
    assert header + bytes(9) == safetensors.numpy.save(arrays, metadata)


def test_the_library_reads_all_of_the_metadata_back(tmp_path: Path) -> None:
    metadata = {f"lm_head.{index}": f"größe.{index}" for index in range(100)} | {"format": "pt"}
    header, _ = safetensors_header([("a", "U8", (1,))], metadata)
    (tmp_path / "a.safetensors").write_bytes(header + b"a")
    with safetensors.safe_open(tmp_path / "a.safetensors", "np") as file:
        assert file.metadata() == metadata


def test_the_order_of_the_input_does_not_matter() -> None:
    tensors = every_dtype()
    shuffled = random.Random(3).sample(tensors, len(tensors))
    metadata = {"b": "1", "a": "2"}
    assert safetensors_header(shuffled, metadata) == safetensors_header(tensors, dict(sorted(metadata.items())))


def test_tensors_start_aligned_to_their_dtype() -> None:
    header, layouts = safetensors_header([("a", "U8", (3,)), ("b", "F64", (1,)), ("c", "BF16", (5,)), ("d", "F32", ())])
    assert len(header) % 8 == 0
    assert [layout.name for layout in layouts] == ["b", "d", "c", "a"]
    assert all(layout.start % (DTYPES[layout.dtype].bits // 8) == 0 for layout in layouts)


def test_no_arrays_make_an_empty_file() -> None:
    header, layouts = safetensors_header([])
    assert layouts == []
    assert safetensors.deserialize(header) == []  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ([("a", "U8", (1,)), ("a", "U8", (1,))], "same name"),
        ([("__metadata__", "U8", (1,))], "reserved"),
        ([("a", "F128", (1,))], "F128"),
        ([("a", "U8", (-1,))], "shape"),
        ([("a", "U8", (1,) * 65)], "shape"),
        ([("a", "F4", (3,))], "whole bytes"),
        ([("a", "U8", (2**62, 2**62))], "too large"),
        ([("a", "U8", (0, 2**62, 2**62))], "too large"),
        ([("a", "U8", (2**59,)), ("b", "U8", (2**59,))], "limit"),
        ([("\ud800", "U8", (1,))], "Unicode"),
        ([("a" * 100_000_000, "U8", (1,))], "several files"),
    ],
    ids=["twice", "reserved", "dtype", "negative", "rank", "half", "huge", "zero", "sum", "surrogate", "long"],
)
def test_what_no_file_can_hold_is_refused(tensors: list[NamedShape], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        safetensors_header(tensors)
