"""What a box may be, and what is read for it."""

from typing import Any

import numpy as np
import pytest

from tensorkeep.errors import Format, InvalidInput, TensorkeepError
from tensorkeep.records.layout import BLOCK_BYTES
from tensorkeep.records.manifest import Extent, Tensor
from tensorkeep.transfer.boxes import DIRECT_BYTES, Box, land_box, tensor_array
from tests.unit.transfer.small_world import make_file, make_tensor


def make_box(tensor: Tensor, starts: tuple[int, ...], sizes: tuple[int, ...], destination: Any = None) -> Box:
    size = tensor.start + tensor.length
    file = make_file(bytes(min(size, 1)), [Extent(0, 0, max(size, 1))], [tensor])
    if destination is None:
        destination = np.zeros(sizes, tensor_array(tensor)[0])
    return Box(file, tensor, starts, sizes, destination)


MATRIX = make_tensor("m", "BF16", (1000, 4096), 0, 1000 * 4096 * 2)


@pytest.mark.parametrize(
    ("starts", "sizes", "spans"),
    [
        ((0, 0), (1000, 4096), [(0, 8_192_000)]),
        ((10, 0), (5, 4096), [(81_920, 40_960)]),
        ((3, 7), (1, 9), [(3 * 8192 + 14, 18)]),
        ((0, 100), (1000, 50), [(200, 999 * 8192 + 100)]),
        ((0, 0), (0, 4096), [(0, 0)]),
    ],
    ids=["whole", "rows", "part of a row", "columns closer than a block", "nothing"],
)
def test_spans_of_a_matrix(starts: tuple[int, ...], sizes: tuple[int, ...], spans: list[tuple[int, int]]) -> None:
    assert list(land_box(make_box(MATRIX, starts, sizes)).spans()) == spans


def test_what_lies_between_distant_rows_is_left_out() -> None:
    row = 4 * BLOCK_BYTES
    tensor = make_tensor("w", "U8", (8, row), 0, 8 * row)
    landing = land_box(make_box(tensor, (2, 100), (3, 1000)))
    assert list(landing.spans()) == [(i * row + 100, 1000) for i in (2, 3, 4)]


def test_long_rows_go_straight_into_a_strided_destination() -> None:
    row = DIRECT_BYTES
    tensor = make_tensor("w", "U8", (4, row), 0, 4 * row)
    target = np.zeros((4, 2 * row), np.uint8)
    landing = land_box(make_box(tensor, (0, 0), (4, row), target[:, :row]))
    memory = landing.direct(2 * row + 5, 10)
    assert memory is not None
    memory[:] = b"0123456789"
    assert target[2, 5:15].tobytes() == b"0123456789"
    assert landing.direct(row - 1, 2) is None


def test_a_dtype_that_is_not_known_loads_as_flat_bytes() -> None:
    assert tensor_array(make_tensor("q", "GGUF:Q4_K", (256,), 0, 144)) == (np.dtype(np.uint8), (144,))


@pytest.mark.parametrize(
    ("tensor", "starts", "sizes", "destination", "error"),
    [
        (MATRIX, (0,), (1000,), None, InvalidInput),
        (MATRIX, (0, 0), (1001, 1), None, InvalidInput),
        (MATRIX, (-1, 0), (1, 1), None, InvalidInput),
        (MATRIX, (0, 0), (2, 2), np.zeros((2, 3), np.uint16), InvalidInput),
        (MATRIX, (0, 0), (2, 2), np.zeros((2, 2), np.uint16), InvalidInput),
        (make_tensor("x", "U8", (4,), 0, 4), (0,), (4,), np.frombuffer(b"read", np.uint8), InvalidInput),
        (make_tensor("x", "F32", (4,), 0, 15), (0,), (4,), None, Format),
        (make_tensor("x", "F32", (4,), 0, 16, (2,)), (0,), (4,), None, Format),
        (make_tensor("x", "F32", (4,), 0, 16, (-1,)), (0,), (4,), None, Format),
        (make_tensor("x", "F32", (4,), 0, 16, (4, 1)), (0,), (4,), None, Format),
        (make_tensor("x", "F4", (4,), 0, 2, (1,)), (0,), (2,), None, Format),
    ],
    ids=[
        "fewer dimensions",
        "past the end",
        "before the start",
        "another shape",
        "another dtype",
        "read-only",
        "length that does not fit the shape",
        "strides past the end",
        "negative strides",
        "too many strides",
        "strides of a packed dtype",
    ],
)
def test_a_box_that_does_not_fit_is_refused(
    tensor: Tensor, starts: tuple[int, ...], sizes: tuple[int, ...], destination: Any, error: type[TensorkeepError]
) -> None:
    with pytest.raises(error):
        land_box(make_box(tensor, starts, sizes, destination))
