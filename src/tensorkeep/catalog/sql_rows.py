"""Rows of the tables as values, and values as rows."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec
from sqlalchemy import Connection, Select, bindparam, select

from tensorkeep.catalog import schema
from tensorkeep.catalog.database import among_given, chunks, given
from tensorkeep.catalog.protocol import Location, ObjectKey
from tensorkeep.errors import NotFound
from tensorkeep.records.conformance import Conformance
from tensorkeep.records.device import DeviceFacts
from tensorkeep.records.history import ModelFacts, RefFacts, StoreState, VersionFacts
from tensorkeep.records.json_text import decode_canonical, encode_canonical
from tensorkeep.records.naming import ObjectKind

PLACE_COLUMNS = (
    schema.locations.c.id,
    schema.locations.c.device,
    schema.locations.c.name,
    schema.locations.c.form,
    schema.locations.c.offset,
    schema.locations.c.length,
    schema.locations.c.state,
    schema.locations.c.fragment,
    schema.locations.c.needed,
)
"""A location without its object."""

LOCATION_COLUMNS = (schema.parts.c.kind, schema.parts.c.digest, schema.parts.c.size_bytes, *PLACE_COLUMNS)

_DEVICE_COLUMNS = tuple(schema.devices.c[field] for field in DeviceFacts.__struct_fields__)
_DEVICES = select(*_DEVICE_COLUMNS).order_by(schema.devices.c.number)

MODELS = select(*(schema.models.c[field] for field in ModelFacts.__struct_fields__))
"""All models. Queries that every load asks are built once: that takes longer than to run one."""

MODEL_BY_ID = MODELS.where(schema.models.c.id == bindparam("model"))

VERSIONS = select(*(schema.versions.c[field] for field in VersionFacts.__struct_fields__)).order_by(
    schema.versions.c.seq, schema.versions.c.number
)
"""All versions, oldest commit first."""

REFS = select(*(schema.refs.c[field] for field in RefFacts.__struct_fields__))
"""All branches and tags."""


def location_of(row: Any) -> Location:
    """Return the location in a row of `LOCATION_COLUMNS`."""
    kind, digest, size_bytes, *place = row
    return place_of(place, ObjectKey(ObjectKind(kind), digest), size_bytes)


def place_of(place: Sequence[Any], key: ObjectKey, size_bytes: int) -> Location:
    """Return the location of an object in a row of `PLACE_COLUMNS`."""
    number, device, name, form, offset, length, state, fragment, needed = place
    return Location(
        id=number,
        key=key,
        size_bytes=size_bytes,
        device=device,
        name=name,
        form=form,
        offset=offset,
        length=length,
        state=state,
        fragment=fragment,
        needed=needed,
    )


def location_values(location: Location, part_id: int) -> dict[str, Any]:
    """Return the row of a location without its id, session and time of condemnation."""
    return {
        "part_id": part_id,
        "device": location.device,
        "name": location.name,
        "form": location.form,
        "offset": location.offset,
        "length": location.length,
        "state": location.state,
        "fragment": location.fragment,
        "needed": location.needed,
    }


def values_of(facts: msgspec.Struct) -> dict[str, Any]:
    """Return a record's fields as column values."""
    return msgspec.structs.asdict(facts)


def model_values(facts: ModelFacts) -> dict[str, Any]:
    """Return a model's row."""
    return {**values_of(facts), "folded": facts.name.casefold()}


def read_devices(connection: Connection) -> list[DeviceFacts]:
    """Return all devices in order of being added."""
    rows = connection.execute(_DEVICES)
    return [DeviceFacts(**{**row._mapping, "conformance": _parse_conformance(row.conformance)}) for row in rows]


def device_values(facts: DeviceFacts) -> dict[str, Any]:
    """Return a device's row, without what was sent to it."""
    found = facts.conformance
    return {**values_of(facts), "conformance": encode_canonical(found).decode() if found else None}


def _parse_conformance(text: str | None) -> Conformance | msgspec.UnsetType:
    return (
        msgspec.UNSET if text is None else decode_canonical(text.encode(), Conformance, what="conformance of a device")
    )


def read_models(connection: Connection) -> list[ModelFacts]:
    """Return all models, by name without regard to case (by code points: databases sort text in their own ways)."""
    found = [ModelFacts(**row._mapping) for row in connection.execute(MODELS)]
    return sorted(found, key=lambda facts: facts.name.casefold())


def find_model_by(connection: Connection, query: Select[Any], **words: str) -> ModelFacts | None:
    """Return the one model that a query of `MODELS` finds, or None."""
    row = connection.execute(query, words).first()
    return None if row is None else ModelFacts(**row._mapping)


def get_model(connection: Connection, model: str) -> ModelFacts:
    """Return the model of that ulid.

    Raises:
        NotFound: there is none.
    """
    found = find_model_by(connection, MODEL_BY_ID, model=model)
    if found is None:
        raise NotFound(f"there is no model {model}: was it removed?", model=model)
    return found


def read_versions(connection: Connection, *conditions: Any) -> list[VersionFacts]:
    """Return the versions that meet the conditions, oldest commit first."""
    return find_versions(connection, VERSIONS.where(*conditions))


def find_versions(connection: Connection, query: Select[Any], **words: str) -> list[VersionFacts]:
    """Return the versions that a query of `VERSIONS` finds."""
    return [VersionFacts(**row._mapping) for row in connection.execute(query, words)]


def read_refs(connection: Connection, query: Select[Any] = REFS, **words: str) -> list[RefFacts]:
    """Return the refs that a query of `REFS` finds, by model, kind and name; all without one."""
    found = [RefFacts(**row._mapping) for row in connection.execute(query, words)]
    return sorted(found, key=lambda ref: (ref.model, ref.kind, ref.name))


def read_state(connection: Connection) -> StoreState:
    """Return everything that the journal tells, as the tables hold it."""
    return StoreState(
        policy=connection.execute(select(schema.store.c.policy)).scalar_one(),
        devices={facts.id: facts for facts in read_devices(connection)},
        models={facts.id: facts for facts in sorted(read_models(connection), key=lambda facts: facts.id)},
        versions={facts.id: facts for facts in read_versions(connection)},
        refs=read_refs(connection),
    )


def find_part_ids(connection: Connection, keys: Sequence[ObjectKey]) -> dict[ObjectKey, int]:
    """Return the row ids of the objects that the catalog knows among these."""
    return {key: part_id for key, (part_id, _) in find_parts(connection, keys).items()}


def find_parts(connection: Connection, keys: Sequence[ObjectKey]) -> dict[ObjectKey, tuple[int, int]]:
    """Return the row ids and sizes of the objects that the catalog knows among these; a row's size never changes."""
    query = _select_parts(connection.dialect.name)
    found: dict[ObjectKey, tuple[int, int]] = {}
    for kind in ObjectKind:
        digests = [key.digest for key in keys if key.kind is kind]
        for chunk in chunks(digests):
            rows = connection.execute(query, {"kind": kind.value, **given(connection, chunk)})
            found.update((ObjectKey(kind, digest), (part_id, size)) for digest, part_id, size in rows.all())
    return found


@cache
def _select_parts(dialect: str) -> Select[Any]:
    table = schema.parts
    return select(table.c.digest, table.c.id, table.c.size_bytes).where(
        table.c.kind == bindparam("kind"), among_given(dialect, table.c.digest)
    )
