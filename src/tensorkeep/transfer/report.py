"""What a load did: plain values for people, for programs, and for repair."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

Verify = Literal["blocks", "digest", "off"]
"""blocks: XXH3-64 of every block touched (against accidents); digest: BLAKE3 of whole parts (against attackers); off."""

DamageKind = Literal["corrupt", "missing", "unreachable"]


@dataclass(frozen=True, slots=True)
class Damage:
    """One copy of a part that could not be used.

    ``location`` is the catalog's row, ``device`` an id, ``device_name`` what the user calls it. ``confirmed`` is False where
    a block did not fit its check but the checks themselves could not be read again: then the copy may be good.
    """

    location: int
    part: int
    device: str
    device_name: str
    reason: str
    kind: DamageKind
    confirmed: bool = True


@dataclass(frozen=True, slots=True)
class DeviceLoad:
    """What one device gave: ``seconds`` (L_i) from the first byte asked for to the last byte verified.

    ``predicted_seconds`` is what its known rate made of the bytes that it was to give.
    """

    id: str
    name: str
    bytes: int
    seconds: float
    predicted_seconds: float

    @property
    def rate_bytes_per_s(self) -> float:
        """Bytes per second of the device; 0 where it took no time."""
        return self.bytes / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a load did.

    ``bytes_needed`` is what was asked for, ``bytes_read`` what devices gave (whole blocks, holes, second tries).
    ``retried`` counts reads that went to another copy, ``hedged`` those that were asked of another one too, or left to it, because the first
    was late. ``mapped_bytes`` of the needed ones lie over files of this machine; what does
    not is in memory of its own, and ``unmapped_bytes`` says why, by reason (`planning.map_plan.Unmapped`).
    """

    bytes_needed: int
    bytes_read: int
    seconds: float
    devices: tuple[DeviceLoad, ...]
    damaged: tuple[Damage, ...]
    retried: int
    verify: Verify
    mapped_bytes: int = 0
    unmapped_bytes: Mapping[str, int] = field(default_factory=dict)
    hedged: int = 0

    @property
    def slowest_seconds(self) -> float:
        """L = max L_i: the seconds of the slowest device; 0 where nothing was read."""
        return max((device.seconds for device in self.devices), default=0.0)

    @property
    def predicted_seconds(self) -> float:
        """What L was predicted to be: the longest that any device was to take, by its known rate."""
        return max((device.predicted_seconds for device in self.devices), default=0.0)

    @property
    def rate_bytes_per_s(self) -> float:
        """Needed bytes per second of the whole load; 0 where it took no time."""
        return self.bytes_needed / self.seconds if self.seconds > 0 else 0.0


class PlannedTensor(NamedTuple):
    """What a load takes of one tensor: elements ``[starts, starts + shape)`` of its ``full_shape``, ``size_bytes`` of memory."""

    name: str
    dtype: str
    full_shape: tuple[int, ...]
    starts: tuple[int, ...]
    shape: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """What one device will give: ``bytes`` in ``predicted_seconds`` (L_i), by its known rate."""

    id: str
    name: str
    bytes: int
    predicted_seconds: float


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What a load would read.

    ``bytes_needed`` and ``bytes_read`` are what the report of a load with ``mode="read"`` would say, as long as no copy fails. A load
    that maps reads blocks twice where a part holds both tensors that are mapped and others that are not. Bytes of parts that no
    device has that can be reached are in ``bytes_read`` and of no device.
    """

    tensors: tuple[PlannedTensor, ...]
    bytes_needed: int
    bytes_read: int
    devices: tuple[DevicePlan, ...]
    verify: Verify

    @property
    def load_seconds(self) -> float:
        """L = max L_i, predicted: the seconds of the slowest device; 0 where nothing is read."""
        return max((device.predicted_seconds for device in self.devices), default=0.0)


def add_reports(reports: Sequence[LoadReport], *, verify: Verify) -> LoadReport:
    """Return one report of loads that ran one after the other: sums, and each damage once."""
    devices: dict[str, DeviceLoad] = {}
    damaged: dict[object, Damage] = {}
    for report in reports:
        for each in report.devices:
            devices[each.id] = _add_devices(devices[each.id], each) if each.id in devices else each
        for damage in report.damaged:
            damaged.setdefault(
                (damage.kind, damage.device if damage.kind == "unreachable" else damage.location), damage
            )
    return LoadReport(
        bytes_needed=sum(report.bytes_needed for report in reports),
        bytes_read=sum(report.bytes_read for report in reports),
        seconds=sum(report.seconds for report in reports),
        devices=tuple(devices.values()),
        damaged=tuple(damaged.values()),
        retried=sum(report.retried for report in reports),
        verify=verify,
        mapped_bytes=sum(report.mapped_bytes for report in reports),
        unmapped_bytes=_add_counts([report.unmapped_bytes for report in reports]),
        hedged=sum(report.hedged for report in reports),
    )


def merge_loads(loads: Iterable[DeviceLoad]) -> tuple[DeviceLoad, ...]:
    """Return what each device gave of what it gave at the same time in several ways."""
    found: dict[str, DeviceLoad] = {}
    for each in loads:
        first = found.get(each.id)
        found[each.id] = each
        if first is not None:
            seconds = max(first.seconds, each.seconds)
            found[each.id] = replace(first, bytes=first.bytes + each.bytes, seconds=seconds)
    return tuple(found.values())


def _add_counts(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for each in counts:
        for key, number in each.items():
            total[key] = total.get(key, 0) + number
    return total


def _add_devices(first: DeviceLoad, second: DeviceLoad) -> DeviceLoad:
    return replace(
        first,
        bytes=first.bytes + second.bytes,
        seconds=first.seconds + second.seconds,
        predicted_seconds=first.predicted_seconds + second.predicted_seconds,
    )
