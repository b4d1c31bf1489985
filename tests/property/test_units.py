"""Units cover each byte of a part once, in blocks, whatever the code, the size and the order."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorkeep.planning.read_plan import PartRange, Piece
from tensorkeep.planning.units import Order, PartCut, UnitMap, column_width
from tensorkeep.records.layout import BLOCK_BYTES, MIB, PART_LIMIT_BYTES
from tensorkeep.records.redundancy import ErasureCoded, filled_fragments, fragment_range

CODES = [ErasureCoded(1, 1), ErasureCoded(2, 1), ErasureCoded(4, 2), ErasureCoded(10, 4)]
ORDERS: list[Order] = ["fragments", "columns", "whole"]
cuts = st.builds(
    PartCut,
    st.sampled_from(CODES),
    st.sampled_from(ORDERS),
    st.integers(1, 40).map(lambda blocks: blocks * BLOCK_BYTES),
)
sizes = st.one_of(st.integers(1, PART_LIMIT_BYTES - 1), st.integers(1, 255).map(lambda blocks: blocks * BLOCK_BYTES))


@settings(max_examples=300, deadline=None)
@given(size=sizes, cut=cuts)
def test_units_cover_a_part_once_and_their_blocks_are_the_parts_blocks(size: int, cut: PartCut) -> None:
    units = UnitMap([7, size, 9], {1: cut})
    assert units.sizes[:3] == [7, size, 9]
    runs = units.runs[1]
    assert runs[0].part_start == 0
    assert all(one.part_start + one.length == other.part_start for one, other in pairwise(runs))
    assert runs[-1].part_start + runs[-1].length == size
    for run in runs:
        low, high = fragment_range(cut.code, size, run.fragment)
        assert low + run.start == run.part_start
        assert run.part_start + run.length <= high
    for unit in units.units[1]:
        own = units.runs_of_unit(unit)
        assert own[0].unit_start == 0
        assert all(one.unit_start + one.length == other.unit_start for one, other in pairwise(own))
        assert units.sizes[unit] == sum(run.length for run in own)
        assert units.parts[unit] == 1
        assert all(run.unit_start % BLOCK_BYTES == run.part_start % BLOCK_BYTES == 0 for run in own)
        assert all(run.length % BLOCK_BYTES == 0 for run in own[:-1])
    many = filled_fragments(cut.code, size) if cut.order == "fragments" else 1
    assert len(units.units[1]) == many


@settings(max_examples=200, deadline=None)
@given(data=st.data(), size=sizes, cut=cuts)
def test_pieces_and_ranges_keep_their_bytes_in_order(data: st.DataObject, size: int, cut: PartCut) -> None:
    units = UnitMap([size], {0: cut})
    start = data.draw(st.integers(0, size - 1))
    length = data.draw(st.integers(1, size - start))
    found = list(units.pieces([Piece(0, start, length, 5, 100)]))
    assert sum(piece.length for piece in found) == length
    position = start
    for piece in found:
        assert (piece.item, piece.offset) == (5, 100 + position - start)
        [run] = [r for r in units.runs_of_unit(piece.part) if r.unit_start <= piece.start < r.unit_start + r.length]
        assert run.part_start + piece.start - run.unit_start == position
        assert piece.start + piece.length <= run.unit_start + run.length
        position += piece.length
    ranges = list(units.ranges([PartRange(0, start, length, 5)]))
    assert [(each.start, each.length) for each in ranges] == [
        (start + piece.offset - 100, piece.length) for piece in found
    ]
    assert {(each.part, each.key) for each in ranges} == {(0, 5)}


@pytest.mark.parametrize("code", CODES)
def test_a_column_is_what_one_read_takes(code: ErasureCoded) -> None:
    width = column_width(code, 8 * MIB)
    assert width % BLOCK_BYTES == 0
    assert 8 * MIB - code.data * BLOCK_BYTES < code.data * width <= 8 * MIB
    assert column_width(code, 1) == BLOCK_BYTES


def test_what_is_not_cut_stays_as_it_is() -> None:
    units = UnitMap([5, 5], {})
    assert list(units.pieces([Piece(1, 0, 5, 0, 0)])) == [Piece(1, 0, 5, 0, 0)]
    assert list(units.ranges([PartRange(0, 0, 0), PartRange(1, 2, 3)])) == [PartRange(0, 0, 0), PartRange(1, 2, 3)]
