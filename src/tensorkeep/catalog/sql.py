"""The catalog in a database: each method of `Catalog` is one transaction, made of the steps in the ``sql_*`` modules."""

from collections.abc import Callable, Sequence
from datetime import datetime

from sqlalchemy import Connection

from tensorkeep.catalog import (
    rules,
    sql_commit,
    sql_gc,
    sql_image,
    sql_journal,
    sql_names,
    sql_push,
    sql_reading,
    sql_repair,
    sql_retention,
    sql_rows,
    sql_scrub,
)
from tensorkeep.catalog.database import Answer, Database, Transaction
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
from tensorkeep.errors import Integrity
from tensorkeep.records.device import DeviceFacts
from tensorkeep.records.history import ModelFacts, RefFacts, RefKind, VersionFacts
from tensorkeep.records.names import ModelName
from tensorkeep.records.naming import ObjectKind
from tensorkeep.runtime import Runtime


class SqlCatalog:
    """A `Catalog` in SQLite or PostgreSQL. Thread safe; many processes may have it open at once."""

    def __init__(
        self,
        database: Database,
        *,
        runtime: Runtime,
        snapshot_every: int,
        find_damage: Callable[[Connection], list[str]],
    ) -> None:
        self._db = database
        self._runtime = runtime
        self._snapshot_every = snapshot_every
        self._find_damage = find_damage

    def close(self) -> None:
        """Give back connections."""
        self._db.close()

    def info(self) -> CatalogInfo:
        """Return the store's identity and the journal's head."""
        return self._db.reading(sql_journal.read_info)

    def check(self) -> list[str]:
        """Return what is wrong with pages, references, the journal's chain, and tables against the journal."""
        try:
            return self._db.reading(
                lambda connection: self._find_damage(connection) or sql_journal.find_problems(connection)
            )
        except Integrity as error:
            return [error.message]

    # devices

    def list_devices(self) -> list[DeviceFacts]:
        """Return all devices, in order of being added."""
        return self._db.reading(sql_rows.read_devices)

    def change_device(
        self, old: DeviceFacts | None, new: DeviceFacts, *, heads: Sequence[DeviceHead], now: datetime
    ) -> int:
        """Add a device (old None) or change one; return the seq."""
        return self._change(heads, lambda tx: sql_names.change_device(tx, old, new, now))

    def device_usage(self) -> list[DeviceUsage]:
        """Return what each device holds, those that are gone too, in order of being added."""
        return self._db.reading(sql_reading.device_usage)

    # names

    def list_models(self) -> list[ModelFacts]:
        """Return all models by name."""
        return self._db.reading(sql_rows.read_models)

    def find_model(self, name: ModelName) -> ModelFacts | None:
        """Return the model of that name, without regard to case, or None."""
        return self._db.reading(lambda connection: sql_names.find_model(connection, name.folded))

    def list_refs(self, model: str) -> list[RefFacts]:
        """Return a model's branches and tags, by kind and name."""
        return self._db.reading(lambda connection: sql_names.list_refs(connection, model))

    def list_versions(self, model: str) -> list[VersionFacts]:
        """Return a model's versions, newest commit first."""
        return self._db.reading(lambda connection: sql_names.list_versions(connection, model))

    def get_version(self, model: str, revision: str) -> VersionFacts:
        """Return the version that a revision of a model means."""
        return self._db.reading(lambda connection: sql_names.get_version(connection, model, revision))

    def find_version(self, name: ModelName, revision: str) -> tuple[ModelFacts, VersionFacts] | None:
        """Return the model of that name and the version that its revision means; None: there is no such model."""
        return self._db.reading(lambda connection: sql_names.find_version(connection, name.folded, revision))

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
            heads, lambda tx: sql_names.set_ref(tx, model, kind, name, version=version, expected=expected, now=now)
        )

    def remove_version(self, model: str, version: str, *, heads: Sequence[DeviceHead], now: datetime) -> int:
        """Remove a version that no branch or tag points at; return the seq."""
        return self._change(heads, lambda tx: sql_names.remove_version(tx, model, version, now))

    def remove_model(self, model: str, *, heads: Sequence[DeviceHead], now: datetime) -> int:
        """Remove a model with all its refs and versions, in one entry; return the seq."""
        return self._change(heads, lambda tx: sql_names.remove_model(tx, model, now))

    def set_policy(
        self, model: str | None, policy: str, *, versions: bool = False, heads: Sequence[DeviceHead], now: datetime
    ) -> int:
        """Set the policy of a model, or of the store (None); return the seq."""
        return self._change(heads, lambda tx: sql_names.set_policy(tx, model, policy, now, versions=versions))

    def set_retention(self, model: str, retention: str | None, *, heads: Sequence[DeviceHead], now: datetime) -> int:
        """Set which versions of a model stay, None: all; return the seq."""
        return self._change(heads, lambda tx: sql_retention.set_retention(tx, model, retention, now))

    # push

    def begin_push(self, session: str, *, now: datetime) -> None:
        """Open a session."""
        self._db.writing(lambda connection: sql_push.keep_session(connection, session, now))

    def heartbeat(self, session: str, *, now: datetime) -> None:
        """Say that the session is alive."""
        self.begin_push(session, now=now)

    def end_push(self, session: str) -> None:
        """Close the session."""
        self._db.writing(lambda connection: sql_push.end_session(connection, session))

    def stage(
        self, session: str, requests: Sequence[ObjectRequest], *, down: Sequence[str] = (), allow_soft: bool = False
    ) -> list[Staging]:
        """Answer what exists and write the rows of what does not, before any upload starts."""
        return self._db.writing(
            lambda connection: sql_push.stage(
                connection, session, requests, down=frozenset(down), allow_soft=allow_soft
            )
        )

    def record_stored(self, session: str, locations: Sequence[int]) -> list[int]:
        """Move the session's staged rows to stored; return those that are condemned or gone."""
        return self._db.writing(lambda connection: sql_push.record_stored(connection, session, locations))

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

        def step(connection: Connection) -> tuple[list[Staging], list[int]]:
            # In this order, and all objects locked at once: gc, too, locks objects before rows, in id order.
            staged = sql_push.stage(
                connection, session, requests, down=frozenset(down), allow_soft=allow_soft, stored=stored
            )
            return staged, sql_push.record_stored(connection, session, stored, locked=True)

        return self._db.writing(step)

    def forget_staged(self, session: str, locations: Sequence[int]) -> None:
        """Condemn the session's staged rows whose upload failed."""
        self._db.writing(
            lambda connection: sql_push.forget_staged(connection, session, locations, self._runtime.clock.now())
        )

    def commit(self, request: CommitRequest) -> Committed | Needed:
        """Make a version exist, or say what is needed again."""
        try:
            # A lost answer needs no question: the session is the token that a second run looks for first.
            return self._db.writing(lambda connection: sql_commit.commit(self._transaction(connection), request))
        except rules.CopiesMissing as missing:
            return missing.needed

    # reading

    def locate(self, keys: Sequence[ObjectKey]) -> dict[ObjectKey, list[Location]]:
        """Return every live, stored or bad location of these objects on devices that are not gone; a list for every key."""
        return self._db.reading(lambda connection: sql_reading.locate(connection, keys))

    def survey(self, keys: Sequence[ObjectKey]) -> tuple[list[DeviceFacts], dict[ObjectKey, list[Location]]]:
        """Return all devices and where these objects are, at one moment."""
        return self._db.reading(
            lambda connection: (sql_rows.read_devices(connection), sql_reading.locate(connection, keys))
        )

    def copies_owed(self, keys: Sequence[ObjectKey]) -> dict[ObjectKey, int]:
        """Return the most copies that versions ask of each of these objects; unreferenced ones are left out."""
        return self._db.reading(lambda connection: sql_reading.copies_owed(connection, keys))

    def locate_all(self, *, after: int, limit: int) -> list[Location]:
        """Return locations in any state but condemned, by id."""
        return self._db.reading(lambda connection: sql_reading.locate_all(connection, after, limit))

    def version_objects(self, version: str) -> list[tuple[ObjectKey, int]]:
        """Return the objects a version refers to, with sizes, by kind and digest."""
        return self._db.reading(lambda connection: sql_reading.version_objects(connection, version))

    def find_manifest(self, digest: str) -> bytes | None:
        """Return the stored bytes of a manifest if the catalog keeps them."""
        return self._db.reading(lambda connection: sql_reading.find_manifest(connection, digest))

    def record_checked(self, *, good: Sequence[int], bad: Sequence[int]) -> None:
        """Note what a read found."""
        self._db.writing(lambda connection: sql_reading.record_checked(connection, good, bad))

    def version_usage(self, versions: Sequence[str]) -> list[VersionUsage]:
        """Return how many bytes versions take, and exclusively."""
        return self._db.reading(
            lambda connection: [sql_reading.version_usage(connection, version) for version in versions]
        )

    def count_short(self, versions: Sequence[str]) -> dict[str, int]:
        """Return for each version how many of its objects lack copies (only non-zero)."""
        return self._db.reading(lambda connection: sql_reading.count_short(connection, versions))

    # repair

    def list_short(self, *, down: Sequence[str] = (), parts: bool = True, after: int, limit: int) -> list[ShortObject]:
        """Return objects with fewer usable copies than they owe, by id."""
        return self._db.reading(
            lambda connection: sql_repair.list_short(connection, down=down, parts=parts, after=after, limit=limit)
        )

    def list_on(self, device: str, *, after: int, limit: int) -> list[Location]:
        """Return the rows of a device in any state, by id."""
        return self._db.reading(lambda connection: sql_reading.list_on(connection, device, after, limit))

    def retire(
        self, locations: Sequence[int], *, down: Sequence[str] = (), heads: Sequence[DeviceHead], now: datetime
    ) -> list[int]:
        """Condemn those of these rows without which their objects have all the copies they owe; return which."""

        def step(connection: Connection) -> list[int]:
            sql_journal.refuse_stale(connection, heads)
            return sql_repair.retire(connection, locations, down=down, now=now)

        return self._db.writing(step)

    # scrub

    def list_scrubs(self) -> list[ScrubState]:
        """Return how far the scrubs of devices that are not gone are, by device and depth."""
        return self._db.reading(sql_scrub.list_scrubs)

    def record_scrub(self, state: ScrubState, *, good: Sequence[int], bad: Sequence[int]) -> None:
        """Note what a page of a scrub found, and how far the scrub is."""
        self._db.writing(lambda connection: sql_scrub.record_scrub(connection, state, good, bad))

    def list_named(self, device: str, kind: ObjectKind, first: int, last: int) -> list[Location]:
        """Return the rows of a device in any state, of objects of one kind whose digests begin with these bytes."""
        return self._db.reading(lambda connection: sql_scrub.list_named(connection, device, kind, first, last))

    def note_orphans(
        self, device: str, found: Sequence[tuple[str, int]], *, heads: Sequence[DeviceHead], now: datetime
    ) -> int:
        """Note those of these objects of a device that no row tells of; return how many are new."""

        def step(connection: Connection) -> int:
            sql_journal.refuse_stale(connection, heads)
            return sql_scrub.note_orphans(connection, device, found, now)

        return self._db.writing(step)

    def list_orphans(self, *, grace_s: float, now: datetime, after: int, limit: int) -> list[Orphan]:
        """Return orphans on devices that are not gone, noted at least the grace ago, by id."""
        return self._db.reading(lambda connection: sql_scrub.list_orphans(connection, grace_s, now, after, limit))

    def drop_orphans(self, orphans: Sequence[int]) -> None:
        """Forget orphans whose absence on the device was confirmed."""
        self._db.writing(lambda connection: sql_scrub.drop_orphans(connection, orphans))

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
        """Remove what retentions let go; a dry run only says which, and needs no right to write."""
        if dry_run:
            return self._db.reading(lambda connection: sql_retention.forecast(connection, heads, now))
        return self._change(
            heads, lambda tx: sql_retention.expire(tx, grace_s=grace_s, max_fraction=max_fraction, now=now)
        )

    def condemn(
        self,
        *,
        grace_s: float,
        dry_run: bool,
        max_fraction: float | None = None,
        heads: Sequence[DeviceHead],
        now: datetime,
    ) -> GcSummary:
        """Condemn what nothing uses; a dry run only counts, and needs no right to write."""

        def step(connection: Connection) -> GcSummary:
            sql_journal.refuse_stale(connection, heads)
            return sql_gc.condemn(connection, grace_s=grace_s, dry_run=dry_run, max_fraction=max_fraction, now=now)

        return self._db.reading(step) if dry_run else self._db.writing(step)

    def list_condemned(self, *, grace_s: float, now: datetime, after: int, limit: int) -> list[Location]:
        """Return rows condemned at least the grace ago, by id."""
        until = rules.moment_before(now, grace_s)
        return self._db.reading(lambda connection: sql_reading.list_condemned(connection, until, after, limit))

    def drop(self, locations: Sequence[int]) -> None:
        """Forget condemned rows, and objects left without rows and versions."""
        self._db.writing(lambda connection: sql_gc.drop(connection, locations))

    # journal

    def journal_backlog(self, device: str, *, limit: int) -> list[JournalRow]:
        """Return the entries that a device lacks, oldest first; a new device begins at the newest snapshot."""
        return self._db.reading(lambda connection: sql_journal.backlog(connection, device, limit))

    def journal_rows(self) -> list[JournalRow]:
        """Return every entry that the catalog keeps, oldest first."""
        return self._db.reading(sql_journal.read_rows)

    def record_flushed(self, device: str, seq: int) -> None:
        """Note that a device durably holds every entry up to this seq."""
        self._db.writing(lambda connection: sql_journal.record_flushed(connection, device, seq))

    def flushed(self) -> dict[str, int]:
        """Return the last seq that each device (that is not gone) holds; 0 for none."""
        return self._db.reading(sql_journal.read_flushed)

    def trim_journal(self) -> int:
        """Forget entries older than the newest snapshot that every device holds; return its seq or 0."""
        return self._db.writing(sql_journal.trim)

    # rebuild

    def load_image(self, image: CatalogImage, *, now: datetime) -> int:
        """Fill an empty catalog, append a snapshot entry, and return its seq."""
        return self._db.writing(lambda connection: sql_image.load_image(connection, image, now))

    def _transaction(self, connection: Connection) -> Transaction:
        return Transaction(connection, self._snapshot_every, self._runtime.failpoints)

    def _change(self, heads: Sequence[DeviceHead], step: Callable[[Transaction], Answer]) -> Answer:
        def change(connection: Connection) -> Answer:
            # First: what a change compares and swaps stays as it is until it commits.
            sql_journal.read_end(connection, lock=True)
            sql_journal.refuse_stale(connection, heads)
            return step(self._transaction(connection))

        return self._db.writing(change, repeatable=False)
