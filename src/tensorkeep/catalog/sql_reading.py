"""Where objects are, what versions hold, what is short. Each function is a step of one transaction."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import Connection, Select, bindparam, exists, func, literal_column, select, update

from tensorkeep.catalog import rules, schema
from tensorkeep.catalog.database import among, among_given, chunks, given, lock_parts_of
from tensorkeep.catalog.protocol import DeviceUsage, Location, ObjectKey, VersionUsage
from tensorkeep.catalog.sql_loose import is_referenced
from tensorkeep.catalog.sql_owing import copies_owed_of, read_owed, usable_copies
from tensorkeep.catalog.sql_rows import LOCATION_COLUMNS, find_part_ids, location_of, place_of
from tensorkeep.errors import NotFound
from tensorkeep.records.device import GONE
from tensorkeep.records.naming import ObjectKind


def locate(connection: Connection, keys: Sequence[ObjectKey]) -> dict[ObjectKey, list[Location]]:
    """Return the live, stored and bad rows of these objects on devices that are not gone; a list for every key."""
    found: dict[ObjectKey, list[Location]] = {key: [] for key in keys}
    query = _select_located(connection.dialect.name)
    for kind in ObjectKind:
        by_digest = {key.digest: key for key in found if key.kind is kind}
        for chunk in chunks(list(by_digest)):
            for _, digest, size_bytes, *place in connection.execute(
                query, {"kind": kind.value, **given(connection, chunk)}
            ).all():
                key = by_digest[digest]
                found[key].append(place_of(place, key, size_bytes))
    return found


@cache
def _select_located(dialect: str) -> Select[Any]:
    parts = schema.parts
    return _locations().where(
        parts.c.kind == bindparam("kind"),
        among_given(dialect, parts.c.digest),
        schema.locations.c.state.in_((*rules.USABLE, "bad")),
        schema.devices.c.state.not_in(GONE),
    )


def copies_owed(connection: Connection, keys: Sequence[ObjectKey]) -> dict[ObjectKey, int]:
    """Return the most copies that versions ask of each of these objects; unreferenced ones are left out."""
    part_ids = find_part_ids(connection, keys)
    owed = read_owed(connection, list(part_ids.values()))
    return {key: owed[part_id] for key, part_id in part_ids.items() if part_id in owed}


def locate_all(connection: Connection, after: int, limit: int) -> list[Location]:
    """Return rows in any state but condemned, by id."""
    table = schema.locations
    query = _locations().where(table.c.id > after, table.c.state != "condemned").limit(limit)
    return [location_of(row) for row in connection.execute(query)]


def list_on(connection: Connection, device: str, after: int, limit: int) -> list[Location]:
    """Return the rows of a device in any state, by id."""
    table = schema.locations
    query = _locations().where(table.c.device == device, table.c.id > after).limit(limit)
    return [location_of(row) for row in connection.execute(query)]


def list_condemned(connection: Connection, until: str, after: int, limit: int) -> list[Location]:
    """Return rows condemned at that moment or before, by id."""
    table = schema.locations
    query = _locations().where(table.c.id > after, schema.is_condemned, table.c.condemned_at <= until)
    return [location_of(row) for row in connection.execute(query.limit(limit))]


def version_objects(connection: Connection, version: str) -> list[tuple[ObjectKey, int]]:
    """Return the objects a version refers to, with sizes, by kind and digest."""
    number = _number(connection, version)
    parts, pairs = schema.parts, schema.version_parts
    rows = connection.execute(
        select(parts.c.kind, parts.c.digest, parts.c.size_bytes)
        .join(pairs, pairs.c.part_id == parts.c.id)
        .where(pairs.c.version == number)
    )
    return sorted((ObjectKey(ObjectKind(kind), digest), size) for kind, digest, size in rows)


def find_manifest(connection: Connection, digest: str) -> bytes | None:
    """Return the bytes of a manifest if the catalog keeps them."""
    return connection.execute(select(schema.manifests.c.body).where(schema.manifests.c.digest == digest)).scalar()


def device_usage(connection: Connection) -> list[DeviceUsage]:
    """Return what each device holds, in order of being added."""
    table, devices = schema.locations, schema.devices
    rows = connection.execute(
        select(table.c.device, table.c.state, func.count(), func.sum(table.c.length))
        .where(table.c.state != "condemned")
        .group_by(table.c.device, table.c.state)
    )
    held: dict[str, dict[str, tuple[int, int]]] = {}
    for device, state, count, size in rows:
        held.setdefault(device, {})[state] = (count, int(size))
    found = []
    for device in connection.execute(select(devices.c.id).order_by(devices.c.number)).scalars():
        states = held.get(device, {})
        bad = states.get("bad", (0, 0))
        found.append(
            DeviceUsage(
                device=device,
                locations=sum(count for count, _ in states.values()),
                bytes=sum(size for _, size in states.values()),
                bad_locations=bad[0],
                bad_bytes=bad[1],
            )
        )
    return found


def version_usage(connection: Connection, version: str) -> VersionUsage:
    """Return how many bytes a version's parts take, and those that no other version refers to."""
    number = _number(connection, version)
    parts, pairs, others = schema.parts, schema.version_parts, schema.version_parts.alias("others")
    shared = exists().where(others.c.part_id == parts.c.id, others.c.version != number)
    mine = (
        select(func.count(), func.coalesce(func.sum(parts.c.size_bytes), 0))
        .select_from(parts)
        .join(pairs, pairs.c.part_id == parts.c.id)
        .where(pairs.c.version == number, parts.c.kind == ObjectKind.PART.value)
    )
    count, size = connection.execute(mine).one()
    exclusive = connection.execute(mine.where(~shared)).one()[1]
    return VersionUsage(version=version, part_count=count, part_bytes=int(size), exclusive_bytes=int(exclusive))


def count_short(connection: Connection, versions: Sequence[str]) -> dict[str, int]:
    """Return for each version how many of its objects lack copies; only non-zero, in the order asked."""
    parts, table, pairs = schema.parts, schema.versions, schema.version_parts
    wanted_pairs, wanted = pairs.alias("wanted_pairs"), table.alias("wanted")
    owed = copies_owed_of(connection, parts.c.id, parts.c.kind)
    counts: dict[str, int] = {}
    for chunk in chunks(list(dict.fromkeys(versions))):
        asked = (
            select(wanted_pairs.c.part_id)
            .join(wanted, wanted.c.number == wanted_pairs.c.version)
            .where(among(connection, wanted.c.id, chunk))
        )
        owing = select(parts.c.id.label("part_id"), owed.label("owed")).where(parts.c.id.in_(asked)).subquery("owing")
        short = (
            select(owing.c.part_id)
            .where(usable_copies(owing.c.part_id, durable_only=False) < owing.c.owed)
            .subquery("short")
        )
        query = (
            select(wanted.c.id, func.count(literal_column("1")))
            .join(wanted_pairs, wanted_pairs.c.version == wanted.c.number)
            .join(short, short.c.part_id == wanted_pairs.c.part_id)
            .where(among(connection, wanted.c.id, chunk))
            .group_by(wanted.c.id)
        )
        counts.update((version, count) for version, count in connection.execute(query))
    return {version: counts[version] for version in versions if version in counts}


def record_checked(connection: Connection, good: Sequence[int], bad: Sequence[int]) -> None:
    """Note what a read found: good rows in state bad or stored become live or stored, live and stored ones found bad become bad."""
    table = schema.locations
    referenced = is_referenced(table.c.part_id)
    for numbers, states, steps in (
        (good, ("bad", "stored"), ((referenced, "live"), (~referenced, "stored"))),
        (bad, rules.USABLE, ((table.c.id.is_not(None), "bad"),)),
    ):
        for chunk in chunks(numbers):
            rows = among(connection, table.c.id, chunk) & table.c.state.in_(states)
            lock_parts_of(connection, chunk)
            for condition, state in steps:
                connection.execute(update(table).where(rows, condition).values(state=state))


def _number(connection: Connection, version: str) -> int:
    query = select(schema.versions.c.number).where(schema.versions.c.id == version)
    number: int | None = connection.execute(query).scalar()
    if number is None:
        raise NotFound(f"there is no version {version}", version=version)
    return number


def _locations() -> Select[tuple[object, ...]]:
    table = schema.locations
    return (
        select(*LOCATION_COLUMNS)
        .select_from(table)
        .join(schema.parts, schema.parts.c.id == table.c.part_id)
        .join(schema.devices, schema.devices.c.id == table.c.device)
        .order_by(table.c.id)
    )
