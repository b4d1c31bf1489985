"""Tensors laid over parts: every byte where it should be, whatever the parts; what can't lie there is left out, with the reason."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tensorkeep.planning.map_plan import Lay, MapPlan, Wanted, plan_mapping
from tensorkeep.planning.read_plan import ExtentMap, Piece
from tensorkeep.records.manifest import Extent

PAGE = 16  # small, so that cuts often are at one
HUGE = 2 * PAGE


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[bytes], list[Wanted], list[bytes]]:
    """Return parts, tensors as pieces of them, and what each tensor's bytes are."""
    sizes = draw(st.lists(st.sampled_from([1, 7, PAGE, 2 * PAGE, 3 * PAGE, 3 * PAGE + 5]), min_size=1, max_size=6))
    parts = [bytes((number * 41 + at) % 256 for at in range(size)) for number, size in enumerate(sizes)]
    content = b"".join(parts)
    extents = ExtentMap([Extent(number, 0, size) for number, size in enumerate(sizes)])
    wanted, expected = [], []
    for number in range(draw(st.integers(0, 6))):
        item = draw(st.sampled_from([1, 2, 4]))
        start = draw(st.integers(0, len(content)))
        length = draw(st.integers(0, (len(content) - start) // item)) * item
        wanted.append(Wanted(extents.pieces(start, length, number), item))
        expected.append(content[start : start + length])
    return parts, wanted, expected


def lay_out(plan: MapPlan, parts: list[bytes]) -> bytearray:
    """Return what the range of addresses holds, as the kernel lays files: pages, zeros past the end of a file."""
    memory = bytearray(b"\xff" * plan.size_bytes)
    for lay in plan.lays:
        end = lay.at - lay.at % PAGE + -(-lay.length // PAGE) * PAGE
        pages = parts[lay.part][lay.start : lay.start + end - lay.at]
        memory[lay.at : end] = pages + bytes(end - lay.at - len(pages))
    return memory


@given(layouts(), st.sets(st.integers(0, 5)), st.integers(0, 12))
def test_every_tensor_lies_where_the_plan_says_or_is_left_out_with_a_reason(
    layout: tuple[list[bytes], list[Wanted], list[bytes]], away: set[int], most_mappings: int
) -> None:
    parts, wanted, expected = layout
    plan = plan_mapping(
        wanted, lambda part: part not in away, page_bytes=PAGE, huge_bytes=HUGE, most_mappings=most_mappings
    )
    memory = lay_out(plan, parts)
    gaps = [1 for before, lay in pairwise(plan.lays) if lay.at > before.at + -(-before.length // PAGE) * PAGE]
    assert len(plan.lays) + len(gaps) <= most_mappings
    assert all(lay.at % PAGE == 0 and lay.start % PAGE == 0 and lay.part not in away for lay in plan.lays)
    for before, lay in pairwise([Lay(0, 0, 0, 0), *plan.lays]):
        follows = lay.at == before.at + -(-before.length // PAGE) * PAGE
        assert follows or lay.at > before.at + before.length
        if lay.length >= HUGE and not follows:
            assert lay.at % HUGE == lay.start % HUGE
    for number, (tensor, content) in enumerate(zip(wanted, expected, strict=True)):
        assert (number in plan.places) + (number in plan.unmapped) == (1 if content else 0)
        if number in plan.places:
            at = plan.places[number]
            assert at % tensor.item_bytes == 0
            assert memory[at : at + len(content)] == content
        elif content:
            is_away = any(piece.part in away for piece in tensor.pieces)
            assert (plan.unmapped[number] == "elsewhere") == is_away


def test_parts_cut_at_pages_are_laid_side_by_side() -> None:
    pieces = [Piece(3, 2 * PAGE, PAGE, 0, 0), Piece(1, 0, 2 * PAGE, 0, PAGE), Piece(2, 0, 5, 0, 3 * PAGE)]
    plan = plan_mapping([Wanted(pieces, 4)], lambda _: True, page_bytes=PAGE, huge_bytes=1 << 20, most_mappings=9)
    assert plan.lays == [Lay(0, 3, 2 * PAGE, PAGE), Lay(PAGE, 1, 0, 2 * PAGE), Lay(3 * PAGE, 2, 0, 5)]
    assert (plan.places, plan.size_bytes) == ({0: 0}, 4 * PAGE)


def test_tensors_of_one_part_share_a_mapping_of_what_they_need() -> None:
    wanted = [Wanted([Piece(0, 40, 8, 0, 0)], 4), Wanted([Piece(0, 100, 20, 1, 0)], 4)]
    plan = plan_mapping(wanted, lambda _: True, page_bytes=PAGE, huge_bytes=1 << 20, most_mappings=1)
    assert plan.lays == [Lay(0, 0, 32, 88)]
    assert plan.places == {0: 8, 1: 68}


def test_tensors_that_share_bytes_share_no_memory() -> None:
    wanted = [Wanted([Piece(0, 0, 8, 0, 0)], 4), Wanted([Piece(0, 4, 8, 1, 0)], 4), Wanted([Piece(0, 12, 4, 2, 0)], 4)]
    plan = plan_mapping(wanted, lambda _: True, page_bytes=PAGE, huge_bytes=1 << 20, most_mappings=2)
    assert plan.places == {0: 0, 2: 12, 1: PAGE + 4}


def test_a_cut_inside_a_page_or_a_start_inside_an_element_is_read() -> None:
    cut = Wanted([Piece(0, 0, 5, 0, 0), Piece(1, 0, 3, 0, 5)], 1)
    odd = Wanted([Piece(0, 2, 4, 1, 0)], 4)
    plan = plan_mapping([cut, odd], lambda _: True, page_bytes=PAGE, huge_bytes=1 << 20, most_mappings=9)
    assert plan.unmapped == {0: "misaligned", 1: "misaligned"}
    assert plan.lays == []


def test_where_mappings_run_out_the_rest_is_read() -> None:
    wanted = [Wanted([Piece(part, 0, 4, part, 0)], 4) for part in range(3)]
    plan = plan_mapping(wanted, lambda _: True, page_bytes=PAGE, huge_bytes=1 << 20, most_mappings=2)
    assert (sorted(plan.places), plan.unmapped) == ([0, 1], {2: "too many"})


def test_long_runs_lie_as_huge_pages_suit_them() -> None:
    wanted = [
        Wanted([Piece(part, start, length, part, 0)], 4)
        for part, start, length in ((0, 0, 40), (1, 0, 70), (2, 80, 64))
    ]
    plan = plan_mapping(wanted, lambda _: True, page_bytes=PAGE, huge_bytes=4 * PAGE, most_mappings=9)
    assert plan.lays == [Lay(0, 0, 0, 40), Lay(64, 1, 0, 70), Lay(144, 2, 80, 64)]
    assert (plan.places, plan.size_bytes) == ({0: 0, 1: 64, 2: 144}, 208)


def test_what_is_left_out_between_two_lays_is_a_mapping_too() -> None:
    wanted = [Wanted([Piece(part, 0, 5 * PAGE, part, 0)], 4) for part in range(3)]
    plan = plan_mapping(wanted, lambda _: True, page_bytes=PAGE, huge_bytes=4 * PAGE, most_mappings=4)
    assert (len(plan.lays), plan.gaps, plan.unmapped) == (2, 1, {2: "too many"})
