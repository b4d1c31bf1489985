"""Boxes that a large tensor is compared in: they cover it once, none is larger than it may be, and they are few."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tensorkeep.store.diff_stats import iter_boxes

SHAPES = st.lists(st.integers(0, 6), max_size=4).map(tuple)


@given(shape=SHAPES, most=st.integers(1, 50), data=st.data())
def test_boxes_cover_each_element_once_within_the_bound(shape: tuple[int, ...], most: int, data: st.DataObject) -> None:
    axes = data.draw(st.permutations(range(len(shape))))
    seen = np.zeros(shape, int)
    for starts, sizes in iter_boxes(shape, axes, most):
        assert 0 < math.prod(sizes) <= most
        seen[tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))] += 1
    assert (seen == 1).all()


def test_a_tensor_is_cut_along_the_first_axis_as_long_as_that_will_do() -> None:
    assert list(iter_boxes((10, 4), (0, 1), 12)) == [
        ((0, 0), (3, 4)),
        ((3, 0), (3, 4)),
        ((6, 0), (3, 4)),
        ((9, 0), (1, 4)),
    ]
    assert list(iter_boxes((2, 5), (0, 1), 3))[:2] == [((0, 0), (1, 3)), ((0, 3), (1, 2))]
    assert list(iter_boxes((), (), 1)) == [((), ())]


@given(row=st.integers(1, 40), rows=st.integers(1, 4), block=st.integers(1, 5), blocks=st.integers(1, 6))
def test_blocks_of_a_row_stay_together_where_the_bound_is_whole_blocks(
    row: int, rows: int, block: int, blocks: int
) -> None:
    for starts, sizes in iter_boxes((rows, row * block), (0, 1), blocks * block):
        assert (starts[1] % block, sizes[1] % block) == (0, 0)
