"""Push sessions and staging in the database. Each function is a step of one transaction."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, delete, insert, select, update

from tensorkeep.catalog import rules, schema
from tensorkeep.catalog.database import (
    among,
    chunks,
    find_parts_of,
    found_any,
    insert_missing,
    lock_parts,
    lock_parts_of,
)
from tensorkeep.catalog.placing import Held, plan_staging
from tensorkeep.catalog.protocol import Location, ObjectKey, ObjectRequest, Staging
from tensorkeep.catalog.retrying import Restart
from tensorkeep.catalog.sql_loose import is_referenced
from tensorkeep.catalog.sql_owing import read_owed_above
from tensorkeep.catalog.sql_rows import PLACE_COLUMNS, find_parts, location_values, place_of, read_devices
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


def stage(
    connection: Connection,
    session: str,
    requests: Sequence[ObjectRequest],
    *,
    down: Collection[str],
    allow_soft: bool,
    stored: Sequence[int] = (),
) -> list[Staging]:
    """Answer what exists and insert the rows of what does not; also lock the objects of rows that are recorded next."""
    keys = [rules.check_key(request.key) for request in requests]
    part_ids = _lock_objects(connection, requests, keys, stored)
    # Of several requests of one object the one for the fewest copies, last in this order, tells whether others ask more.
    asked = {part_ids[request.key]: request for request in sorted(requests, key=lambda request: -request.copies)}
    held = _read_held(connection, session, asked)
    devices = read_devices(connection)
    owed = read_owed_above(
        connection, {number: (each.key.kind, each.copies) for number, each in asked.items()}, devices
    )
    plans = plan_staging(
        [(request, owed.get(part_ids[request.key], 0)) for request in requests],
        held={key: held.get(part_id, []) for key, part_id in part_ids.items()},
        devices=devices,
        down=down,
        allow_soft=allow_soft,
    )
    new = [location for plan in plans for location in plan.new]
    _insert_locations(connection, session, new, part_ids)
    delete_unused_parts(connection, sorted({part_ids[plan.request.key] for plan in plans if not plan.copies}))
    numbers = _read_numbers(connection, session, sorted({part_ids[location.key] for location in new}))
    return [plan.answer(numbers) for plan in plans]


def record_stored(connection: Connection, session: str, locations: Sequence[int]) -> list[int]:
    """Move the session's staged rows to stored; return those that are condemned or gone."""
    table = schema.locations
    kept: set[int] = set()
    for chunk in chunks(locations):
        rows = among(connection, table.c.id, chunk)
        lock_parts_of(connection, chunk)
        connection.execute(
            update(table).where(rows, table.c.state == "staged", table.c.session == session).values(state="stored")
        )
        kept.update(connection.execute(select(table.c.id).where(rows, table.c.state != "condemned")).scalars())
    return [number for number in locations if number not in kept]


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


def _insert_locations(
    connection: Connection, session: str, new: Sequence[Location], part_ids: dict[ObjectKey, int]
) -> None:
    if new:
        rows = [{**location_values(location, part_ids[location.key]), "session": session} for location in new]
        connection.execute(insert(schema.locations), rows)


def _read_numbers(connection: Connection, session: str, part_ids: Sequence[int]) -> dict[tuple[str, str], int]:
    """Return the row ids of a session's staged rows of these objects, by device and name."""
    table = schema.locations
    found: dict[tuple[str, str], int] = {}
    for chunk in chunks(part_ids):
        query = select(table.c.device, table.c.name, table.c.id).where(
            among(connection, table.c.part_id, chunk), table.c.session == session, table.c.state == "staged"
        )
        found.update(((device, name), number) for device, name, number in connection.execute(query))
    return found


def _lock_objects(
    connection: Connection, requests: Sequence[ObjectRequest], keys: Sequence[ObjectKey], stored: Sequence[int]
) -> dict[ObjectKey, int]:
    """Make the rows of objects that have none, lock all of them, refuse other sizes, and return their ids."""
    sizes = {request.key: request.size_bytes for request in reversed(requests)}
    found = find_parts(connection, keys)
    # In one order everywhere: two that insert the same objects in two orders would wait for each other.
    missing = sorted(key for key in sizes if key not in found)
    rows = [{"kind": key.kind.value, "digest": key.digest, "size_bytes": sizes[key]} for key in missing]
    insert_missing(connection, schema.parts, rows)
    found.update(find_parts(connection, missing))
    part_ids = {key: part_id for key, (part_id, _) in found.items()}
    others = find_parts_of(connection, stored) if stored else []
    locked = lock_parts(connection, list({*part_ids.values(), *others}), exclusive=True)
    if not {*part_ids.values()} <= {*locked}:
        raise Restart  # collected between two statements: nothing referred to it
    for request in requests:
        rules.check_size(request, found[request.key][1])
    return part_ids


def _read_held(connection: Connection, session: str, asked: Mapping[int, ObjectRequest]) -> dict[int, list[Held]]:
    """Return every row of these objects (by the ids of theirs), whatever its state: names are never used twice."""
    table = schema.locations
    held: dict[int, list[Held]] = {}
    for chunk in chunks(list(asked)):
        query = (
            select(table.c.part_id, table.c.session, *PLACE_COLUMNS)
            .where(among(connection, table.c.part_id, chunk))
            .order_by(table.c.id)
        )
        for part_id, owner, *place in connection.execute(query).all():
            request = asked[part_id]
            location = place_of(place, request.key, request.size_bytes)
            held.setdefault(part_id, []).append(Held(location, mine=owner == session))
    return held
