"""The parts of a version to be, and the devices that have each of them when it is pushed.

A push is foreseen with the functions that it decides with: `place_split` and `place_parts` name devices, `plan_staging` takes those
that lack a copy, as the catalog does when a push asks it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tensorkeep.catalog.counting import best_form, count_copies
from tensorkeep.catalog.placing import Held, plan_staging
from tensorkeep.catalog.protocol import Location, ObjectKey, ObjectRequest
from tensorkeep.catalog.rules import USABLE
from tensorkeep.planning.placement import DeviceShare, place_parts, place_split
from tensorkeep.planning.slots import keep_places
from tensorkeep.planning.splitting import PlannedPart
from tensorkeep.planning.units import PartCut, UnitMap
from tensorkeep.records.digest import DIGEST_BYTES
from tensorkeep.records.manifest import Extent
from tensorkeep.records.naming import ObjectKind
from tensorkeep.records.redundancy import fragment_bytes, parse_form
from tensorkeep.store.context import StoreContext
from tensorkeep.store.fragments import code_of, held_part
from tensorkeep.store.push_plan import Base, PushPlan
from tensorkeep.store.push_target import PushTarget

_UNKNOWN = ObjectKey(ObjectKind.PART, bytes(DIGEST_BYTES))
"""Stands for a part that was not hashed."""

_NO_ULID = "0" * 26


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
    """Rows of each part: ``held`` on devices that can be read now, ``written`` by the push.

    ``crowded`` are parts that get fewer copies than they owe because devices are full.
    """

    held: Mapping[int, Sequence[Location]]
    written: Mapping[int, Sequence[Location]]
    crowded: Sequence[int]

    def units(self, sizes: Sequence[int]) -> tuple[UnitMap, dict[int, list[str]]]:
        """Return what a load after the push reads the parts as, and which devices have each unit."""
        fragments: dict[int, Sequence[Location]] = {}
        found: dict[int, list[str]] = {}
        for part in range(len(sizes)):
            kept = [*self.held[part], *self.written[part]]
            whole = [row.device for row in kept if row.fragment is None]
            if whole or not kept:
                found[part] = whole
            else:
                fragments[part] = best_form(kept)
        cuts = {part: PartCut(parse_form(rows[0].form), "fragments") for part, rows in fragments.items()}
        units = UnitMap(sizes, cuts)
        for part, rows in fragments.items():
            for number, unit in enumerate(units.units[part]):
                found[unit] = [row.device for row in rows if row.fragment == number]
        return units, found


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
    rows = _find_rows(context, keys, reachable)
    owed = context.catalog.copies_owed(list(keys.values()))
    good = {part: [row for row in rows.get(part, ()) if row.device in counted] for part in range(len(parts.sizes))}
    lacking = [
        part
        for part in range(len(parts.sizes))
        if count_copies(good[part]) < max(target.copies, owed.get(keys[part], 0) if part in keys else 0)
    ]
    candidates = _candidates(plan, target, parts, shares, good, lacking)
    room = {share.id: share.free_bytes for share in shares if share.free_bytes is not None}
    written: dict[int, Sequence[Location]] = dict.fromkeys(range(len(parts.sizes)), ())
    crowded: list[int] = []
    for part in lacking:
        key = keys.get(part, _UNKNOWN)
        wanted = [device for device in candidates.get(part, ()) if device in counted]
        request, is_tight = _request(key, parts.sizes[part], target, wanted, room)
        [staged] = plan_staging(
            [(request, owed.get(key, 0))],
            held={key: [Held(row, mine=False) for row in good[part]]},
            devices=target.devices,
            down=target.down,
            allow_soft=allow_soft,
        )
        written[part] = staged.new
        for row in staged.new:
            if row.device in room:
                room[row.device] -= row.length
        if staged.missing and is_tight:
            crowded.append(part)
    return ForeseenCopies({part: rows.get(part, ()) for part in range(len(parts.sizes))}, written, crowded)


def _request(
    key: ObjectKey, size: int, target: PushTarget, wanted: Sequence[str], room: Mapping[str, int]
) -> tuple[ObjectRequest, bool]:
    """Return what the push will ask the catalog, and whether a device is left out because it is full."""
    code = code_of(target.policy, size)
    most = size if code is None else fragment_bytes(size, code.data)
    fitting = {device for device in wanted if room.get(device, most) >= most}
    request = ObjectRequest(
        key=key,
        size_bytes=size,
        copies=target.copies,
        candidates=keep_places(wanted, fitting, code.slots if code else 0),
        ulid=_NO_ULID,
        code=code,
    )
    return request, len(fitting) < len(wanted)


def _find_rows(context: StoreContext, keys: Mapping[int, ObjectKey], reachable: set[str]) -> dict[int, list[Location]]:
    """Return the good rows of parts that are known, on devices that can be reached."""
    found = context.catalog.locate(list(keys.values()))
    return {
        part: [row for row in found.get(key, []) if row.state in USABLE and row.device in reachable]
        for part, key in keys.items()
    }


def _candidates(
    plan: PushPlan,
    target: PushTarget,
    parts: ForeseenParts,
    shares: Sequence[DeviceShare],
    good: Mapping[int, Sequence[Location]],
    lacking: Sequence[int],
) -> dict[int, tuple[str, ...]]:
    """Return the devices for each part, best first: of new ones by the split, of those that are kept where copies lack."""
    placed = place_split(plan.split, shares, policy=target.policy)
    candidates = {part: placed[number] for part, number in parts.new.items()}
    kept = [part for part in range(len(parts.sizes)) if part not in parts.new]
    if any(part not in parts.new for part in lacking):
        objects = [held_part(good[part], parts.sizes[part], code_of(target.policy, parts.sizes[part])) for part in kept]
        healed = place_parts(objects, shares, policy=target.policy, short=True)
        candidates |= dict(zip(kept, healed, strict=True))
    return candidates
