"""The catalog in memory: the reference that the others are compared with. Slow, and simple enough to be seen to be right.

Each change works on a copy of the whole state, which replaces the old one only when nothing was raised.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

from tensorkeep.catalog import memory_changes, memory_push, rules
from tensorkeep.catalog.chain import ChainEnd, find_catalog_problems
from tensorkeep.catalog.expiring import find_expired
from tensorkeep.catalog.memory_state import MemoryState
from tensorkeep.catalog.protocol import (
    CatalogImage,
    CatalogInfo,
    CommitRequest,
    Committed,
    DeviceHead,
    DeviceUsage,
    Expiry,
    GcSummary,
    JournalRow,
    Location,
    Needed,
    ObjectKey,
    ObjectRequest,
    Orphan,
    ScrubState,
    ShortObject,
    Staging,
    VersionUsage,
)
from tensorkeep.errors import InvalidInput, NotFound
from tensorkeep.records.device import DeviceFacts, is_gone
from tensorkeep.records.history import Change, ModelFacts, RefFacts, RefKind, StoreChanged, VersionFacts
from tensorkeep.records.json_text import format_time
from tensorkeep.records.layout import JOURNAL_SNAPSHOT_EVERY
from tensorkeep.records.names import ModelName
from tensorkeep.records.naming import ObjectKind
from tensorkeep.records.redundancy import parse_policy
from tensorkeep.runtime import Runtime


class MemoryCatalog:
    """A `Catalog` in this process's memory. Thread safe; gone with the process.

    Args:
        store: the store's ulid.
        policy: the store's default, told by the first entry; None leaves the catalog empty, for `load_image`.
        runtime: clock and failpoints.
        epoch: of a new catalog.
        snapshot_every: journal entries between two snapshots.
    """

    def __init__(
        self,
        *,
        store: str,
        policy: str | None,
        runtime: Runtime,
        epoch: int = 1,
        snapshot_every: int = JOURNAL_SNAPSHOT_EVERY,
    ) -> None:
        self._runtime = runtime
        self._snapshot_every = snapshot_every
        self._lock = threading.RLock()
        self._state = MemoryState(ChainEnd(store, epoch if policy else 0, 0, None, 0), policy or "replicas=1")
        if policy is not None:
            parse_policy(policy)
            self._change((), runtime.clock.now(), lambda _: [StoreChanged(old=None, new=policy)])

    def close(self) -> None:
        """Do nothing: the catalog stays as it is."""

    def info(self) -> CatalogInfo:
        """Return the store's identity and the journal's head."""
        state = self._state
        end = state.end
        return CatalogInfo(store=end.store, epoch=end.epoch, last_seq=end.last_seq, head=end.head, policy=state.policy)

    def check(self) -> list[str]:
        """Return what is wrong with the journal's chain, or where the tables differ from what it tells."""
        state = self._state
        return find_catalog_problems(state.journal, state.end, state.told())

    # devices

    def list_devices(self) -> list[DeviceFacts]:
        """Return all devices, in order of being added."""
        return list(self._state.devices.values())

    def change_device(
        self, old: DeviceFacts | None, new: DeviceFacts, *, heads: Sequence[DeviceHead], now: datetime
    ) -> int:
        """Add a device (old None) or change one; return the seq."""
        return self._change(heads, now, lambda state: memory_changes.change_device(state, old, new))

    def device_usage(self) -> list[DeviceUsage]:
        """Return what each device holds, those that are gone too, in order of being added."""
        state = self._state
        usage = []
        for device in state.devices:
            held = [row.location for row in state.locations.values() if row.location.device == device]
            kept = [location.length for location in held if location.state != "condemned"]
            bad = [location.length for location in held if location.state == "bad"]
            usage.append(
                DeviceUsage(
                    device=device,
                    locations=len(kept),
                    bytes=sum(kept),
                    bad_locations=len(bad),
                    bad_bytes=sum(bad),
                )
            )
        return usage

    # names

    def list_models(self) -> list[ModelFacts]:
        """Return all models by name."""
        return sorted(self._state.models.values(), key=lambda facts: facts.name.casefold())

    def find_model(self, name: ModelName) -> ModelFacts | None:
        """Return the model of that name, without regard to case, or None."""
        return self._state.find_model(name.folded)

    def list_refs(self, model: str) -> list[RefFacts]:
        """Return a model's branches and tags, by kind and name."""
        return self._state.list_refs(model=model)

    def list_versions(self, model: str) -> list[VersionFacts]:
        """Return a model's versions, newest commit first."""
        return [row.facts for row in reversed(self._state.versions.values()) if row.facts.model == model]

    def get_version(self, model: str, revision: str) -> VersionFacts:
        """Return the version that a revision of a model means."""
        return memory_changes.get_version(self._state, model, revision)

    def find_version(self, name: ModelName, revision: str) -> tuple[ModelFacts, VersionFacts] | None:
        """Return the model of that name and the version that its revision means; None: there is no such model."""
        state = self._state
        model = state.find_model(name.folded)
        return None if model is None else (model, memory_changes.get_version(state, model.id, revision))

    def set_ref(
        self,
        model: str,
        kind: RefKind,
        name: str,
        version: str | None,
        *,
        expected: str | None,
        heads: Sequence[DeviceHead],
        now: datetime,
    ) -> int:
        """Make, move, or delete a branch or tag, by compare-and-swap; return the seq."""
        return self._change(
            heads,
            now,
            lambda state: memory_changes.set_ref(state, model, kind, name, version=version, expected=expected),
        )

    def remove_version(self, model: str, version: str, *, heads: Sequence[DeviceHead], now: datetime) -> int:
        """Remove a version that no branch or tag points at; return the seq."""
        return self._change(heads, now, lambda state: memory_changes.remove_version(state, model, version))

    def remove_model(self, model: str, *, heads: Sequence[DeviceHead], now: datetime) -> int:
        """Remove a model with all its refs and versions, in one entry; return the seq."""
        return self._change(heads, now, lambda state: memory_changes.remove_model(state, model))

    def set_policy(
        self, model: str | None, policy: str, *, versions: bool = False, heads: Sequence[DeviceHead], now: datetime
    ) -> int:
        """Set the policy of a model, or of the store (None); return the seq."""
        return self._change(
            heads, now, lambda state: memory_changes.set_policy(state, model, policy, versions=versions)
        )

    def set_retention(self, model: str, retention: str | None, *, heads: Sequence[DeviceHead], now: datetime) -> int:
        """Set which versions of a model stay, None: all; return the seq."""
        return self._change(heads, now, lambda state: memory_changes.set_retention(state, model, retention))

    # push

    def begin_push(self, session: str, *, now: datetime) -> None:
        """Open a session."""
        with self._write() as state:
            state.sessions[session] = format_time(now)

    def heartbeat(self, session: str, *, now: datetime) -> None:
        """Say that the session is alive."""
        self.begin_push(session, now=now)

    def end_push(self, session: str) -> None:
        """Close the session."""
        with self._write() as state:
            state.sessions.pop(session, None)

    def stage(
        self, session: str, requests: Sequence[ObjectRequest], *, down: Sequence[str] = (), allow_soft: bool = False
    ) -> list[Staging]:
        """Answer what exists and add the rows of what does not, before any upload starts."""
        with self._write() as state:
            return memory_push.stage(state, session, requests, down=frozenset(down), allow_soft=allow_soft)

    def record_stored(self, session: str, locations: Sequence[int]) -> list[int]:
        """Move the session's staged rows to stored; return those that are condemned or gone."""
        with self._write() as state:
            return memory_push.record_stored(state, session, locations)

    def stage_and_record(
        self,
        session: str,
        requests: Sequence[ObjectRequest],
        stored: Sequence[int],
        *,
        down: Sequence[str] = (),
        allow_soft: bool = False,
    ) -> tuple[list[Staging], list[int]]:
        """Stage, then record what is stored, in one transaction; return both answers."""
        with self._write() as state:
            staged = memory_push.stage(state, session, requests, down=frozenset(down), allow_soft=allow_soft)
            return staged, memory_push.record_stored(state, session, stored)

    def forget_staged(self, session: str, locations: Sequence[int]) -> None:
        """Condemn the session's staged rows whose upload failed."""
        with self._write() as state:
            memory_push.forget_staged(state, session, locations, self._runtime.clock.now())

    def commit(self, request: CommitRequest) -> Committed | Needed:
        """Make a version exist, or say what is needed again."""
        try:
            with self._write() as state:
                return memory_push.commit(
                    state, request, failpoints=self._runtime.failpoints, snapshot_every=self._snapshot_every
                )
        except rules.CopiesMissing as missing:
            return missing.needed

    # reading

    def locate(self, keys: Sequence[ObjectKey]) -> dict[ObjectKey, list[Location]]:
        """Return every live, stored or bad location of these objects on devices that are not gone; a list for every key."""
        state = self._state
        return {
            key: [
                row.location
                for row in state.rows_of(key)
                if row.location.state in (*rules.USABLE, "bad") and not is_gone(state.devices[row.location.device])
            ]
            for key in keys
        }

    def survey(self, keys: Sequence[ObjectKey]) -> tuple[list[DeviceFacts], dict[ObjectKey, list[Location]]]:
        """Return all devices and where these objects are."""
        with self._lock:
            return self.list_devices(), self.locate(keys)

    def copies_owed(self, keys: Sequence[ObjectKey]) -> dict[ObjectKey, int]:
        """Return the most copies that versions ask of each of these objects; unreferenced ones are left out."""
        owed = {key: self._state.copies_owed(key) for key in keys}
        return {key: copies for key, copies in owed.items() if copies}

    def locate_all(self, *, after: int, limit: int) -> list[Location]:
        """Return locations in any state but condemned, by id."""
        rows = [row.location for row in self._state.locations.values()]
        return [location for location in rows if location.id > after and location.state != "condemned"][:limit]

    def version_objects(self, version: str) -> list[tuple[ObjectKey, int]]:
        """Return the objects a version refers to, with sizes, by kind and digest."""
        state = self._state
        return sorted((key, state.sizes[key]) for key in state.get_version_row(version).keys)

    def find_manifest(self, digest: str) -> bytes | None:
        """Return the stored bytes of a manifest if the catalog keeps them."""
        return self._state.manifests.get(digest)

    def record_checked(self, *, good: Sequence[int], bad: Sequence[int]) -> None:
        """Note what a read found."""
        with self._write() as state:
            state.note_checked(good=good, bad=bad)

    def version_usage(self, versions: Sequence[str]) -> list[VersionUsage]:
        """Return how many bytes versions take, and exclusively."""
        state = self._state
        usage = []
        for version in versions:
            keys = [key for key in state.get_version_row(version).keys if key.kind is ObjectKind.PART]
            shared = {key for key in keys for v, row in state.versions.items() if v != version and key in row.keys}
            usage.append(
                VersionUsage(
                    version=version,
                    part_count=len(keys),
                    part_bytes=sum(state.sizes[key] for key in keys),
                    exclusive_bytes=sum(state.sizes[key] for key in keys if key not in shared),
                )
            )
        return usage

    def count_short(self, versions: Sequence[str]) -> dict[str, int]:
        """Return for each version how many of its objects lack copies (only non-zero)."""
        state = self._state
        counts = {
            version: sum(
                state.usable_copies(key, durable_only=False) < state.copies_owed(key)
                for key in state.versions[version].keys
            )
            for version in versions
            if version in state.versions
        }
        return {version: count for version, count in counts.items() if count}

    # repair

    def list_short(self, *, down: Sequence[str] = (), parts: bool = True, after: int, limit: int) -> list[ShortObject]:
        """Return objects with fewer usable copies than they owe, by id."""
        state = self._state
        short = []
        for key, size_bytes in state.sizes.items():
            have, owed = state.usable_copies(key, durable_only=False, down=down), state.copies_owed(key)
            number = state.numbers[key]
            if number > after and have < owed and (parts or key.kind is not ObjectKind.PART):
                short.append(ShortObject(id=number, key=key, size_bytes=size_bytes, have=have, owed=owed))
        return sorted(short, key=lambda each: each.id)[:limit]

    def list_on(self, device: str, *, after: int, limit: int) -> list[Location]:
        """Return the rows of a device in any state, by id."""
        rows = [row.location for row in self._state.locations.values() if row.location.device == device]
        return [location for location in rows if location.id > after][:limit]

    def retire(
        self, locations: Sequence[int], *, down: Sequence[str] = (), heads: Sequence[DeviceHead], now: datetime
    ) -> list[int]:
        """Condemn those of these rows without which their objects have all the copies they owe; return which."""
        with self._write() as state:
            state.refuse_stale(heads)
            return memory_changes.retire(state, locations, down=down, now=now)

    # scrub

    def list_scrubs(self) -> list[ScrubState]:
        """Return how far the scrubs of devices that are not gone are, by device and depth."""
        state = self._state
        return [scrub for _, scrub in sorted(state.scrubs.items()) if not is_gone(state.devices[scrub.device])]

    def record_scrub(self, state: ScrubState, *, good: Sequence[int], bad: Sequence[int]) -> None:
        """Note what a page of a scrub found, and how far the scrub is."""
        with self._write() as changed:
            changed.note_checked(good=good, bad=bad)
            changed.scrubs[state.device, state.depth] = state

    def list_named(self, device: str, kind: ObjectKind, first: int, last: int) -> list[Location]:
        """Return the rows of a device in any state, of objects of one kind whose digests begin with these bytes."""
        rows = [row.location for row in self._state.locations.values() if row.location.device == device]
        return [row for row in rows if row.key.kind is kind and first <= row.key.digest[0] <= last]

    def note_orphans(
        self, device: str, found: Sequence[tuple[str, int]], *, heads: Sequence[DeviceHead], now: datetime
    ) -> int:
        """Note those of these objects of a device that no row tells of; return how many are new."""
        with self._write() as state:
            state.refuse_stale(heads)
            return memory_changes.note_orphans(state, device, found, now)

    def list_orphans(self, *, grace_s: float, now: datetime, after: int, limit: int) -> list[Orphan]:
        """Return orphans on devices that are not gone, noted at least the grace ago, by id."""
        state, until = self._state, rules.moment_before(now, grace_s)
        found = [orphan for orphan, noted_at in state.orphans.values() if noted_at <= until]
        return [each for each in found if each.id > after and not is_gone(state.devices[each.device])][:limit]

    def drop_orphans(self, orphans: Sequence[int]) -> None:
        """Forget orphans whose absence on the device was confirmed."""
        with self._write() as state:
            for number in orphans:
                state.orphans.pop(number, None)

    # gc

    def expire(
        self,
        *,
        grace_s: float,
        dry_run: bool,
        max_fraction: float | None = None,
        heads: Sequence[DeviceHead],
        now: datetime,
    ) -> Expiry:
        """Remove what retentions let go; a dry run only says which."""
        with self._write() as state:
            state.refuse_stale(heads)
            found = find_expired(
                self.list_models(), list_versions=self.list_versions, list_refs=self.list_refs, now=now
            )
            if found.versions and not dry_run:
                memory_changes.expire(state, found, grace_s=grace_s, max_fraction=max_fraction, now=now)
                seq = state.append(found.changes, now, snapshot_every=self._snapshot_every)
                return Expiry(versions=tuple(found.versions), seq=seq)
            return Expiry(versions=tuple(found.versions), seq=state.end.last_seq)

    def condemn(
        self,
        *,
        grace_s: float,
        dry_run: bool,
        max_fraction: float | None = None,
        heads: Sequence[DeviceHead],
        now: datetime,
    ) -> GcSummary:
        """Condemn what nothing uses; a dry run only counts."""
        if dry_run:
            state = self._state.copy()
            state.refuse_stale(heads)
            return memory_changes.condemn(state, grace_s=grace_s, now=now)
        with self._write() as state:
            state.refuse_stale(heads)
            return memory_changes.condemn(state, grace_s=grace_s, max_fraction=max_fraction, now=now)

    def list_condemned(self, *, grace_s: float, now: datetime, after: int, limit: int) -> list[Location]:
        """Return rows condemned at least the grace ago, by id."""
        until = rules.moment_before(now, grace_s)
        rows = [row for row in self._state.locations.values() if row.location.state == "condemned"]
        found = [row.location for row in rows if row.condemned_at is not None and row.condemned_at <= until]
        return [location for location in found if location.id > after][:limit]

    def drop(self, locations: Sequence[int]) -> None:
        """Forget condemned rows, and objects left without rows and versions."""
        with self._write() as state:
            memory_changes.drop(state, locations)

    # journal

    def journal_backlog(self, device: str, *, limit: int) -> list[JournalRow]:
        """Return the entries that a device lacks, oldest first; a new device begins at the newest snapshot."""
        state = self._state
        flushed = _flushed(state, device)
        oldest = state.journal[0].seq if state.journal else 1
        first = flushed + 1 if flushed and flushed + 1 >= oldest else max(state.end.last_snapshot, 1)
        return [row for row in state.journal if row.seq >= first][:limit]

    def journal_rows(self) -> list[JournalRow]:
        """Return every entry that the catalog keeps, oldest first."""
        return list(self._state.journal)

    def record_flushed(self, device: str, seq: int) -> None:
        """Note that a device durably holds every entry up to this seq."""
        with self._write() as state:
            last = state.end.last_seq
            if seq > last:
                raise InvalidInput(f"the journal ends at entry {last}: no device can hold entry {seq}", device=device)
            state.flushed[device] = max(seq, _flushed(state, device))

    def flushed(self) -> dict[str, int]:
        """Return the last seq that each device (not lost) holds; 0 for none."""
        state = self._state
        return {device: state.flushed[device] for device, facts in state.devices.items() if not is_gone(facts)}

    def trim_journal(self) -> int:
        """Forget entries older than the newest snapshot that every device holds; return its seq or 0."""
        with self._write() as state:
            everywhere = min(self.flushed().values(), default=0)
            snapshot = max((seq for seq in state.snapshots if seq <= everywhere), default=0)
            state.journal = [row for row in state.journal if row.seq >= snapshot]
            state.snapshots = [seq for seq in state.snapshots if seq >= snapshot]
            return snapshot

    # rebuild

    def load_image(self, image: CatalogImage, *, now: datetime) -> int:
        """Fill an empty catalog, append a snapshot entry, and return its seq."""
        with self._write() as state:
            return memory_changes.load_image(state, image, now)

    @contextmanager
    def _write(self) -> Iterator[MemoryState]:
        with self._lock:
            state = self._state.copy()
            yield state
            self._state = state

    def _change(
        self, heads: Sequence[DeviceHead], now: datetime, step: Callable[[MemoryState], Sequence[Change]]
    ) -> int:
        with self._write() as state:
            state.refuse_stale(heads)
            changes = step(state)
            return state.append(changes, now, snapshot_every=self._snapshot_every)


def _flushed(state: MemoryState, device: str) -> int:
    if device not in state.flushed:
        raise NotFound(f"there is no device {device}", device=device)
    return state.flushed[device]
