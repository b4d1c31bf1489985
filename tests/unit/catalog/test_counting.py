"""Copies of any form are counted by what it takes to lose the object: held to trying every set of devices."""

from collections.abc import Sequence
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from tensorkeep.catalog.counting import count_copies
from tensorkeep.catalog.protocol import Location
from tensorkeep.testing.catalog_scene import part_key

DEVICES = "abcdefgh"


def row(device: str, form: str = "raw", fragment: int | None = None, needed: int = 1) -> Location:
    return Location(
        id=0,
        key=part_key(1),
        size_bytes=9,
        device=device,
        name="x",
        form=form,
        length=9,
        state="live",
        fragment=fragment,
        needed=needed,
    )


def gives(rows: Sequence[Location]) -> bool:
    """Return whether these rows give the object."""
    if any(each.fragment is None for each in rows):
        return True
    forms = {(each.form, each.needed) for each in rows}
    return any(len({each.fragment for each in rows if each.form == form}) >= needed for form, needed in forms)


def least_losses(rows: Sequence[Location]) -> int:
    """Return how many devices must be lost, by trying."""
    devices = sorted({each.device for each in rows})
    for count in range(len(devices) + 1):
        for lost in combinations(devices, count):
            if not gives([each for each in rows if each.device not in lost]):
                return count
    raise AssertionError("without any device there is no object")


@st.composite
def one_code(draw: st.DrawFn) -> list[Location]:
    """Return whole copies, and at most one fragment a device, some of them twice on other devices."""
    needed = draw(st.integers(2, 4))
    whole = draw(st.sets(st.sampled_from(DEVICES), max_size=3))
    holders = draw(st.lists(st.sampled_from(DEVICES), unique=True))
    numbers = [draw(st.integers(0, 6)) for _ in holders]
    fragments = [row(device, "ec-x", number, needed) for device, number in zip(holders, numbers, strict=True)]
    return draw(st.permutations([*(row(device) for device in sorted(whole)), *fragments]))


@settings(max_examples=500)
@given(rows=one_code())
def test_no_more_is_counted_than_devices_must_be_lost_and_all_of_it_where_no_fragment_is_there_twice(
    rows: list[Location],
) -> None:
    counted, least = count_copies(rows), least_losses(rows)
    assert counted <= least
    numbers = [each.fragment for each in rows if each.fragment is not None]
    if len(set(numbers)) == len(numbers):
        assert counted == least


@settings(max_examples=300)
@given(
    rows=st.lists(
        st.one_of(
            st.sampled_from(DEVICES).map(row),
            st.builds(row, st.sampled_from(DEVICES), st.just("ec-2-1"), st.integers(0, 2), st.just(2)),
            st.builds(row, st.sampled_from(DEVICES), st.just("ec-3-2"), st.integers(0, 4), st.just(3)),
            st.builds(row, st.sampled_from(DEVICES), st.just("ec-1-1"), st.integers(0, 1), st.just(1)),
        ),
        max_size=10,
    )
)
def test_several_codes_and_several_fragments_on_a_device_are_never_counted_for_more_than_they_are(
    rows: list[Location],
) -> None:
    assert count_copies(rows) <= least_losses(rows)
