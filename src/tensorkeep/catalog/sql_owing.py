"""What objects owe and what they have, as SQL: one definition for staging, gc and status."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    ScalarSelect,
    Select,
    and_,
    case,
    cast,
    func,
    literal,
    literal_column,
    null,
    or_,
    select,
)
from sqlalchemy.sql.selectable import NamedFromClause

from tensorkeep.catalog import rules, schema
from tensorkeep.catalog.database import among, chunks, found_any
from tensorkeep.catalog.sql_loose import is_referenced
from tensorkeep.catalog.sql_rows import read_devices
from tensorkeep.records.device import DeviceFacts, counted_devices
from tensorkeep.records.naming import ObjectKind


def copies_owed_of(
    connection: Connection, part_id: ColumnElement[int], kind: ColumnElement[str]
) -> ColumnElement[int | None]:
    """Return, as SQL, the most copies that versions ask of an object; null where none refers to it.

    Policies are few and text: each becomes a number here. The highest is asked first, and each by one probe: an object that all
    versions of a store share costs no more than one that a single version has.
    """
    return _owed_by(read_policies(connection), len(counted_devices(read_devices(connection))), part_id, kind)


def _owed_by(
    policies: Sequence[str], counted: int, part_id: ColumnElement[int], kind: ColumnElement[str]
) -> ColumnElement[int | None]:
    if not policies:
        return cast(null(), Integer)

    def owed(object_kind: ObjectKind) -> ColumnElement[int | None]:
        asking: dict[int, list[str]] = {}
        for policy in policies:
            asking.setdefault(rules.copies_owed(object_kind, policy, counted), []).append(policy)
        *others, lowest = sorted(asking, reverse=True)
        whens = [(_is_asked_by(part_id, asking[number]), literal(number)) for number in others]
        return case(*whens, (is_referenced(part_id), literal(lowest)), else_=null())

    return case((kind == ObjectKind.PART.value, owed(ObjectKind.PART)), else_=owed(ObjectKind.MANIFEST))


def read_owed(connection: Connection, part_ids: Sequence[int]) -> dict[int, int]:
    """Return the most copies that versions ask of each of these objects; objects that none refers to are left out."""
    owed = copies_owed_of(connection, schema.parts.c.id, schema.parts.c.kind)
    return _read_owed(connection, owed, part_ids)


def read_owed_above(
    connection: Connection, asked: Mapping[int, tuple[ObjectKind, int]], devices: Sequence[DeviceFacts]
) -> dict[int, int]:
    """Return what `read_owed` does, without the objects that can't owe more copies than are asked now anyway.

    In most stores all versions have one policy: then no object needs a look.

    Args:
        connection: of the transaction.
        asked: id of each object → its kind, and for how many copies it is asked.
        devices: all devices of the store.
    """
    if not asked:
        return {}
    policies, counted = read_policies(connection), len(counted_devices(devices))
    highest = {
        kind: max((rules.copies_owed(kind, policy, counted) for policy in policies), default=0) for kind in ObjectKind
    }
    doubtful = [part_id for part_id, (kind, copies) in asked.items() if copies < highest[kind]]
    if not doubtful:
        return {}
    owed = _owed_by(policies, counted, schema.parts.c.id, schema.parts.c.kind)
    return _read_owed(connection, owed, doubtful)


def _read_owed(connection: Connection, owed: ColumnElement[int | None], part_ids: Sequence[int]) -> dict[int, int]:
    parts = schema.parts
    found: dict[int, int] = {}
    for chunk in chunks(part_ids):
        rows = connection.execute(select(parts.c.id, owed).where(among(connection, parts.c.id, chunk)))
        found.update((part_id, number) for part_id, number in rows if number is not None)
    return found


def read_policies(connection: Connection) -> Sequence[str]:
    """Return the policies that versions have."""
    return connection.execute(_POLICIES).scalars().all()


def _walk_policies() -> Select[str]:
    """Return a walk over the index from each policy to the next: DISTINCT would read every version."""
    policy = schema.versions.c.policy
    walk = select(func.min(policy).label("policy")).cte("policies", recursive=True)
    following = select(func.min(policy)).where(policy > walk.c.policy).scalar_subquery()
    walk = walk.union_all(select(following).select_from(walk).where(walk.c.policy.is_not(None)))
    return select(walk.c.policy).where(walk.c.policy.is_not(None))


_POLICIES = _walk_policies()


def _is_asked_by(part_id: ColumnElement[int], policies: Sequence[str]) -> ColumnElement[bool]:
    pairs, versions = schema.version_parts, schema.versions
    query = select(pairs.c.version).join(versions, versions.c.number == pairs.c.version)
    return found_any(query.where(pairs.c.part_id == part_id, versions.c.policy.in_(policies)))


def usable_copies(part_id: ColumnElement[int], *, durable_only: bool, down: Sequence[str] = ()) -> ColumnElement[int]:
    """Return, as correlated SQL, what `counting.count_copies` gives of an object's usable rows on active devices not down."""
    rows = schema.locations.alias("whole")
    copies = select(func.count(rows.c.device.distinct())).where(rows.c.fragment.is_(None))
    copies = _of_usable(copies, rows, part_id, durable_only=durable_only, down=down)
    fragments = _usable_fragments(part_id, durable_only=durable_only, down=down)
    return copies.scalar_subquery() + func.coalesce(fragments, literal_column("0"))


def _usable_fragments(part_id: ColumnElement[int], *, durable_only: bool, down: Sequence[str]) -> ScalarSelect[int]:
    """Return, as correlated SQL, how many copies the fragments on other devices than whole copies are; null for none."""
    rows, other = schema.locations.alias("fragments"), schema.locations.alias("beside")
    is_before = and_(other.c.form == rows.c.form, other.c.fragment < rows.c.fragment)
    beside = select(other.c.id).where(other.c.device == rows.c.device, or_(other.c.fragment.is_(None), is_before))
    beside = _of_usable(beside, other, rows.c.part_id, durable_only=durable_only, down=down)
    left = func.count(rows.c.fragment.distinct()) - rows.c.needed + 1
    query = (
        select(left)
        .where(rows.c.fragment.is_not(None), ~found_any(beside))
        .group_by(rows.c.form, rows.c.needed)
        .having(left > 0)
        .order_by(left.desc())
    )
    query = _of_usable(query, rows, part_id, durable_only=durable_only, down=down)
    return query.limit(literal_column("1")).scalar_subquery()


def _of_usable(
    query: Select[Any],
    rows: NamedFromClause[Any],
    part_id: ColumnElement[int],
    *,
    durable_only: bool,
    down: Sequence[str],
) -> Select[Any]:
    """Return a query of the usable rows of an object on active devices not down; ``rows`` is an alias of ``locations``."""
    devices = schema.devices.alias(f"devices_of_{rows.name}")
    query = query.join_from(rows, devices, devices.c.id == rows.c.device)
    query = query.where(rows.c.part_id == part_id, rows.c.state.in_(rules.USABLE), devices.c.state == "active")
    if down:
        query = query.where(rows.c.device.not_in(down))
    return query.where(devices.c.durability == "durable") if durable_only else query
