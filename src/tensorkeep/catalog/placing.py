"""What a stage request gets: copies that exist, and devices for new ones. Pure; every catalog decides with this."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import msgspec

from tensorkeep.catalog import rules
from tensorkeep.catalog.protocol import Location, ObjectKey, ObjectRequest, Staging
from tensorkeep.errors import NotFound
from tensorkeep.planning.slots import pick_devices
from tensorkeep.records.device import DeviceFacts


class Held(NamedTuple):
    """A row of an object in any state; ``mine`` says whether it is of the session that asks."""

    location: Location
    mine: bool


class StagingPlan(NamedTuple):
    """The answer to one request before its new rows have ids: ``again`` are rows that the same request has staged before."""

    request: ObjectRequest
    existing: tuple[Location, ...]
    again: tuple[Location, ...]
    new: tuple[Location, ...]
    missing: int

    @property
    def copies(self) -> int:
        """How many copies exist or may be uploaded now."""
        return len(self.existing) + len(self.again) + len(self.new)

    @property
    def is_complete(self) -> bool:
        """Whether all copies exist."""
        return not (self.again or self.new or self.missing)

    def answer(self, numbers: Mapping[tuple[str, str], int]) -> Staging:
        """Return the answer; ``numbers`` are the row ids by device and name."""
        if not (self.again or self.new):
            return Staging(existing=self.existing, staged=(), missing=self.missing)
        staged = tuple(
            msgspec.structs.replace(location, id=numbers.get((location.device, location.name), location.id))
            for location in (*self.again, *self.new)
        )
        return Staging(existing=self.existing, staged=staged, missing=self.missing)


def plan_staging(
    requests: Sequence[tuple[ObjectRequest, int]],
    *,
    held: Mapping[ObjectKey, Sequence[Held]],
    devices: Sequence[DeviceFacts],
    down: Collection[str],
    allow_soft: bool,
) -> list[StagingPlan]:
    """Return what each request gets, in order; later requests see what earlier ones staged.

    Args:
        requests: each with the number of copies that versions already ask of its object.
        held: all rows of the objects.
        devices: all devices of the store.
        down: ids of devices that are not to be used now.
        allow_soft: whether copies on soft devices count, as in the commit that will follow.

    Raises:
        NotFound: a candidate is no device of the store.
    """
    zones = {facts.id: facts.zone for facts in devices}
    usable = {
        facts.id
        for facts in devices
        if facts.state == "active" and facts.id not in down and (allow_soft or facts.durability == "durable")
    }
    for device in {device for candidates in {request.candidates for request, _ in requests} for device in candidates}:
        if device not in zones:
            raise NotFound(f"there is no device {device} to stage on", device=device)
    staged: dict[ObjectKey, list[Held]] = {}
    plans = []
    for request, owed in requests:
        known = held.get(request.key, ())
        if staged and request.key in staged:
            known = [*known, *staged[request.key]]
        plan = _plan_one(request, max(request.copies, owed), known, zones, usable)
        if plan.new:
            staged.setdefault(request.key, []).extend([Held(location, mine=True) for location in plan.new])
        plans.append(plan)
    return plans


def _plan_one(
    request: ObjectRequest, owed: int, known: Sequence[Held], zones: Mapping[str, str], usable: Collection[str]
) -> StagingPlan:
    ready = [row.location for row in known if row.location.state in rules.USABLE and row.location.device in usable]
    if len(ready) == len(known) >= owed and len(ready) == len({location.device for location in ready}):
        return StagingPlan(request, tuple(ready), (), (), 0)  # nearly all, of a model that is known
    existing: dict[str, Location] = {}
    again: dict[str, Location] = {}
    refused: set[str] = set()
    for row in known:
        location = row.location
        if location.device not in usable:
            continue
        if location.state in rules.USABLE:
            existing.setdefault(location.device, location)
        elif location.name == rules.staged_name(request):
            refused.add(location.device)  # a name is never used twice, whatever became of it
            if row.mine and location.state == "staged":
                again[location.device] = location
    taken = {*existing, *again}
    missing = max(0, owed - len(taken))
    picked: list[str] = []
    if missing:
        picked = pick_devices(
            [(device, zones[device]) for device in request.candidates if device in usable],
            taken_devices=taken | refused,
            taken_zones=[zones[device] for device in taken],
            count=missing,
        )
    return StagingPlan(
        request=request,
        existing=tuple(existing.values()),
        again=tuple(location for device, location in again.items() if device not in existing),
        new=tuple(_new_location(request, device) for device in picked),
        missing=missing - len(picked),
    )


def _new_location(request: ObjectRequest, device: str) -> Location:
    return Location(
        id=0,
        key=request.key,
        size_bytes=request.size_bytes,
        device=device,
        name=rules.staged_name(request),
        length=request.size_bytes,
        state="staged",
    )
