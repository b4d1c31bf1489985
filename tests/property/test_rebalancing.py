"""Moves bring every device near its share, and break no rule of placement."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorkeep.planning.placement import DeviceShare
from tensorkeep.planning.rebalancing import TOLERANCE, HeldCopy, Move, plan_moves


@st.composite
def fleets(draw: st.DrawFn) -> tuple[list[DeviceShare], list[HeldCopy]]:
    count = draw(st.integers(1, 6))
    devices = [
        DeviceShare(
            id=f"d{number}",
            zone=draw(st.sampled_from(["r1", "r2", "r3", f"d{number}"])),
            weight=draw(st.sampled_from([1.0, 1.0, 2.0, 5.0])),
            free_bytes=draw(st.one_of(st.none(), st.integers(0, 2000))),
        )
        for number in range(count)
    ]
    copies: list[HeldCopy] = []
    for item in range(draw(st.integers(0, 60))):
        size = draw(st.integers(1, 100))
        holders = draw(
            st.lists(st.sampled_from([*devices]), min_size=1, max_size=min(3, count), unique_by=lambda d: d.id)
        )
        copies += [HeldCopy(len(copies) + n, item, holder.id, size) for n, holder in enumerate(holders)]
    return devices, copies


def apply(copies: Sequence[HeldCopy], moves: Sequence[Move]) -> list[HeldCopy]:
    to = {move.copy.row: move.to for move in moves}
    assert len(to) == len(moves)  # nothing moves twice
    return [copy._replace(device=to.get(copy.row, copy.device)) for copy in copies]


def bytes_of(copies: Sequence[HeldCopy]) -> Counter[str]:
    held: Counter[str] = Counter()
    for copy in copies:
        held[copy.device] += copy.size_bytes
    return held


@settings(max_examples=400, deadline=None)
@given(fleet=fleets())
def test_no_rule_of_placement_is_broken_and_no_device_gets_more_than_it_has_room_for(
    fleet: tuple[list[DeviceShare], list[HeldCopy]],
) -> None:
    devices, copies = fleet
    moves = plan_moves(copies, devices)
    after = apply(copies, moves)
    zones = {device.id: device.zone for device in devices}
    before_of, after_of = defaultdict(list), defaultdict(list)
    for copy in copies:
        before_of[copy.item].append(copy.device)
    for copy in after:
        after_of[copy.item].append(copy.device)
    for item, holders in after_of.items():
        assert len(set(holders)) == len(holders)
        assert len({zones[d] for d in holders}) >= len({zones[d] for d in before_of[item]})
    held, now = bytes_of(copies), bytes_of(after)
    for device in devices:
        if device.free_bytes is not None:
            assert now[device.id] <= held[device.id] + device.free_bytes
    assert plan_moves(copies, list(reversed(devices))) == moves


@pytest.mark.parametrize("count", range(1, 9))
def test_a_new_equal_device_gets_its_share_and_nothing_else_moves(count: int) -> None:
    copies = [HeldCopy(n, n, f"d{n % count}", 100) for n in range(count * 60)]
    devices = [DeviceShare(f"d{n}", f"d{n}", 1.0, None) for n in range(count + 1)]
    moves = plan_moves(copies, devices)
    assert {move.to for move in moves} == {f"d{count}"}
    assert abs(len(moves) / len(copies) - 1 / (count + 1)) <= 0.03
    held, share = bytes_of(apply(copies, moves)), 100 * len(copies) / (count + 1)
    assert all(abs(held[device.id] - share) <= TOLERANCE * share + 100 for device in devices)


def test_what_moves_is_spread_over_all_that_a_device_has() -> None:
    copies = [HeldCopy(n, n, "d0", 100) for n in range(100)]
    moves = plan_moves(copies, [DeviceShare("d0", "d0", 3.0, None), DeviceShare("d1", "d1", 1.0, None)])
    assert [move.copy.row % 4 for move in moves] == [moves[0].copy.row % 4] * 25


def test_near_its_share_a_device_is_left_alone() -> None:
    copies = [HeldCopy(n, n, f"d{n % 2}", 100) for n in range(100)] + [HeldCopy(100, 100, "d0", 100)]
    assert plan_moves(copies, [DeviceShare("d0", "d0", 1.0, None), DeviceShare("d1", "d1", 1.0, None)]) == []


def test_without_devices_or_copies_nothing_moves() -> None:
    assert plan_moves([], []) == []
    assert plan_moves([HeldCopy(1, 1, "gone", 5)], [DeviceShare("d0", "d0", 1.0, None)]) == []
