"""Placement of new parts: which device gets which copy or fragment.

Parts are dealt out in order, each copy to the device that would be done with it first: the one with the least
``(bytes given + bytes of this part) / weight``. With weights in bytes per second that keeps the slowest device's time low, and
since it holds after every part, any run of parts, so any layer too, is spread about by weight. Devices of one zone, full
ones, and copies of one part are kept apart first; the rule then evens out by itself what that forces on it. Of erasure-coded
parts the data fragments, which loads read, are dealt out like this among themselves, then the parity by all bytes given. The
shares of ``parts=N`` are dealt out in turn instead (`place_shares`): who asks for N parts wants to know where each one is.

Source: greedy list scheduling on uniform machines (Graham 1969); with equal parts it deals as the D'Hondt method does.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tensorkeep.errors import InvalidInput
from tensorkeep.planning.layers import Layer
from tensorkeep.planning.packs import PlannedPart
from tensorkeep.planning.policies import check_policy
from tensorkeep.planning.slots import spread_zones
from tensorkeep.planning.splitting import SplitPlan
from tensorkeep.records.redundancy import ErasureCoded, Policy, Replicas, form_of, fragment_bytes


@dataclass(frozen=True, slots=True)
class DeviceShare:
    """A device that can take parts. ``weight`` is its bandwidth, ``free_bytes`` its room (None: nobody knows, so enough).

    ``given_bytes`` is what counts as given to it from the beginning.
    """

    id: str
    zone: str
    weight: float
    free_bytes: int | None
    given_bytes: int = 0


@dataclass(frozen=True, slots=True)
class PartToPlace:
    """A part to store: its size, the layer that it belongs to (parts of a layer follow each other), who keeps it already.

    ``holders`` keep whole copies; ``fragments`` says which fragment, by number, is on which device. ``share`` is the share of
    ``parts=N`` that it is of, None with the other methods.
    """

    size_bytes: int
    layer: Layer | None
    holders: frozenset[str] = frozenset()
    share: int | None = None
    fragments: Mapping[int, str] = field(default_factory=dict)


def place_split(split: SplitPlan, devices: Sequence[DeviceShare], *, policy: Policy) -> dict[int, tuple[str, ...]]:
    """Return for each new part of a split, by its number, all devices, best first; fewer copies where there are fewer devices.

    Raises:
        InvalidInput: no device at all, or a weight that is no positive number.
    """
    new = {number: part for number, part in enumerate(split.parts) if isinstance(part, PlannedPart)}
    wanted = [PartToPlace(part.size_bytes, part.layer, share=part.share) for part in new.values()]
    place = place_shares if split.method.shares else place_parts
    placed = place(wanted, devices, policy=policy, short=True)
    return dict(zip(new, placed, strict=True))


def place_parts(
    parts: Sequence[PartToPlace], devices: Sequence[DeviceShare], *, policy: Policy, short: bool = False
) -> list[tuple[str, ...]]:
    """Return for each part all devices, best first: the first ones are the plan, the rest take over when one fails.

    With ``replicas=N`` the first N keep the copies, holders first. With ``ec=K+M`` the device at i < K+M keeps fragment i; a
    part too small for fragments (`form_of`) has M+1 copies. No device is named twice for a part. What the policy asks for is in
    different zones while enough zones have room, in all zones evenly where there are fewer. Devices without room come last.
    What is kept already counts as given from the beginning, so a new device gets what a lost one had. The same input gives
    the same answer, in any order of the devices.

    With ``short`` there may be too few devices: they get the first copies or fragments.

    Raises:
        InvalidInput: not that many devices, or a weight that is no positive number.
    """
    loads = _open_loads(devices, policy, short=short)
    by_id = {load.id: load for load in loads}
    for part in parts:
        for holder in part.holders & by_id.keys():
            by_id[holder].given += part.size_bytes
        for number, holder in part.fragments.items():
            if holder in by_id:
                by_id[holder].count_fragment(part.size_bytes, number, policy)
    return [_place(part, loads, policy) for part in parts]


def place_shares(
    parts: Sequence[PartToPlace], devices: Sequence[DeviceShare], *, policy: Policy, short: bool = False
) -> list[tuple[str, ...]]:
    """Return for each part of a share all devices, best first, as `place_parts` does; bandwidth plays no part.

    Share i goes to device i mod D, devices in order of their ids; its other copies or fragments to the devices after it, in
    different zones while enough zones have room. Devices without room for a part come last.

    Raises:
        InvalidInput: not that many devices, a weight that is no positive number, or a part that is of no share.
    """
    loads = _open_loads(devices, policy, short=short)
    placed = []
    for part in parts:
        if part.share is None:
            raise InvalidInput("a part that is of no share can't be placed by shares")
        turn = part.share % len(loads)
        order = [*loads[turn:], *loads[:turn]]
        form = form_of(policy, part.size_bytes)
        size = fragment_bytes(part.size_bytes, form.data) if isinstance(form, ErasureCoded) else part.size_bytes
        with_room = _spread([load for load in order if load.free >= size])
        without = [load for load in order if load.free < size]
        for load in with_room[: form.slots]:
            load.take(size)
        placed.append(tuple(load.id for load in (*with_room, *without)))
    return placed


def _open_loads(devices: Sequence[DeviceShare], policy: Policy, *, short: bool) -> list["_Load"]:
    """Return the devices by id, once they were found able to hold what the policy asks for, or, where it may fall short, a copy."""
    check_policy(Replicas(1) if short else policy, [device.zone for device in devices])
    for device in devices:
        if not (math.isfinite(device.weight) and device.weight > 0):
            raise InvalidInput(f"device {device.id!r} has the weight {device.weight}: give it a bandwidth over 0")
    return [_Load(device) for device in sorted(devices, key=lambda device: device.id)]


class _Load:
    """What a device has been given so far: all bytes, and of fragments those that a load reads."""

    __slots__ = ("free", "given", "id", "read", "weight", "zone")

    def __init__(self, device: DeviceShare) -> None:
        self.id = device.id
        self.zone = device.zone
        self.weight = device.weight
        self.free: float = math.inf if device.free_bytes is None else device.free_bytes
        self.given = device.given_bytes
        self.read = 0

    def take(self, size: int) -> None:
        self.given += size
        self.free -= size

    def count_fragment(self, part_bytes: int, number: int, policy: Policy) -> None:
        """Count fragment ``number`` of a part, which needs F bytes of room at most."""
        if isinstance(policy, ErasureCoded):
            size = fragment_bytes(part_bytes, policy.data)
            self.given += size
            if number < policy.data:
                self.read += max(0, min(size, part_bytes - number * size))


def _place(part: PartToPlace, loads: list[_Load], policy: Policy) -> tuple[str, ...]:
    form = form_of(policy, part.size_bytes)
    if isinstance(form, ErasureCoded):
        return _place_fragments(part, loads, form)
    return _place_copies(part, loads, form.copies)


def _place_copies(part: PartToPlace, loads: list[_Load], copies: int) -> tuple[str, ...]:
    """Return all devices for one part, best first, and give its missing copies to the first ones that have room."""
    size = part.size_bytes
    holders = [load for load in loads if load.id in part.holders]
    with_room, without = _order_by_finish([load for load in loads if load.id not in part.holders], size)
    spread = _spread(with_room, holders)
    for load in spread[: max(0, copies - len(holders))]:
        load.take(size)
    return tuple(load.id for load in (*holders, *spread, *without))


def _place_fragments(part: PartToPlace, loads: list[_Load], form: ErasureCoded) -> tuple[str, ...]:
    """Return the device of each fragment by its number, then the other devices, and give them what is missing.

    Data comes first, by when its device would be done with a load: parity gets what is left of the devices.
    """
    size = fragment_bytes(part.size_bytes, form.data)
    by_id = {load.id: load for load in loads}
    slots = {number: by_id[device] for number, device in part.fragments.items() if device in by_id}
    for numbers, by_read in ((range(form.data), True), (range(form.data, form.slots), False)):
        missing = [number for number in numbers if number not in slots]
        for number, load in zip(missing, _order_for_fragment(part, loads, slots, size, by_read=by_read), strict=False):
            slots[number] = load
            if load.free >= size:
                load.free -= size
                load.count_fragment(part.size_bytes, number, form)
    spare = _order_for_fragment(part, loads, slots, size, by_read=False)
    return tuple(load.id for load in (*(slots[number] for number in range(form.slots) if number in slots), *spare))


def _order_for_fragment(
    part: PartToPlace, loads: Sequence[_Load], slots: Mapping[int, _Load], size: int, *, by_read: bool
) -> list[_Load]:
    """Return the devices that have no fragment of a part, best first: holders of a whole copy after those with room."""
    used = list(slots.values())
    free = [load for load in loads if load not in used]
    holders = [load for load in free if load.id in part.holders]
    others = [load for load in free if load.id not in part.holders]
    with_room, without = _order_by_finish(others, size, by_read=by_read)
    return [*_spread(with_room, [*used, *holders]), *holders, *without]


def _order_by_finish(loads: Iterable[_Load], size: int, *, by_read: bool = False) -> tuple[list[_Load], list[_Load]]:
    """Return the devices with room for that many bytes, then those without, each by when they would be done with them.

    Of devices that would be done at once, the one with more room: small models do not all go to the first of equals.
    """

    def finish(load: _Load) -> tuple[float, float]:
        return ((load.read if by_read else load.given) + size) / load.weight, -load.free

    ordered = sorted(loads, key=finish)
    return [load for load in ordered if load.free >= size], [load for load in ordered if load.free < size]


def _spread(loads: Sequence[_Load], taken: Iterable[_Load] = ()) -> list[_Load]:
    return spread_zones(loads, lambda load: load.zone, [load.zone for load in taken])
