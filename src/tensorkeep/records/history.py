"""The journal: what happened to the store, as a chain of entries, and the state that they add up to.

Every transaction that changes a version, a name, a policy or a device appends one entry; an entry holds one or more
changes, each with old and new value, and the digest of its predecessor. `apply_change` folds changes into a `StoreState`:
the catalog can be rebuilt from entries alone, and a snapshot is an entry that holds a whole state.
"""

from collections.abc import Iterable
from typing import Literal, TypeVar

import msgspec

from tensorkeep.errors import Format
from tensorkeep.records.device import DeviceFacts
from tensorkeep.records.digest import blake3_256
from tensorkeep.records.json_text import decode_canonical, encode_canonical

JOURNAL_FORMAT = 1

RefKind = Literal["branch", "tag"]

_Facts = TypeVar("_Facts", DeviceFacts, "ModelFacts")
_Row = TypeVar("_Row", DeviceFacts, "VersionFacts")


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A model: ``id`` is a ulid, ``policy`` the text of its own policy or None for the store's, ``retention`` of which versions stay."""

    id: str
    name: str
    policy: str | None
    created_at: str
    retention: str | None = None


class VersionFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A committed version; ``manifest`` and ``checks`` are hex digests, ``policy`` the text of what its parts owe."""

    id: str
    model: str
    parent: str | None
    manifest: str
    checks: str
    message: str
    author: str
    created_at: str
    total_bytes: int
    policy: str


class RefFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A branch or tag of a model (ulid) and the version id that it points at."""

    model: str
    kind: RefKind
    name: str
    version: str


class StoreState(msgspec.Struct, kw_only=True):
    """Everything that the journal says, folded. ``versions`` in order of commit."""

    policy: str = "replicas=1"
    devices: dict[str, DeviceFacts] = {}
    models: dict[str, ModelFacts] = {}
    versions: dict[str, VersionFacts] = {}
    refs: list[RefFacts] = []


class StoreChanged(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="store"):
    """The store's default policy; the first entry of a store has old None."""

    old: str | None
    new: str


class DeviceChanged(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="device"):
    """A device was added (old None), changed, or forgotten (new None)."""

    old: DeviceFacts | None
    new: DeviceFacts | None


class ModelChanged(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="model"):
    """A model was made (old None), renamed or given a policy or a retention, or removed (new None)."""

    old: ModelFacts | None
    new: ModelFacts | None


class VersionCommitted(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="commit"):
    """A version exists from here on."""

    version: VersionFacts


class VersionRemoved(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="remove"):
    """A version was removed; children keep its id as their parent."""

    version: VersionFacts


class PolicyChanged(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="policy"):
    """What a version owes was changed after it was committed; old and new are texts of policies."""

    version: str
    old: str
    new: str


class RefChanged(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="ref"):
    """A branch or tag was made (old None), moved, or deleted (new None); old and new are version ids."""

    model: str
    ref: RefKind
    name: str
    old: str | None
    new: str | None


class Snapshot(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="snapshot"):
    """The whole state at this entry; older entries are not needed any more once it is everywhere.

    Canonical JSON sorts the keys of the state's maps, so ``version_order`` (ids, oldest commit first) and ``device_order``
    (ids, first added first) say what the maps can't.
    """

    state: StoreState
    version_order: tuple[str, ...] = ()
    device_order: tuple[str, ...] = ()


Change = (
    StoreChanged
    | DeviceChanged
    | ModelChanged
    | VersionCommitted
    | VersionRemoved
    | PolicyChanged
    | RefChanged
    | Snapshot
)


class JournalEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One transaction: ``prev`` is the digest of the entry before it in hex (None for the first)."""

    format: int = JOURNAL_FORMAT
    store: str
    epoch: int
    seq: int
    prev: str | None
    created_at: str
    changes: tuple[Change, ...]


def encode_entry(entry: JournalEntry) -> tuple[bytes, bytes]:
    """Return an entry's digest (32 bytes) and its stored bytes."""
    data = encode_canonical(entry)
    return blake3_256(data), data


def decode_entry(data: bytes) -> JournalEntry:
    """Return the entry that these bytes hold.

    Raises:
        Format: a newer format, or not a journal entry.
    """
    head = decode_canonical(data, _Head, what="journal entry")
    if head.format > JOURNAL_FORMAT:
        raise Format(f"a journal entry has format {head.format}, this tensorkeep knows {JOURNAL_FORMAT}: upgrade it")
    return decode_canonical(data, JournalEntry, what="journal entry")


def take_snapshot(state: StoreState) -> Snapshot:
    """Return the change that holds a whole state, with the order of its versions and devices."""
    return Snapshot(state=state, version_order=tuple(state.versions), device_order=tuple(state.devices))


def apply_change(state: StoreState, change: Change) -> StoreState:
    """Return the state after a change. The state given is used up: it may be changed in place."""
    match change:
        case Snapshot():
            return _restore(change)
        case StoreChanged(new=new):
            state.policy = new
        case DeviceChanged(old=old, new=new):
            _replace(state.devices, old, new)
        case ModelChanged(old=old, new=new):
            _replace(state.models, old, new)
        case VersionCommitted(version=version):
            state.versions[version.id] = version
        case VersionRemoved(version=version):
            state.versions.pop(version.id, None)
        case PolicyChanged(version=version_id, new=new):
            if (known := state.versions.get(version_id)) is not None:
                state.versions[version_id] = msgspec.structs.replace(known, policy=new)
        case RefChanged(model=model, ref=ref, name=name, new=new):
            state.refs = [r for r in state.refs if (r.model, r.kind, r.name) != (model, ref, name)]
            if new is not None:
                state.refs.append(RefFacts(model=model, kind=ref, name=name, version=new))
    return state


def fold_entries(entries: Iterable[JournalEntry]) -> StoreState:
    """Return the state that entries, oldest first, add up to."""
    state = StoreState()
    for entry in entries:
        for change in entry.changes:
            state = apply_change(state, change)
    return state


def _restore(snapshot: Snapshot) -> StoreState:
    """Return a snapshot's state as a new value (the fold changes it), its maps in the order that they had."""
    whole = snapshot.state
    return StoreState(
        policy=whole.policy,
        devices=_in_order(whole.devices, snapshot.device_order),
        models=dict(whole.models),
        versions=_in_order(whole.versions, snapshot.version_order),
        refs=list(whole.refs),
    )


def _in_order(rows: dict[str, _Row], order: tuple[str, ...]) -> dict[str, _Row]:
    return {key: rows[key] for key in (*order, *rows) if key in rows}


def _replace(rows: dict[str, _Facts], old: _Facts | None, new: _Facts | None) -> None:
    if new is not None:
        rows[new.id] = new
    elif old is not None:
        rows.pop(old.id, None)


class _Head(msgspec.Struct):
    format: int
