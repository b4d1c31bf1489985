"""Devices, models, branches, tags, versions and policies in the database. Each function is a step of one transaction."""

from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, and_, bindparam, delete, func, insert, select, update

from tensorkeep.catalog import rules, schema
from tensorkeep.catalog.database import Transaction, among, chunks, found_any
from tensorkeep.catalog.sql_journal import append
from tensorkeep.catalog.sql_loose import list_objects_of
from tensorkeep.catalog.sql_owing import read_policies
from tensorkeep.catalog.sql_rows import (
    MODELS,
    REFS,
    VERSIONS,
    device_values,
    find_model_by,
    find_versions,
    get_model,
    model_values,
    read_devices,
    read_refs,
    read_versions,
)
from tensorkeep.errors import NotFound
from tensorkeep.records.device import DeviceFacts
from tensorkeep.records.history import (
    Change,
    DeviceChanged,
    ModelChanged,
    ModelFacts,
    PolicyChanged,
    RefChanged,
    RefFacts,
    RefKind,
    StoreChanged,
    VersionFacts,
    VersionRemoved,
)
from tensorkeep.records.names import check_device_name, check_ref_name, is_version_prefix
from tensorkeep.records.redundancy import parse_policy

_MODEL_BY_NAME = MODELS.where(schema.models.c.folded == bindparam("folded"))
_REFS_OF_MODEL = REFS.where(schema.refs.c.model == bindparam("model"))
_NAMED_VERSION = VERSIONS.where(
    schema.versions.c.id
    == select(schema.refs.c.version)
    .where(schema.refs.c.model == bindparam("model"), schema.refs.c.name == bindparam("name"))
    .order_by(schema.refs.c.kind)  # "branch" sorts before "tag", and a branch is meant first
    .limit(1)
    .scalar_subquery()
)


def change_device(tx: Transaction, old: DeviceFacts | None, new: DeviceFacts, now: datetime) -> int:
    """Add or change a device; return the seq."""
    check_device_name(new.name)
    rules.check_device_change(old, new, read_devices(tx.connection))
    table = schema.devices
    if new.state == "draining" and old is not None and old.state == "active":
        store_policy = tx.connection.execute(select(schema.store.c.policy)).scalar_one()
        rules.check_draining(new, read_devices(tx.connection), [store_policy, *read_policies(tx.connection)])
    if new.state == "removed":
        held = select(func.count()).where(schema.locations.c.device == new.id)
        rules.refuse_filled(new, tx.connection.execute(held).scalar_one())
    if old is None:
        tx.connection.execute(insert(table).values(**device_values(new), flushed_seq=0))
    else:
        tx.connection.execute(update(table).where(table.c.id == new.id).values(**device_values(new)))
    return append(tx, [DeviceChanged(old=old, new=new)], now)


def find_model(connection: Connection, folded: str) -> ModelFacts | None:
    """Return the model of that folded name, or None."""
    return find_model_by(connection, _MODEL_BY_NAME, folded=folded)


def list_refs(connection: Connection, model: str) -> list[RefFacts]:
    """Return a model's branches and tags, by kind and name."""
    return read_refs(connection, _REFS_OF_MODEL, model=model)


def list_versions(connection: Connection, model: str) -> list[VersionFacts]:
    """Return a model's versions, newest commit first."""
    return read_versions(connection, schema.versions.c.model == model)[::-1]


def get_version(connection: Connection, model: str, revision: str) -> VersionFacts:
    """Return the version that a revision means: branch, tag, full id, then unique prefix of at least 7 digits."""
    return _get_version_of(connection, get_model(connection, model), revision)


def find_version(connection: Connection, folded: str, revision: str) -> tuple[ModelFacts, VersionFacts] | None:
    """Return the model of that folded name and the version that its revision means; None: there is no such model."""
    model = find_model(connection, folded)
    return None if model is None else (model, _get_version_of(connection, model, revision))


def _get_version_of(connection: Connection, model: ModelFacts, revision: str) -> VersionFacts:
    table = schema.versions
    found = find_versions(connection, _NAMED_VERSION, model=model.id, name=revision)
    if found:
        return found[0]
    if is_version_prefix(revision):
        # Of hex digits, those after the prefix sort before any "g": an index gives them, whatever else the store holds.
        found = read_versions(
            connection, table.c.model == model.id, table.c.id >= revision, table.c.id < revision + "g"
        )
    return rules.choose_version(found, model, revision)


def find_ref(connection: Connection, model: str, kind: RefKind, name: str) -> str | None:
    """Return the version that a branch or tag points at, or None."""
    return connection.execute(select(schema.refs.c.version).where(_is_ref(model, kind, name))).scalar()


def write_ref(connection: Connection, model: str, kind: RefKind, name: str, *, old: str | None, new: str) -> RefChanged:
    """Make (old None) or move a branch or tag; return the change for the journal."""
    if old is None:
        connection.execute(insert(schema.refs).values(model=model, kind=kind, name=name, version=new))
    else:
        connection.execute(update(schema.refs).where(_is_ref(model, kind, name)).values(version=new))
    return RefChanged(model=model, ref=kind, name=name, old=old, new=new)


def set_ref(
    tx: Transaction,
    model: str,
    kind: RefKind,
    name: str,
    *,
    version: str | None,
    expected: str | None,
    now: datetime,
) -> int:
    """Make, move or delete a branch or tag by compare-and-swap; return the seq."""
    check_ref_name(name, kind=kind)
    get_model(tx.connection, model)
    if version is not None:
        get_model_version(tx.connection, model, version)
    present = find_ref(tx.connection, model, kind, name)
    rules.check_ref_move(kind=kind, name=name, present=present, expected=expected, new=version)
    if version is not None:
        change = write_ref(tx.connection, model, kind, name, old=present, new=version)
    else:
        tx.connection.execute(delete(schema.refs).where(_is_ref(model, kind, name)))
        change = RefChanged(model=model, ref=kind, name=name, old=present, new=None)
    return append(tx, [change], now)


def get_model_version(connection: Connection, model: str, version: str) -> VersionFacts:
    """Return a version of a model by its full id.

    Raises:
        NotFound: the model has no such version.
    """
    found = read_versions(connection, schema.versions.c.id == version, schema.versions.c.model == model)
    if not found:
        raise NotFound(f"there is no version {version} of model {model}", model=model, version=version)
    return found[0]


def remove_version(tx: Transaction, model: str, version: str, now: datetime) -> int:
    """Remove a version that no branch or tag points at; return the seq."""
    facts = get_model_version(tx.connection, model, version)
    pointing = read_refs(tx.connection, REFS.where(schema.refs.c.version == version))
    rules.refuse_referenced(version, pointing)
    delete_versions(tx.connection, schema.versions.c.id == version)
    return append(tx, [VersionRemoved(version=facts)], now)


def remove_model(tx: Transaction, model: str, now: datetime) -> int:
    """Remove a model with all its refs and versions, in one entry; return the seq."""
    connection = tx.connection
    facts = get_model(connection, model)
    refs = list_refs(connection, model)
    versions = read_versions(connection, schema.versions.c.model == model)
    connection.execute(delete(schema.refs).where(schema.refs.c.model == model))
    delete_versions(connection, schema.versions.c.model == model)
    connection.execute(delete(schema.models).where(schema.models.c.id == model))
    changes: list[Change] = [
        RefChanged(model=model, ref=ref.kind, name=ref.name, old=ref.version, new=None) for ref in refs
    ]
    changes += [VersionRemoved(version=version) for version in versions]
    changes.append(ModelChanged(old=facts, new=None))
    return append(tx, changes, now)


def set_policy(tx: Transaction, model: str | None, policy: str, now: datetime, *, versions: bool = False) -> int:
    """Set the policy of a model, with its versions or without, or of the store; return the seq."""
    parse_policy(policy)
    connection = tx.connection
    if model is None:
        old = connection.execute(select(schema.store.c.policy)).scalar_one()
        connection.execute(update(schema.store).values(policy=policy))
        return append(tx, [StoreChanged(old=old, new=policy)], now)
    changes: list[Change] = [write_policy(connection, get_model(connection, model), policy)]
    if versions:
        table = schema.versions
        others = (table.c.model == model, table.c.policy != policy)
        found = connection.execute(
            select(table.c.id, table.c.policy).where(*others).order_by(table.c.seq, table.c.number)
        ).all()
        connection.execute(update(table).where(*others).values(policy=policy))
        changes += [PolicyChanged(version=version, old=old, new=policy) for version, old in found]
    return append(tx, changes, now)


def write_policy(connection: Connection, model: ModelFacts, policy: str) -> ModelChanged:
    """Give a model its own policy; return the change for the journal."""
    new = msgspec.structs.replace(model, policy=policy)
    connection.execute(update(schema.models).where(schema.models.c.id == model.id).values(policy=policy))
    return ModelChanged(old=model, new=new)


def insert_model(connection: Connection, model: ModelFacts) -> ModelChanged:
    """Make a model; return the change for the journal."""
    connection.execute(insert(schema.models).values(**model_values(model)))
    return ModelChanged(old=None, new=model)


def delete_versions(connection: Connection, condition: Any) -> None:
    """Delete versions; what they refer to is listed for gc."""
    table, manifests = schema.versions, schema.manifests
    doomed = connection.execute(select(table.c.number, table.c.manifest).where(condition)).all()
    numbers = [row.number for row in doomed]
    list_objects_of(connection, numbers)
    for chunk in chunks(numbers):
        for column in (schema.version_parts.c.version, schema.unread_versions.c.version, table.c.number):
            connection.execute(delete(column.table).where(among(connection, column, chunk)))
    used = found_any(select(table.c.number).where(table.c.manifest == manifests.c.digest))
    for chunk in chunks(sorted({row.manifest for row in doomed})):
        connection.execute(delete(manifests).where(among(connection, manifests.c.digest, chunk), ~used))


def _is_ref(model: str, kind: RefKind, name: str) -> Any:
    table = schema.refs
    return and_(table.c.model == model, table.c.kind == kind, table.c.name == name)
