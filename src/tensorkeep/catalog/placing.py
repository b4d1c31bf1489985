"""What a stage request gets: copies that exist, and devices for new ones. Pure; every catalog decides with this."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from tensorkeep.catalog import rules
from tensorkeep.catalog.counting import count_copies, first_numbers, is_of_code
from tensorkeep.catalog.protocol import Location, ObjectKey, ObjectRequest, Staging
from tensorkeep.errors import NotFound
from tensorkeep.planning.slots import pick_devices
from tensorkeep.records.device import DeviceFacts
from tensorkeep.records.redundancy import filled_fragments, form_name, fragment_length, stored_fragments


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
    def has_rows(self) -> bool:
        """Whether a copy exists or may be uploaded now."""
        return bool(self.existing or self.again or self.new)

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
        copies = max(request.copies, owed)
        if request.anew:
            copies, known = request.copies, [row for row in known if is_of_code(row.location, request.code)]
        plan = _plan_one(request, copies, known, zones, usable)
        if plan.new:
            staged.setdefault(request.key, []).extend([Held(location, mine=True) for location in plan.new])
        plans.append(plan)
    return plans


def _plan_one(
    request: ObjectRequest, owed: int, known: Sequence[Held], zones: Mapping[str, str], usable: Collection[str]
) -> StagingPlan:
    ready = [row.location for row in known if row.location.state in rules.USABLE and row.location.device in usable]
    if len(ready) == len(known) == len({location.device for location in ready}) and count_copies(ready) >= owed:
        return StagingPlan(request, tuple(ready), (), (), 0)  # nearly all, of a model that is known
    numbers = _fragment_numbers(request)
    names = {rules.staged_name(request, number) for number in numbers}
    existing: dict[tuple[str, str, int | None], Location] = {}
    again: list[Location] = []
    for row in known:
        location = row.location
        if location.device not in usable:
            continue
        if location.state in rules.USABLE:
            existing.setdefault((location.device, location.form, location.fragment), location)
        elif row.mine and location.state == "staged" and location.name in names:
            again.append(location)
    again = [each for each in again if (each.device, each.form, each.fragment) not in existing]
    kept = [*existing.values(), *again]
    before = copies = count_copies(kept)
    new: list[Location] = []
    if copies < owed:
        offer = _offer_fragments if request.code else _offer_copies
        candidates = [device for device in request.candidates if device in usable]
        for location in offer(request, candidates, zones, kept, [row.location for row in known]):
            new.append(location)
            copies = count_copies([*kept, *new])
            if copies >= owed:
                break
        if copies == before:
            new = []  # too few fragments give nothing
    return StagingPlan(request, tuple(existing.values()), tuple(again), tuple(new), max(0, owed - copies))


def _fragment_numbers(request: ObjectRequest) -> Sequence[int | None]:
    """Return the numbers of the fragments that an object is to be kept as; one None for a whole copy."""
    code = request.code
    if code is None:
        return (None,)
    return stored_fragments(code, request.size_bytes)


def _offer_copies(
    request: ObjectRequest,
    candidates: Sequence[str],
    zones: Mapping[str, str],
    kept: Sequence[Location],
    known: Sequence[Location],
) -> Iterator[Location]:
    """Yield rows for new whole copies, the best first; those beside a fragment last, which hardly make the object safer."""
    name = rules.staged_name(request)
    taken = {location.device for location in kept if location.fragment is None}
    # A name is never used twice, whatever became of it.
    closed = taken | {each.device for each in known if each.name == name}
    beside = {location.device for location in kept} - taken
    for late in (False, True):
        free = [(device, zones[device]) for device in candidates if (device in beside) is late]
        taken_zones = [zones[device] for device in taken]
        for device in pick_devices(free, taken_devices=closed, taken_zones=taken_zones, count=len(free)):
            yield _new_location(request, device, None)


def _offer_fragments(
    request: ObjectRequest,
    candidates: Sequence[str],
    zones: Mapping[str, str],
    kept: Sequence[Location],
    known: Sequence[Location],
) -> Iterator[Location]:
    """Yield a row for each fragment that is lacking: on a device that had it before, on the candidate of its number, on a spare one.

    A device that ever had a fragment of the form gets no other number as long as a row tells of it: else bad rows that turn good, or a
    catalog that is rebuilt, would bring two fragments of a part on one device, which are lost together.
    """
    code = request.code
    assert code is not None
    form = form_name(code)
    mine = {number: device for device, number in first_numbers([each for each in kept if each.form == form]).items()}
    taken = {location.device for location in kept}
    bound = {each.device: each.fragment for each in known if each.form == form and each.device not in taken}
    names = {(each.device, each.name) for each in known}
    lacking = [number for number in _fragment_numbers(request) if number is not None and number not in mine]
    placed: dict[int, str] = {}

    def free_for(number: int) -> list[str]:
        name = rules.staged_name(request, number)
        used = taken | {*placed.values()}
        return [
            device
            for device in candidates
            if device not in used and bound.get(device, number) == number and (device, name) not in names
        ]

    for number in lacking:
        if had := [device for device in free_for(number) if device in bound]:
            placed[number] = had[0]
    own = dict(enumerate(request.candidates))
    for number in lacking:
        if number not in placed and own.get(number) in free_for(number):
            placed[number] = own[number]
    for number in [number for number in lacking if number not in placed]:  # after all that have a place of their own
        free = [(device, zones[device]) for device in free_for(number)]
        taken_zones = [zones[device] for device in (*mine.values(), *placed.values())]
        placed.update((number, each) for each in pick_devices(free, taken_devices=(), taken_zones=taken_zones, count=1))
    yield from (_new_location(request, placed[number], number) for number in lacking if number in placed)


def _new_location(request: ObjectRequest, device: str, fragment: int | None) -> Location:
    code, size = request.code, request.size_bytes
    name = rules.staged_name(request, fragment)
    if fragment is None or code is None:
        return Location(id=0, key=request.key, size_bytes=size, device=device, name=name, length=size, state="staged")
    return Location(
        id=0,
        key=request.key,
        size_bytes=size,
        device=device,
        name=name,
        form=form_name(code),
        length=fragment_length(code, size, fragment),
        state="staged",
        fragment=fragment,
        needed=filled_fragments(code, size),
    )
