"""Retention in the database: which versions stay, and letting go of the others. Each function is a step of one transaction."""

from collections.abc import Sequence
from datetime import datetime
from functools import partial

import msgspec
from sqlalchemy import Connection, delete, func, select, update

from tensorkeep.catalog import rules, schema
from tensorkeep.catalog.database import Transaction, among, chunks
from tensorkeep.catalog.expiring import Expired, find_expired
from tensorkeep.catalog.protocol import DeviceHead, Expiry
from tensorkeep.catalog.sql_gc import refuse_much_unused
from tensorkeep.catalog.sql_journal import append, read_end, refuse_stale
from tensorkeep.catalog.sql_names import delete_versions, list_refs, list_versions
from tensorkeep.catalog.sql_rows import get_model, read_models
from tensorkeep.records.history import ModelChanged
from tensorkeep.records.retention import parse_retention


def set_retention(tx: Transaction, model: str, retention: str | None, now: datetime) -> int:
    """Set which versions of a model stay, None: all; return the seq."""
    if retention is not None:
        parse_retention(retention)
    old = get_model(tx.connection, model)
    tx.connection.execute(update(schema.models).where(schema.models.c.id == model).values(retention=retention))
    return append(tx, [ModelChanged(old=old, new=msgspec.structs.replace(old, retention=retention))], now)


def forecast(connection: Connection, heads: Sequence[DeviceHead], now: datetime) -> Expiry:
    """Return which versions would go now."""
    refuse_stale(connection, heads)
    return Expiry(versions=tuple(_find(connection, now).versions), seq=read_end(connection).last_seq)


def expire(tx: Transaction, *, grace_s: float, max_fraction: float | None, now: datetime) -> Expiry:
    """Remove the versions that go now, with their tags, in one entry. Nobody can append meanwhile: no push comes between."""
    connection = tx.connection
    found = _find(connection, now)
    if not found.versions:
        return Expiry(versions=(), seq=read_end(connection).last_seq)
    total = connection.execute(select(func.count()).select_from(schema.versions)).scalar_one()
    rules.refuse_many(len(found.versions), total, max_fraction, found.models)
    for chunk in chunks([version.id for version in found.versions]):
        connection.execute(delete(schema.refs).where(among(connection, schema.refs.c.version, chunk)))
        delete_versions(connection, among(connection, schema.versions.c.id, chunk))
    refuse_much_unused(connection, grace_s=grace_s, max_fraction=max_fraction, now=now)
    return Expiry(versions=tuple(found.versions), seq=append(tx, found.changes, now))


def _find(connection: Connection, now: datetime) -> Expired:
    return find_expired(
        read_models(connection),
        list_versions=partial(list_versions, connection),
        list_refs=partial(list_refs, connection),
        now=now,
    )
