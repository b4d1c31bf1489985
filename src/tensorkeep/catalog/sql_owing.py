"""What objects owe and what they have, as SQL: one definition for staging, gc and status."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, ScalarSelect, case, func, literal, select

from tensorkeep.catalog import rules, schema
from tensorkeep.catalog.database import among, chunks
from tensorkeep.catalog.sql_rows import read_devices
from tensorkeep.records.device import counted_devices
from tensorkeep.records.naming import ObjectKind


def owed_by_version(connection: Connection) -> ColumnElement[int]:
    """Return, as SQL over joined ``parts`` and ``versions``, how many copies an object owes to one version.

    Policies are few and text: each becomes a number here, so that the database only compares.
    """
    policies = connection.execute(select(schema.versions.c.policy).distinct()).scalars().all()
    counted = len(counted_devices(read_devices(connection)))
    kind, policy = schema.parts.c.kind, schema.versions.c.policy
    whens: list[tuple[Any, Any]] = []
    for text in policies:
        whens.append(
            (
                (policy == text) & (kind == ObjectKind.PART.value),
                literal(rules.copies_owed(ObjectKind.PART, text, counted)),
            )
        )
        whens.append((policy == text, literal(rules.copies_owed(ObjectKind.MANIFEST, text, counted))))
    return case(*whens, else_=literal(0)) if whens else literal(0)


def read_owed(connection: Connection, part_ids: Sequence[int]) -> dict[int, int]:
    """Return the most copies that versions ask of each of these objects; objects that none refers to are left out."""
    pairs = schema.version_parts
    owed = func.max(owed_by_version(connection))
    found: dict[int, int] = {}
    for chunk in chunks(part_ids):
        query = (
            select(pairs.c.part_id, owed)
            .join(schema.versions, schema.versions.c.number == pairs.c.version)
            .join(schema.parts, schema.parts.c.id == pairs.c.part_id)
            .where(among(connection, pairs.c.part_id, chunk))
            .group_by(pairs.c.part_id)
        )
        found.update((part_id, number) for part_id, number in connection.execute(query))
    return found


def usable_copies(part_id: ColumnElement[int], *, durable_only: bool) -> ScalarSelect[int]:
    """Return, as a correlated subquery, on how many active devices an object has a usable copy."""
    rows = schema.locations.alias("usable")
    query = (
        select(func.count(rows.c.device.distinct()))
        .join(schema.devices, schema.devices.c.id == rows.c.device)
        .where(rows.c.part_id == part_id, rows.c.state.in_(rules.USABLE), schema.devices.c.state == "active")
    )
    if durable_only:
        query = query.where(schema.devices.c.durability == "durable")
    return query.scalar_subquery()
