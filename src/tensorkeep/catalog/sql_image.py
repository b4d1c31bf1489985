"""Filling an empty catalog from what the devices told."""

from datetime import datetime

from sqlalchemy import Connection, func, insert, select, update

from tensorkeep.catalog import schema
from tensorkeep.catalog.chain import ChainEnd
from tensorkeep.catalog.database import chunks, insert_missing
from tensorkeep.catalog.image import check_image, object_sizes
from tensorkeep.catalog.protocol import CatalogImage
from tensorkeep.catalog.sql_commit import insert_version_parts
from tensorkeep.catalog.sql_journal import append_snapshot, insert_row, read_end
from tensorkeep.catalog.sql_rows import device_values, find_part_ids, location_values, model_values, values_of
from tensorkeep.errors import AlreadyExists


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
    for device in state.devices.values():
        # A device may hold entries of a history that was given up: never more than this one has.
        flushed = min(image.flushed.get(device.id, 0), last_seq)
        connection.execute(insert(schema.devices).values(**device_values(device), flushed_seq=flushed))
    for model in state.models.values():
        connection.execute(insert(schema.models).values(**model_values(model)))
    for version in state.versions.values():
        connection.execute(insert(schema.versions).values(**values_of(version), seq=0, token=None))
    for ref in state.refs:
        connection.execute(insert(schema.refs).values(**values_of(ref)))
    bodies = [{"digest": digest, "body": body} for digest, body in image.manifests.items()]
    insert_missing(connection, schema.manifests, bodies)


def _insert_objects(connection: Connection, image: CatalogImage) -> None:
    sizes = object_sizes(image)
    rows = [{"kind": key.kind.value, "digest": key.digest, "size_bytes": size} for key, size in sizes.items()]
    for chunk in chunks(rows):
        connection.execute(insert(schema.parts), list(chunk))
    part_ids = find_part_ids(connection, list(sizes))
    table = schema.versions
    for number, version in connection.execute(select(table.c.number, table.c.id)).all():
        insert_version_parts(connection, number, sorted({part_ids[key] for key, _ in image.objects[version]}))
    for chunk in chunks(image.locations):
        connection.execute(
            insert(schema.locations), [location_values(location, part_ids[location.key]) for location in chunk]
        )
