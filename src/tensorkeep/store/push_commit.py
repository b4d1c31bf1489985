"""A push under way: stores batches of parts, then the objects that describe them, heals what is kept, then commits."""

import threading
from collections.abc import Mapping, Sequence

from tensorkeep.catalog.counting import count_copies
from tensorkeep.catalog.protocol import CommitRequest, Committed, Location, Needed, ObjectKey
from tensorkeep.catalog.rules import USABLE, version_keys
from tensorkeep.errors import AlreadyExists, Conflict, InvalidInput, NotEnoughCopies
from tensorkeep.planning.placement import place_parts, place_split
from tensorkeep.planning.splitting import PlannedPart
from tensorkeep.records.device import DeviceFacts, counted_devices
from tensorkeep.records.history import VersionFacts
from tensorkeep.records.json_text import format_time
from tensorkeep.records.naming import ObjectKind
from tensorkeep.records.redundancy import ErasureCoded, Replicas, metadata_copies
from tensorkeep.records.version import VersionRecord, encode_version
from tensorkeep.runtime import Cancellation
from tensorkeep.store.context import StoreContext
from tensorkeep.store.fragments import code_of, held_part
from tensorkeep.store.object_writer import NewObject, ObjectWriter
from tensorkeep.store.push_manifest import AssembledVersion, part_digests, same_files
from tensorkeep.store.push_plan import Base, PushPlan
from tensorkeep.store.push_read import PartFact, ReadPart, ReadResult, gather_part
from tensorkeep.store.push_target import PushOptions, PushTarget, device_shares
from tensorkeep.store.structure import open_manifest, read_object
from tensorkeep.transfer.hashing import hash_part

_COMMIT_ROUNDS = 5


class PushWork:
    """One push under way. `store_batch` is called while sources are read, from several threads; `conclude` once, at the end."""

    def __init__(
        self,
        context: StoreContext,
        session: str,
        target: PushTarget,
        options: PushOptions,
        plan: PushPlan,
        base: Base | None,
        writer: ObjectWriter,
    ) -> None:
        self._context = context
        self._session = session
        self._target = target
        self._options = options
        self._plan = plan
        self._base = base
        self._writer = writer
        shares = device_shares(context, target.devices, allow_soft=options.allow_soft)
        self._candidates = place_split(plan.split, shares, policy=target.policy)
        self._any_device = tuple(facts.id for facts in target.devices)
        self._lock = threading.Lock()
        self._taken: set[bytes] = set()

    def store_batch(self, batch: Sequence[ReadPart], stop: Cancellation) -> None:
        """Store parts that were just read, where they are missing; of equal ones the first."""
        with self._lock:
            fresh = {part.fact.digest: part for part in reversed(batch) if part.fact.digest not in self._taken}
            self._taken.update(fresh)
        self._write_parts([part for part in batch if fresh.get(part.fact.digest) is part], stop)

    def _write_parts(self, batch: Sequence[ReadPart], stop: Cancellation | None = None) -> None:
        self._writer.write(
            [
                NewObject(
                    ObjectKey(ObjectKind.PART, part.fact.digest),
                    part.data,
                    part.fact.size_bytes,
                    self._target.copies,
                    self._candidates[part.index],
                    code=code_of(self._target.policy, part.fact.size_bytes),
                )
                for part in batch
            ],
            stop=stop,
        )

    def conclude(self, assembled: AssembledVersion, result: ReadResult) -> tuple[VersionFacts, bool, int]:
        """Return the version, whether it is new, and the journal entry that must reach the devices (0: none)."""
        head = self._target.head
        if head is not None and self._base is not None and self._is_head(assembled):
            self._heal_unchanged(assembled, result, head)
            return head, False, self._tag_head(head)
        self._heal_kept(assembled, result)
        if self._target.tagged:
            raise AlreadyExists(
                f"tag {self._options.tag!r} of {self._target.model.name} exists and points at the version before this one: "
                "choose another (what was stored is kept for that push)",
                tag=self._options.tag,
            )
        version, record = self._make_record(assembled)
        committed = self._commit(assembled, result, version, record)
        self._context.runtime.failpoints.hit("push.committed")
        return committed.version, True, committed.seq

    def _is_head(self, assembled: AssembledVersion) -> bool:
        head = self._target.head
        assert head is not None
        manifest = open_manifest(self._context, head)
        return same_files(manifest, assembled.manifest)

    def _tag_head(self, head: VersionFacts) -> int:
        """Tag the head and give the model its policy, where that was asked for; return the last journal entry or 0."""
        seq = 0
        catalog, clock = self._context.catalog, self._context.runtime.clock
        if self._target.model_policy is not None and self._target.model_policy != self._target.model.policy:
            seq = catalog.set_policy(
                self._target.model.id, self._target.model_policy, heads=self._context.fleet.heads(), now=clock.now()
            )
        if self._options.tag is not None and not self._target.tagged:
            seq = catalog.set_ref(
                head.model,
                "tag",
                self._options.tag,
                head.id,
                expected=None,
                heads=self._context.fleet.heads(),
                now=clock.now(),
            )
        return seq

    def _heal_kept(self, assembled: AssembledVersion, result: ReadResult) -> None:
        """Give parts that are kept from the base the copies they owe, from a good copy."""
        read = {fact.digest for fact in result.parts.values()}
        kept = [ObjectKey(ObjectKind.PART, fact.digest) for fact in assembled.parts if fact.digest not in read]
        self._heal(kept, self._target.copies)

    def _heal_unchanged(self, assembled: AssembledVersion, result: ReadResult, head: VersionFacts) -> None:
        """Give all objects of the head the copies they owe: no commit will ask for what a device lost meanwhile."""
        written = [ObjectKey(ObjectKind.PART, fact.digest) for fact in result.parts.values()]
        for _ in range(_COMMIT_ROUNDS):
            self._heal_kept(assembled, result)
            self._heal_head(head)
            if not self._writer.settle():
                return
            self._heal(written, self._target.copies)
        raise NotEnoughCopies(
            f"copies of {self._target.model.name} were lost again and again while they were written: push again"
        )

    def _heal_head(self, head: VersionFacts) -> None:
        """Give the objects that describe the head the copies they owe."""
        self._heal(version_keys(head), self._target.metadata_copies)

    def _soft(self) -> list[str]:
        """Return the devices whose copies the commit will not count."""
        soft = [facts.id for facts in self._target.devices if facts.durability == "soft"]
        return [] if self._options.allow_soft else soft

    def _heal(self, keys: Sequence[ObjectKey], copies: int) -> None:
        """Copy objects, all of them parts or none, that have fewer reachable good copies than they owe, each from a good one, verified.

        An object owes ``copies`` or what another version asks of it, the highest. All are placed together, also those that
        lack nothing, so that a new device gets its share.
        """
        found = self._context.catalog.locate(keys)
        devices = self._active_devices()
        counted = {facts.id for facts in devices} - {*self._target.down, *self._soft()}
        owed = self._context.catalog.copies_owed(keys)
        good = {
            key: [row for row in found.get(key, []) if row.state in USABLE and row.device in counted] for key in keys
        }
        have = {key: count_copies(rows) for key, rows in good.items()}
        if all(have[key] >= max(copies, owed.get(key, 0)) for key in keys):
            return
        shares = device_shares(self._context, devices, allow_soft=self._options.allow_soft)
        codes = {key: self._code(key, good[key] or found.get(key, [])) for key in keys}
        policy = self._target.policy if keys[0].kind is ObjectKind.PART else Replicas(copies)
        placed = place_parts(
            [held_part(good[key], _size(good[key]), codes[key]) for key in keys], shares, policy=policy, short=True
        )
        for key, candidates in zip(keys, placed, strict=True):
            if have[key] < max(copies, min(owed.get(key, 0), len(shares))):
                data = read_object(self._context, key)
                new = NewObject(key, data, len(data), copies, candidates, model=self._target.model.id, code=codes[key])
                self._writer.write([new])

    def _active_devices(self) -> list[DeviceFacts]:
        """Return those of the push's devices that are active by now: one may drain, or be lost, since it began."""
        active = {facts.id for facts in self._context.catalog.list_devices() if facts.state == "active"}
        return [facts for facts in self._target.devices if facts.id in active]

    def _metadata_copies(self) -> int:
        """Return what manifest, checks and version record owe, by the devices that are left."""
        left = len(counted_devices(self._active_devices()))
        return min(self._target.metadata_copies, metadata_copies(self._target.policy, left))

    def _code(self, key: ObjectKey, rows: Sequence[Location]) -> ErasureCoded | None:
        """Return how an object that is known by these rows is cut; only parts are."""
        is_part = key.kind is ObjectKind.PART and rows
        return code_of(self._target.policy, rows[0].size_bytes) if is_part else None

    def _make_record(self, assembled: AssembledVersion) -> tuple[VersionFacts, bytes]:
        target, options = self._target, self._options
        now = format_time(self._context.runtime.clock.now())
        record = VersionRecord(
            model=target.model.id,
            parent=target.head.id if target.head else None,
            manifest=assembled.manifest_digest.hex(),
            message=options.message,
            author=options.author if options.author is not None else self._context.user,
            created_at=now,
            total_bytes=assembled.manifest.total_bytes,
        )
        version_id, data = encode_version(record)
        facts = VersionFacts(
            id=version_id,
            model=record.model,
            parent=record.parent,
            manifest=record.manifest,
            checks=assembled.checks_digest.hex(),
            message=record.message,
            author=record.author,
            created_at=now,
            total_bytes=record.total_bytes,
            policy=str(target.policy),
        )
        return facts, data

    def _commit(
        self, assembled: AssembledVersion, result: ReadResult, version: VersionFacts, record: bytes
    ) -> Committed:
        failpoints = self._context.runtime.failpoints
        metadata = {
            ObjectKey(ObjectKind.MANIFEST, assembled.manifest_digest): assembled.manifest_body,
            ObjectKey(ObjectKind.CHECKS, assembled.checks_digest): assembled.checks_body,
            ObjectKey(ObjectKind.VERSION, bytes.fromhex(version.id)): record,
        }
        failpoints.hit("push.metadata_staged")
        self._write_metadata(metadata)
        failpoints.hit("push.metadata_written")
        for _ in range(_COMMIT_ROUNDS):
            self._writer.settle()
            request = self._commit_request(assembled, version)
            failpoints.hit("push.before_commit")
            answer = self._context.catalog.commit(request)
            if isinstance(answer, Committed):
                return answer
            self._write_again(answer, metadata, result)
        raise Conflict(f"parts of {self._target.model.name} were collected again and again meanwhile: push again")

    def _commit_request(self, assembled: AssembledVersion, version: VersionFacts) -> CommitRequest:
        target, options = self._target, self._options
        degraded = options.allow_degraded and bool(target.down or self._writer.tally.warnings)
        return CommitRequest(
            session=self._session,
            model=target.model,
            version=version,
            parts=part_digests(assembled.parts),
            manifest_body=assembled.manifest_body,
            branch=options.branch,
            expected_head=target.head.id if target.head else None,
            tag=options.tag,
            copies=1 if degraded else target.copies,
            metadata_copies=1 if degraded else self._metadata_copies(),
            allow_soft=options.allow_soft,
            model_policy=target.model_policy,
            heads=self._context.fleet.heads(),
            now=self._context.runtime.clock.now(),
        )

    def _write_metadata(self, bodies: Mapping[ObjectKey, bytes]) -> None:
        self._writer.write(
            [
                NewObject(
                    key, body, len(body), self._target.metadata_copies, self._any_device, model=self._target.model.id
                )
                for key, body in bodies.items()
            ]
        )

    def _write_again(self, answer: Needed, metadata: Mapping[ObjectKey, bytes], result: ReadResult) -> None:
        """Write objects again that gc condemned, or whose copies were found bad, since they were staged."""
        self._write_metadata({key: metadata[key] for key in answer.keys if key in metadata})
        planned = {fact.digest: index for index, fact in result.parts.items()}
        for key in answer.keys:
            if key.kind is not ObjectKind.PART:
                continue
            index = planned.get(key.digest)
            if index is None:
                self._heal([key], self._target.copies)
                continue
            part = self._plan.split.parts[index]
            assert isinstance(part, PlannedPart)
            data = gather_part(self._plan, part)
            hashed = hash_part(data)
            if hashed.digest != key.digest:
                raise InvalidInput("a source changed while it was pushed: nothing was committed, push again")
            self._write_parts([ReadPart(index, PartFact(key.digest, len(data), hashed.checks), data)])


def _size(rows: Sequence[Location]) -> int:
    return max((row.size_bytes for row in rows), default=0)
