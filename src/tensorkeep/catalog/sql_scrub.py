"""How far scrubs are, and what they met on devices that no row tells of. Each function is a step of one transaction."""

from collections.abc import Sequence
from datetime import datetime

import msgspec
from sqlalchemy import Connection, delete, insert, select

from tensorkeep.catalog import rules, schema
from tensorkeep.catalog.database import among, chunks, insert_missing
from tensorkeep.catalog.protocol import Location, Orphan, ScrubState
from tensorkeep.catalog.sql_reading import record_checked
from tensorkeep.catalog.sql_rows import LOCATION_COLUMNS, location_of
from tensorkeep.records.device import GONE
from tensorkeep.records.json_text import format_time
from tensorkeep.records.naming import ObjectKind

_FIELDS = ScrubState.__struct_fields__


def list_scrubs(connection: Connection) -> list[ScrubState]:
    """Return how far scrubs are, by device and depth."""
    table, devices = schema.scrubs, schema.devices
    query = select(*(table.c[field] for field in _FIELDS)).join_from(table, devices, devices.c.id == table.c.device)
    rows = connection.execute(query.where(devices.c.state.not_in(GONE)))
    return sorted((ScrubState(**row._mapping) for row in rows), key=lambda state: (state.device, state.depth))


def record_scrub(connection: Connection, state: ScrubState, good: Sequence[int], bad: Sequence[int]) -> None:
    """Note what a page of a scrub found, and how far the scrub is."""
    record_checked(connection, good, bad)
    table = schema.scrubs
    mine = (table.c.device == state.device) & (table.c.depth == state.depth)
    connection.execute(delete(table).where(mine))
    connection.execute(insert(table).values(**msgspec.structs.asdict(state)))


def list_named(connection: Connection, device: str, kind: ObjectKind, first: int, last: int) -> list[Location]:
    """Return the rows of a device of objects of one kind whose digests begin with bytes from ``first`` to ``last``."""
    table, parts = schema.locations, schema.parts
    query = select(*LOCATION_COLUMNS).join_from(table, parts, parts.c.id == table.c.part_id)
    query = query.where(table.c.device == device, parts.c.kind == kind.value, parts.c.digest >= bytes([first]))
    if last < 255:
        query = query.where(parts.c.digest < bytes([last + 1]))
    return [location_of(row) for row in connection.execute(query.order_by(table.c.id))]


def note_orphans(connection: Connection, device: str, found: Sequence[tuple[str, int]], now: datetime) -> int:
    """Note those of these objects of a device that no row tells of; return how many are new."""
    rows, table = schema.locations, schema.orphans
    noted = 0
    for chunk in chunks(found):
        names = [name for name, _ in chunk]
        mine = rows.c.device == device, among(connection, rows.c.name, names)
        known = {*connection.execute(select(rows.c.name).where(*mine)).scalars()}
        mine = table.c.device == device, among(connection, table.c.name, names)
        known.update(connection.execute(select(table.c.name).where(*mine)).scalars())
        moment = format_time(now)
        fresh = [
            {"device": device, "name": name, "size_bytes": size, "noted_at": moment}
            for name, size in chunk
            if name not in known
        ]
        insert_missing(connection, table, fresh)
        noted += len(fresh)
    return noted


def list_orphans(connection: Connection, grace_s: float, now: datetime, after: int, limit: int) -> list[Orphan]:
    """Return orphans on devices that are not gone, noted at least the grace ago, by id."""
    table, devices = schema.orphans, schema.devices
    columns = (table.c[field] for field in Orphan.__struct_fields__)
    query = select(*columns).join_from(table, devices, devices.c.id == table.c.device)
    query = query.where(devices.c.state.not_in(GONE), table.c.noted_at <= rules.moment_before(now, grace_s))
    rows = connection.execute(query.where(table.c.id > after).order_by(table.c.id).limit(limit))
    return [Orphan(**row._mapping) for row in rows]


def drop_orphans(connection: Connection, orphans: Sequence[int]) -> None:
    """Forget orphans."""
    for chunk in chunks(orphans):
        connection.execute(delete(schema.orphans).where(among(connection, schema.orphans.c.id, chunk)))
