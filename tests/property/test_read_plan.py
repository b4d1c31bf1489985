"""Plans read each needed byte, little else, in whole blocks, and spread parts so that devices finish together."""

from bisect import bisect_right
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tensorkeep.errors import InvalidInput
from tensorkeep.planning.read_plan import (
    GAP_BYTES,
    ExtentMap,
    PartRead,
    Piece,
    choose_copies,
    plan_reads,
    resolve_ranges,
)
from tensorkeep.records.layout import BLOCK_BYTES
from tensorkeep.records.manifest import Extent

SIZES = st.one_of(
    st.integers(1, 100),
    st.integers(0, 12).flatmap(lambda blocks: st.integers(-1, 1).map(lambda off: max(blocks * BLOCK_BYTES + off, 1))),
)


@st.composite
def part_pieces(draw: st.DrawFn) -> tuple[list[int], list[Piece]]:
    sizes = draw(st.lists(SIZES, min_size=1, max_size=4))
    pieces = []
    for item in range(draw(st.integers(0, 20))):
        part = draw(st.integers(0, len(sizes) - 1))
        start = draw(st.integers(0, sizes[part]))
        length = min(draw(st.integers(0, sizes[part] - start)), draw(st.sampled_from([10, BLOCK_BYTES, 1 << 30])))
        pieces.append(Piece(part, start, length, item, draw(st.integers(0, 5))))
    return sizes, pieces


def joined(reads: list[PartRead]) -> list[Piece]:
    """Return the pieces of all reads with cut ones put together again."""
    found: dict[int, Piece] = {}
    for piece in sorted(
        (piece for read in reads for piece in read.pieces), key=lambda piece: (piece.item, piece.start)
    ):
        before = found.get(piece.item)
        if before is None:
            found[piece.item] = piece
            continue
        assert (before.part, before.start + before.length) == (piece.part, piece.start)
        assert before.offset + before.length == piece.offset
        found[piece.item] = replace(before, length=before.length + piece.length)
    return [found[item] for item in sorted(found)]


@settings(deadline=None)
@given(
    part_pieces(),
    st.sampled_from([BLOCK_BYTES, 3 * BLOCK_BYTES, 8 << 20]),
    st.sampled_from([1, BLOCK_BYTES]),
    st.sampled_from(["cut", "keep", "whole"]),
)
def test_reads_hold_every_piece_once_aligned_and_in_order(
    given_pieces: tuple[list[int], list[Piece]], limit: int, align: int, form: str
) -> None:
    sizes, pieces = given_pieces
    reads = plan_reads(
        pieces, sizes, max_read_bytes=limit, align=align, keep_whole=form == "keep", whole_parts=form == "whole"
    )
    assert joined(reads) == [piece for piece in pieces if piece.length]
    assert [(read.part, read.start) for read in reads] == sorted((read.part, read.start) for read in reads)
    for read in reads:
        assert read.pieces
        assert read.start % align == 0
        assert read.end % align == 0 or read.end == sizes[read.part]
        assert list(read.pieces) == sorted(read.pieces)
        assert all(read.start <= p.start and p.start + p.length <= read.end and p.length for p in read.pieces)
        if form == "whole":
            assert (read.start, read.end) == (0, sizes[read.part])
        elif form == "cut":
            assert read.end - read.start <= limit
        else:
            longest = max(piece.length for piece in read.pieces)
            assert read.end - read.start <= max(limit, longest + 2 * align)
    if form == "cut":
        assert all(a.part != b.part or a.end <= b.start for a, b in pairwise(reads))


@settings(deadline=None)
@given(part_pieces())
def test_reads_hold_no_more_than_the_blocks_touched_and_a_third_of_holes(
    given_pieces: tuple[list[int], list[Piece]],
) -> None:
    sizes, pieces = given_pieces
    reads = plan_reads(pieces, sizes, max_read_bytes=8 << 20)
    touched = {
        (piece.part, block)
        for piece in pieces
        if piece.length
        for block in range(piece.start // BLOCK_BYTES, (piece.start + piece.length - 1) // BLOCK_BYTES + 1)
    }
    needed = sum(min(BLOCK_BYTES, sizes[part] - block * BLOCK_BYTES) for part, block in touched)
    read = sum(read.end - read.start for read in reads)
    assert needed <= read <= needed * 4 / 3 + GAP_BYTES


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), max_size=20), st.data())
def test_ranges_resolve_to_the_same_bytes(lengths: list[int], data: st.DataObject) -> None:
    extents = [Extent(index % 3, 100 * index, length) for index, length in enumerate(lengths)]
    flat = [(extent.part, extent.start + at) for extent in extents for at in range(extent.length)]
    ranges = []
    for _ in range(data.draw(st.integers(0, 5))):
        start = data.draw(st.integers(0, len(flat)))
        ranges.append((start, data.draw(st.integers(0, len(flat) - start))))
    pieces = resolve_ranges(extents, ranges)
    for item, (start, length) in enumerate(ranges):
        mine = [piece for piece in pieces if piece.item == item]
        assert [(p.part, p.start + at) for p in mine for at in range(p.length)] == flat[start : start + length]
        assert [p.offset for p in mine] == [sum(p.length for p in mine[:index]) for index in range(len(mine))]


@pytest.mark.parametrize("wrong", [(-1, 2), (0, 11), (11, 0), (3, -1)])
def test_a_range_outside_the_file_is_refused(wrong: tuple[int, int]) -> None:
    with pytest.raises(InvalidInput):
        ExtentMap([Extent(0, 0, 4), Extent(1, 0, 6)]).pieces(*wrong, 0)


@settings(deadline=None)
@given(
    needs=st.lists(st.integers(1, 1 << 26), max_size=40),
    devices=st.integers(1, 5),
    data=st.data(),
)
def test_each_part_gets_one_of_its_copies_and_devices_finish_about_together(
    needs: list[int], devices: int, data: st.DataObject
) -> None:
    names = [f"d{number}" for number in range(devices)]
    copies = {part: data.draw(st.permutations(names)) for part in range(len(needs))}
    rates = {name: data.draw(st.sampled_from([1e8, 5e8, 2e9])) for name in names}
    choice = choose_copies(dict(enumerate(needs)), copies, rates)
    assert sorted(choice.copies) == list(range(len(needs)))
    for name in names:
        mine = sum(size for part, size in enumerate(needs) if copies[part][choice.copies[part]] == name)
        assert choice.bytes.get(name, 0) == mine
        assert choice.seconds.get(name, 0.0) == pytest.approx(mine / rates[name])
    # Where every device keeps everything: no device ends later than perfect sharing plus one part on the best other device.
    if needs:
        perfect = sum(needs) / sum(rates.values())
        slack = max(needs) * (len(names) - 1) / sum(rates.values()) + max(needs) / max(rates.values())
        assert max(choice.seconds.values()) <= perfect + slack + 1e-9


def test_only_devices_with_a_copy_are_chosen_and_parts_without_one_are_left_out() -> None:
    choice = choose_copies({0: 10, 1: 10, 2: 10}, {0: ["slow"], 1: ["slow", "fast"], 2: []}, {"slow": 1.0, "fast": 1e9})
    assert dict(choice.copies) == {0: 0, 1: 1}


def test_equal_devices_share_equal_parts_equally() -> None:
    copies = {part: ["a", "b", "c"] for part in range(30)}
    choice = choose_copies(dict.fromkeys(range(30), 64 << 20), copies, {})
    assert set(choice.bytes.values()) == {10 * (64 << 20)}


def test_sixty_thousand_small_tensors_are_planned_once_each() -> None:
    count, size, pack = 60_000, 12_288, 64 << 20
    per_pack = pack // size
    extents = [Extent(index // per_pack, index % per_pack * size, size) for index in range(count)]
    pieces = resolve_ranges(extents, [(index * size, size) for index in reversed(range(count))])
    reads = plan_reads(pieces, [pack] * (count // per_pack + 1), max_read_bytes=8 << 20)
    assert sum(len(read.pieces) for read in reads) >= count
    ends = [read.start for read in reads if read.part == 0]
    assert bisect_right(ends, 0) == 1
