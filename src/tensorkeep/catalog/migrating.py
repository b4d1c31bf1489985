"""Brings an older catalog to this tensorkeep's schema. Alembic is imported only here, and only when it must migrate."""

from sqlalchemy import Connection, delete, insert, inspect, select, text

from tensorkeep.catalog import schema
from tensorkeep.catalog.database import Database
from tensorkeep.errors import Format, Integrity, PermissionDenied

SCRIPTS = "tensorkeep.catalog:migrations"


def create_schema(connection: Connection) -> None:
    """Make all tables of an empty database and stamp it with the newest revision, as Alembic would."""
    schema.metadata.create_all(connection, checkfirst=False)
    schema.alembic_version.create(connection)
    stamp(connection, schema.HEAD)


def stamp(connection: Connection, revision: str) -> None:
    """Note which revision a database has."""
    connection.execute(delete(schema.alembic_version))
    connection.execute(insert(schema.alembic_version).values(version_num=revision))


def bring_up_to_date(database: Database) -> None:
    """Return when the database has the schema of this tensorkeep; an older one is migrated in one transaction.

    Raises:
        Format: it is of a newer tensorkeep.
        Integrity: it is no catalog.
        PermissionDenied: it is older, and was opened read-only.
    """
    with database.look() as connection:
        revision = read_revision(connection, database.name)
    if revision == schema.HEAD:
        return
    if revision not in schema.REVISIONS:
        raise Format(
            f"{database.name} is a catalog of a newer tensorkeep (schema {revision}, this one knows {schema.HEAD}): "
            "upgrade tensorkeep",
            path=database.name,
            revision=revision,
        )
    if database.read_only:
        raise PermissionDenied(
            f"{database.name} is a catalog of an older tensorkeep and was opened read-only: "
            "open it once where it can be written, to migrate it",
            path=database.name,
        )
    with database.alone() as connection:
        fence(connection)
        if connection.dialect.name != "sqlite":
            # An index of a large store takes longer than a statement else may: it would never be migrated.
            connection.execute(text("SET LOCAL statement_timeout = 0"))
        upgrade(connection)


def fence(connection: Connection) -> None:
    """Wait for every transaction of the catalog, and keep new ones waiting until this one ends (SQLite: they do anyway)."""
    if connection.dialect.name != "sqlite":
        connection.execute(text("LOCK TABLE store IN ACCESS EXCLUSIVE MODE"))


def read_revision(connection: Connection, name: str) -> str:
    """Return the revision that a database is stamped with.

    Raises:
        Integrity: it has none: it is no catalog, or a damaged one.
    """
    table = schema.alembic_version
    found = None
    if has_table(connection, table.name):
        found = connection.execute(select(table.c.version_num)).scalar()
    if found is None:
        raise Integrity(
            f"{name} is no catalog, or a damaged one: run `tensorkeep rebuild-catalog`, "
            "which reads everything back from the devices",
            path=name,
        )
    return str(found)


def has_table(connection: Connection, name: str) -> bool:
    """Return whether there is a table of that name where the catalog's are."""
    if connection.dialect.name == "sqlite":
        return inspect(connection).has_table(name)
    # The inspector looks in the schema that was there when the pool made its first connection.
    return connection.execute(text("SELECT to_regclass(:name)"), {"name": name}).scalar() is not None


def upgrade(connection: Connection, *, scripts: str = "", revision: str = "") -> None:
    """Run the migrations that a database lacks, inside the caller's transaction.

    Another process may have migrated meanwhile: Alembic looks again at the stamp, inside the same transaction.
    """
    from alembic import command  # noqa: PLC0415 - slow to import, and hardly ever needed
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", (scripts or SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision or schema.HEAD)
