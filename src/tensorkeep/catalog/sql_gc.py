"""Garbage collection in the database: condemn first, delete elsewhere, drop last. Nothing is un-condemned.

What is *live* is decided here alone: an object that a version refers to. Candidates come from lists (`sql_loose`), not from a
search; they are locked in chunks and judged in a later statement, which sees every commit that held them before.
"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, false, func, or_, select, update

from tensorkeep.catalog import rules, schema
from tensorkeep.catalog.database import CHUNK, among, chunks, lock_parts, lock_parts_of
from tensorkeep.catalog.protocol import GcSummary
from tensorkeep.catalog.sql_loose import is_referenced, next_page, read_listing, take_off
from tensorkeep.catalog.sql_owing import copies_owed_of, usable_copies
from tensorkeep.catalog.sql_push import delete_unused_parts, is_unused
from tensorkeep.records.json_text import format_time


def condemn(
    connection: Connection, *, grace_s: float, dry_run: bool, now: datetime, max_fraction: float | None = None
) -> GcSummary:
    """Condemn what `doomed` says, or only count it."""
    rules.refuse_unknown_structure(_unread_versions(connection))
    before = connection.execute(select(func.count()).where(schema.is_condemned)).scalar_one()
    count = size = last = 0
    while page := next_page(connection, last):
        last = page[-1]
        judge = _count_page if dry_run else _condemn_page
        lengths = judge(connection, page, grace_s, now)
        count += len(lengths)
        size += sum(lengths)
    if not dry_run:
        _refuse_much(connection, size, max_fraction)
        _forget_silent_sessions(connection, now)
    return GcSummary(locations=count, bytes=size, condemned_before=before)


def doomed(connection: Connection, *, grace_s: float, now: datetime) -> ColumnElement[bool]:
    """Return the condition, over ``locations``, for a row to be condemned.

    - its object is in no version, and it is not staged or stored by a session alive within the grace; or
    - it is staged by a session that is not: nobody counts such a row, and its upload may have left bytes; or
    - it is bad, and its object has all the copies it owes without it.
    """
    table, sessions = schema.locations, schema.push_sessions
    referenced = is_referenced(table.c.part_id)
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


def refuse_much_unused(connection: Connection, *, grace_s: float, max_fraction: float | None, now: datetime) -> None:
    """Return if `condemn` would give up no more than that of what is stored.

    Raises:
        Conflict: as `condemn`; the transaction must be undone.
    """
    unused = condemn(connection, grace_s=grace_s, dry_run=True, now=now)
    _refuse_much(connection, unused.bytes, max_fraction, kept_bytes=-unused.bytes)


def _refuse_much(connection: Connection, size_bytes: int, max_fraction: float | None, *, kept_bytes: int = 0) -> None:
    """Return if so much is no more than that of what is stored; it reads no more rows than it takes to know.

    Args:
        connection: the transaction that condemns, or would.
        size_bytes: what is given up.
        max_fraction: the bound.
        kept_bytes: where counting begins: what is not condemned adds to it.

    Raises:
        Conflict: it is more, and the transaction is undone.
    """
    table = schema.locations
    kept, after = kept_bytes, 0
    query = select(table.c.id, table.c.length).where(table.c.state != "condemned").order_by(table.c.id).limit(CHUNK)
    while not rules.may_condemn(size_bytes, kept, max_fraction):
        page = connection.execute(query.where(table.c.id > after)).all()
        if not page:
            rules.refuse_much(size_bytes, kept, max_fraction)
        after = page[-1].id
        kept += sum(row.length for row in page)


def drop(connection: Connection, locations: Sequence[int]) -> None:
    """Forget condemned rows, and the objects that are left without rows and versions."""
    table = schema.locations
    for chunk in chunks(locations):
        part_ids = lock_parts_of(connection, chunk)
        connection.execute(delete(table).where(among(connection, table.c.id, chunk), table.c.state == "condemned"))
        delete_unused_parts(connection, part_ids)


def _count_page(connection: Connection, page: Sequence[int], grace_s: float, now: datetime) -> Sequence[int]:
    table = schema.locations
    rows = among(connection, table.c.part_id, page), doomed(connection, grace_s=grace_s, now=now)
    return connection.execute(select(table.c.length).where(*rows)).scalars().all()


def _condemn_page(connection: Connection, page: Sequence[int], grace_s: float, now: datetime) -> Sequence[int]:
    """Condemn doomed rows of these objects, forget unused objects, take them off the list; return the lengths of the rows.

    The list is read before judging. An object that is not condemned now has a version, whose removal lists it again, or its rows
    are in a state that is looked at each time.
    """
    table = schema.locations
    listing = read_listing(connection, page)
    concerned = _find_concerned(connection, page, grace_s, now)
    lock_parts(connection, concerned, exclusive=True)
    lengths: Sequence[int] = ()
    if concerned:
        # The condition again: a commit that held them may have brought the first version of its policy.
        rows = among(connection, table.c.part_id, concerned), doomed(connection, grace_s=grace_s, now=now)
        values = {"state": "condemned", "condemned_at": format_time(now)}
        statement = update(table).where(*rows).values(**values).returning(table.c.length)
        lengths = connection.execute(statement).scalars().all()
        delete_unused_parts(connection, concerned)
    take_off(connection, listing)
    return lengths


def _find_concerned(connection: Connection, page: Sequence[int], grace_s: float, now: datetime) -> list[int]:
    """Return those of these objects that have doomed rows or are unused, as it looks without locks."""
    table, parts = schema.locations, schema.parts
    rows = among(connection, table.c.part_id, page), doomed(connection, grace_s=grace_s, now=now)
    found = {*connection.execute(select(table.c.part_id).where(*rows)).scalars()}
    unused = select(parts.c.id).where(among(connection, parts.c.id, page), *is_unused())
    return sorted(found.union(connection.execute(unused).scalars()))


def _unread_versions(connection: Connection) -> Sequence[str]:
    """Return the versions without a checks object, which a rebuild could not read: their parts are not known either."""
    unread, versions = schema.unread_versions, schema.versions
    query = select(versions.c.id).join(unread, unread.c.version == versions.c.number)
    return connection.execute(query).scalars().all()


def _owed(connection: Connection) -> ColumnElement[int | None]:
    parts, part_id = schema.parts, schema.locations.c.part_id
    kind = select(parts.c.kind).where(parts.c.id == part_id).scalar_subquery()
    return copies_owed_of(connection, part_id, kind)


def _forget_silent_sessions(connection: Connection, now: datetime) -> None:
    table = schema.push_sessions
    silent = rules.moment_before(now, rules.SESSION_KEPT_S)
    connection.execute(delete(table).where(table.c.heartbeat <= silent))
