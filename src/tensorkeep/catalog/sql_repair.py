"""What lacks copies, and giving up copies that are not needed. Each function is a step of one transaction."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, select, update

from tensorkeep.catalog import schema
from tensorkeep.catalog.database import among, chunks, lock_parts_of
from tensorkeep.catalog.protocol import ObjectKey, ShortObject
from tensorkeep.catalog.retiring import choose_retired
from tensorkeep.catalog.sql_owing import copies_owed_of, read_owed, usable_copies
from tensorkeep.catalog.sql_rows import LOCATION_COLUMNS, location_of, read_devices
from tensorkeep.records.json_text import format_time
from tensorkeep.records.naming import ObjectKind


def list_short(
    connection: Connection, *, down: Sequence[str], parts: bool, after: int, limit: int
) -> list[ShortObject]:
    """Return objects with fewer usable copies than they owe, by id."""
    table = schema.parts
    owed = copies_owed_of(connection, table.c.id, table.c.kind).label("owed")
    have = usable_copies(table.c.id, durable_only=False, down=down).label("have")
    counted = select(table.c.id, table.c.kind, table.c.digest, table.c.size_bytes, have, owed).where(table.c.id > after)
    if not parts:
        counted = counted.where(table.c.kind != ObjectKind.PART.value)
    found = counted.subquery("counted")
    query = select(found).where(found.c.have < found.c.owed).order_by(found.c.id).limit(limit)
    return [
        ShortObject(id=number, key=ObjectKey(ObjectKind(kind), digest), size_bytes=size, have=have, owed=owed)
        for number, kind, digest, size, have, owed in connection.execute(query)
    ]


def retire(connection: Connection, locations: Sequence[int], *, down: Sequence[str], now: datetime) -> list[int]:
    """Condemn those of these rows without which their objects have all the copies they owe; return which."""
    retired: list[int] = []
    for chunk in chunks(locations):
        retired += _retire_chunk(connection, chunk, down, now)
    return retired


def _retire_chunk(connection: Connection, chunk: Sequence[int], down: Sequence[str], now: datetime) -> list[int]:
    table, parts = schema.locations, schema.parts
    part_ids = lock_parts_of(connection, chunk)  # what is read from here on stays so until the transaction ends
    query = select(*LOCATION_COLUMNS, table.c.part_id).join_from(table, parts, parts.c.id == table.c.part_id)
    found = connection.execute(query.where(among(connection, table.c.part_id, part_ids))).all()
    rows = [location_of(row[:-1]) for row in found]
    keys = {row[-1]: location.key for row, location in zip(found, rows, strict=True)}
    owed = {keys[part_id]: copies for part_id, copies in read_owed(connection, part_ids).items() if part_id in keys}
    retired = choose_retired(chunk, rows, owed=owed, devices=read_devices(connection), down=down)
    if retired:
        values = {"state": "condemned", "condemned_at": format_time(now)}
        connection.execute(update(table).where(among(connection, table.c.id, retired)).values(**values))
    return retired
