"""Filling an empty catalog from what the devices told."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Table, func, insert, select, update

from tensorkeep.catalog import schema
from tensorkeep.catalog.chain import ChainEnd
from tensorkeep.catalog.database import chunks, insert_missing
from tensorkeep.catalog.image import check_image, object_sizes, settled_locations
from tensorkeep.catalog.protocol import CatalogImage
from tensorkeep.catalog.sql_commit import insert_version_parts
from tensorkeep.catalog.sql_journal import append_snapshot, insert_row, read_end
from tensorkeep.catalog.sql_loose import list_unreferenced
from tensorkeep.catalog.sql_rows import device_values, find_part_ids, location_values, model_values, values_of
from tensorkeep.errors import AlreadyExists
from tensorkeep.records.naming import ObjectKind


def load_image(connection: Connection, image: CatalogImage, now: datetime) -> int:
    """Fill an empty catalog and append a snapshot entry; return its seq."""
    _check_empty(connection)
    snapshots = check_image(image, store=read_end(connection, lock=True).store)
    last = image.entries[-1] if image.entries else None
    connection.execute(
        update(schema.store).values(
            epoch=image.epoch,
            policy=image.state.policy,
            last_seq=last.seq if last else 0,
            head=last.digest if last else None,
        )
    )
    for row in image.entries:
        insert_row(connection, row, snapshot=row.seq in snapshots)
    _insert_state(connection, image)
    _insert_objects(connection, image)
    end = ChainEnd(image.store, image.epoch, last.seq if last else 0, last.digest if last else None, 0)
    return append_snapshot(connection, end, now)


def _check_empty(connection: Connection) -> None:
    for table in schema.metadata.sorted_tables:
        if table is not schema.store and connection.execute(select(func.count()).select_from(table)).scalar_one():
            raise AlreadyExists(f"the catalog is not empty: it has {table.name}; a rebuild fills a new one")


def _insert_state(connection: Connection, image: CatalogImage) -> None:
    state = image.state
    last_seq = image.entries[-1].seq if image.entries else 0
    # A device may hold entries of a history that was given up: never more than this one has.
    flushed = {device: min(image.flushed.get(device, 0), last_seq) for device in state.devices}
    devices = [{**device_values(device), "flushed_seq": flushed[device.id]} for device in state.devices.values()]
    versions = [{**values_of(version), "seq": 0, "token": None} for version in state.versions.values()]
    _insert_rows(connection, schema.devices, devices)
    _insert_rows(connection, schema.models, [model_values(model) for model in state.models.values()])
    _insert_rows(connection, schema.versions, versions)
    _insert_rows(connection, schema.refs, [values_of(ref) for ref in state.refs])
    bodies = [{"digest": digest, "body": body} for digest, body in image.manifests.items()]
    insert_missing(connection, schema.manifests, bodies)


def _insert_objects(connection: Connection, image: CatalogImage) -> None:
    sizes = object_sizes(image)
    rows = [{"kind": key.kind.value, "digest": key.digest, "size_bytes": size} for key, size in sizes.items()]
    _insert_rows(connection, schema.parts, rows)
    part_ids = find_part_ids(connection, list(sizes))
    table = schema.versions
    unread = []
    for number, version in connection.execute(select(table.c.number, table.c.id)).all():
        keys = {key for key, _ in image.objects[version]}
        insert_version_parts(connection, number, sorted(part_ids[key] for key in keys))
        if not any(key.kind is ObjectKind.CHECKS for key in keys):
            unread.append({"version": number})
    _insert_rows(connection, schema.unread_versions, unread)
    list_unreferenced(connection)
    _insert_rows(
        connection,
        schema.locations,
        [location_values(location, part_ids[location.key]) for location in settled_locations(image)],
    )


def _insert_rows(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows in their order, which numbers them."""
    for chunk in chunks(rows):
        connection.execute(insert(table), list(chunk))
