"""The journal as a rebuild finds it: one chain of entries, what was lost of it, and what other branches of it tell.

A device that was away while an earlier rebuild began a new epoch may hold entries that no later catalog saw: a side branch.
What it tells is merged, change by change, where the main chain has not changed the same thing since: nothing that a device
remembers is dropped without a note.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from tensorkeep.catalog.protocol import JournalRow
from tensorkeep.devices.forwarding import concurrency_of
from tensorkeep.devices.protocol import Device
from tensorkeep.errors import TensorkeepError
from tensorkeep.records.digest import blake3_256
from tensorkeep.records.history import (
    Change,
    DeviceChanged,
    JournalEntry,
    ModelChanged,
    ModelFacts,
    PolicyChanged,
    RefChanged,
    Snapshot,
    StoreChanged,
    StoreState,
    VersionCommitted,
    VersionRemoved,
    apply_change,
    decode_entry,
    fold_entries,
)
from tensorkeep.records.naming import JournalName, parse_physical_name
from tensorkeep.runtime import Workers
from tensorkeep.store.asking import ask_each


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry whose bytes have their digest, and the devices that hold it."""

    name: JournalName
    body: bytes
    entry: JournalEntry
    devices: set[str] = field(default_factory=set)

    @property
    def place(self) -> tuple[int, int]:
        return self.name.epoch, self.name.seq

    @property
    def is_snapshot(self) -> bool:
        return any(isinstance(change, Snapshot) for change in self.entry.changes)


@dataclass(frozen=True, slots=True)
class FoundJournal:
    """What the devices' journals add up to.

    ``rows`` is the unbroken end of the chain, oldest first; ``flushed`` the last seq up to which each device holds all of it;
    ``notes`` name what was lost, or could not be merged.
    """

    state: StoreState
    rows: tuple[JournalRow, ...]
    flushed: dict[str, int]
    notes: tuple[str, ...]


class JournalReader:
    """Reads journals, of devices far away many entries at once; a copy of an entry that was found good is not read again, since none ever changes.

    Args:
        workers: who reads.
    """

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._good: dict[bytes, tuple[bytes, JournalEntry]] = {}
        self._held: set[tuple[str, str]] = set()

    def read(self, devices: Mapping[str, Device]) -> FoundJournal:
        """Return what the journals of these devices (by id) tell together."""
        return _add_up(devices, *self._read_entries(devices))

    def _read_entries(self, devices: Mapping[str, Device]) -> tuple[dict[bytes, _Entry], dict[bytes, JournalName]]:
        """Return the whole entries by digest, and the names of those that no device has whole."""
        many = concurrency_of(devices.values())
        listings = ask_each(self._workers, min(many, len(devices)), [*devices.values()], _list_entries)
        found = [(device_id, *each) for device_id, listing in zip(devices, listings, strict=True) for each in listing]
        # Every copy is read: a device whose copy is damaged does not hold the entry, whoever else does.
        new = [each for each in found if (each[0], each[1]) not in self._held]
        bodies = ask_each(self._workers, many, new, lambda each: _read_entry(devices[each[0]], each[1]))
        for (device_id, text, name), body in zip(new, bodies, strict=True):
            if blake3_256(body) == name.digest:
                self._held.add((device_id, text))
                if name.digest not in self._good:
                    self._good[name.digest] = body, decode_entry(body)
        entries: dict[bytes, _Entry] = {}
        unread: dict[bytes, JournalName] = {}
        for device_id, text, name in found:
            if (device_id, text) not in self._held:
                unread[name.digest] = name
                continue
            if name.digest not in entries:
                entries[name.digest] = _Entry(name, *self._good[name.digest])
            entries[name.digest].devices.add(device_id)
        return entries, {digest: name for digest, name in unread.items() if digest not in entries}


def _list_entries(device: Device) -> list[tuple[str, JournalName]]:
    found = [(info.name, parse_physical_name(info.name)) for info in device.iter_objects("journal/")]
    return [(text, name) for text, name in found if isinstance(name, JournalName)]


def _read_entry(device: Device, name: str) -> bytes:
    try:
        return device.read(name)
    except TensorkeepError:
        return b""


def _add_up(
    devices: Mapping[str, Device], entries: Mapping[bytes, _Entry], unread: Mapping[bytes, JournalName]
) -> FoundJournal:
    chain, tail, notes = _walk_back(entries)
    first = chain[0].name.seq if chain else 0
    notes += [
        f"journal entry {name.seq} of epoch {name.epoch}, which is damaged or can't be read"
        for name in sorted(unread.values(), key=lambda name: (name.epoch, name.seq))
        if name.seq >= first
    ]
    state = fold_entries(each.entry for each in chain)
    for entry in _side_branch(entries, chain):
        for change in entry.entry.changes:
            state = _merge(state, change, entry.name, notes)
    _drop_dangling(state, notes)
    _suspend_retentions(state, notes)
    rows = tuple(
        JournalRow(epoch=each.name.epoch, seq=each.name.seq, digest=each.name.digest.hex(), body=each.body)
        for each in tail
    )
    return FoundJournal(state, rows, {device: _held_up_to(tail, device) for device in devices}, tuple(notes))


def _walk_back(entries: Mapping[bytes, _Entry]) -> tuple[list[_Entry], list[_Entry], list[str]]:
    """Return the entries from the last snapshot or the first to the newest, the unbroken end of them, and the gaps.

    Where a predecessor is on no device, the walk goes on with the newest entry before the gap: every change carries what it
    needs, so what the gap held is all that is lost.
    """
    newest_first = sorted(entries.values(), key=lambda each: each.place, reverse=True)
    chain: list[_Entry] = []
    tail: list[_Entry] = []
    notes: list[str] = []
    present = newest_first[0] if newest_first else None
    while present is not None:
        chain.append(present)
        if not notes:
            tail.append(present)
        if present.is_snapshot or present.entry.prev is None:
            break
        before = entries.get(bytes.fromhex(present.entry.prev))
        if before is None:
            seq = present.name.seq
            before = next((each for each in newest_first if each.name.seq < seq and each.place < present.place), None)
            notes.append(f"journal entries from {before.name.seq + 1 if before else 1} up to {seq - 1}")
        present = before
    return chain[::-1], tail[::-1], notes


def _held_up_to(tail: Iterable[_Entry], device: str) -> int:
    """Return the last seq up to which a device holds every entry of the chain."""
    upto = 0
    for each in tail:
        if device not in each.devices:
            break
        upto = each.name.seq
    return upto


def _side_branch(entries: Mapping[bytes, _Entry], chain: list[_Entry]) -> list[_Entry]:
    """Return entries, oldest first, that follow an ancestor of the chain, are not of it, and that no rebuild has seen yet.

    A rebuild that saw a device has written newer epochs' entries to it: what else lies there was merged then.
    """
    if not chain:
        return []
    known = {each.name.digest for each in chain}
    oldest = chain[0]
    while oldest.entry.prev is not None and (before := entries.get(bytes.fromhex(oldest.entry.prev))) is not None:
        known.add(before.name.digest)
        oldest = before
    main = [each for digest, each in entries.items() if digest in known]
    newest_epoch: dict[str, int] = {}
    for each in main:
        for device in each.devices:
            newest_epoch[device] = max(newest_epoch.get(device, 0), each.name.epoch)
    aside = [
        each
        for digest, each in entries.items()
        if digest not in known
        and each.name.seq > oldest.name.seq
        and any(newest_epoch.get(device, 0) <= each.name.epoch for device in each.devices)
    ]
    return sorted(aside, key=lambda each: each.place)


def _merge(state: StoreState, change: Change, name: JournalName, notes: list[str]) -> StoreState:
    """Return the state with a change of a side branch, where nothing else has changed the same since. Nothing is removed."""
    match change:
        case StoreChanged(old=old):
            fits = state.policy == old
        case DeviceChanged(old=old, new=new):
            fits = new is not None and state.devices.get(new.id) == old
        case ModelChanged(old=old, new=new):
            fits = new is not None and state.models.get(new.id) == old and not _name_taken(state, new)
        case VersionCommitted(version=version):
            fits = version.model in state.models and version.id not in state.versions
        case PolicyChanged(version=version_id, old=old):
            fits = version_id in state.versions and state.versions[version_id].policy == old
        case RefChanged(model=model, ref=ref, name=ref_name, old=old, new=new):
            present = [r.version for r in state.refs if (r.model, r.kind, r.name) == (model, ref, ref_name)]
            fits = present == ([] if old is None else [old]) and (new is None or new in state.versions)
        case VersionRemoved() | Snapshot():
            fits = False
    if fits:
        return apply_change(state, change)
    tag = type(change).__struct_config__.tag
    notes.append(f"a state that the change '{tag}' in entry {name.seq} of epoch {name.epoch} fits, so it is left out")
    return state


def _name_taken(state: StoreState, model: ModelFacts) -> bool:
    return any(o.name.casefold() == model.name.casefold() and o.id != model.id for o in state.models.values())


def _drop_dangling(state: StoreState, notes: list[str]) -> None:
    """Give versions whose model was lost in a gap a model of their own, and drop names whose version was lost in one."""
    for version in state.versions.values():
        if version.model not in state.models:
            name = f"recovered/{version.model.lower()}"
            state.models[version.model] = ModelFacts(
                id=version.model, name=name, policy=None, created_at=version.created_at
            )
            notes.append(f"the name of model {version.model}, which is {name} now")
    kept = [ref for ref in state.refs if ref.version in state.versions and ref.model in state.models]
    notes += [
        f"version {ref.version}, which the {ref.kind} {ref.name!r} pointed at" for ref in state.refs if ref not in kept
    ]
    state.refs = kept


def _suspend_retentions(state: StoreState, notes: list[str]) -> None:
    """Where anything was lost, have every version stay: a tag, a branch or a retention that would keep one may be what was lost."""
    for model in list(state.models.values()) if notes else ():
        if model.retention is not None:
            state.models[model.id] = msgspec.structs.replace(model, retention=None)
            notes.append(
                f"whether {model.name} may let versions go ({model.retention}): all stay until `tensorkeep retain` says so again"
            )
