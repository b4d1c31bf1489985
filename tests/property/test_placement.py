"""Placement never puts two copies on one device, nor in one zone while zones suffice, and gives each device its share."""

import math
import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorkeep.errors import InvalidInput
from tensorkeep.planning.layers import Layer
from tensorkeep.planning.placement import DeviceShare, PartToPlace, place_parts, place_shares
from tensorkeep.planning.policies import check_policy, warn_of_zones
from tensorkeep.records.layout import MIB
from tensorkeep.records.redundancy import ErasureCoded, Replicas


@st.composite
def fleets(draw: st.DrawFn) -> list[DeviceShare]:
    count = draw(st.integers(1, 6))
    return [
        DeviceShare(
            id=f"d{number}",
            zone=draw(st.sampled_from(["rack1", "rack2", "rack3", f"d{number}"])),
            weight=draw(st.sampled_from([1e8, 1e9, 2.5e9, 1.0])),
            free_bytes=draw(st.one_of(st.none(), st.integers(0, 400))),
        )
        for number in range(count)
    ]


PARTS = st.lists(st.builds(PartToPlace, size_bytes=st.integers(1, 100), layer=st.none()), max_size=40)


@settings(max_examples=400, deadline=None)
@given(data=st.data(), devices=fleets(), parts=PARTS)
def test_copies_are_on_different_devices_in_different_zones_where_there_is_room(
    data: st.DataObject, devices: list[DeviceShare], parts: list[PartToPlace]
) -> None:
    copies = data.draw(st.integers(1, len(devices)))
    zones = {device.id: device.zone for device in devices}
    free = {device.id: math.inf if device.free_bytes is None else device.free_bytes for device in devices}
    placed = place_parts(parts, devices, policy=Replicas(copies))
    assert len(placed) == len(parts)
    for part, order in zip(parts, placed, strict=True):
        assert sorted(order) == sorted(zones), "every device once"
        room = [name for name in order if free[name] >= part.size_bytes]
        assert list(order[: len(room)]) == room, "devices without room come last"
        zones_with_room = {zones[name] for name in room}
        used = [zones[name] for name in room[:copies]]
        assert len(set(used)) == min(len(zones_with_room), len(used))
        for name in room[:copies]:
            free[name] -= part.size_bytes
    assert all(left >= 0 for left in free.values())


@settings(max_examples=100, deadline=None)
@given(data=st.data(), devices=fleets(), parts=PARTS)
def test_the_answer_depends_on_the_input_only_and_not_on_the_order_of_devices(
    data: st.DataObject, devices: list[DeviceShare], parts: list[PartToPlace]
) -> None:
    placed = place_parts(parts, devices, policy=Replicas(1))
    assert place_parts(parts, devices, policy=Replicas(1)) == placed
    assert place_parts(parts, data.draw(st.permutations(devices)), policy=Replicas(1)) == placed


def fleet(*weights: float, zones: Sequence[str] | None = None) -> list[DeviceShare]:
    return [
        DeviceShare(f"d{number}", zones[number] if zones else f"d{number}", weight, None)
        for number, weight in enumerate(weights)
    ]


def shares(placed: Sequence[tuple[str, ...]], sizes: Sequence[int], copies: int) -> dict[str, float]:
    """Return each device's share of all copies' bytes."""
    given: Counter[str] = Counter()
    for order, size in zip(placed, sizes, strict=True):
        for name in order[:copies]:
            given[name] += size
    return {name: given[name] / (copies * sum(sizes)) for name in placed[0]}


@pytest.mark.parametrize("weights", [(1, 1), (1, 1, 1), (1, 2, 3), (5, 1, 1, 1), (2.4e9, 1.1e9, 0.3e9), (1, 100)])
def test_devices_get_shares_by_weight_over_all_parts_and_over_every_layer(weights: tuple[float, ...]) -> None:
    devices = fleet(*weights)
    layer = 40
    parts = [PartToPlace(16 * MIB, Layer("layers", number // layer)) for number in range(60 * layer)]
    placed = place_parts(parts, devices, policy=Replicas(1))
    sizes = [part.size_bytes for part in parts]
    for name, share in shares(placed, sizes, 1).items():
        expected = weights[int(name[1:])] / sum(weights)
        assert share == pytest.approx(expected, abs=0.01)
        for start in range(0, len(parts) - layer, 7):
            run = shares(placed[start : start + layer], sizes[start : start + layer], 1)
            assert run[name] == pytest.approx(expected, abs=2 / layer), "within two parts of its share in any run"


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.floats(0.1, 10), min_size=2, max_size=6),
    seed=st.integers(0, 1000),
)
def test_no_device_is_done_much_later_than_a_perfect_split_would_be(weights: list[float], seed: int) -> None:
    rng = random.Random(seed)
    parts = [PartToPlace(rng.choice([rng.randint(1, MIB), 16 * MIB, 64 * MIB]), None) for _ in range(300)]
    placed = place_parts(parts, fleet(*weights), policy=Replicas(1))
    given_bytes: Counter[str] = Counter()
    for part, order in zip(parts, placed, strict=True):
        given_bytes[order[0]] += part.size_bytes
    last = max(given_bytes[f"d{number}"] / weight for number, weight in enumerate(weights))
    perfect = sum(part.size_bytes for part in parts) / sum(weights)
    assert last <= (perfect + len(weights) * 64 * MIB / sum(weights)) * (1 + 1e-9)


def test_all_copies_count_and_a_device_with_every_part_leaves_the_rest_to_the_others_by_weight() -> None:
    parts = [PartToPlace(MIB, None)] * 3000
    sizes = [MIB] * 3000
    even = shares(place_parts(parts, fleet(2, 3, 2, 3), policy=Replicas(2)), sizes, 2)
    assert even == pytest.approx({"d0": 0.2, "d1": 0.3, "d2": 0.2, "d3": 0.3}, abs=0.01)
    capped = shares(place_parts(parts, fleet(100, 1, 2), policy=Replicas(2)), sizes, 2)
    assert capped == pytest.approx({"d0": 1 / 2, "d1": 1 / 6, "d2": 1 / 3}, abs=0.01)
    zoned = shares(place_parts(parts, fleet(1, 3, 9, zones=["a", "b", "b"]), policy=Replicas(2)), sizes, 2)
    assert zoned == pytest.approx({"d0": 1 / 2, "d1": 1 / 8, "d2": 3 / 8}, abs=0.01)


def test_a_full_device_leaves_its_share_to_the_others() -> None:
    devices = [
        DeviceShare("full", "a", 1, 0),
        DeviceShare("small", "b", 1, 10 * MIB),
        DeviceShare("large", "c", 1, None),
    ]
    placed = place_parts([PartToPlace(MIB, None)] * 100, devices, policy=Replicas(1))
    assert Counter(order[0] for order in placed) == {"small": 10, "large": 90}
    assert all(order[-1] == "full" for order in placed[:10])


def test_of_equal_devices_the_one_with_more_room_starts() -> None:
    devices = [DeviceShare("a", "a", 1, 10 * MIB), DeviceShare("b", "b", 1, 20 * MIB)]
    assert place_parts([PartToPlace(MIB, None)], devices, policy=Replicas(1)) == [("b", "a")]


def test_no_parts_need_no_room() -> None:
    assert place_parts([], fleet(1), policy=Replicas(1)) == []


@pytest.mark.parametrize(
    ("copies", "devices", "words"),
    [
        (3, 2, "3 copies asked for, 2 devices: add devices or lower --replicas"),
        (2, 1, "2 copies asked for, 1 device:"),
        (1, 0, "device add"),
        (0, 2, "at least one"),
    ],
)
def test_an_impossible_policy_is_refused(copies: int, devices: int, words: str) -> None:
    for refused in (
        lambda: check_policy(Replicas(copies), ["a"] * devices),
        lambda: place_parts([], fleet(*[1] * devices), policy=Replicas(copies)),
    ):
        with pytest.raises(InvalidInput, match=words):
            refused()


def test_as_many_copies_as_devices_are_possible_even_in_one_zone() -> None:
    check_policy(Replicas(2), ["a", "a"])


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        (
            5,
            "ec=4[+]2 needs 6 devices that can take parts, there are 5 devices: add 1, choose a smaller --ec, or use --replicas 3",
        ),
        (1, "there is 1 device: add 5, choose a smaller --ec, or use --replicas 1"),
        (0, "device add"),
    ],
)
def test_too_few_devices_for_fragments_are_refused_with_what_would_do(devices: int, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        check_policy(ErasureCoded(4, 2), [f"d{number}" for number in range(devices)])
    with pytest.raises(InvalidInput, match=words):
        place_parts([], fleet(*[1] * devices), policy=ErasureCoded(4, 2))


@pytest.mark.parametrize(
    ("policy", "zones", "said"),
    [
        (Replicas(2), "ab", None),
        (Replicas(1), "aa", None),
        (Replicas(3), "aaab", None),
        (Replicas(2), "aa", "zone a, which gets 2 of the 2 copies"),
        (ErasureCoded(4, 2), "abcdef", None),
        (ErasureCoded(4, 2), "aabbcc", None),
        (ErasureCoded(4, 2), "aaabbb", "zone a, which gets 3 of the 6 fragments"),
        (ErasureCoded(2, 2), "bbbbab", "zone b, which gets 3 of the 4 fragments"),
    ],
)
def test_a_policy_that_one_lost_zone_breaks_is_said(policy: Replicas, zones: str, said: str | None) -> None:
    check_policy(policy, list(zones))
    assert (said or "") in (warn_of_zones(policy, list(zones)) or "")
    assert (warn_of_zones(policy, list(zones)) is None) == (said is None)


@pytest.mark.parametrize("weight", [0, -1, math.nan, math.inf])
def test_a_device_without_a_bandwidth_is_refused(weight: float) -> None:
    with pytest.raises(InvalidInput, match="d1"):
        place_parts([], fleet(1, weight), policy=Replicas(1))


@settings(max_examples=200, deadline=None)
@given(data=st.data(), devices=fleets(), sizes=st.lists(st.integers(1, 100), max_size=40))
def test_who_keeps_a_part_comes_first_and_only_its_missing_copies_take_room(
    data: st.DataObject, devices: list[DeviceShare], sizes: list[int]
) -> None:
    names = [device.id for device in devices]
    zones = {device.id: device.zone for device in devices}
    free = {device.id: math.inf if device.free_bytes is None else device.free_bytes for device in devices}
    copies = data.draw(st.integers(1, len(devices)))
    parts = [PartToPlace(size, None, data.draw(st.frozensets(st.sampled_from(names)))) for size in sizes]
    for part, order in zip(parts, place_parts(parts, devices, policy=Replicas(copies)), strict=True):
        assert sorted(order) == sorted(names), "every device once"
        held = len(part.holders)
        assert set(order[:held]) == part.holders
        new = [name for name in order[held:] if free[name] >= part.size_bytes][: max(0, copies - held)]
        taken = {zones[name] for name in part.holders}
        untaken = {zones[name] for name in order[held:] if free[name] >= part.size_bytes} - taken
        assert len({zones[name] for name in new} - taken) == min(len(new), len(untaken))
        for name in new:
            free[name] -= part.size_bytes
    assert all(left >= 0 for left in free.values())


def test_a_new_device_takes_the_copies_that_a_lost_one_had() -> None:
    before = place_parts([PartToPlace(MIB, None)] * 300, fleet(1, 1, 1), policy=Replicas(2))
    left = [PartToPlace(MIB, None, frozenset(order[:2]) - {"d1"}) for order in before]
    devices = [DeviceShare(name, name, 1, None) for name in ("d0", "d2", "d3")]
    healed = [order[:2] for order in place_parts(left, devices, policy=Replicas(2))]
    assert Counter(name for order in healed for name in order) == pytest.approx(
        {"d0": 200, "d2": 200, "d3": 200}, abs=2
    )


@settings(max_examples=300, deadline=None)
@given(
    data=st.data(),
    devices=fleets(),
    parts=st.lists(
        st.builds(PartToPlace, size_bytes=st.integers(1, 100), layer=st.none(), share=st.integers(0, 9)), max_size=40
    ),
)
def test_copies_of_shares_are_kept_apart_like_those_of_other_parts(
    data: st.DataObject, devices: list[DeviceShare], parts: list[PartToPlace]
) -> None:
    copies = data.draw(st.integers(1, len(devices)))
    zones = {device.id: device.zone for device in devices}
    free = {device.id: math.inf if device.free_bytes is None else device.free_bytes for device in devices}
    placed = place_shares(parts, data.draw(st.permutations(devices)), policy=Replicas(copies))
    assert place_shares(parts, devices, policy=Replicas(copies)) == placed
    names = sorted(zones)
    for part, order in zip(parts, placed, strict=True):
        assert sorted(order) == names, "every device once"
        room = [name for name in order if free[name] >= part.size_bytes]
        assert list(order[: len(room)]) == room, "devices without room come last"
        assert part.share is not None
        turn = part.share % len(names)
        in_turn = [name for name in [*names[turn:], *names[:turn]] if name in room]
        assert order[:1] == tuple(in_turn[:1]) or not room, "share i is on device i mod D while that has room"
        used = [zones[name] for name in room[:copies]]
        assert len(set(used)) == min(len({zones[name] for name in room}), len(used))
        for name in room[:copies]:
            free[name] -= part.size_bytes
    assert all(left >= 0 for left in free.values())


def test_shares_go_round_the_devices_and_their_copies_to_the_next_ones() -> None:
    parts = [PartToPlace(MIB, None, share=share) for share in (0, 0, 1, 2, 3, 7)]
    assert [order[:2] for order in place_shares(parts, fleet(1, 100, 5), policy=Replicas(2))] == [
        *(("d0", "d1"), ("d0", "d1"), ("d1", "d2"), ("d2", "d0"), ("d0", "d1"), ("d1", "d2"))
    ]
    zoned = fleet(1, 1, 1, zones=["a", "a", "b"])
    assert place_shares([PartToPlace(MIB, None, share=0)], zoned, policy=Replicas(2)) == [("d0", "d2", "d1")]


def test_a_part_of_no_share_is_not_placed_by_shares() -> None:
    with pytest.raises(InvalidInput, match="no share"):
        place_shares([PartToPlace(MIB, None)], fleet(1), policy=Replicas(1))


@pytest.mark.parametrize("weights", [(1, 1, 1), (4, 2, 1), (1, 1, 1, 5), (10, 1, 1)])
@pytest.mark.parametrize("copies", [1, 2])
def test_a_new_device_takes_its_share_of_what_is_pushed_next_and_nothing_else_moves(
    weights: tuple[float, ...], copies: int
) -> None:
    count, layers = 1200, [Layer("layers", number // 40) for number in range(1200)]
    before = place_parts([PartToPlace(MIB, layer) for layer in layers], fleet(*weights[:-1]), policy=Replicas(copies))
    # What is kept stays: a part that has its copies asks for no other device.
    held = [PartToPlace(MIB, None, frozenset(order[:copies])) for order in before]
    after = place_parts(held, fleet(*weights), policy=Replicas(copies))
    assert [set(order[:copies]) for order in after] == [set(order[:copies]) for order in before]
    placed = place_parts([PartToPlace(MIB, layer) for layer in layers], fleet(*weights), policy=Replicas(copies))
    new = f"d{len(weights) - 1}"
    share = min(1.0, copies * weights[-1] / sum(weights))
    if copies == 2 and max(weights) * 2 > sum(weights):
        return  # one device has a copy of everything, the shares of the others are of the rest: tested above
    assert sum(new in order[:copies] for order in placed) / count == pytest.approx(share, abs=0.01)
    for start in range(0, count, 40):
        run = sum(new in order[:copies] for order in placed[start : start + 40])
        assert run / 40 == pytest.approx(share, abs=2 / 40), "of every layer too"


@settings(max_examples=100, deadline=None)
@given(
    weights=st.lists(st.floats(0.5, 8), min_size=2, max_size=5),
    layers=st.lists(
        st.lists(st.sampled_from([64 * MIB, 65 * MIB - 1, 3 * MIB, MIB, 4096]), min_size=1, max_size=40), max_size=12
    ),
)
def test_a_layer_of_huge_and_small_parts_is_done_when_its_share_and_two_parts_are(
    weights: list[float], layers: list[list[int]]
) -> None:
    sizes = [size for layer in layers for size in layer]
    parts = [PartToPlace(size, Layer("layers", number)) for number, layer in enumerate(layers) for size in layer]
    placed = place_parts(parts, fleet(*weights), policy=Replicas(1))
    start = 0
    for layer in layers:
        given_bytes: Counter[str] = Counter()
        for order, size in zip(placed[start:][: len(layer)], sizes[start:][: len(layer)], strict=True):
            given_bytes[order[0]] += size
        start += len(layer)
        # Greedy is never further from the perfect split of a prefix than one part on every device, at both ends of the run.
        slack = 2 * len(weights) * 65 * MIB
        for number, weight in enumerate(weights):
            assert given_bytes[f"d{number}"] <= sum(layer) * weight / sum(weights) + slack


def test_a_zone_of_slow_devices_beside_a_fast_one_has_one_copy_of_everything() -> None:
    devices = fleet(10, 10, 0.5, 0.5, zones=["fast", "fast", "slow", "slow"])
    placed = place_parts([PartToPlace(MIB, None)] * 400, devices, policy=Replicas(2))
    assert all({order[0], order[1]} & {"d2", "d3"} and {order[0], order[1]} & {"d0", "d1"} for order in placed)
    given_out = Counter(name for order in placed for name in order[:2])
    assert given_out == pytest.approx({"d0": 200, "d1": 200, "d2": 200, "d3": 200}, abs=2)


def test_a_tiny_device_is_filled_to_its_capacity_and_not_over_it() -> None:
    devices = [DeviceShare("tiny", "a", 1000, 7 * MIB), DeviceShare("b", "b", 1, None), DeviceShare("c", "c", 1, None)]
    sizes = [random.Random(7).choice([64 * MIB, MIB, 2 * MIB]) for _ in range(200)]
    placed = place_parts([PartToPlace(size, None) for size in sizes], devices, policy=Replicas(2))
    kept = [size for order, size in zip(placed, sizes, strict=True) if "tiny" in order[:2]]
    assert 5 * MIB < sum(kept) <= 7 * MIB
