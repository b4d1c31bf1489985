"""Copies of one object never share a device, nor a zone while zones suffice."""

from hypothesis import given
from hypothesis import strategies as st

from tensorkeep.planning.slots import pick_devices

DEVICES = st.lists(
    st.tuples(st.sampled_from([f"d{i}" for i in range(8)]), st.sampled_from(["r1", "r2", "r3"])),
    max_size=8,
    unique_by=lambda pair: pair[0],
)


@given(
    candidates=DEVICES,
    taken_devices=st.sets(st.sampled_from([f"d{i}" for i in range(8)])),
    taken_zones=st.sets(st.sampled_from(["r1", "r2", "r3"])),
    count=st.integers(0, 9),
)
def test_picks_are_free_distinct_and_spread_over_as_many_zones_as_there_are(
    candidates: list[tuple[str, str]], taken_devices: set[str], taken_zones: set[str], count: int
) -> None:
    picked = pick_devices(candidates, taken_devices=taken_devices, taken_zones=taken_zones, count=count)
    zone_of = dict(candidates)
    free = [device for device in zone_of if device not in taken_devices]
    assert len(picked) == len(set(picked)) == min(count, len(free))
    assert set(picked) <= set(free)
    fresh = {zone_of[device] for device in free} - taken_zones
    assert len({zone_of[device] for device in picked} - taken_zones) == min(count, len(fresh))


def test_preference_decides_within_a_zone_and_between_zones() -> None:
    candidates = [("a", "r1"), ("b", "r1"), ("c", "r2"), ("d", "r3")]
    assert pick_devices(candidates, taken_devices=(), taken_zones=(), count=3) == ["a", "c", "d"]
    assert pick_devices(candidates, taken_devices=(), taken_zones=(), count=4) == ["a", "c", "d", "b"]
    assert pick_devices(candidates, taken_devices={"a"}, taken_zones={"r1"}, count=2) == ["c", "d"]
    assert pick_devices(candidates, taken_devices={"c", "d"}, taken_zones={"r2", "r3"}, count=2) == ["a", "b"]
