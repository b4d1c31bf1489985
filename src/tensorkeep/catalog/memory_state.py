"""The state of the in-memory catalog: plain dicts of immutable values, and the questions asked of them by looking at all."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime

import msgspec

from tensorkeep.catalog import rules
from tensorkeep.catalog.chain import ChainEnd, extend, next_row
from tensorkeep.catalog.counting import count_copies
from tensorkeep.catalog.protocol import DeviceHead, JournalRow, Location, ObjectKey, Orphan, ScrubState
from tensorkeep.errors import NotFound
from tensorkeep.records.device import DeviceFacts, counted_devices
from tensorkeep.records.history import (
    Change,
    ModelFacts,
    RefFacts,
    RefKind,
    StoreState,
    VersionFacts,
    take_snapshot,
)


@dataclass(frozen=True, slots=True)
class VersionRow:
    """A version: the seq and session of its commit, and the objects that it refers to."""

    facts: VersionFacts
    keys: frozenset[ObjectKey]
    seq: int = 0
    token: str | None = None


@dataclass(frozen=True, slots=True)
class LocationRow:
    """A location, whose push wrote it, and when it was condemned."""

    location: Location
    session: str | None = None
    condemned_at: str | None = None


@dataclass(slots=True)
class MemoryState:
    """Everything that a catalog knows. ``copy`` is cheap enough, and no value in it ever changes."""

    end: ChainEnd
    policy: str
    devices: dict[str, DeviceFacts] = field(default_factory=dict)
    flushed: dict[str, int] = field(default_factory=dict)
    models: dict[str, ModelFacts] = field(default_factory=dict)
    versions: dict[str, VersionRow] = field(default_factory=dict)
    refs: dict[tuple[str, RefKind, str], str] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    sizes: dict[ObjectKey, int] = field(default_factory=dict)
    numbers: dict[ObjectKey, int] = field(default_factory=dict)
    last_number: int = 0
    locations: dict[int, LocationRow] = field(default_factory=dict)
    last_location: int = 0
    sessions: dict[str, str] = field(default_factory=dict)
    scrubs: dict[tuple[str, str], ScrubState] = field(default_factory=dict)
    orphans: dict[int, tuple[Orphan, str]] = field(default_factory=dict)
    last_orphan: int = 0
    journal: list[JournalRow] = field(default_factory=list)
    snapshots: list[int] = field(default_factory=list)

    def copy(self) -> "MemoryState":
        """Return a state that can be changed without changing this one."""
        fresh = copy.copy(self)
        for field_ in fields(self):
            value = getattr(self, field_.name)
            if isinstance(value, (dict, list)):
                setattr(fresh, field_.name, value.copy())
        return fresh

    # journal

    def append(self, changes: Sequence[Change], now: datetime, *, snapshot_every: int) -> int:
        """Append the entry of changes that were made, and a snapshot where one is due; return the entry's seq."""
        self.add_row(next_row(self.end, changes, now), snapshot=False)
        seq = self.end.last_seq
        if seq - self.end.last_snapshot >= snapshot_every:
            self.append_snapshot(now)
        return seq

    def append_snapshot(self, now: datetime) -> int:
        """Append an entry that holds the whole state; return its seq."""
        self.add_row(next_row(self.end, [take_snapshot(self.told())], now), snapshot=True)
        return self.end.last_seq

    def add_row(self, row: JournalRow, *, snapshot: bool) -> None:
        """Add an entry as it is."""
        self.journal.append(row)
        self.end = extend(self.end, row, snapshot=snapshot)
        if snapshot:
            self.snapshots.append(row.seq)

    def told(self) -> StoreState:
        """Return the state that the journal tells, as this catalog holds it."""
        return StoreState(
            policy=self.policy,
            devices=dict(self.devices),
            models=dict(sorted(self.models.items())),
            versions={version: row.facts for version, row in self.versions.items()},
            refs=self.list_refs(),
        )

    def refuse_stale(self, heads: Sequence[DeviceHead]) -> None:
        """Return if no device is ahead or tells another history; raises `Conflict`."""
        digests = {(row.epoch, row.seq): row.digest for row in self.journal}
        rules.check_heads(
            heads,
            epoch=self.end.epoch,
            last_seq=self.end.last_seq,
            find_digest=lambda epoch, seq: digests.get((epoch, seq)),
        )

    # names

    def get_model(self, model: str) -> ModelFacts:
        """Return the model of that ulid; raises `NotFound`."""
        if model not in self.models:
            raise NotFound(f"there is no model {model}: was it removed?", model=model)
        return self.models[model]

    def find_model(self, folded: str) -> ModelFacts | None:
        """Return the model of that folded name, or None."""
        return next((facts for facts in self.models.values() if facts.name.casefold() == folded), None)

    def get_model_version(self, model: str, version: str) -> VersionFacts:
        """Return a version of a model by its full id; raises `NotFound`."""
        row = self.versions.get(version)
        if row is None or row.facts.model != model:
            raise NotFound(f"there is no version {version} of model {model}", model=model, version=version)
        return row.facts

    def get_version_row(self, version: str) -> VersionRow:
        """Return a version by its full id; raises `NotFound`."""
        if version not in self.versions:
            raise NotFound(f"there is no version {version}", version=version)
        return self.versions[version]

    def list_refs(self, *, model: str | None = None, version: str | None = None) -> list[RefFacts]:
        """Return all refs, or those of a model, or those that point at a version; by model, kind and name."""
        return [
            RefFacts(model=of, kind=kind, name=name, version=target)
            for (of, kind, name), target in sorted(self.refs.items())
            if model in (None, of) and version in (None, target)
        ]

    def delete_versions(self, doomed: Sequence[str]) -> None:
        """Remove versions, and the manifests that only they had."""
        for version in doomed:
            del self.versions[version]
        used = {row.facts.manifest for row in self.versions.values()}
        self.manifests = {digest: body for digest, body in self.manifests.items() if digest in used}

    # objects

    def rows_of(self, key: ObjectKey) -> list[LocationRow]:
        """Return every row of an object, by id."""
        return [row for row in self.locations.values() if row.location.key == key]

    def is_referenced(self, key: ObjectKey) -> bool:
        """Return whether a version refers to an object."""
        return any(key in row.keys for row in self.versions.values())

    def copies_owed(self, key: ObjectKey) -> int:
        """Return the most copies that versions ask of an object; 0 where none refers to it."""
        counted = len(counted_devices(self.devices.values()))
        return max(
            (rules.copies_owed(key.kind, v.facts.policy, counted) for v in self.versions.values() if key in v.keys),
            default=0,
        )

    def usable_copies(self, key: ObjectKey, *, durable_only: bool, down: Sequence[str] = ()) -> int:
        """Return how many copies an object has by its usable rows on active devices that are not down."""
        usable = [row.location for row in self.rows_of(key) if row.location.state in rules.USABLE]
        counted = [row for row in usable if row.device not in down]
        return count_copies(row for row in counted if self._counts(row.device, durable_only=durable_only))

    def _counts(self, device: str, *, durable_only: bool) -> bool:
        facts = self.devices[device]
        return facts.state == "active" and (facts.durability == "durable" or not durable_only)

    def know_object(self, key: ObjectKey, size_bytes: int) -> None:
        """Take an object in, with the next number, unless it is known; numbers are never used again."""
        if key not in self.sizes:
            self.last_number += 1
            self.sizes[key], self.numbers[key] = size_bytes, self.last_number

    def add_location(self, location: Location, session: str | None) -> Location:
        """Add a row and return it with its id; ids are never used again."""
        self.last_location += 1
        numbered = _with_id(location, self.last_location)
        self.locations[self.last_location] = LocationRow(numbered, session)
        return numbered

    def set_state(self, number: int, state: str, *, condemned_at: str | None = None) -> None:
        """Change a row's state."""
        row = self.locations[number]
        self.locations[number] = replace(
            row, location=_with_state(row.location, state), condemned_at=condemned_at or row.condemned_at
        )

    def note_checked(self, *, good: Sequence[int], bad: Sequence[int]) -> None:
        """Note what a read found."""
        for number in good:
            row = self.locations.get(number)
            if row and row.location.state in ("bad", "stored"):
                self.set_state(number, "live" if self.is_referenced(row.location.key) else "stored")
        for number in bad:
            row = self.locations.get(number)
            if row and row.location.state in rules.USABLE:
                self.set_state(number, "bad")

    def forget_unused_objects(self) -> None:
        """Forget objects that have neither rows nor versions."""
        used = {row.location.key for row in self.locations.values()}
        used.update(*(row.keys for row in self.versions.values()))
        self.sizes = {key: size for key, size in self.sizes.items() if key in used}
        self.numbers = {key: self.numbers[key] for key in self.sizes}


def _with_id(location: Location, number: int) -> Location:
    return msgspec.structs.replace(location, id=number)


def _with_state(location: Location, state: str) -> Location:
    return msgspec.structs.replace(location, state=state)
