"""The parts of a version to be, and the devices that have each of them when it is pushed.

A push is foreseen with the functions that it decides with: `place_split` and `place_parts` name devices, `pick_devices` takes those
that lack a copy, as the catalog does when a push asks it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tensorkeep.catalog.protocol import Location, ObjectKey
from tensorkeep.planning.placement import DeviceShare, PartToPlace, place_parts, place_split
from tensorkeep.planning.slots import pick_devices
from tensorkeep.planning.splitting import PlannedPart
from tensorkeep.records.manifest import Extent
from tensorkeep.records.naming import ObjectKind
from tensorkeep.records.redundancy import Replicas
from tensorkeep.store.context import StoreContext
from tensorkeep.store.push_plan import Base, PushPlan
from tensorkeep.store.push_target import PushTarget


class ForeseenParts:
    """The parts of a version to be, numbered by first use in file order, as its manifest will number them.

    Attributes:
        sizes: bytes of each.
        digests: part → digest, where that is known.
        new: part → its number in the split plan, for parts that the push reads.
        extents: path → the file's extents over these parts.
    """

    def __init__(self, plan: PushPlan, base: Base | None, digests: Mapping[int, bytes]) -> None:
        """Number the parts of a plan; ``digests`` are those of new parts, by number in the split, where they were hashed."""
        self.sizes: list[int] = []
        self.digests: dict[int, bytes] = {}
        self.new: dict[int, int] = {}
        self.extents: dict[str, list[Extent]] = {}
        self._plan = plan
        self._base = base
        self._hashed = digests
        self._numbers: dict[bytes | int, int] = {}
        positions = {source.path: number for number, source in enumerate(plan.read)}
        for source in plan.sources:
            if source.path in plan.kept:
                self._add(source.path, plan.kept[source.path].extents, self._number_old)
            else:
                self._add(source.path, plan.split.extents[positions[source.path]], self._number_new)

    def _add(self, path: str, extents: Sequence[Extent], number: Callable[[int], int]) -> None:
        self.extents[path] = [Extent(number(extent.part), extent.start, extent.length) for extent in extents]

    def _number_old(self, part: int) -> int:
        assert self._base is not None
        return self._number(self._base.digest(part), self._base.manifest.parts[part])

    def _number_new(self, part: int) -> int:
        planned = self._plan.split.parts[part]
        if not isinstance(planned, PlannedPart):
            return self._number(planned.digest, planned.size_bytes)
        number = self._number(self._hashed.get(part, part), planned.size_bytes)
        self.new.setdefault(number, part)
        return number

    def _number(self, key: bytes | int, size_bytes: int) -> int:
        number = self._numbers.setdefault(key, len(self.sizes))
        if number == len(self.sizes):
            self.sizes.append(size_bytes)
            if isinstance(key, bytes):
                self.digests[number] = key
        return number


@dataclass(frozen=True, slots=True)
class ForeseenCopies:
    """Devices by part: ``held`` those that can be read and have it now, ``written`` those that the push writes it to.

    ``crowded`` are parts that get fewer copies than they owe because devices are full.
    """

    held: Mapping[int, Sequence[str]]
    written: Mapping[int, Sequence[str]]
    crowded: Sequence[int]

    def after_push(self, part: int) -> list[str]:
        """Return the devices that have a part when it is pushed."""
        return [*self.held[part], *self.written[part]]


def foresee_copies(
    context: StoreContext,
    plan: PushPlan,
    target: PushTarget,
    parts: ForeseenParts,
    shares: Sequence[DeviceShare],
    *,
    allow_soft: bool,
) -> ForeseenCopies:
    """Return where each part is and where a push puts it; asks the catalog, writes nothing."""
    reachable = {facts.id for facts in target.devices} - set(target.down)
    counted = {f.id for f in target.devices if f.id in reachable and (allow_soft or f.durability == "durable")}
    keys = {part: ObjectKey(ObjectKind.PART, digest) for part, digest in parts.digests.items()}
    held = _find_holders(context, parts, keys, reachable)
    owed = _find_owed(context, keys, target.copies)
    zones = {facts.id: facts.zone for facts in target.devices}
    candidates = _candidates(plan, target, parts, shares, {n: held[n] & counted for n in held}, owed)
    room = {share.id: share.free_bytes for share in shares if share.free_bytes is not None}
    written: dict[int, list[str]] = {}
    crowded: list[int] = []
    for part, size in enumerate(parts.sizes):
        have = held[part] & counted
        wanted = [device for device in candidates.get(part, ()) if device in counted]
        fitting = [(device, zones[device]) for device in wanted if room.get(device, size) >= size]
        lacking = owed.get(part, target.copies) - len(have)
        written[part] = pick_devices(
            fitting, taken_devices=have, taken_zones=[zones[device] for device in have], count=lacking
        )
        for device in written[part]:
            if device in room:
                room[device] -= size
        if len(written[part]) < lacking and len(fitting) < len(wanted):
            crowded.append(part)
    return ForeseenCopies({part: sorted(devices) for part, devices in held.items()}, written, crowded)


def _find_owed(context: StoreContext, keys: Mapping[int, ObjectKey], copies: int) -> dict[int, int]:
    """Return the copies that known parts will owe: what this push asks, or another version, the highest."""
    owed = context.catalog.copies_owed(list(keys.values()))
    return {part: max(copies, owed.get(key, 0)) for part, key in keys.items()}


def _find_holders(
    context: StoreContext, parts: ForeseenParts, keys: Mapping[int, ObjectKey], reachable: set[str]
) -> dict[int, set[str]]:
    found = context.catalog.locate(list(keys.values()))

    def good(locations: Sequence[Location]) -> set[str]:
        return {row.device for row in locations if row.state in ("live", "stored")} & reachable

    return {part: good(found.get(keys[part], [])) if part in keys else set() for part in range(len(parts.sizes))}


def _candidates(
    plan: PushPlan,
    target: PushTarget,
    parts: ForeseenParts,
    shares: Sequence[DeviceShare],
    holders: Mapping[int, set[str]],
    owed: Mapping[int, int],
) -> dict[int, tuple[str, ...]]:
    """Return the devices for each part, best first: of new ones by the split, of those that are kept where copies lack."""
    placed = place_split(plan.split, shares, policy=target.policy)
    candidates = {part: placed[number] for part, number in parts.new.items()}
    kept = [part for part in range(len(parts.sizes)) if part not in parts.new]
    if any(len(holders[part]) < owed.get(part, target.copies) for part in kept):
        objects = [PartToPlace(parts.sizes[part], None, frozenset(holders[part])) for part in kept]
        healed = place_parts(objects, shares, policy=Replicas(min(target.copies, len(shares))))
        candidates |= dict(zip(kept, healed, strict=True))
    return candidates
