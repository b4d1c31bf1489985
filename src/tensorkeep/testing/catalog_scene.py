"""A small made-up store around a catalog, for tests of catalogs: devices, parts and pushes in one line each. No bytes exist."""

from collections.abc import Sequence

from tensorkeep.catalog.protocol import (
    Catalog,
    CommitRequest,
    Committed,
    DeviceHead,
    Needed,
    ObjectKey,
    ObjectRequest,
    Staging,
)
from tensorkeep.catalog.rules import version_keys
from tensorkeep.records.device import DeviceFacts, Durability, counted_devices
from tensorkeep.records.digest import blake3_160, blake3_256
from tensorkeep.records.history import ModelFacts, VersionFacts
from tensorkeep.records.json_text import format_time
from tensorkeep.records.naming import ObjectKind
from tensorkeep.records.redundancy import ErasureCoded, metadata_copies, parse_policy
from tensorkeep.records.ulid import RANDOM_BYTES, make_ulid
from tensorkeep.runtime import InlineWorkers, ManualClock, Runtime, SeededRandomness

PART_BYTES = 1000


def seeded_runtime(seed: int = 0) -> Runtime:
    """Return a runtime whose clock stands still and whose ulids repeat from run to run."""
    return Runtime(clock=ManualClock(), randomness=SeededRandomness(seed), workers=InlineWorkers())


def part_key(number: int) -> ObjectKey:
    """Return the key of a made-up part."""
    return ObjectKey(ObjectKind.PART, blake3_256(b"part %d" % number))


class Scene:
    """A catalog and what a test does with it. ``clock`` moves only when told."""

    def __init__(self, catalog: Catalog, runtime: Runtime) -> None:
        self.catalog = catalog
        self.runtime = runtime
        assert isinstance(runtime.clock, ManualClock)
        self.clock = runtime.clock

    def ulid(self) -> str:
        """Return a fresh ulid."""
        return make_ulid(self.clock.now(), self.runtime.randomness.random_bytes(RANDOM_BYTES))

    def add_device(self, name: str, *, zone: str | None = None, durability: Durability = "durable") -> DeviceFacts:
        """Add a device and return it."""
        facts = DeviceFacts(id=self.ulid(), name=name, url=f"file:///{name}", zone=zone or name, durability=durability)
        self.catalog.change_device(None, facts, heads=(), now=self.clock.now())
        return facts

    def lose_device(self, facts: DeviceFacts) -> DeviceFacts:
        """Mark a device lost and return it."""
        lost = DeviceFacts(
            id=facts.id, name=facts.name, url=facts.url, zone=facts.zone, durability=facts.durability, state="lost"
        )
        self.catalog.change_device(facts, lost, heads=(), now=self.clock.now())
        return lost

    def begin(self) -> str:
        """Open a push session and return its id."""
        session = self.ulid()
        self.catalog.begin_push(session, now=self.clock.now())
        return session

    def request(
        self,
        key: ObjectKey,
        *,
        copies: int = 1,
        model: str | None = None,
        candidates: Sequence[str] | None = None,
        size_bytes: int = PART_BYTES,
        code: ErasureCoded | None = None,
        anew: bool = False,
    ) -> ObjectRequest:
        """Return a request for an object, by default on any active device in order of being added."""
        if candidates is None:
            candidates = [facts.id for facts in self.catalog.list_devices() if facts.state == "active"]
        return ObjectRequest(
            key=key,
            size_bytes=size_bytes,
            copies=copies,
            candidates=tuple(candidates),
            ulid=self.ulid(),
            model=model,
            code=code,
            anew=anew,
        )

    def stage(
        self,
        session: str,
        keys: Sequence[ObjectKey],
        *,
        copies: int = 1,
        model: str | None = None,
        candidates: Sequence[str] | None = None,
        allow_soft: bool = False,
    ) -> list[Staging]:
        """Stage objects."""
        requests = [self.request(key, copies=copies, model=model, candidates=candidates) for key in keys]
        return self.catalog.stage(session, requests, allow_soft=allow_soft)

    def store(
        self,
        session: str,
        keys: Sequence[ObjectKey],
        *,
        copies: int = 1,
        model: str | None = None,
        candidates: Sequence[str] | None = None,
        allow_soft: bool = False,
    ) -> list[Staging]:
        """Stage objects and say that what was staged is stored."""
        answers = self.stage(session, keys, copies=copies, model=model, candidates=candidates, allow_soft=allow_soft)
        self.catalog.record_stored(session, [row.id for answer in answers for row in answer.staged])
        return answers

    def model(self, name: str = "acme/llama") -> ModelFacts:
        """Return a model's facts for a first push."""
        return ModelFacts(id=self.ulid(), name=name, policy=None, created_at=format_time(self.clock.now()))

    def version(
        self, model: ModelFacts, *, parent: str | None = None, policy: str = "replicas=1", label: str = ""
    ) -> VersionFacts:
        """Return the facts of a version; an equal label gives an equal id."""
        seed = (label or self.ulid()).encode()
        return VersionFacts(
            id=blake3_160(seed).hex(),
            model=model.id,
            parent=parent,
            manifest=blake3_256(self.manifest_body(seed)).hex(),
            checks=blake3_256(b"checks " + seed).hex(),
            message=f"message of {label}",
            author="somebody",
            created_at=format_time(self.clock.now()),
            total_bytes=PART_BYTES,
            policy=policy,
        )

    def manifest_body(self, seed: bytes) -> bytes:
        """Return the body of a version's manifest."""
        return b"manifest " + seed

    def commit_request(
        self,
        session: str,
        model: ModelFacts,
        version: VersionFacts,
        parts: Sequence[ObjectKey],
        *,
        branch: str = "main",
        expected_head: str | None = None,
        tag: str | None = None,
        allow_soft: bool = False,
        model_policy: str | None = None,
        heads: tuple[DeviceHead, ...] = (),
        manifest_body: bytes | None = None,
    ) -> CommitRequest:
        """Return a commit's request; what its objects owe follows the version's policy."""
        policy = parse_policy(version.policy)
        counted = len(counted_devices(self.catalog.list_devices()))
        return CommitRequest(
            session=session,
            model=model,
            version=version,
            parts=b"".join(key.digest for key in parts),
            manifest_body=manifest_body,
            branch=branch,
            expected_head=expected_head,
            tag=tag,
            copies=policy.losses + 1,
            metadata_copies=metadata_copies(policy, counted),
            allow_soft=allow_soft,
            model_policy=model_policy,
            heads=heads,
            now=self.clock.now(),
        )

    def prepare(
        self,
        model: ModelFacts,
        version: VersionFacts,
        parts: Sequence[ObjectKey],
        *,
        session: str | None = None,
        allow_soft: bool = False,
    ) -> str:
        """Store everything that a version needs and return the session."""
        session = session or self.begin()
        policy = parse_policy(version.policy)
        counted = len(counted_devices(self.catalog.list_devices()))
        self.store(session, list(dict.fromkeys(parts)), copies=policy.losses + 1, allow_soft=allow_soft)
        self.store(
            session,
            version_keys(version),
            copies=metadata_copies(policy, counted),
            model=model.id,
            allow_soft=allow_soft,
        )
        return session

    def push(
        self,
        model: ModelFacts,
        parts: Sequence[ObjectKey],
        *,
        expected_head: str | None = None,
        branch: str = "main",
        tag: str | None = None,
        policy: str = "replicas=1",
        label: str = "",
    ) -> VersionFacts:
        """Push a version from beginning to end and return it."""
        version = self.version(model, parent=expected_head, policy=policy, label=label)
        session = self.prepare(model, version, parts)
        request = self.commit_request(
            session, model, version, parts, branch=branch, expected_head=expected_head, tag=tag
        )
        answer = self.catalog.commit(request)
        assert isinstance(answer, Committed), answer
        self.catalog.end_push(session)
        return version

    def commit(self, request: CommitRequest) -> Committed:
        """Commit and return the answer, which must not be `Needed`."""
        answer = self.catalog.commit(request)
        assert isinstance(answer, Committed), answer
        return answer

    def needs(self, request: CommitRequest) -> tuple[ObjectKey, ...]:
        """Commit and return what is needed, which must not be nothing."""
        answer = self.catalog.commit(request)
        assert isinstance(answer, Needed), answer
        return answer.keys

    def collect(self, *, grace_s: float = 0) -> int:
        """Collect garbage from beginning to end and return how many rows were dropped."""
        now = self.clock.now()
        self.catalog.condemn(grace_s=grace_s, dry_run=False, heads=(), now=now)
        rows = self.catalog.list_condemned(grace_s=grace_s, now=now, after=0, limit=10_000)
        self.catalog.drop([row.id for row in rows])
        return len(rows)

    def head_of(self, device: str) -> DeviceHead:
        """Return what a device says that holds the whole journal of the catalog as it is now."""
        info = self.catalog.info()
        return DeviceHead(device=device, epoch=info.epoch, entry_epoch=info.epoch, seq=info.last_seq, digest=info.head)
