"""Placement of new parts: which device gets which copy.

Parts are dealt out in order, each copy to the device that would be done with it first: the one with the least
``(bytes given + bytes of this part) / weight``. With weights in bytes per second that keeps the slowest device's time low, and
since it holds after every part, any run of parts, so any layer too, is spread about by weight. Devices of one zone, full
ones, and copies of one part are kept apart first; the rule then evens out by itself what that forces on it. The shares of ``parts=N``
are dealt out in turn instead (`place_shares`): who asks for N parts wants to know where each one is.

Source: greedy list scheduling on uniform machines (Graham 1969); with equal parts it deals as the D'Hondt method does.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tensorkeep.errors import InvalidInput
from tensorkeep.planning.layers import Layer
from tensorkeep.planning.packs import PlannedPart
from tensorkeep.planning.splitting import SplitPlan
from tensorkeep.records.redundancy import ErasureCoded, Policy, Replicas


@dataclass(frozen=True, slots=True)
class DeviceShare:
    """A device that can take parts. ``weight`` is its bandwidth, ``free_bytes`` its room (None: nobody knows, so enough)."""

    id: str
    zone: str
    weight: float
    free_bytes: int | None


@dataclass(frozen=True, slots=True)
class PartToPlace:
    """A part to store: its size, the layer that it belongs to (parts of a layer follow each other), who keeps it already.

    ``share`` is the share of ``parts=N`` that it is of, None with the other methods.
    """

    size_bytes: int
    layer: Layer | None
    holders: frozenset[str] = frozenset()
    share: int | None = None


def place_split(split: SplitPlan, devices: Sequence[DeviceShare], *, copies: int) -> dict[int, tuple[str, ...]]:
    """Return for each new part of a split, by its number, all devices, best first; fewer copies where there are fewer devices.

    Raises:
        InvalidInput: as `place_parts`.
    """
    new = {number: part for number, part in enumerate(split.parts) if isinstance(part, PlannedPart)}
    wanted = [PartToPlace(part.size_bytes, part.layer, share=part.share) for part in new.values()]
    place = place_shares if split.method.shares else place_parts
    return dict(zip(new, place(wanted, devices, copies=min(copies, len(devices))), strict=True))


def place_parts(parts: Sequence[PartToPlace], devices: Sequence[DeviceShare], *, copies: int) -> list[tuple[str, ...]]:
    """Return for each part all devices, best first: the first ``copies`` are the plan, the rest take over when one fails.

    No device is named twice for a part. The first copies are in different zones while enough zones have room, in all zones
    where there are fewer. Devices without room for the part come last, holders first: what they keep counts as given to them
    from the beginning, so a new device gets the copies that a lost one had. The same input gives the same answer, in any
    order of the devices.

    Raises:
        InvalidInput: not that many devices, or a weight that is no positive number.
    """
    loads = _open_loads(devices, copies)
    by_id = {load.id: load for load in loads}
    for part in parts:
        for holder in part.holders & by_id.keys():
            by_id[holder].given += part.size_bytes
    return [_place(part, loads, copies) for part in parts]


def place_shares(parts: Sequence[PartToPlace], devices: Sequence[DeviceShare], *, copies: int) -> list[tuple[str, ...]]:
    """Return for each part of a share all devices, best first, as `place_parts` does; bandwidth plays no part.

    Share i goes to device i mod D, devices in order of their ids; its copies to the devices after it, in different zones while
    enough zones have room. Devices without room for a part come last.

    Raises:
        InvalidInput: not that many devices, a weight that is no positive number, or a part that is of no share.
    """
    loads = _open_loads(devices, copies)
    placed = []
    for part in parts:
        if part.share is None:
            raise InvalidInput("a part that is of no share can't be placed by shares")
        turn = part.share % len(loads)
        order = [*loads[turn:], *loads[:turn]]
        with_room = _spread_zones([load for load in order if load.free >= part.size_bytes], ())
        without = [load for load in order if load.free < part.size_bytes]
        for load in with_room[:copies]:
            load.take(part.size_bytes)
        placed.append(tuple(load.id for load in (*with_room, *without)))
    return placed


def check_policy(policy: Policy, devices: Sequence[DeviceShare]) -> None:
    """Return if these devices can hold what a policy asks for, so that an impossible one is refused before any write.

    Raises:
        InvalidInput: fewer devices than copies, or a policy that this version does not write.
    """
    if isinstance(policy, ErasureCoded):
        raise InvalidInput(
            f"{policy}: erasure coding is reserved by the layout and not written by this version: use --replicas",
            policy=str(policy),
        )
    if policy.copies < 1:
        raise InvalidInput(f"{policy.copies} copies asked for: at least one is needed", policy=str(policy))
    count = len(devices)
    if count == 0:
        raise InvalidInput("there is no device that can take parts: add one with `tensorkeep device add`", devices=0)
    if policy.copies > count:
        raise InvalidInput(
            f"{policy.copies} copies asked for, {count} {'device' if count == 1 else 'devices'}: add devices or lower --replicas",
            policy=str(policy),
            devices=count,
        )


def _open_loads(devices: Sequence[DeviceShare], copies: int) -> list["_Load"]:
    """Return the devices by id, once they were found able to hold that many copies."""
    check_policy(Replicas(copies), devices)
    for device in devices:
        if not (math.isfinite(device.weight) and device.weight > 0):
            raise InvalidInput(f"device {device.id!r} has the weight {device.weight}: give it a bandwidth over 0")
    return [_Load(device) for device in sorted(devices, key=lambda device: device.id)]


class _Load:
    """What a device has been given so far."""

    __slots__ = ("free", "given", "id", "weight", "zone")

    def __init__(self, device: DeviceShare) -> None:
        self.id = device.id
        self.zone = device.zone
        self.weight = device.weight
        self.free: float = math.inf if device.free_bytes is None else device.free_bytes
        self.given = 0

    def take(self, size: int) -> None:
        self.given += size
        self.free -= size


def _place(part: PartToPlace, loads: list[_Load], copies: int) -> tuple[str, ...]:
    """Return all devices for one part, best first, and give its missing copies to the first ones that have room."""
    size = part.size_bytes
    holders = [load for load in loads if load.id in part.holders]
    others = [load for load in loads if load.id not in part.holders]
    # Of devices that would be done at once, the one with more room: small models do not all go to the first of equals.
    by_finish = sorted(others, key=lambda load: ((load.given + size) / load.weight, -load.free))
    taken = [load.zone for load in holders]
    with_room = _spread_zones([load for load in by_finish if load.free >= size], taken)
    without = [load for load in by_finish if load.free < size]
    for load in with_room[: max(0, copies - len(holders))]:
        load.take(size)
    return tuple(load.id for load in (*holders, *with_room, *without))


def _spread_zones(loads: list[_Load], taken: Sequence[str]) -> list[_Load]:
    """Return the devices with the first of every zone before the second of any, each round in the given order.

    A zone has as many already as ``taken`` names it.
    """
    rounds: dict[str, int] = {}
    for zone in taken:
        rounds[zone] = rounds.get(zone, -1) + 1
    ranked: list[tuple[int, int]] = []
    for position, load in enumerate(loads):
        rounds[load.zone] = rounds.get(load.zone, -1) + 1
        ranked.append((rounds[load.zone], position))
    return [loads[position] for _, position in sorted(ranked)]
