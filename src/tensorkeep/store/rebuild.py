"""Rebuilding a lost catalog from the devices alone.

First the epoch is raised on every device that answers, which fences every other catalog of the store: it can't commit or
collect any more, and a commit that is under way learns of it before it is acknowledged. Then the journal says which versions
and names exist, the listings say where objects are, the manifests say what versions need. The new catalog takes the
place of the old one in one step; a catalog that was there is kept under another name.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from tensorkeep.catalog.access import open_catalog
from tensorkeep.catalog.counting import count_copies
from tensorkeep.catalog.protocol import CatalogImage, Location, ObjectKey
from tensorkeep.catalog.rules import version_keys
from tensorkeep.devices.forwarding import concurrency_of
from tensorkeep.devices.protocol import Device
from tensorkeep.errors import (
    AlreadyExists,
    Format,
    TensorkeepError,
)
from tensorkeep.records.checks import decode_checks
from tensorkeep.records.device import DeviceFacts, is_gone
from tensorkeep.records.fragment import LONGEST_FOOTER_BYTES, decode_footer, footer_length
from tensorkeep.records.history import VersionFacts
from tensorkeep.records.layout import CATALOG_MANIFEST_BYTES
from tensorkeep.records.manifest import decode_manifest
from tensorkeep.records.naming import (
    FragmentName,
    JournalName,
    ObjectKind,
    location_form,
    object_kind,
    parse_physical_name,
)
from tensorkeep.records.redundancy import filled_fragments, fragment_length, parse_form
from tensorkeep.runtime import Runtime, Workers
from tensorkeep.store.asking import ask_each
from tensorkeep.store.context import StoreContext
from tensorkeep.store.fleet import UNSEEN, Fleet
from tensorkeep.store.journal import flush_journal
from tensorkeep.store.opening import find_place
from tensorkeep.store.place import LockCheck, Place
from tensorkeep.store.rebuild_devices import FoundDevices, check_quorum, find_devices, raise_epoch
from tensorkeep.store.rebuild_journal import FoundJournal
from tensorkeep.store.reports import RebuildReport
from tensorkeep.store.structure import object_digest


def rebuild_catalog(
    location: Path | str, *, sources: Sequence[str], force: bool, runtime: Runtime, user: str
) -> RebuildReport:
    """Make a store's catalog anew from its devices; see `tensorkeep.rebuild_catalog`."""
    started_s = runtime.clock.monotonic_s()
    place = find_place(location)
    place.prepare_rebuild()
    with place.lock(shared=False) as check_lock:
        return _rebuild(
            place, check_lock, sources=sources, force=force, runtime=runtime, user=user, started_s=started_s
        )


def _rebuild(
    place: Place,
    check_lock: LockCheck,
    *,
    sources: Sequence[str],
    force: bool,
    runtime: Runtime,
    user: str,
    started_s: float,
) -> RebuildReport:
    old_epoch = _check_replaceable(place, runtime, force=force)
    found = find_devices(place, sources, runtime)
    if not force:
        check_quorum(found)
    found.epoch = max(old_epoch, *(identity.epoch for _, identity in found.devices.values())) + 1
    raise_epoch(found, runtime)
    if not force:
        check_quorum(found)
    runtime.failpoints.hit("rebuild.epoch_raised")
    journal = found.read_journal()
    found.missing += journal.notes
    runtime.failpoints.hit("rebuild.journal_read")
    image = _make_image(found, journal, runtime.workers)
    runtime.failpoints.hit("rebuild.listed")
    check_lock()  # else what was listed may have been deleted since
    replaced = place.install(image, runtime)
    runtime.failpoints.hit("rebuild.catalog_installed")
    context = _open(place, runtime, user)
    try:
        info = context.catalog.info()
        flush_journal(context.catalog, context.fleet, info.last_seq, epoch=found.epoch, runtime=runtime)
        place.write_note(context.catalog)
    finally:
        context.catalog.close()
    names = {facts.id: facts.name for facts in image.state.devices.values()}
    return RebuildReport(
        store=found.store,
        epoch=found.epoch,
        models=len(image.state.models),
        versions=len(image.state.versions),
        refs=len(image.state.refs),
        objects=len({location.key for location in image.locations}),
        locations=len(image.locations),
        devices=tuple(names.get(device_id, device_id) for device_id in found.devices),
        unreachable=tuple(found.unreachable),
        missing=tuple(found.missing),
        replaced=replaced,
        seconds=runtime.clock.monotonic_s() - started_s,
    )


def _check_replaceable(place: Place, runtime: Runtime, *, force: bool) -> int:
    """Return the old catalog's epoch, 0 where there is none that can be read.

    Raises:
        AlreadyExists: it is neither damaged, nor behind its devices, nor blind to one, and ``force`` is not set.
        Format: it is of a newer tensorkeep, and ``force`` is not set.
    """
    if not place.has_catalog(runtime):
        return 0
    try:
        catalog = open_catalog(place.catalog_url, runtime=runtime)
    except TensorkeepError as error:
        if isinstance(error, Format) and not force:
            raise  # whole, and not this one's to replace
        return 0
    try:
        info = catalog.info()
        fleet = Fleet(catalog, runtime=runtime)
        stale = any(
            member.problem is not None and member.problem.facts.get("reason") == UNSEEN for member in fleet.members()
        )
        stale = stale or any(
            head.epoch > info.epoch or (head.entry_epoch, head.seq) > (info.epoch, info.last_seq)
            for head in fleet.heads()
        )
        damaged = bool(catalog.check())
    except TensorkeepError:
        return 0
    finally:
        catalog.close()
    if not stale and not damaged and not force:
        raise AlreadyExists(
            f"the catalog of {place.shown} is whole and up to date: nothing to rebuild (--force rebuilds all the same)",
            store=place.shown,
        )
    return info.epoch


def _make_image(found: FoundDevices, journal: FoundJournal, workers: Workers) -> CatalogImage:
    state = journal.state
    for device_id, (device, _) in found.devices.items():
        known = state.devices.get(device_id)
        if known is not None and not is_gone(known):
            # It may be mounted elsewhere since: where it was found is where it is.
            state.devices[device_id] = msgspec.structs.replace(known, url=device.url)
        elif known is None:
            state.devices[device_id] = DeviceFacts(
                id=device_id, name=device_id, url=device.url, zone=device_id, durability=device.durability
            )
    used = {device_id: device for device_id, device in found.handles.items() if not is_gone(state.devices[device_id])}
    many = concurrency_of(used.values())
    listings = ask_each(workers, min(many, len(used)), [*used.items()], lambda each: _list_device(*each))
    locations = [location for listing in listings for location in listing]
    copies: dict[ObjectKey, list[Location]] = {}
    for location in locations:
        copies.setdefault(location.key, []).append(location)
    objects: dict[str, list[tuple[ObjectKey, int]]] = {}
    manifests: dict[str, bytes] = {}
    versions = list(state.versions.values())
    structures = ask_each(workers, many, versions, lambda version: _read_structure(found, copies, version))
    for version, structure in zip(versions, structures, strict=True):
        objects[version.id] = structure.objects
        found.missing += structure.missing
        if structure.manifest is not None:
            manifests[version.manifest] = structure.manifest
    sizes = dict(pair for pairs in objects.values() for pair in pairs)
    return CatalogImage(
        store=found.store,
        epoch=found.epoch,
        state=state,
        entries=list(journal.rows),
        flushed=journal.flushed,
        objects=objects,
        locations=[row for location in locations if (row := _enter(found, location, copies, sizes)) is not None],
        manifests=manifests,
    )


def _list_device(device_id: str, device: Device) -> list[Location]:
    rows = []
    for folder in ("parts/", "manifests/", "checks/", "versions/"):
        for info in device.iter_objects(folder):
            name = parse_physical_name(info.name)
            if name is None or isinstance(name, JournalName):
                continue
            rows.append(
                Location(
                    id=0,
                    key=ObjectKey(object_kind(name), name.digest),
                    size_bytes=info.size_bytes,
                    device=device_id,
                    name=info.name,
                    form=location_form(name),
                    fragment=name.index if isinstance(name, FragmentName) else None,
                    length=info.size_bytes,
                    state="stored",
                )
            )
    return rows


def _enter(
    found: FoundDevices, location: Location, copies: dict[ObjectKey, list[Location]], sizes: dict[ObjectKey, int]
) -> Location | None:
    """Return the row of an object that was found, None for one that must not be used."""
    if location.key in sizes:
        return _judge(location, sizes)
    if location.fragment is not None:
        return _enter_loose_fragment(found, location, location.fragment)
    return location if _fits_others(found, location, copies[location.key]) else None


def _enter_loose_fragment(found: FoundDevices, location: Location, number: int) -> Location | None:
    """Return the row of a fragment of a part that no version needs; how large that is only its footer says."""
    tail = bytearray(min(location.length, LONGEST_FOOTER_BYTES))
    try:
        device = found.devices[location.device][0]
        device.read_into(location.name, location.length - len(tail), [memoryview(tail)])
        footer = decode_footer(bytes(tail), what=location.name)
    except TensorkeepError as error:
        found.missing.append(
            f"what {location.name} is, which no version needs and which is left where it is: {error.message}"
        )
        return None
    if (footer.part, footer.index) != (location.key.digest.hex(), number) or footer.policy != parse_form(location.form):
        found.missing.append(f"what {location.name} is, whose footer is another's: it is left where it is")
        return None
    row = _judge_fragment(location, number, footer.size_bytes)
    return msgspec.structs.replace(row, state="stored" if row.state == "live" else "bad")


def _fits_others(found: FoundDevices, location: Location, copies: Sequence[Location]) -> bool:
    """Return whether a copy of an object that no version refers to may be used: where copies differ in size, one is torn."""
    if len({copy.length for copy in copies if copy.fragment is None}) == 1:
        return True
    if _read_good(found, {location.key: [location]}, location.key) is not None:
        return True
    found.missing.append(
        f"the whole of {location.name}, a torn copy that no version needs and that is left where it is"
    )
    return False


def _judge(location: Location, sizes: dict[ObjectKey, int]) -> Location:
    """Return the row as it goes into the catalog: live where a version needs it, bad where its size is wrong."""
    size = sizes.get(location.key)
    if size is None:
        return location
    if location.fragment is not None:
        return _judge_fragment(location, location.fragment, size)
    return msgspec.structs.replace(
        location, size_bytes=size, length=size, state="live" if location.length == size else "bad"
    )


def _judge_fragment(location: Location, number: int, size: int) -> Location:
    """Return the row of a fragment of a part of that size; bad where bytes and footer together have another length."""
    code = parse_form(location.form)
    length = fragment_length(code, size, number)
    stored = length + footer_length(code, size, number)
    return msgspec.structs.replace(
        location,
        size_bytes=size,
        length=length,
        needed=filled_fragments(code, size),
        state="live" if location.length == stored else "bad",
    )


@dataclass(slots=True)
class _Structure:
    """The objects that a version refers to, what of them is on no device, and its manifest where the catalog keeps it."""

    objects: list[tuple[ObjectKey, int]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    manifest: bytes | None = None


def _read_structure(found: FoundDevices, copies: dict[ObjectKey, list[Location]], version: VersionFacts) -> _Structure:
    manifest_key, checks_key, version_key = version_keys(version)
    structure = _Structure()
    objects, missing = structure.objects, structure.missing
    record = _read_good(found, copies, version_key)
    if record is None:
        missing.append(f"record of version {version.id}")
    else:
        objects.append((version_key, len(record)))
    body = _read_good(found, copies, manifest_key)
    checks_body = _read_good(found, copies, checks_key)
    if body is None or checks_body is None:
        missing.append(f"structure of version {version.id}")
        return structure
    manifest = decode_manifest(body)
    checks = decode_checks(checks_body, manifest.parts)
    objects += [(manifest_key, len(body)), (checks_key, len(checks_body))]
    if len(body) <= CATALOG_MANIFEST_BYTES:
        structure.manifest = body
    parts = {checks.digest(part): size for part, size in enumerate(manifest.parts)}
    for digest, size in parts.items():
        key = ObjectKey(ObjectKind.PART, digest)
        objects.append((key, size))
        judged = [_judge(location, {key: size}) for location in copies.get(key, ())]
        if not count_copies(row for row in judged if row.state != "bad"):
            missing.append(f"part {digest.hex()} of version {version.id}")
    return structure


def _read_good(found: FoundDevices, copies: dict[ObjectKey, list[Location]], key: ObjectKey) -> bytes | None:
    for location in copies.get(key, []):
        try:
            data = found.devices[location.device][0].read(location.name)
        except TensorkeepError:
            continue
        if object_digest(key, data) == key.digest:
            return data
    return None


def _open(place: Place, runtime: Runtime, user: str) -> StoreContext:
    catalog = open_catalog(place.catalog_url, runtime=runtime)
    return StoreContext(catalog, Fleet(catalog, runtime=runtime), runtime, place, None, user=user)
