"""Objects that may have lost their last version: who removes versions lists them, gc looks at them and takes them off the list.

So gc need not search all objects for those that nothing refers to. The list may name too many (still referred to, listed twice,
gone), and never too few: an object is without a version only because the transaction that removed its last one listed it.
"""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Connection, Select, delete, insert, select, union

from tensorkeep.catalog import schema
from tensorkeep.catalog.database import CHUNK, among, chunks, found_any


def list_objects_of(connection: Connection, versions: Sequence[int]) -> None:
    """List the objects of these versions, which are about to be removed."""
    pairs = schema.version_parts
    for chunk in chunks(versions):
        _list(connection, select(pairs.c.part_id).where(among(connection, pairs.c.version, chunk)).distinct())


def list_unreferenced(connection: Connection) -> None:
    """List every object that no version refers to: of a catalog just filled."""
    _list(connection, select(schema.parts.c.id).where(~is_referenced(schema.parts.c.id)))


def is_referenced(part_id: ColumnElement[int]) -> ColumnElement[bool]:
    """Return the condition that a version refers to an object."""
    pairs = schema.version_parts
    return found_any(select(pairs.c.version).where(pairs.c.part_id == part_id))


def next_page(connection: Connection, after: int) -> Sequence[int]:
    """Return the next objects for gc to look at, by id: those listed, and those with rows in states that do not last."""
    listed, rows = schema.loose_parts.c.part_id, schema.locations.c.part_id
    pages = [
        select(column).where(column > after, *conditions).distinct().order_by(column).limit(CHUNK).subquery()
        for column, conditions in ((listed, ()), (rows, (schema.is_unsettled,)))
    ]
    both = union(*(select(page.c.part_id) for page in pages)).subquery()
    return connection.execute(select(both.c.part_id).order_by(both.c.part_id).limit(CHUNK)).scalars().all()


def read_listing(connection: Connection, part_ids: Sequence[int]) -> Sequence[int]:
    """Return the ids of the list's rows for these objects. Read them before judging: what is listed later stays listed."""
    table = schema.loose_parts
    return connection.execute(select(table.c.id).where(among(connection, table.c.part_id, part_ids))).scalars().all()


def take_off(connection: Connection, rows: Sequence[int]) -> None:
    """Take just these rows off the list."""
    for chunk in chunks(rows):
        connection.execute(delete(schema.loose_parts).where(among(connection, schema.loose_parts.c.id, chunk)))


def _list(connection: Connection, part_ids: Select[tuple[int]]) -> None:
    connection.execute(insert(schema.loose_parts).from_select([schema.loose_parts.c.part_id], part_ids))
