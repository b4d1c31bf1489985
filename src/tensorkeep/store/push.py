"""Push: scan, plan, read and hash, write what is missing, commit, put the journal entry on the devices, return.

Killed anywhere, nothing that was stored is lost: parts lie on devices as staged or stored rows, the version exists only when
the commit's transaction is done, and running the push again sends only what is missing.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tensorkeep.catalog.protocol import CommitRequest, Committed, Location, Needed, ObjectKey
from tensorkeep.errors import AlreadyExists, Conflict, Integrity, InvalidInput, NotEnoughCopies, Unavailable
from tensorkeep.planning.choosing import check_split
from tensorkeep.planning.placement import DeviceShare, PartToPlace, check_policy, place_parts
from tensorkeep.planning.splitting import PlannedPart
from tensorkeep.records.device import DeviceFacts, counted_devices
from tensorkeep.records.history import ModelFacts, VersionFacts
from tensorkeep.records.json_text import format_time
from tensorkeep.records.names import ModelName, check_ref_name, parse_model_name, parse_revision
from tensorkeep.records.naming import ObjectKind
from tensorkeep.records.redundancy import ErasureCoded, Policy, Replicas, metadata_copies, parse_policy
from tensorkeep.records.version import VersionRecord, encode_version
from tensorkeep.store.context import StoreContext
from tensorkeep.store.fleet import Member
from tensorkeep.store.journal import flush_journal, new_ulid, refuse_stale
from tensorkeep.store.object_writer import NewObject, ObjectWriter
from tensorkeep.store.progress import ByteProgress
from tensorkeep.store.push_manifest import AssembledVersion, assemble_version, part_digests, same_files
from tensorkeep.store.push_plan import Base, PushPlan, plan_push
from tensorkeep.store.push_read import PartFact, ReadPart, ReadResult, gather_part, read_sources
from tensorkeep.store.reports import ProgressCallback, PushReport, Version
from tensorkeep.store.revisions import describe_version, get_version
from tensorkeep.store.sources import open_sources
from tensorkeep.store.stat_cache import StatCache
from tensorkeep.store.structure import open_checks, open_manifest, read_object
from tensorkeep.transfer.hashing import hash_part

_COMMIT_ROUNDS = 5
_WRITERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class PushOptions:
    """What the caller of a push may choose; names as on the command line."""

    branch: str = "main"
    tag: str | None = None
    message: str = ""
    author: str | None = None
    split: str = "auto"
    part_size: int | None = None
    policy: Policy | None = None
    base: str | None = None
    allow_soft: bool = False
    allow_degraded: bool = False
    rehash: bool = False


@dataclass(frozen=True, slots=True)
class _Target:
    """What a push goes to: the model (made by the commit where it is new), the branch's head, the policy."""

    model: ModelFacts
    head: VersionFacts | None
    policy: Policy
    model_policy: str | None
    devices: tuple[DeviceFacts, ...]
    down: tuple[str, ...]

    @property
    def copies(self) -> int:
        return self.policy.slots

    @property
    def metadata_copies(self) -> int:
        return metadata_copies(self.policy, len(counted_devices(self.devices)))


def push(
    context: StoreContext,
    source: str | os.PathLike[str] | Mapping[str, Any],
    model: str,
    options: PushOptions,
    progress: ProgressCallback | None,
) -> Version:
    """Store a source as a new version of a model and return the version; see `Store.push`."""
    started_s = context.runtime.clock.monotonic_s()
    failpoints = context.runtime.failpoints
    check_split(options.split, options.part_size)
    epoch = context.catalog.info().epoch
    scanned_at = context.runtime.clock.now()
    sources = open_sources(source)
    target = _find_target(context, parse_model_name(model), options)
    refuse_stale(context)
    base = _open_base(context, target, options)
    cache = StatCache(context.cache_folder)
    failpoints.hit("push.scanned")
    plan = plan_push(
        context,
        sources,
        requested=options.split,
        part_size=options.part_size,
        base=base,
        device_count=len(target.devices),
        cache=None if options.rehash else cache,
    )
    failpoints.hit("push.planned")
    session = new_ulid(context.runtime)
    context.catalog.begin_push(session, now=context.runtime.clock.now())
    failpoints.hit("push.session_begun")
    try:
        with (
            context.runtime.workers.open_pool(_WRITERS, "write") as pool,
            context.runtime.workers.open_pool(_WRITERS, "batch") as batches,
        ):
            writer = ObjectWriter(
                context,
                session,
                pool,
                down=target.down,
                allow_soft=options.allow_soft,
                allow_degraded=options.allow_degraded,
            )
            work = _Push(
                context, session, target, options, plan, base, writer, ByteProgress(progress, "push", plan.total_bytes)
            )
            work.progress.count(sum(file.size_bytes for file in plan.kept.values()))  # known, so not read again
            result = read_sources(
                plan, work.store_batch, workers=context.runtime.workers, pool=batches, count=work.progress.count
            )
            assembled = assemble_version(plan, result, base)
            version, created, seq = work.conclude(assembled, result)
    finally:
        context.catalog.end_push(session)
    flush_journal(
        context.catalog,
        context.fleet,
        # Also where nothing was committed: the head may be of a push that was killed before its entry was on the devices.
        seq or context.catalog.info().last_seq,
        epoch=epoch,
        runtime=context.runtime,
        policy=str(target.policy),
        need=1 if options.allow_degraded and target.down else None,
    )
    failpoints.hit("push.done")
    sha256s = {file.path: file.sha256 for file in assembled.manifest.files}
    cache.remember(((s, sha256s[s.path]) for s in sources), scanned_at=scanned_at)
    report = PushReport(
        created=created,
        files=len(sources),
        bytes=plan.total_bytes,
        parts=len(assembled.parts),
        new_parts=sum(key.kind is ObjectKind.PART for key in writer.tally.new_keys),
        new_bytes=writer.tally.new_bytes,
        written_bytes=writer.tally.written_bytes,
        device_bytes=writer.tally.device_bytes,
        method=plan.choice.method,
        part_size=plan.choice.part_size,
        why=plan.choice.why,
        seconds=context.runtime.clock.monotonic_s() - started_s,
        warnings=tuple(writer.tally.warnings),
    )
    return describe_version(context, target.model, version, report=report)


class _Push:
    """One push under way: stores batches of parts, then the objects that describe them, then commits."""

    def __init__(
        self,
        context: StoreContext,
        session: str,
        target: _Target,
        options: PushOptions,
        plan: PushPlan,
        base: Base | None,
        writer: ObjectWriter,
        progress: ByteProgress,
    ) -> None:
        self._context = context
        self._session = session
        self._target = target
        self._options = options
        self._plan = plan
        self._base = base
        self._writer = writer
        self.progress = progress
        self._candidates = _place(context, plan, target)
        self._any_device = tuple(facts.id for facts in target.devices)

    def store_batch(self, batch: Sequence[ReadPart]) -> None:
        """Store parts that were just read, where they are missing."""
        self._writer.write(
            [
                NewObject(
                    ObjectKey(ObjectKind.PART, part.fact.digest),
                    part.data,
                    part.fact.size_bytes,
                    self._target.copies,
                    self._candidates[part.index],
                )
                for part in batch
            ]
        )

    def conclude(self, assembled: AssembledVersion, result: ReadResult) -> tuple[VersionFacts, bool, int]:
        """Return the version, whether it is new, and the journal entry that must reach the devices (0: none)."""
        self._heal_kept(assembled, result)
        head = self._target.head
        if head is not None and self._base is not None and self._is_head(assembled):
            self._heal_head(head)
            return head, False, self._tag_head(head)
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
        if self._options.tag is not None:
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

    def _heal_head(self, head: VersionFacts) -> None:
        """Give the objects that describe the head the copies they owe."""
        keys = (
            ObjectKey(ObjectKind.MANIFEST, bytes.fromhex(head.manifest)),
            ObjectKey(ObjectKind.CHECKS, bytes.fromhex(head.checks)),
            ObjectKey(ObjectKind.VERSION, bytes.fromhex(head.id)),
        )
        self._heal(keys, self._target.metadata_copies)

    def _soft(self) -> list[str]:
        """Return the devices whose copies the commit will not count."""
        soft = [facts.id for facts in self._target.devices if facts.durability == "soft"]
        return [] if self._options.allow_soft else soft

    def _heal(self, keys: Sequence[ObjectKey], copies: int) -> None:
        """Copy objects that have fewer reachable good copies than they owe, each from a good one, verified.

        All are placed together, also those that lack nothing, so that a new device gets its share.
        """
        found = self._context.catalog.locate(keys)
        uncounted = {*self._target.down, *self._soft()}
        objects = [_held_part(found.get(key, []), uncounted) for key in keys]
        if all(len(held.holders) >= copies for held in objects):
            return
        shares = _shares(self._context, self._target)
        placed = place_parts(objects, shares, copies=min(copies, len(shares)))
        for key, held, candidates in zip(keys, objects, placed, strict=True):
            if len(held.holders) < copies:
                data = read_object(self._context, key)
                self._writer.write([NewObject(key, data, len(data), copies, candidates, model=self._target.model.id)])

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
            metadata_copies=1 if degraded else target.metadata_copies,
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
            self.store_batch([ReadPart(index, PartFact(key.digest, len(data), hashed.checks), data)])


def _find_target(context: StoreContext, name: ModelName, options: PushOptions) -> _Target:
    check_ref_name(options.branch, kind="branch")
    found = context.catalog.find_model(name)
    head = None
    if options.tag is not None:
        check_ref_name(options.tag, kind="tag")
    if found is not None:
        refs = context.catalog.list_refs(found.id)
        if any(ref.kind == "tag" and ref.name == options.tag for ref in refs):
            raise AlreadyExists(f"tag {options.tag!r} of {found.name} exists: choose another", tag=options.tag)
        branch = next((ref for ref in refs if ref.kind == "branch" and ref.name == options.branch), None)
        head = context.catalog.get_version(found.id, branch.version) if branch else None
    policy = options.policy
    if policy is None:
        policy = parse_policy(found.policy if found is not None and found.policy else context.catalog.info().policy)
    context.fleet.recheck()
    members = context.fleet.members()
    down = tuple(member.facts.id for member in members if not member.writable)
    _check_devices(members, policy, options)
    model = found or ModelFacts(
        id=new_ulid(context.runtime),
        name=str(name),
        policy=str(options.policy) if options.policy else None,
        created_at=format_time(context.runtime.clock.now()),
    )
    return _Target(
        model=model,
        head=head,
        policy=policy,
        model_policy=str(options.policy) if options.policy else None,
        devices=tuple(member.facts for member in members),
        down=down,
    )


def _check_devices(members: Sequence[Member], policy: Policy, options: PushOptions) -> None:
    if isinstance(policy, ErasureCoded):
        raise InvalidInput(f"{policy}: this version writes whole copies only; use --replicas {policy.losses + 1}")
    counted = [m for m in members if m.facts.durability == "durable" or options.allow_soft]
    if not counted and members:
        names = ", ".join(m.facts.name for m in members)
        raise InvalidInput(
            f"no device is durable ({names}: soft, such as tmpfs or memory): add a durable one, or push with --allow-soft"
        )
    check_policy(policy, [DeviceShare(m.facts.id, m.facts.zone, 1.0, None) for m in counted])
    unreachable = [m for m in members if not m.writable]
    if unreachable and not options.allow_degraded:
        raise Unavailable(
            "; ".join(str(m.problem) for m in unreachable)
            + " (bring it back, mark it with `tensorkeep device lost`, or push with --allow-degraded)",
            devices=[m.facts.name for m in unreachable],
        )
    if len(unreachable) == len(members):
        raise NotEnoughCopies("no device can be written: " + "; ".join(str(m.problem) for m in members))


def _open_base(context: StoreContext, target: _Target, options: PushOptions) -> Base | None:
    version = target.head
    if options.base is not None:
        version = get_version(context, parse_revision(options.base))[1]
    if version is None:
        return None
    try:
        manifest = open_manifest(context, version)
        return Base(manifest, open_checks(context, version, manifest))
    except (NotEnoughCopies, Integrity):
        # The parent's structure is on devices that are gone, or damaged: the push stores everything anew, which heals it.
        return None


def _place(context: StoreContext, plan: PushPlan, target: _Target) -> dict[int, tuple[str, ...]]:
    """Return for each planned part the devices that should take it, best first."""
    shares = _shares(context, target)
    numbers = [index for index, part in enumerate(plan.split.parts) if isinstance(part, PlannedPart)]
    parts = [plan.split.parts[index] for index in numbers]
    wanted = [PartToPlace(part.size_bytes, part.layer) for part in parts if isinstance(part, PlannedPart)]
    placed = place_parts(wanted, shares, copies=min(target.copies, len(shares)))
    return dict(zip(numbers, placed, strict=True))


def _held_part(locations: Sequence[Location], uncounted: Collection[str]) -> PartToPlace:
    """Return an object with the devices that keep a good copy of it, can be reached, and count."""
    good = {location.device for location in locations if location.state in ("live", "stored")}
    size = max((location.length for location in locations), default=0)
    return PartToPlace(size, None, frozenset(good.difference(uncounted)))


def _shares(context: StoreContext, target: _Target) -> list[DeviceShare]:
    """Return the devices that can be written now, with their bandwidth and room."""
    usage = {row.device: row.bytes for row in context.catalog.device_usage()}
    writable = context.fleet.writable()
    shares = []
    for facts in target.devices:
        if facts.id not in writable:
            continue
        free = writable[facts.id].free_bytes()
        if facts.capacity is not None:
            room = max(0, facts.capacity - usage.get(facts.id, 0))
            free = room if free is None else min(room, free)
        weight = float(min(facts.bandwidth or 1, facts.rate_limit or 1 << 62))
        shares.append(DeviceShare(facts.id, facts.zone, weight, free))
    return shares


def make_policy(replicas: int | None, erasure: str | None) -> Policy | None:
    """Return the policy that ``--replicas`` or ``--ec`` asks for, None where neither does.

    Raises:
        InvalidInput: both are given, or one makes no sense.
    """
    if replicas is not None and erasure is not None:
        raise InvalidInput("give --replicas or --ec, not both")
    if erasure is not None:
        return parse_policy(f"ec={erasure}")
    if replicas is None:
        return None
    if replicas < 1:
        raise InvalidInput(f"{replicas} copies keep nothing: ask for at least 1", replicas=replicas)
    return Replicas(replicas)
