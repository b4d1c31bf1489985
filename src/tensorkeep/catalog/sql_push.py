"""Push sessions and staging in the database. Each function is a step of one transaction."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from functools import cache, partial
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, Update, bindparam, delete, insert, select, update

from tensorkeep.catalog import rules, schema
from tensorkeep.catalog.database import (
    among,
    among_given,
    chunks,
    find_parts_of,
    found_any,
    given,
    insert_missing,
    lock_parts,
    lock_parts_of,
    locks_rows,
)
from tensorkeep.catalog.placing import Held, StagingPlan, plan_staging
from tensorkeep.catalog.protocol import Location, ObjectKey, ObjectRequest, Staging
from tensorkeep.catalog.retrying import Restart
from tensorkeep.catalog.sql_loose import is_referenced
from tensorkeep.catalog.sql_owing import read_owed_above
from tensorkeep.catalog.sql_rows import PLACE_COLUMNS, find_parts, location_values, place_of, read_devices
from tensorkeep.records.device import DeviceFacts
from tensorkeep.records.json_text import format_time


def keep_session(connection: Connection, session: str, now: datetime) -> None:
    """Open a session, or say that it is alive."""
    table = schema.push_sessions
    moment = format_time(now)
    insert_missing(connection, table, [{"id": session, "heartbeat": moment}])
    connection.execute(update(table).where(table.c.id == session).values(heartbeat=moment))


def end_session(connection: Connection, session: str) -> None:
    """Close a session."""
    connection.execute(delete(schema.push_sessions).where(schema.push_sessions.c.id == session))


_INSERT_LOCATION = insert(schema.locations)


class _Known(NamedTuple):
    """An object that the catalog knows, and all rows of it, in order of their ids."""

    part_id: int
    size_bytes: int
    held: list[Held]


def stage(
    connection: Connection,
    session: str,
    requests: Sequence[ObjectRequest],
    *,
    down: Collection[str],
    allow_soft: bool,
    stored: Sequence[int] = (),
) -> list[Staging]:
    """Answer what exists and insert the rows of what does not; also lock the objects of rows that are recorded next.

    What has all the copies it owes is answered without a lock: one would be gone before the answer is used. The commit locks
    what it refers to, counts its copies again, and asks for what is missing.
    """
    for request in requests:
        rules.check_key(request.key)
    plan = partial(_plan, connection, devices=read_devices(connection), down=down, allow_soft=allow_soft)
    known = _find_known(connection, session, requests)
    first = plan([request for request in requests if request.key in known], known)
    incomplete = {each.request.key for each in first if not each.is_complete}
    complete = {each.request.key: each.answer({}) for each in first if each.request.key not in incomplete}
    others = [request for request in requests if request.key not in complete]
    if not others and not stored:
        return [complete[request.key] for request in requests]
    part_ids = _lock_objects(connection, others, known, stored)
    plans = plan(others, _find_known(connection, session, others))
    new = [location for each in plans for location in each.new]
    _insert_locations(connection, session, new, part_ids)
    delete_unused_parts(connection, sorted({part_ids[each.request.key] for each in plans if not each.has_rows}))
    numbers = _read_numbers(connection, session, sorted({part_ids[location.key] for location in new}))
    answers = iter([each.answer(numbers) for each in plans])
    return [complete.get(request.key) or next(answers) for request in requests]


def record_stored(connection: Connection, session: str, locations: Sequence[int], *, locked: bool = False) -> list[int]:
    """Move the session's staged rows to stored; return those that are condemned or gone. ``locked``: their objects are."""
    dialect = connection.dialect.name
    lost: list[int] = []
    for chunk in chunks(locations):
        if not locked:
            lock_parts_of(connection, chunk)
        numbers = given(connection, chunk)
        moved = connection.execute(_update_staged(dialect), {"owner": session, **numbers}).scalars().all()
        if len(moved) < len(set(chunk)):  # recorded before, or condemned
            kept = {*connection.execute(_select_kept(dialect), numbers).scalars()}
            lost += [number for number in chunk if number not in kept]
    return lost


@cache
def _update_staged(dialect: str) -> Update:
    table = schema.locations
    return (
        update(table)
        .where(among_given(dialect, table.c.id), table.c.state == "staged", table.c.session == bindparam("owner"))
        .values(state="stored")
        .returning(table.c.id)
    )


@cache
def _select_kept(dialect: str) -> Select[int]:
    table = schema.locations
    return select(table.c.id).where(among_given(dialect, table.c.id), table.c.state != "condemned")


def forget_staged(connection: Connection, session: str, locations: Sequence[int], now: datetime) -> None:
    """Condemn the session's staged rows whose upload failed."""
    table = schema.locations
    for chunk in chunks(locations):
        lock_parts_of(connection, chunk)
        connection.execute(
            update(table)
            .where(among(connection, table.c.id, chunk), table.c.state == "staged", table.c.session == session)
            .values(state="condemned", condemned_at=format_time(now))
        )


def delete_unused_parts(connection: Connection, part_ids: Sequence[int]) -> None:
    """Forget those of these objects that have neither rows nor versions."""
    table = schema.parts
    for chunk in chunks(part_ids):
        connection.execute(delete(table).where(among(connection, table.c.id, chunk), *is_unused()))


def is_unused() -> tuple[ColumnElement[bool], ...]:
    """Return the conditions, over ``parts``, that an object has neither rows nor versions."""
    rows, part_id = schema.locations, schema.parts.c.id
    return ~found_any(select(rows.c.id).where(rows.c.part_id == part_id)), ~is_referenced(part_id)


def _plan(
    connection: Connection,
    requests: Sequence[ObjectRequest],
    known: Mapping[ObjectKey, _Known],
    *,
    devices: Sequence[DeviceFacts],
    down: Collection[str],
    allow_soft: bool,
) -> list[StagingPlan]:
    """Return what each request gets, of objects that are all known."""
    # Of several requests of one object the one for the fewest copies, last in this order, tells whether others ask more.
    asked = {
        known[request.key].part_id: (request.key.kind, request.copies)
        for request in sorted(requests, key=lambda request: -request.copies)
    }
    owed = read_owed_above(connection, asked, devices)
    return plan_staging(
        [(request, owed.get(known[request.key].part_id, 0)) for request in requests],
        held={request.key: known[request.key].held for request in requests},
        devices=devices,
        down=down,
        allow_soft=allow_soft,
    )


def _insert_locations(
    connection: Connection, session: str, new: Sequence[Location], part_ids: dict[ObjectKey, int]
) -> None:
    if new:
        rows = [{**location_values(location, part_ids[location.key]), "session": session} for location in new]
        connection.execute(_INSERT_LOCATION, rows)


def _read_numbers(connection: Connection, session: str, part_ids: Sequence[int]) -> dict[tuple[str, str], int]:
    """Return the row ids of a session's staged rows of these objects, by device and name."""
    query = _select_numbers(connection.dialect.name)
    found: dict[tuple[str, str], int] = {}
    for chunk in chunks(part_ids):
        rows = connection.execute(query, {"session": session, **given(connection, chunk)})
        found.update(((device, name), number) for device, name, number in rows)
    return found


@cache
def _select_numbers(dialect: str) -> Select[Any]:
    table = schema.locations
    return select(table.c.device, table.c.name, table.c.id).where(
        among_given(dialect, table.c.part_id), table.c.session == bindparam("session"), table.c.state == "staged"
    )


def _lock_objects(
    connection: Connection,
    requests: Sequence[ObjectRequest],
    known: Mapping[ObjectKey, _Known],
    stored: Sequence[int],
) -> dict[ObjectKey, int]:
    """Make the rows of objects that have none, lock all of them, refuse other sizes, and return their ids."""
    sizes = {request.key: request.size_bytes for request in reversed(requests)}
    # In one order everywhere: two that insert the same objects in two orders would wait for each other.
    missing = sorted(key for key in sizes if key not in known)
    rows = [{"kind": key.kind.value, "digest": key.digest, "size_bytes": sizes[key]} for key in missing]
    insert_missing(connection, schema.parts, rows)
    found = find_parts(connection, missing)
    found.update((key, (known[key].part_id, known[key].size_bytes)) for key in sizes if key in known)
    part_ids = {key: part_id for key, (part_id, _) in found.items()}
    others = find_parts_of(connection, stored) if stored and locks_rows(connection) else []
    locked = lock_parts(connection, list({*part_ids.values(), *others}), exclusive=True)
    if len(part_ids) < len(sizes) or not {*part_ids.values()} <= {*locked}:
        raise Restart  # collected between two statements: nothing referred to it
    for request in requests:
        rules.check_size(request, found[request.key][1])
    return part_ids


def _find_known(connection: Connection, session: str, requests: Sequence[ObjectRequest]) -> dict[ObjectKey, _Known]:
    """Return those of these objects that the catalog knows, with every row whatever its state: names are never used twice.

    Raises:
        Integrity: a request says another size.
    """
    query = _select_known(connection.dialect.name)
    known: dict[ObjectKey, _Known] = {}
    for kind in {request.key.kind for request in requests}:
        keys = {request.key.digest: request.key for request in requests if request.key.kind is kind}
        for chunk in chunks(list(keys)):
            rows = connection.execute(query, {"kind": kind.value, **given(connection, chunk)}).all()
            for digest, part_id, size_bytes, owner, *place in rows:
                key = keys[digest]
                if key not in known:
                    known[key] = _Known(part_id, size_bytes, [])
                if place[0] is not None:
                    known[key].held.append(Held(place_of(place, key, size_bytes), owner == session))
    for request in requests:
        if request.key in known:
            rules.check_size(request, known[request.key].size_bytes)
    return known


@cache
def _select_known(dialect: str) -> Select[Any]:
    parts, table = schema.parts, schema.locations
    return (
        select(parts.c.digest, parts.c.id, parts.c.size_bytes, table.c.session, *PLACE_COLUMNS)
        .join_from(parts, table, table.c.part_id == parts.c.id, isouter=True)
        .where(parts.c.kind == bindparam("kind"), among_given(dialect, parts.c.digest))
        .order_by(table.c.id)
    )
