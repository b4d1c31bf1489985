"""Changes of names, gc and rebuild of the in-memory catalog, in the order in which the rules are told."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

import msgspec

from tensorkeep.catalog import rules
from tensorkeep.catalog.chain import ChainEnd
from tensorkeep.catalog.expiring import Expired
from tensorkeep.catalog.image import check_image, object_sizes, settled_locations
from tensorkeep.catalog.memory_state import LocationRow, MemoryState, VersionRow
from tensorkeep.catalog.protocol import CatalogImage, GcSummary, Orphan
from tensorkeep.catalog.retiring import choose_retired
from tensorkeep.errors import AlreadyExists
from tensorkeep.records.device import DeviceFacts
from tensorkeep.records.history import (
    Change,
    DeviceChanged,
    ModelChanged,
    PolicyChanged,
    RefChanged,
    RefKind,
    StoreChanged,
    VersionFacts,
    VersionRemoved,
)
from tensorkeep.records.json_text import format_time
from tensorkeep.records.names import check_device_name, check_ref_name, is_version_prefix
from tensorkeep.records.naming import ObjectKind
from tensorkeep.records.redundancy import parse_policy
from tensorkeep.records.retention import parse_retention


def change_device(state: MemoryState, old: DeviceFacts | None, new: DeviceFacts) -> list[Change]:
    """Add or change a device; return the changes for the journal."""
    check_device_name(new.name)
    rules.check_device_change(old, new, state.devices.values())
    if new.state == "draining" and old is not None and old.state == "active":
        policies = [state.policy, *(row.facts.policy for row in state.versions.values())]
        rules.check_draining(new, state.devices.values(), policies)
    if new.state == "removed":
        rules.refuse_filled(new, sum(row.location.device == new.id for row in state.locations.values()))
    state.devices[new.id] = new
    state.flushed.setdefault(new.id, 0)
    return [DeviceChanged(old=old, new=new)]


def get_version(state: MemoryState, model: str, revision: str) -> VersionFacts:
    """Return the version that a revision means: branch, tag, full id, then unique prefix of at least 7 digits."""
    facts = state.get_model(model)
    kinds: tuple[RefKind, ...] = ("branch", "tag")
    for kind in kinds:
        if version := state.refs.get((model, kind, revision)):
            return state.versions[version].facts
    found = [row.facts for row in state.versions.values() if row.facts.model == model]
    matching = [version for version in found if is_version_prefix(revision) and version.id.startswith(revision)]
    return rules.choose_version(matching, facts, revision)


def set_ref(
    state: MemoryState, model: str, kind: RefKind, name: str, *, version: str | None, expected: str | None
) -> list[Change]:
    """Make, move or delete a branch or tag by compare-and-swap; return the changes for the journal."""
    check_ref_name(name, kind=kind)
    state.get_model(model)
    if version is not None:
        state.get_model_version(model, version)
    present = state.refs.get((model, kind, name))
    rules.check_ref_move(kind=kind, name=name, present=present, expected=expected, new=version)
    if version is not None:
        state.refs[model, kind, name] = version
    else:
        del state.refs[model, kind, name]
    return [RefChanged(model=model, ref=kind, name=name, old=present, new=version)]


def remove_version(state: MemoryState, model: str, version: str) -> list[Change]:
    """Remove a version that no branch or tag points at; return the changes for the journal."""
    facts = state.get_model_version(model, version)
    rules.refuse_referenced(version, state.list_refs(version=version))
    state.delete_versions([version])
    return [VersionRemoved(version=facts)]


def remove_model(state: MemoryState, model: str) -> list[Change]:
    """Remove a model with all its refs and versions; return the changes for the journal."""
    facts = state.get_model(model)
    refs = state.list_refs(model=model)
    versions = [row.facts for row in state.versions.values() if row.facts.model == model]
    for ref in refs:
        del state.refs[ref.model, ref.kind, ref.name]
    state.delete_versions([version.id for version in versions])
    del state.models[model]
    return [
        *(RefChanged(model=model, ref=ref.kind, name=ref.name, old=ref.version, new=None) for ref in refs),
        *(VersionRemoved(version=version) for version in versions),
        ModelChanged(old=facts, new=None),
    ]


def set_policy(state: MemoryState, model: str | None, policy: str, *, versions: bool = False) -> list[Change]:
    """Set the policy of a model, with its versions or without, or of the store; return the changes for the journal."""
    parse_policy(policy)
    if model is None:
        old, state.policy = state.policy, policy
        return [StoreChanged(old=old, new=policy)]
    before = state.get_model(model)
    state.models[model] = msgspec.structs.replace(before, policy=policy)
    changes: list[Change] = [ModelChanged(old=before, new=state.models[model])]
    for row in list(state.versions.values()) if versions else ():
        if row.facts.model == model and row.facts.policy != policy:
            changes.append(PolicyChanged(version=row.facts.id, old=row.facts.policy, new=policy))
            state.versions[row.facts.id] = replace(row, facts=msgspec.structs.replace(row.facts, policy=policy))
    return changes


def set_retention(state: MemoryState, model: str, retention: str | None) -> list[Change]:
    """Set which versions of a model stay, None: all; return the changes for the journal."""
    if retention is not None:
        parse_retention(retention)
    before = state.get_model(model)
    state.models[model] = msgspec.structs.replace(before, retention=retention)
    return [ModelChanged(old=before, new=state.models[model])]


def expire(state: MemoryState, found: Expired, *, grace_s: float, max_fraction: float | None, now: datetime) -> None:
    """Remove these versions and their tags, unless that is too much at once."""
    rules.refuse_many(len(found.versions), len(state.versions), max_fraction, found.models)
    gone = {version.id for version in found.versions}
    state.refs = {ref: version for ref, version in state.refs.items() if version not in gone}
    state.delete_versions([version.id for version in found.versions])
    condemn(state.copy(), grace_s=grace_s, max_fraction=max_fraction, now=now)


def condemn(state: MemoryState, *, grace_s: float, now: datetime, max_fraction: float | None = None) -> GcSummary:
    """Condemn every row that nothing needs, as `_is_doomed` says."""
    rules.refuse_unknown_structure(
        [id_ for id_, row in state.versions.items() if not any(key.kind is ObjectKind.CHECKS for key in row.keys)]
    )
    before = sum(row.location.state == "condemned" for row in state.locations.values())
    doomed = [n for n, row in state.locations.items() if _is_doomed(state, row, grace_s=grace_s, now=now)]
    size = sum(state.locations[number].location.length for number in doomed)
    kept = sum(row.location.length for row in state.locations.values() if row.location.state != "condemned") - size
    if not rules.may_condemn(size, kept, max_fraction):
        rules.refuse_much(size, kept, max_fraction)
    for number in doomed:
        state.set_state(number, "condemned", condemned_at=format_time(now))
    silent = rules.moment_before(now, rules.SESSION_KEPT_S)
    state.sessions = {session: beat for session, beat in state.sessions.items() if beat > silent}
    state.forget_unused_objects()
    return GcSummary(locations=len(doomed), bytes=size, condemned_before=before)


def retire(state: MemoryState, locations: Sequence[int], *, down: Sequence[str], now: datetime) -> list[int]:
    """Condemn those of these rows without which their objects have all the copies they owe; return which."""
    keys = {state.locations[number].location.key for number in locations if number in state.locations}
    retired = choose_retired(
        locations,
        [row.location for row in state.locations.values() if row.location.key in keys],
        owed={key: owed for key in keys if (owed := state.copies_owed(key))},
        devices=list(state.devices.values()),
        down=down,
    )
    for number in retired:
        state.set_state(number, "condemned", condemned_at=format_time(now))
    return retired


def note_orphans(state: MemoryState, device: str, found: Sequence[tuple[str, int]], now: datetime) -> int:
    """Note those of these objects of a device that no row tells of; return how many are new."""
    known = {row.location.name for row in state.locations.values() if row.location.device == device}
    known |= {orphan.name for orphan, _ in state.orphans.values() if orphan.device == device}
    fresh = [(name, size) for name, size in found if name not in known]
    for name, size in fresh:
        state.last_orphan += 1
        orphan = Orphan(id=state.last_orphan, device=device, name=name, size_bytes=size)
        state.orphans[orphan.id] = orphan, format_time(now)
    return len(fresh)


def drop(state: MemoryState, locations: Sequence[int]) -> None:
    """Forget condemned rows, and the objects that are left without rows and versions."""
    for number in locations:
        row = state.locations.get(number)
        if row and row.location.state == "condemned":
            del state.locations[number]
    state.forget_unused_objects()


def load_image(state: MemoryState, image: CatalogImage, now: datetime) -> int:
    """Fill an empty catalog and append a snapshot entry; return its seq."""
    if state.journal or state.devices or state.models or state.locations or state.sessions:
        raise AlreadyExists("the catalog is not empty: a rebuild fills a new one")
    snapshots = check_image(image, store=state.end.store)
    for row in image.entries:
        state.add_row(row, snapshot=row.seq in snapshots)
    end = state.end
    state.end = ChainEnd(end.store, image.epoch, end.last_seq, end.head, end.last_snapshot)
    told = image.state
    state.policy = told.policy
    state.devices, state.models = dict(told.devices), dict(told.models)
    state.flushed = {device: min(image.flushed.get(device, 0), end.last_seq) for device in told.devices}
    state.versions = {
        version: VersionRow(facts, frozenset(key for key, _ in image.objects[version]))
        for version, facts in told.versions.items()
    }
    state.refs = {(ref.model, ref.kind, ref.name): ref.version for ref in told.refs}
    state.manifests = dict(image.manifests)
    for key, size_bytes in object_sizes(image).items():
        state.know_object(key, size_bytes)
    for location in settled_locations(image):
        state.add_location(location, None)
    return state.append_snapshot(now)


def _is_doomed(state: MemoryState, row: LocationRow, *, grace_s: float, now: datetime) -> bool:
    location = row.location
    beat = state.sessions.get(row.session or "")
    alive = beat is not None and rules.is_alive(beat, grace_s=grace_s, now=now)
    referenced = state.is_referenced(location.key)
    match location.state:
        case "condemned":
            return False
        case "staged":
            return not alive
        case "stored":
            return not referenced and not alive
        case "live":
            return not referenced
        case "bad":
            usable = state.usable_copies(location.key, durable_only=False)
            return not referenced or usable >= state.copies_owed(location.key)
