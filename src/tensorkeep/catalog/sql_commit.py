"""The commit: the one transaction that makes a version exist. Durable before referenced."""

from collections.abc import Sequence

import msgspec
from sqlalchemy import Connection, and_, case, insert, literal, select, update

from tensorkeep.catalog import rules, schema
from tensorkeep.catalog.database import Transaction, among, chunks, insert_missing, lock_parts
from tensorkeep.catalog.protocol import CommitRequest, Committed, ObjectKey
from tensorkeep.catalog.sql_journal import append, read_end, refuse_stale
from tensorkeep.catalog.sql_names import find_model, find_ref, insert_model, write_policy, write_ref
from tensorkeep.catalog.sql_owing import usable_copies
from tensorkeep.catalog.sql_rows import MODEL_BY_ID, find_model_by, find_part_ids, read_versions, values_of
from tensorkeep.errors import AlreadyExists
from tensorkeep.records.history import Change, ModelFacts, VersionCommitted
from tensorkeep.records.layout import CATALOG_MANIFEST_BYTES
from tensorkeep.records.naming import ObjectKind


def commit(tx: Transaction, request: CommitRequest) -> Committed:
    """Make a version exist, move its branch, make its tag, append one entry.

    Raises:
        CopiesMissing: objects have not the copies they owe; the transaction must be rolled back.
    """
    connection = tx.connection
    tx.failpoints.hit("commit.begun")
    rules.check_request(request)
    keys = rules.request_keys(request)
    part_ids = _lock_objects(connection, keys)
    # After the objects, as everywhere: from here on names, heads and the journal's end stand still.
    read_end(connection, lock=True)
    tx.failpoints.hit("commit.locked")

    before = _find_committed(connection, request)
    if before is not None:
        return before
    refuse_stale(connection, request.heads)
    model = _find_model(connection, request.model)
    branch_head = _check_refs(connection, request)
    changes = _write_model(connection, request, model)
    number = _insert_version(connection, request, list(part_ids.values()))
    tx.failpoints.hit("commit.version_inserted")
    _check_copies(connection, request, number, [key for key in keys if key not in part_ids])
    _make_live(connection, number)

    changes.append(VersionCommitted(version=request.version))
    version = request.version.id
    changes.append(write_ref(connection, request.model.id, "branch", request.branch, old=branch_head, new=version))
    if request.tag is not None:
        changes.append(write_ref(connection, request.model.id, "tag", request.tag, old=None, new=version))
    tx.failpoints.hit("commit.ref_moved")
    seq = append(tx, changes, request.now)
    tx.failpoints.hit("commit.journaled")
    return Committed(version=request.version, seq=seq)


def insert_version_parts(connection: Connection, number: int, part_ids: Sequence[int]) -> None:
    """Say that a version refers to these objects."""
    table, parts = schema.version_parts, schema.parts
    for chunk in chunks(part_ids):
        rows = select(literal(number), parts.c.id).where(among(connection, parts.c.id, chunk))
        connection.execute(insert(table).from_select([table.c.version, table.c.part_id], rows))


def _lock_objects(connection: Connection, keys: Sequence[ObjectKey]) -> dict[ObjectKey, int]:
    """Return the ids of those of these objects that the catalog knows, locked to be referred to."""
    part_ids = find_part_ids(connection, keys)
    locked = set(lock_parts(connection, list(part_ids.values()), exclusive=False))
    return {key: part_id for key, part_id in part_ids.items() if part_id in locked}


def _find_committed(connection: Connection, request: CommitRequest) -> Committed | None:
    table = schema.versions
    found = connection.execute(select(table.c.id, table.c.seq).where(table.c.token == request.session)).first()
    if found is None:
        return None
    rules.check_same_version(request, found.id)
    return Committed(version=read_versions(connection, table.c.id == found.id)[0], seq=found.seq)


def _find_model(connection: Connection, wanted: ModelFacts) -> ModelFacts | None:
    present = find_model_by(connection, MODEL_BY_ID, model=wanted.id)
    if present is None:
        rules.refuse_other_model(wanted, find_model(connection, wanted.name.casefold()))
    return present


def _check_refs(connection: Connection, request: CommitRequest) -> str | None:
    """Return the branch's present head, after branch, tag and version were found to be free to write."""
    model = request.model.id
    head = find_ref(connection, model, "branch", request.branch)
    rules.check_branch_head(request.branch, present=head, expected=request.expected_head)
    if request.tag is not None and find_ref(connection, model, "tag", request.tag) is not None:
        raise AlreadyExists(f"the tag {request.tag!r} of {request.model.name} exists: choose another", tag=request.tag)
    if read_versions(connection, schema.versions.c.id == request.version.id):
        raise AlreadyExists(f"version {request.version.id} exists already", version=request.version.id)
    return head


def _write_model(connection: Connection, request: CommitRequest, present: ModelFacts | None) -> list[Change]:
    policy = request.model_policy
    if present is None:
        new = request.model if policy is None else msgspec.structs.replace(request.model, policy=policy)
        return [insert_model(connection, new)]
    if policy is not None and policy != present.policy:
        return [write_policy(connection, present, policy)]
    return []


def _insert_version(connection: Connection, request: CommitRequest, part_ids: Sequence[int]) -> int:
    table = schema.versions
    seq = read_end(connection).last_seq + 1  # of the entry that this transaction will append
    connection.execute(insert(table).values(**values_of(request.version), seq=seq, token=request.session))
    number: int = connection.execute(select(table.c.number).where(table.c.id == request.version.id)).scalar_one()
    insert_version_parts(connection, number, sorted(part_ids))
    body = request.manifest_body
    if body is not None and len(body) <= CATALOG_MANIFEST_BYTES:
        insert_missing(connection, schema.manifests, [{"digest": request.version.manifest, "body": body}])
    return number


def _check_copies(connection: Connection, request: CommitRequest, number: int, unknown: Sequence[ObjectKey]) -> None:
    """Return if every object of the version just inserted has the copies it owes. Read after the locks were taken."""
    pairs, parts = schema.version_parts, schema.parts
    owed = case((parts.c.kind == ObjectKind.PART.value, request.copies), else_=request.metadata_copies)
    usable = usable_copies(parts.c.id, durable_only=not request.allow_soft)
    query = (
        select(parts.c.kind, parts.c.digest)
        .join(pairs, pairs.c.part_id == parts.c.id)
        .where(and_(pairs.c.version == number, usable < owed))
    )
    short = [ObjectKey(ObjectKind(kind), digest) for kind, digest in connection.execute(query)]
    if short or unknown:
        raise rules.CopiesMissing([*unknown, *short])


def _make_live(connection: Connection, number: int) -> None:
    table, pairs = schema.locations, schema.version_parts
    mine = select(pairs.c.part_id).where(pairs.c.version == number)
    connection.execute(update(table).where(table.c.part_id.in_(mine), table.c.state == "stored").values(state="live"))
