"""Garbage collection in the database: condemn first, delete elsewhere, drop last. Nothing is un-condemned.

What is *live* is decided here alone: an object that a version refers to. Candidates are locked in chunks and judged in a
later statement, which sees every commit that held them before.
"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, false, func, or_, select, update

from tensorkeep.catalog import rules, schema
from tensorkeep.catalog.database import CHUNK, among, chunks, lock_parts, lock_parts_of
from tensorkeep.catalog.protocol import GcSummary
from tensorkeep.catalog.sql_owing import owed_by_version, usable_copies
from tensorkeep.catalog.sql_push import delete_unused_parts, is_unused
from tensorkeep.records.json_text import format_time
from tensorkeep.records.naming import ObjectKind


def condemn(connection: Connection, *, grace_s: float, dry_run: bool, now: datetime) -> GcSummary:
    """Condemn what `doomed` says, or only count it."""
    table = schema.locations
    rules.refuse_unknown_structure(_unknown_versions(connection))
    before = connection.execute(select(func.count()).where(table.c.state == "condemned")).scalar_one()
    condition = doomed(connection, grace_s=grace_s, now=now)
    count = size = last = 0
    while part_ids := _next_candidates(connection, condition, last):
        last = part_ids[-1]
        if not dry_run:
            lock_parts(connection, part_ids, exclusive=True)
            # Again: a commit that held them may have brought the first version of its policy.
            condition = doomed(connection, grace_s=grace_s, now=now)
        rows = and_(among(connection, table.c.part_id, part_ids), condition)
        found = connection.execute(select(func.count(), func.coalesce(func.sum(table.c.length), 0)).where(rows)).one()
        count += found[0]
        size += int(found[1])
        if not dry_run:
            connection.execute(update(table).where(rows).values(state="condemned", condemned_at=format_time(now)))
    if not dry_run:
        _forget_silent_sessions(connection, now)
        connection.execute(delete(schema.parts).where(*is_unused()))
    return GcSummary(locations=count, bytes=size, condemned_before=before)


def doomed(connection: Connection, *, grace_s: float, now: datetime) -> ColumnElement[bool]:
    """Return the condition, over ``locations``, for a row to be condemned.

    - its object is in no version, and it is not staged or stored by a session alive within the grace; or
    - it is staged by a session that is not: nobody counts such a row, and its upload may have left bytes; or
    - it is bad, and its object has all the copies it owes without it.
    """
    table, pairs, sessions = schema.locations, schema.version_parts, schema.push_sessions
    referenced = exists().where(pairs.c.part_id == table.c.part_id)
    alive: ColumnElement[bool] = exists().where(
        sessions.c.id == table.c.session, sessions.c.heartbeat > rules.moment_before(now, grace_s)
    )
    spared = and_(table.c.state.in_(("staged", "stored")), alive) if grace_s > 0 else false()
    whole = usable_copies(table.c.part_id, durable_only=False) >= _owed(connection)
    return and_(
        table.c.state != "condemned",
        or_(
            and_(~referenced, ~spared),
            and_(table.c.state == "staged", ~spared),
            and_(table.c.state == "bad", referenced, whole),
        ),
    )


def drop(connection: Connection, locations: Sequence[int]) -> None:
    """Forget condemned rows, and the objects that are left without rows and versions."""
    table = schema.locations
    for chunk in chunks(locations):
        part_ids = lock_parts_of(connection, chunk)
        connection.execute(delete(table).where(among(connection, table.c.id, chunk), table.c.state == "condemned"))
        delete_unused_parts(connection, part_ids)


def _next_candidates(connection: Connection, condition: ColumnElement[bool], after: int) -> Sequence[int]:
    column = schema.locations.c.part_id
    query = select(column).where(column > after, condition).distinct().order_by(column).limit(CHUNK)
    return connection.execute(query).scalars().all()


def _unknown_versions(connection: Connection) -> Sequence[str]:
    """Return the versions without a checks object, which a rebuild could not read: their parts are not known either."""
    pairs, parts, versions = schema.version_parts, schema.parts, schema.versions
    known = (
        select(pairs.c.version)
        .join(parts, parts.c.id == pairs.c.part_id)
        .where(parts.c.kind == ObjectKind.CHECKS.value)
    )
    return connection.execute(select(versions.c.id).where(versions.c.number.not_in(known))).scalars().all()


def _owed(connection: Connection) -> ColumnElement[int]:
    pairs = schema.version_parts.alias("owing")
    return (
        select(func.max(owed_by_version(connection)))
        .select_from(pairs)
        .join(schema.versions, schema.versions.c.number == pairs.c.version)
        .join(schema.parts, schema.parts.c.id == pairs.c.part_id)
        .where(pairs.c.part_id == schema.locations.c.part_id)
        .scalar_subquery()
    )


def _forget_silent_sessions(connection: Connection, now: datetime) -> None:
    table = schema.push_sessions
    silent = rules.moment_before(now, rules.SESSION_KEPT_S)
    connection.execute(delete(table).where(table.c.heartbeat <= silent))
