"""Which copies move to which device, so that each holds its share by bandwidth, within its room: as few as that takes.

A device that holds more than its share gives parts, evenly spread over all that it has, so that the layers of a model stay spread
too; each goes to the device that lacks most of its share of those that may hold it. Devices near their share are left alone.
Source: error diffusion, as in Bresenham's line (1965), chooses every n-th byte.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tensorkeep.planning.placement import DeviceShare

TOLERANCE = 0.03
"""Of its share: a device that holds that little more gives nothing."""


class HeldCopy(NamedTuple):
    """A copy or fragment on a device: the id of its row, which object it is of, its bytes."""

    row: int
    item: int
    device: str
    size_bytes: int


class Move(NamedTuple):
    """A copy that is to lie on another device."""

    copy: HeldCopy
    to: str


@dataclass(slots=True)
class _Balance:
    """A device while moves are planned: bytes that it holds, bytes that it should hold, bytes that fit."""

    id: str
    zone: str
    held: int
    target: float
    free: float

    @property
    def lacking(self) -> float:
        return self.target - self.held


def plan_moves(copies: Sequence[HeldCopy], devices: Sequence[DeviceShare]) -> list[Move]:
    """Return the moves after which each device holds about its share of all bytes, by weight.

    No object gets two copies on one device, nor fewer zones than it has. What lies on devices that are not among these stays,
    and does not count. The same input gives the same answer.

    Args:
        copies: all copies, in the order in which their parts were stored.
        devices: those that may give and take; ``free_bytes`` is the room beside what they hold.
    """
    balances = _open_balances(copies, devices)
    zones = {balance.id: balance.zone for balance in balances.values()}
    holders: dict[int, set[str]] = {}
    for copy in copies:
        holders.setdefault(copy.item, set()).add(copy.device)
    moves: list[Move] = []
    due = 0.0
    for donor in sorted(balances.values(), key=lambda balance: (balance.lacking, balance.id)):
        surplus = -donor.lacking
        if surplus <= TOLERANCE * donor.target:
            continue
        mine = [copy for copy in copies if copy.device == donor.id]
        given, due = _plan_donor(donor, mine, balances, holders, zones, due)
        moves += given
    return moves


def _open_balances(copies: Sequence[HeldCopy], devices: Sequence[DeviceShare]) -> dict[str, _Balance]:
    held = {device.id: 0 for device in devices}
    for copy in copies:
        if copy.device in held:
            held[copy.device] += copy.size_bytes
    room = {d.id: math.inf if d.free_bytes is None else held[d.id] + d.free_bytes for d in devices}
    targets = _share_out(sum(held.values()), {device.id: device.weight for device in devices}, room)
    return {
        device.id: _Balance(
            device.id, device.zone, held[device.id], targets[device.id], room[device.id] - held[device.id]
        )
        for device in sorted(devices, key=lambda device: device.id)
    }


def _share_out(total: int, weights: Mapping[str, float], room: Mapping[str, float]) -> dict[str, float]:
    """Return each device's share of the bytes, by weight; who has no room for its share leaves the rest to the others."""
    targets: dict[str, float] = {}
    open_ = set(weights)
    left = float(total)
    while open_:
        weight = sum(weights[device] for device in open_)
        full = {device for device in open_ if left * weights[device] / weight > room[device]}
        if not full:
            return targets | {device: left * weights[device] / weight for device in open_}
        for device in full:
            targets[device] = room[device]
            left -= room[device]
        open_ -= full
    return targets


def _plan_donor(
    donor: _Balance,
    mine: Sequence[HeldCopy],
    balances: Mapping[str, _Balance],
    holders: Mapping[int, set[str]],
    zones: Mapping[str, str],
    due: float,
) -> tuple[list[Move], float]:
    """Return the moves off one device, every n-th of its bytes, where another device may hold them and lacks them.

    ``due`` bytes are left over of the devices before it; what is left over now is returned too: so much that no part is.
    """
    moves = []
    fraction = -donor.lacking / donor.held
    for copy in mine:
        due += fraction * copy.size_bytes
        if due < copy.size_bytes / 2 or donor.lacking > -copy.size_bytes / 4:
            continue
        receiver = _find_receiver(copy, donor, balances, holders[copy.item], zones)
        if receiver is None:
            continue  # what is due stays due: one of the next goes in its place
        due -= copy.size_bytes
        donor.held -= copy.size_bytes
        receiver.held += copy.size_bytes
        receiver.free -= copy.size_bytes
        holders[copy.item].discard(donor.id)
        holders[copy.item].add(receiver.id)
        moves.append(Move(copy, receiver.id))
    most = max((copy.size_bytes for copy in mine), default=0)
    return moves, max(-most, min(due, most))


def _find_receiver(
    copy: HeldCopy,
    donor: _Balance,
    balances: Mapping[str, _Balance],
    holders: set[str],
    zones: Mapping[str, str],
) -> _Balance | None:
    """Return the device that lacks most of its share and may hold the copy; None where none is."""
    others = {zones.get(device, device) for device in holders if device != donor.id}
    able = [
        balance
        for balance in balances.values()
        if balance.id not in holders
        and balance.lacking >= copy.size_bytes / 2
        and balance.free >= copy.size_bytes
        and (balance.zone not in others or donor.zone in others)
    ]
    return max(able, key=lambda balance: (balance.lacking / balance.target, balance.id), default=None)
