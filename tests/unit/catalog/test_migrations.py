"""Older catalogs are brought up to date by Alembic, newer ones refused; creating gives what migrating gives."""

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, select, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

from tensorkeep.catalog import migrating, migrations, schema, sql_gc
from tensorkeep.catalog.access import create_catalog, open_catalog
from tensorkeep.catalog.database import Database, lock_statement
from tensorkeep.catalog.postgres_access import create_in_database, open_in_database
from tensorkeep.catalog.postgres_url import parse_postgres_url
from tensorkeep.catalog.sqlite import open_database
from tensorkeep.errors import Format, PermissionDenied
from tensorkeep.testing.catalog_fixtures import STORE
from tensorkeep.testing.catalog_scene import Scene, part_key, seeded_runtime

RUNTIME = seeded_runtime()

NEXT = '''
"""A made-up next revision."""
import sqlalchemy as sa
from alembic import op

revision = "9000"
down_revision = "HEAD"

def upgrade() -> None:
    """Add a column."""
    op.add_column("store", sa.Column("comment", sa.Text()))
'''


POSTGRES_SHAPES = """
SELECT concat_ws(' ', c.relname, c.relkind, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,
        pg_get_expr(d.adbin, d.adrelid)) AS shape
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (c.oid, a.attnum)
    WHERE c.relnamespace = current_schema()::regnamespace AND a.attnum > 0 AND NOT a.attisdropped
UNION SELECT concat_ws(' ', conrelid::regclass, conname, pg_get_constraintdef(oid)) FROM pg_constraint
    WHERE connamespace = current_schema()::regnamespace
UNION SELECT indexdef FROM pg_indexes WHERE schemaname = current_schema()
ORDER BY shape
"""


def empty_database(folder: Path) -> Database:
    path = folder / "empty.sqlite"
    path.touch()
    return open_database(str(path), read_only=False)


def url_of(folder: Path) -> str:
    return f"sqlite:///{folder}/catalog.sqlite"


def shapes(connection: Connection) -> list[tuple[str, str, list[str]]]:
    """Return every table and index with the clauses of its definition; constraints are in no order."""
    rows = connection.execute(text("SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"))
    return sorted((kind, name, clauses(sql or "")) for kind, name, sql in rows)


def clauses(sql: str) -> list[str]:
    head, _, rest = " ".join(sql.split()).partition("(")
    body, _, options = rest.rpartition(")")
    columns, *constraints = body.strip().split(", CONSTRAINT ")
    return [head, columns, *sorted(constraints), options]


def is_for_sqlite(_: object, name: str | None, kind: str, reflected: bool, __: object) -> bool:
    """Leave out what only PostgreSQL has: Alembic does not look at ``ddl_if``."""
    return reflected or (kind, name) != ("unique_constraint", "uq_parts_digest_kind")


def test_the_migrated_schema_is_the_created_one(tmp_path: Path) -> None:
    create_catalog(url_of(tmp_path), store=STORE, policy="replicas=1", runtime=RUNTIME).close()
    created = open_database(str(tmp_path / "catalog.sqlite"), read_only=True)
    migrated = empty_database(tmp_path)
    with migrated.write() as connection:
        migrating.upgrade(connection)
    with created.read() as one, migrated.read() as other:
        ours = [shape for shape in shapes(one) if shape[1] != "alembic_version"]
        assert [shape for shape in shapes(other) if shape[1] != "alembic_version"] == ours
        assert len(ours) > 14
        context = MigrationContext.configure(other, opts={"include_object": is_for_sqlite})
        assert compare_metadata(context, schema.metadata) == []
        assert migrating.read_revision(other, "it") == migrating.read_revision(one, "it") == schema.HEAD
    created.close()
    migrated.close()


def test_on_postgresql_too_the_migrated_schema_is_the_created_one(store_urls: Iterator[str]) -> None:
    """Of all relations their columns, of all constraints and indexes their definitions."""
    made = []
    for fill in (migrating.create_schema, migrating.upgrade):
        place = parse_postgres_url(next(store_urls))
        create_in_database(place, RUNTIME, fill)
        database = open_in_database(place, RUNTIME)
        with database.look() as connection:
            found = connection.execute(text(POSTGRES_SHAPES)).scalars()
            made.append([shape.replace(place.schema, "") for shape in found if "alembic_version" not in shape])
            assert migrating.read_revision(connection, "it") == schema.HEAD
        database.close()
    created, migrated = made
    assert migrated == created
    assert len(created) > 100


def test_a_catalog_on_postgresql_with_objects_is_migrated_when_opened_however_long_that_takes(
    store_urls: Iterator[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, upgrade = next(store_urls), migrating.upgrade
    catalog = create_catalog(url, store=STORE, policy="replicas=1", runtime=RUNTIME)
    scene = Scene(catalog, seeded_runtime())
    scene.add_device("a")
    version = scene.push(scene.model(), [part_key(1)])
    held = catalog.locate_all(after=0, limit=99)
    with (
        catalog._db.alone() as connection
    ):  # as of the revision before digests came first, fragments, scrubs and retention
        connection.execute(text("ALTER TABLE models DROP COLUMN retention"))
        connection.execute(text("DROP TABLE scrubs, orphans"))
        connection.execute(text("ALTER TABLE locations DROP COLUMN fragment, DROP COLUMN needed"))
        connection.execute(text("ALTER TABLE parts DROP CONSTRAINT uq_parts_digest_kind"))
        connection.execute(text("ALTER TABLE parts ADD CONSTRAINT uq_parts_kind_digest UNIQUE (kind, digest)"))
        migrating.stamp(connection, "0003")
    limits = []

    def note_limit(connection: Connection) -> None:
        limits.append(connection.execute(text("SHOW statement_timeout")).scalar())
        upgrade(connection)

    monkeypatch.setattr(migrating, "upgrade", note_limit)
    migrated = open_catalog(url, runtime=RUNTIME)
    assert limits == ["0"]
    assert (migrated.check(), migrated.locate_all(after=0, limit=99)) == ([], held)
    assert [len(answer.existing) for answer in catalog.stage(scene.begin(), [scene.request(part_key(1))])] == [1]
    assert migrated.count_short([version.id]) == {}
    with migrated._db.read() as connection:
        assert migrating.read_revision(connection, "it") == schema.HEAD
        assert connection.execute(text("SHOW statement_timeout")).scalar() == "5min"
    catalog.close()
    migrated.close()


def test_the_list_of_revisions_is_alembics_own() -> None:
    scripts = ScriptDirectory(str(Path(migrations.__file__).parent))
    assert [script.revision for script in scripts.walk_revisions()][::-1] == list(schema.REVISIONS)
    assert scripts.get_current_head() == schema.HEAD


def test_a_failed_migration_leaves_nothing(tmp_path: Path) -> None:
    database = empty_database(tmp_path)

    def fail() -> None:
        with database.write() as connection:
            migrating.upgrade(connection)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with database.read() as connection:
        assert shapes(connection) == []
    database.close()


@pytest.fixture
def older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the URL of a catalog that is one revision behind a made-up tensorkeep."""
    create_catalog(url_of(tmp_path), store=STORE, policy="replicas=1", runtime=RUNTIME).close()
    scripts = tmp_path / "100% migrations"
    shutil.copytree(Path(migrations.__file__).parent, scripts, ignore=shutil.ignore_patterns("__pycache__"))
    (scripts / "versions" / "9000_next.py").write_text(NEXT.replace("HEAD", schema.HEAD))
    monkeypatch.setattr(migrating, "SCRIPTS", str(scripts))
    monkeypatch.setattr(schema, "REVISIONS", (*schema.REVISIONS, "9000"))
    monkeypatch.setattr(schema, "HEAD", "9000")
    return url_of(tmp_path)


def test_an_older_catalog_is_migrated_when_opened(older: str, tmp_path: Path) -> None:
    catalog = open_catalog(older, runtime=RUNTIME)
    assert catalog.info().last_seq == 1
    assert catalog.check() == []
    catalog.close()
    connection = sqlite3.connect(tmp_path / "catalog.sqlite")
    assert connection.execute("SELECT comment FROM store").fetchall() == [(None,)]
    assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("9000",)]
    connection.close()
    open_catalog(older, runtime=RUNTIME, read_only=True).close()


def test_an_older_catalog_opened_to_be_read_is_left_alone(older: str) -> None:
    with pytest.raises(PermissionDenied, match="migrate"):
        open_catalog(older, runtime=RUNTIME, read_only=True)


def test_a_catalog_of_a_newer_tensorkeep_is_refused(tmp_path: Path) -> None:
    create_catalog(url_of(tmp_path), store=STORE, policy="replicas=1", runtime=RUNTIME).close()
    database = open_database(str(tmp_path / "catalog.sqlite"), read_only=False)
    with database.write() as connection:
        migrating.stamp(connection, "9999")
    database.close()
    for read_only in (False, True):
        with pytest.raises(Format, match=r"catalog of a newer tensorkeep.*upgrade"):
            open_catalog(url_of(tmp_path), runtime=RUNTIME, read_only=read_only)


def test_rows_are_locked_in_id_order_shared_for_commits_and_exclusively_for_condemners() -> None:
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    for exclusive, words in ((False, "FOR SHARE"), (True, "FOR UPDATE")):
        statement = str(lock_statement(schema.parts.c.id.in_([3, 1]), exclusive=exclusive).compile(dialect=dialect))
        assert statement.endswith(f"ORDER BY parts.id {words}")


def test_every_table_and_index_can_be_told_to_postgresql() -> None:
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    for table in schema.metadata.sorted_tables:
        assert "CREATE TABLE" in str(CreateTable(table).compile(dialect=dialect))
        for index in table.indexes:
            assert "CREATE INDEX" in str(CreateIndex(index).compile(dialect=dialect))


OLD_ROWS = """
INSERT INTO devices (id, name, url, zone, durability, state, untrusted, flushed_seq)
    VALUES ('d', 'd', 'file:///d', 'd', 'durable', 'active', false, 0);
INSERT INTO models (id, name, folded, created_at) VALUES ('m', 'm', 'm', '');
INSERT INTO versions (id, model, manifest, checks, message, author, created_at, total_bytes, policy, seq)
    VALUES ('read', 'm', '', '', '', '', '', 0, 'replicas=1', 0), ('unread', 'm', '', '', '', '', '', 0, 'replicas=1', 0);
INSERT INTO parts (kind, digest, size_bytes) VALUES ('checks', x'01', 1), ('part', x'02', 1), ('part', x'03', 1);
INSERT INTO version_parts (version, part_id) VALUES (1, 1), (1, 2);
INSERT INTO locations (part_id, device, name, form, "offset", length, state)
    VALUES (1, 'd', 'a', 'raw', 0, 1, 'live'), (2, 'd', 'b', 'raw', 0, 1, 'live'), (3, 'd', 'c', 'raw', 0, 1, 'live');
"""


def test_a_migrated_catalog_lists_what_gc_has_to_look_at(tmp_path: Path) -> None:
    database = empty_database(tmp_path)
    with database.write() as connection:
        migrating.upgrade(connection, revision="0002")
        for statement in OLD_ROWS.split(";"):
            if statement.strip():
                connection.exec_driver_sql(statement)
        migrating.upgrade(connection)
        assert connection.execute(text("SELECT part_id FROM loose_parts")).fetchall() == [(3,)]
        assert connection.execute(text("SELECT version FROM unread_versions")).fetchall() == [(2,)]
        connection.execute(text("DELETE FROM unread_versions"))
        collected = sql_gc.condemn(connection, grace_s=0, dry_run=False, now=RUNTIME.clock.now())
    assert (collected.locations, collected.bytes) == (1, 1)
    database.close()


def test_gc_finds_its_rows_by_the_partial_indexes(tmp_path: Path) -> None:
    create_catalog(url_of(tmp_path), store=STORE, policy="replicas=1", runtime=RUNTIME).close()
    database = open_database(str(tmp_path / "catalog.sqlite"), read_only=True)
    column = schema.locations.c
    with database.read() as connection:
        for index, query in (
            ("ix_locations_unsettled", select(column.part_id).where(column.part_id > 0, schema.is_unsettled)),
            ("ix_locations_condemned", select(column.id).where(column.id > 0, schema.is_condemned)),
        ):
            statement = str(query.compile(connection))
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", (0,)).fetchall()
            assert index in plan[0][3]
    database.close()
