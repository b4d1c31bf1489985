"""Slots for K+M fragments: devices and zones apart, data where loads are fastest, room for F bytes each, holders left alone."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations, product

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tensorkeep.planning.placement import DeviceShare, PartToPlace, place_parts, place_shares
from tensorkeep.records.layout import BLOCK_BYTES, MIB
from tensorkeep.records.redundancy import ErasureCoded, Replicas, form_of, fragment_bytes

POLICIES = [ErasureCoded(4, 2), ErasureCoded(2, 1), ErasureCoded(3, 3), ErasureCoded(1, 1)]


@st.composite
def fleets(draw: st.DrawFn) -> list[DeviceShare]:
    count = draw(st.integers(6, 10))
    return [
        DeviceShare(
            f"d{number}",
            draw(st.sampled_from(["rack1", "rack2", "rack3", f"d{number}"])),
            draw(st.sampled_from([1e8, 1e9, 2.5e9, 1e7])),
            draw(st.one_of(st.none(), st.integers(0, 40 * MIB))),
        )
        for number in range(count)
    ]


SIZES = st.lists(st.integers(1, 8 * MIB), max_size=30)


def bytes_by_slot(size: int, policy: ErasureCoded) -> list[int]:
    """Return the bytes that each slot of a part reserves."""
    form = form_of(policy, size)
    each = fragment_bytes(size, form.data) if isinstance(form, ErasureCoded) else size
    return [each] * form.slots


@settings(max_examples=300, deadline=None)
@given(devices=fleets(), sizes=SIZES, policy=st.sampled_from(POLICIES))
def test_fragments_are_on_different_devices_in_different_zones_where_there_is_room(
    devices: list[DeviceShare], sizes: list[int], policy: ErasureCoded
) -> None:
    zones = {device.id: device.zone for device in devices}
    free = {device.id: math.inf if device.free_bytes is None else device.free_bytes for device in devices}
    placed = place_parts([PartToPlace(size, None) for size in sizes], devices, policy=policy)
    assert place_parts([PartToPlace(size, None) for size in sizes], devices[::-1], policy=policy) == placed
    for size, order in zip(sizes, placed, strict=True):
        assert sorted(order) == sorted(zones), "every device once"
        needs = bytes_by_slot(size, policy)
        room = [name for name in zones if free[name] >= needs[0]]
        fitting = min(len(needs), len(room))
        assert set(order[:fitting]) <= set(room), "devices without room come last"
        used = Counter(zones[name] for name in order[:fitting])
        there = Counter(zones[name] for name in room)
        assert len(used) == min(fitting, len(there)), "as many zones as can be"
        assert all(
            used[zone] >= most - 1 or used[zone] == there[zone] for zone, most in product(there, used.values())
        ), "no zone has two more than one that could have taken another"
        for name, need in zip(order[:fitting], needs, strict=False):
            free[name] -= need
    assert all(left >= 0 for left in free.values())


def fleet(*weights: float, zones: Sequence[str] | None = None, free: int | None = None) -> list[DeviceShare]:
    return [
        DeviceShare(f"d{number}", zones[number] if zones else f"d{number}", weight, free)
        for number, weight in enumerate(weights)
    ]


def read_seconds(placed: Sequence[tuple[str, ...]], devices: Sequence[DeviceShare], data: int, size: int) -> float:
    """Return L, the time that the slowest device needs for its data fragments."""
    reads = Counter(name for order in placed for name in order[:data])
    return max(reads[device.id] * size / device.weight for device in devices)


@settings(max_examples=100, deadline=None)
@given(weights=st.lists(st.floats(1, 20), min_size=6, max_size=9))
def test_data_is_where_a_load_of_it_takes_least(weights: list[float]) -> None:
    devices, parts = fleet(*weights), 120
    placed = place_parts([PartToPlace(4 * MIB, None)] * parts, devices, policy=ErasureCoded(4, 2))
    # The least possible: no device gives more than one fragment of a part, the others share the rest by weight.
    least = min_finish(weights, fragments=4 * parts, most=parts) * MIB
    assert read_seconds(placed, devices, 4, MIB) <= least + MIB / min(weights) * (1 + 1e-9)


def min_finish(weights: Sequence[float], *, fragments: int, most: int) -> float:
    """Return the least time T with sum(min(most, weight · T)) = fragments."""
    low, high = 0.0, fragments / min(weights)
    for _ in range(100):
        middle = (low + high) / 2
        enough = sum(min(most, weight * middle) for weight in weights) >= fragments
        low, high = (low, middle) if enough else (middle, high)
    return high


def test_six_devices_of_unequal_rate_keep_data_on_the_fast_ones_and_parity_on_the_slow() -> None:
    devices = fleet(10, 10, 10, 10, 1, 1)
    placed = place_parts([PartToPlace(8 * MIB, None)] * 10, devices, policy=ErasureCoded(4, 2))
    assert all(set(order[:4]) == {"d0", "d1", "d2", "d3"} for order in placed)
    assert all(set(order[4:6]) == {"d4", "d5"} for order in placed)


def test_all_bytes_are_spread_by_weight_where_there_are_more_devices_than_fragments() -> None:
    weights = (1, 2, 1, 2, 1, 2, 1, 2, 1, 2)
    placed = place_parts([PartToPlace(4 * MIB, None)] * 600, fleet(*weights), policy=ErasureCoded(4, 2))
    for count in (slice(0, 4), slice(0, 6)):
        given_out = Counter(name for order in placed for name in order[count])
        total = sum(given_out.values())
        for number, weight in enumerate(weights):
            assert given_out[f"d{number}"] / total == pytest.approx(weight / 15, abs=0.01)


def test_any_run_of_parts_is_spread_by_weight() -> None:
    weights, run = (3, 3, 2, 2, 1, 1, 1, 3), 40
    placed = place_parts([PartToPlace(4 * MIB, None)] * 800, fleet(*weights), policy=ErasureCoded(2, 1))
    for start in range(0, 800 - run, 9):
        reads = Counter(name for order in placed[start : start + run] for name in order[:2])
        for number, weight in enumerate(weights):
            assert reads[f"d{number}"] == pytest.approx(2 * run * weight / 16, abs=2)


@pytest.mark.parametrize("lost", list(combinations(range(6), 2)))
def test_lost_fragments_go_to_new_devices_and_the_others_stay(lost: tuple[int, ...]) -> None:
    policy = ErasureCoded(4, 2)
    before = place_parts([PartToPlace(4 * MIB, None)] * 40, fleet(*[1] * 6), policy=policy)
    gone = {f"d{number}" for number in lost}
    left = [
        PartToPlace(4 * MIB, None, fragments={i: name for i, name in enumerate(order[:6]) if name not in gone})
        for order in before
    ]
    devices = [device for device in fleet(*[1] * 8) if device.id not in gone]
    for part, order in zip(left, place_parts(left, devices, policy=policy), strict=True):
        assert all(order[number] == name for number, name in part.fragments.items())
        assert len(set(order[:6])) == 6
        assert {order[number] for number in range(6) if number not in part.fragments} == {"d6", "d7"}


def test_a_holder_of_the_whole_part_gets_a_fragment_of_it_only_where_no_other_device_has_room() -> None:
    part = PartToPlace(4 * MIB, None, holders=frozenset({"d0"}))
    [order] = place_parts([part], fleet(*[1] * 7), policy=ErasureCoded(4, 2))
    assert "d0" not in order[:6]
    [order] = place_parts([part], fleet(*[1] * 6), policy=ErasureCoded(4, 2))
    assert order[5] == "d0"


@pytest.mark.parametrize(
    ("size", "data", "fragment"),
    [(1, 4, 1), (4 * MIB, 4, 4), (4 * MIB + 1, 4, 5), (65 * MIB, 10, 26), (5 * BLOCK_BYTES + 1, 4, 2)],
)
def test_a_fragment_is_whole_blocks(size: int, data: int, fragment: int) -> None:
    assert fragment_bytes(size, data) == fragment * BLOCK_BYTES
    assert fragment_bytes(size, data) * data >= size


def test_parts_that_are_too_small_for_fragments_are_kept_as_copies() -> None:
    assert form_of(ErasureCoded(4, 2), 4 * BLOCK_BYTES - 1) == Replicas(3)
    assert form_of(ErasureCoded(4, 2), 4 * BLOCK_BYTES) == ErasureCoded(4, 2)
    assert form_of(Replicas(2), 1) == Replicas(2)
    devices = fleet(*[1] * 6, free=2 * BLOCK_BYTES)
    placed = place_parts([PartToPlace(2 * BLOCK_BYTES, None)] * 2, devices, policy=ErasureCoded(4, 2))
    assert len({*placed[0][:3], *placed[1][:3]}) == 6, "three copies fill three devices"


def test_an_empty_last_fragment_is_no_load() -> None:
    size = 5 * BLOCK_BYTES + 1  # fragments of two blocks: the fourth is empty
    placed = place_parts([PartToPlace(size, None)] * 8, fleet(*[1] * 6), policy=ErasureCoded(4, 2))
    reads: Counter[str] = Counter()
    for order in placed:
        reads.update({name: max(0, min(2, 6 - 2 * i)) for i, name in enumerate(order[:4])})
    assert max(reads.values()) - min(reads.values()) <= 2


@settings(max_examples=100, deadline=None)
@given(devices=fleets(), sizes=st.lists(st.integers(MIB, 8 * MIB), max_size=20), share=st.integers(0, 9))
def test_fragments_of_shares_begin_in_turn_and_are_kept_apart(
    devices: list[DeviceShare], sizes: list[int], share: int
) -> None:
    assume(all(device.free_bytes is None or device.free_bytes > 0 for device in devices))
    roomy = [DeviceShare(device.id, device.zone, device.weight, None) for device in devices]
    zones = {device.id: device.zone for device in devices}
    parts = [PartToPlace(size, None, share=share) for size in sizes]
    for order in place_shares(parts, roomy, policy=ErasureCoded(4, 2)):
        assert order[0] == sorted(zones)[share % len(zones)]
        assert len(set(order[:6])) == 6
        assert len({zones[name] for name in order[:6]}) == min(6, len(set(zones.values())))
