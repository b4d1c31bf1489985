"""The contract of the catalog: what exists and where, in whole transactions over batches.

Three implementations share it and one contract suite: SQL, the in-memory reference, and (later) the HTTP client of the
central server. Each method is one transaction: all of it happens or nothing, and it could be one request.

Rules that every implementation keeps:

- **Durable before referenced.** A version commits only when each of its objects has the copies it owes, in state live or
  stored, on active devices (durable ones unless ``allow_soft``), each on another device; else the answer is `Needed`.
- **The locking rule.** A transaction that references, condemns or counts copies first locks the rows of the parts
  concerned, in id order, and decides in a later statement. (Staging answers what has all its copies without locks: the
  commit counts them again.)
- **Nothing is un-condemned.** A condemned row is never offered, never counted, and is dropped only when its absence on the
  device was confirmed.
- **The journal is the commit.** Whatever changes a version, a name, a policy or a device appends its entry in the same
  transaction; seq is given there.
- **A stale catalog stands still.** Methods that take ``heads`` first compare them with the catalog's epoch and last
  seq, inside the transaction, and raise `Conflict` (``reason="stale_catalog"``) when a device is ahead or tells another
  history.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, Protocol

import msgspec

from tensorkeep.records.device import DeviceFacts
from tensorkeep.records.history import ModelFacts, RefFacts, RefKind, StoreState, VersionFacts
from tensorkeep.records.names import ModelName
from tensorkeep.records.naming import ObjectKind
from tensorkeep.records.redundancy import ErasureCoded

LocationState = Literal["staged", "stored", "live", "bad", "condemned"]
"""staged: the upload may be under way; stored: it is durable; live: a version refers to it; bad: found damaged or missing;
condemned: will be deleted."""


class CatalogInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The store as a whole: ``head`` is the digest of the last journal entry in hex, ``policy`` the store's default."""

    store: str
    epoch: int
    last_seq: int
    head: str | None
    policy: str


class DeviceHead(msgspec.Struct, frozen=True, kw_only=True):
    """What a reachable device says of itself: its identity's epoch, and the newest entry of its journal, if any.

    ``entry_epoch``, ``seq`` and ``digest`` (hex) are of the entry with the greatest (epoch, seq).
    """

    device: str
    epoch: int
    entry_epoch: int = 0
    seq: int = 0
    digest: str | None = None


class ObjectKey(msgspec.Struct, frozen=True, order=True, gc=False):
    """An object's name apart from any device: its kind and digest (20 bytes for versions, else 32)."""

    kind: ObjectKind
    digest: bytes


class ObjectRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One object that a push needs: how many copies, and where new ones should go, in order of preference.

    ``ulid`` is the upload's: it ends the physical name of every copy staged by this request. ``model`` (a ulid) is for version records.
    ``code``: what is lacking is to be kept as fragments of it, fragment i on candidate i, else on one of those after them.
    ``anew``: the object changes its form. Copies that are not fragments of ``code`` (None: not whole) don't count, are not in the way,
    and ``copies`` alone says how many are owed.
    """

    key: ObjectKey
    size_bytes: int
    copies: int
    candidates: tuple[str, ...]
    ulid: str
    model: str | None = None
    code: ErasureCoded | None = None
    anew: bool = False


class Location(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The catalog's row for bytes of an object on a device.

    ``form`` is ``raw``, a codec's name or ``ec-k-m``; ``offset`` and ``length`` say which bytes of the physical object.
    ``size_bytes`` is the object's own size. ``fragment`` is the number of a fragment, and ``needed`` how many of its form give
    the object; a whole copy has None and 1.
    """

    id: int
    key: ObjectKey
    size_bytes: int
    device: str
    name: str
    form: str = "raw"
    offset: int = 0
    length: int
    state: LocationState
    fragment: int | None = None
    needed: int = 1


class Staging(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The answer to one `ObjectRequest`: usable copies that exist, and new rows whose upload may start now.

    ``missing`` is how many copies (as `counting.count_copies` counts them) found no device; the caller decides whether that is an
    error.
    """

    existing: tuple[Location, ...]
    staged: tuple[Location, ...]
    missing: int = 0


class CommitRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that makes a version exist.

    ``session`` is also the idempotency token. ``parts`` are the digests of all parts, 32 bytes each, in manifest order
    (repeats allowed). ``copies`` is what each part owes, ``metadata_copies`` what manifest, checks and version record owe.
    ``expected_head`` is the branch's present version id, None where the branch must not exist yet.
    ``model_policy``: set the model's own policy to this text; None leaves it.
    """

    session: str
    model: ModelFacts
    version: VersionFacts
    parts: bytes
    manifest_body: bytes | None
    branch: str
    expected_head: str | None
    tag: str | None = None
    copies: int
    metadata_copies: int
    allow_soft: bool = False
    model_policy: str | None = None
    heads: tuple[DeviceHead, ...]
    now: datetime


class Committed(msgspec.Struct, frozen=True, kw_only=True):
    """The version exists; its journal entry has this seq."""

    version: VersionFacts
    seq: int


class Needed(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing happened: these objects have not the copies they owe. Stage and write them again, then commit again."""

    keys: tuple[ObjectKey, ...]


class JournalRow(msgspec.Struct, frozen=True, kw_only=True):
    """An entry as the outbox keeps it: ``digest`` is hex, ``body`` the exact bytes for the devices."""

    epoch: int
    seq: int
    digest: str
    body: bytes


class GcSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What a condemnation did or, in a dry run, would do."""

    locations: int
    bytes: int
    condemned_before: int


class Expiry(msgspec.Struct, frozen=True, kw_only=True):
    """Versions that retentions let go, by model and newest first, and the journal's entry that says so (the last one, if none goes)."""

    versions: tuple[VersionFacts, ...]
    seq: int


class ShortObject(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An object that versions refer to and that has fewer copies than they ask: ``have`` of ``owed``. ``id`` is for paging."""

    id: int
    key: ObjectKey
    size_bytes: int
    have: int
    owed: int


ScrubDepth = Literal["light", "deep"]
"""light: every object is there and has its size; deep: every byte is read and compared with its digest."""


class ScrubState(msgspec.Struct, frozen=True, kw_only=True):
    """How far a scrub of a device is: ``after`` 0 where none is under way, else where the next page begins.

    ``begun_at`` and the counts are of the pass that is under way, or of the last one; ``ended_at`` is when the last one that was
    completed ended.
    """

    device: str
    depth: ScrubDepth
    after: int = 0
    begun_at: str | None = None
    ended_at: str | None = None
    objects: int = 0
    bytes: int = 0
    bad: int = 0


class Orphan(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An object on a device that no row tells of: a put that landed after its row was dropped. ``id`` is for paging."""

    id: int
    device: str
    name: str
    size_bytes: int


class DeviceUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Rows and bytes of all locations on a device that are not condemned; ``bad_*`` those of them in state bad."""

    device: str
    locations: int
    bytes: int
    bad_locations: int
    bad_bytes: int


class VersionUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of a version's parts, each counted once: all, and those that no other version refers to."""

    version: str
    part_count: int
    part_bytes: int
    exclusive_bytes: int


class CatalogImage(msgspec.Struct, kw_only=True):
    """A whole catalog, for rebuilding one from devices.

    ``entries`` is the journal tail to keep (oldest first; all entries known to be on devices), ``flushed`` the last seq known to be on each device. ``objects[v]`` are the objects that version v (by id) refers to, metadata included;
    ``manifests`` bodies by hex digest. Location ids in it are ignored.
    """

    store: str
    epoch: int
    state: StoreState
    entries: list[JournalRow]
    flushed: dict[str, int]
    objects: dict[str, list[tuple[ObjectKey, int]]]
    locations: list[Location]
    manifests: dict[str, bytes]


class Catalog(Protocol):
    """What exists and where. Thread safe; every method is one transaction."""

    def close(self) -> None:
        """Give back connections."""

    def info(self) -> CatalogInfo:
        """Return the store's identity and the journal's head."""

    def check(self) -> list[str]:
        """Return what is wrong with the database itself (damage, broken chain of the journal); nothing where all is well."""

    # devices

    def list_devices(self) -> list[DeviceFacts]:
        """Return all devices, in order of being added."""

    def change_device(
        self, old: DeviceFacts | None, new: DeviceFacts, *, heads: Sequence[DeviceHead], now: datetime
    ) -> int:
        """Add a device (old None) or change one; return the journal's seq.

        Raises:
            AlreadyExists: its name or URL is another device's.
            Conflict: it is not ``old`` any more, or should be removed and still holds rows (``reason="filled_device"``).
            InvalidInput: it should drain, and the other devices are too few for a policy in use.
        """

    def device_usage(self) -> list[DeviceUsage]:
        """Return what each device holds, by the catalog."""

    # names

    def list_models(self) -> list[ModelFacts]:
        """Return all models by name."""

    def find_model(self, name: ModelName) -> ModelFacts | None:
        """Return the model of that name, without regard to case, or None."""

    def list_refs(self, model: str) -> list[RefFacts]:
        """Return a model's (ulid) branches and tags, by kind and name."""

    def list_versions(self, model: str) -> list[VersionFacts]:
        """Return a model's (ulid) versions, newest commit first."""

    def get_version(self, model: str, revision: str) -> VersionFacts:
        """Return the version that a revision of a model (ulid) means: branch, tag, full id, then unique prefix of ≥ 7 digits.

        Raises:
            NotFound: there is none.
            InvalidInput: the prefix is ambiguous; the message lists the candidates.
        """

    def find_version(self, name: ModelName, revision: str) -> tuple[ModelFacts, VersionFacts] | None:
        """Return the model of that name and the version that its revision means, at one moment; None: there is no such model.

        Raises:
            NotFound: the model has no such revision.
            InvalidInput: the prefix is ambiguous; the message lists the candidates.
        """

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
        """Make (expected None), move, or delete (version None) a branch or tag, by compare-and-swap; return the seq.

        Raises:
            AlreadyExists: a tag, or a branch that should be new, exists.
            Conflict: it does not point at ``expected`` any more.
            NotFound: the version, or the ref to delete, does not exist.
        """

    def remove_version(self, model: str, version: str, *, heads: Sequence[DeviceHead], now: datetime) -> int:
        """Remove a version; its parts are left to gc. Return the seq.

        Raises:
            Conflict: a branch or tag points at it (``reason="referenced"``); the message names them.
            NotFound: it does not exist.
        """

    def remove_model(self, model: str, *, heads: Sequence[DeviceHead], now: datetime) -> int:
        """Remove a model with all its refs and versions, in one entry; return the seq."""

    def set_policy(
        self, model: str | None, policy: str, *, versions: bool = False, heads: Sequence[DeviceHead], now: datetime
    ) -> int:
        """Set the policy of a model (ulid), or of the store (None), for later pushes; return the seq.

        With ``versions`` the versions that the model has owe what it says from now on too, in the same entry.

        Raises:
            InvalidInput: it is no policy.
            NotFound: there is no such model.
        """

    def set_retention(self, model: str, retention: str | None, *, heads: Sequence[DeviceHead], now: datetime) -> int:
        """Set which versions of a model (ulid) stay, by a text of `records.retention`, None: all; return the seq. It removes none.

        Raises:
            InvalidInput: it is no retention.
            NotFound: there is no such model.
        """

    # push

    def begin_push(self, session: str, *, now: datetime) -> None:
        """Open a session (a ulid): its staged and stored rows are not collected while it is alive."""

    def heartbeat(self, session: str, *, now: datetime) -> None:
        """Say that the session is alive. For liveness only: safety never asks a clock."""

    def end_push(self, session: str) -> None:
        """Close the session."""

    def stage(
        self, session: str, requests: Sequence[ObjectRequest], *, down: Sequence[str] = (), allow_soft: bool = False
    ) -> list[Staging]:
        """Answer what exists and write the rows of what does not, before any upload starts.

        Existing copies, one a device, are offered when live or stored (any session's, dead ones' too), never condemned or
        bad ones nor those on ``down`` devices or those that are not active, and those on soft devices only with ``allow_soft``, as the commit
        counts them. An object owes the highest of ``copies`` and what versions that refer to it owe.
        New rows go to the first candidates (active, not down, durable unless ``allow_soft``) that hold no copy, to zones
        that hold none while such zones suffice; no device gets two fragments of an object, and none is staged where too few
        devices are left for the fragments to give it. A request repeated with the same ulid by the same session gets the rows
        that it has staged before.

        Raises:
            Integrity: an object of that key is known with another size.
            NotFound: a candidate is no device of the store.
        """

    def record_stored(self, session: str, locations: Sequence[int]) -> list[int]:
        """Move staged rows to stored: their bytes are durable. Return the rows that are condemned or gone meanwhile.

        Those stay so, and nobody else may know that their bytes arrived: whoever put them deletes them.
        """

    def stage_and_record(
        self,
        session: str,
        requests: Sequence[ObjectRequest],
        stored: Sequence[int],
        *,
        down: Sequence[str] = (),
        allow_soft: bool = False,
    ) -> tuple[list[Staging], list[int]]:
        """Do `stage` and then `record_stored` in one transaction, and return both answers."""

    def forget_staged(self, session: str, locations: Sequence[int]) -> None:
        """Condemn rows whose upload failed, so that gc removes whatever reached the device."""

    def commit(self, request: CommitRequest) -> Committed | Needed:
        """Make a version exist, move its branch, make its tag, append the journal entry; or say what is needed again.

        A repeated request of the same session answers as the first did.

        Raises:
            Conflict: the branch does not point at ``expected_head``, another push made the model, or the catalog is stale.
            AlreadyExists: the tag exists.
        """

    # reading

    def locate(self, keys: Sequence[ObjectKey]) -> dict[ObjectKey, list[Location]]:
        """Return every location of these objects in state live, stored or bad on devices that are not gone."""

    def survey(self, keys: Sequence[ObjectKey]) -> tuple[list[DeviceFacts], dict[ObjectKey, list[Location]]]:
        """Return all devices and where these objects are, as `list_devices` and `locate` do, at one moment."""

    def copies_owed(self, keys: Sequence[ObjectKey]) -> dict[ObjectKey, int]:
        """Return the most copies that versions which refer to these objects ask of each; unreferenced ones are left out."""

    def locate_all(self, *, after: int, limit: int) -> list[Location]:
        """Return locations in any state but condemned, by id, for walking the whole store."""

    def version_objects(self, version: str) -> list[tuple[ObjectKey, int]]:
        """Return the objects a version refers to, with sizes, metadata included, each once."""

    def find_manifest(self, digest: str) -> bytes | None:
        """Return the stored bytes of a manifest (hex digest) if the catalog keeps them."""

    def record_checked(self, *, good: Sequence[int], bad: Sequence[int]) -> None:
        """Note what a read found; condemned rows stay.

        Good rows in state bad or stored become live where a version refers to their object, else stored; bad ones become bad.
        """

    def version_usage(self, versions: Sequence[str]) -> list[VersionUsage]:
        """Return how many bytes versions take, and exclusively."""

    def count_short(self, versions: Sequence[str]) -> dict[str, int]:
        """Return for each version how many of its objects have fewer usable copies than they owe on active devices (only non-zero)."""

    # repair

    def list_short(self, *, down: Sequence[str] = (), parts: bool = True, after: int, limit: int) -> list[ShortObject]:
        """Return objects with fewer usable copies on active devices than they owe, by id; ``parts=False`` leaves out parts.

        Copies on ``down`` devices don't count.
        """

    def list_on(self, device: str, *, after: int, limit: int) -> list[Location]:
        """Return the rows of a device in any state, by id."""

    def retire(
        self, locations: Sequence[int], *, down: Sequence[str] = (), heads: Sequence[DeviceHead], now: datetime
    ) -> list[int]:
        """Condemn those of these rows, in order, without which their objects have all the copies they owe; return which.

        Counted are usable copies on active devices that are not ``down``. A row on a durable device goes only where as many durable
        copies are left as there were, or as are owed. Rows of objects that no version refers to, and staged ones, are left to `condemn`.

        Raises:
            Conflict: the catalog is stale.
        """

    # scrub

    def list_scrubs(self) -> list[ScrubState]:
        """Return how far the scrubs of devices that are not gone are, by device and depth; those that never began are left out."""

    def record_scrub(self, state: ScrubState, *, good: Sequence[int], bad: Sequence[int]) -> None:
        """Note what a page of a scrub found, as `record_checked` does, and how far the scrub is."""

    def list_named(self, device: str, kind: ObjectKind, first: int, last: int) -> list[Location]:
        """Return the rows of a device in any state, of objects of one kind whose digests begin with bytes from ``first`` to ``last``."""

    def note_orphans(
        self, device: str, found: Sequence[tuple[str, int]], *, heads: Sequence[DeviceHead], now: datetime
    ) -> int:
        """Note objects, name and size, that were listed on a device before this was called and that no row tells of.

        A row is there before its object is, and goes when its object was seen to be absent. So what was listed and has no row
        by now has lost it: nothing will ever refer to it. Those that have a row are left out. Returns how many are new.

        Raises:
            Conflict: the catalog is stale: rows that it has not may be in another one.
        """

    def list_orphans(self, *, grace_s: float, now: datetime, after: int, limit: int) -> list[Orphan]:
        """Return orphans on devices that are not gone, noted at least the grace ago, by id."""

    def drop_orphans(self, orphans: Sequence[int]) -> None:
        """Forget orphans whose absence on the device was confirmed."""

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
        """Remove every version that its model's retention lets go, with its tags, in one entry; a dry run only says which.

        Retentions, refs and versions are read by the transaction that removes, so that no push, branch or tag comes between.
        Its objects are left to `condemn`.

        Raises:
            Conflict: as `condemn`: more than ``max_fraction`` of all versions would go, or would be left to condemn of the bytes
                (``reason="gc_brake"``, in a dry run never). Nothing is removed then.
        """

    def condemn(
        self,
        *,
        grace_s: float,
        dry_run: bool,
        max_fraction: float | None = None,
        heads: Sequence[DeviceHead],
        now: datetime,
    ) -> GcSummary:
        """Condemn every location of objects that no version refers to, except those of push sessions alive within the grace.

        Also condemned: bad rows of objects that have all the copies they owe without them, and rows that were staged by a
        session that is not alive (nobody counts them, and their upload may have left bytes). A grace of 0 spares nobody.

        Raises:
            Conflict: the catalog is stale, or a rebuild found no structure of a version (``reason="unknown_structure"``):
                what it refers to is not known; or it is more than ``max_fraction`` of the bytes of all rows that were not condemned
                before (``reason="gc_brake"``, in a dry run never). Nothing is condemned then.
        """

    def list_condemned(self, *, grace_s: float, now: datetime, after: int, limit: int) -> list[Location]:
        """Return rows condemned at least the grace ago, by id."""

    def drop(self, locations: Sequence[int]) -> None:
        """Forget condemned rows whose absence on the device was confirmed, and objects left without rows and versions."""

    # journal

    def journal_backlog(self, device: str, *, limit: int) -> list[JournalRow]:
        """Return the entries that a device lacks, oldest first, from the last snapshot that is everywhere on."""

    def journal_rows(self) -> list[JournalRow]:
        """Return every entry that the catalog keeps, oldest first."""

    def record_flushed(self, device: str, seq: int) -> None:
        """Note that a device durably holds every entry up to this seq."""

    def flushed(self) -> dict[str, int]:
        """Return the last seq that each device (that is not gone) holds; 0 for none."""

    def trim_journal(self) -> int:
        """Forget entries older than the newest snapshot that every device (that is not gone) holds; return that snapshot's seq or 0."""

    # rebuild

    def load_image(self, image: CatalogImage, *, now: datetime) -> int:
        """Fill an empty catalog, append a snapshot entry in the image's epoch, and return its seq.

        Raises:
            AlreadyExists: the catalog is not empty.
        """
