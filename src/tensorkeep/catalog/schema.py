"""The catalog's tables: one schema for SQLite and PostgreSQL, in SQLAlchemy Core.

The devices hold what can't change; the catalog migrates. `REVISIONS` lists the migrations in order, and a catalog is stamped
with the last one that it has (``alembic_version``, as Alembic does), so that opening needs no Alembic unless it must migrate.

Digests are bytes, version ids and digests that the journal also spells are hex, moments are text as `format_time` writes it
(so that they compare in order). Row ids are never reused: a late call that names an old row can't hit a new one.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    literal_column,
    text,
)

REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007")
"""Migrations, oldest first; the last one is what this tensorkeep writes."""

HEAD = REVISIONS[-1]

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite numbers rows by itself only in a column of the type INTEGER.
_ROW_ID = BigInteger().with_variant(Integer(), "sqlite")
_ULID = String(26)
_VERSION = String(40)
_DIGEST_HEX = String(64)
_MOMENT = String(27)

_UNSETTLED = text("state IN ('staged', 'stored', 'bad')")
_CONDEMNED = text("state = 'condemned'")
_FRAGMENTS = text("fragment IS NOT NULL")

alembic_version = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True))
"""Alembic's own table, apart from the metadata: its shape is Alembic's."""

store = Table(
    "store",
    metadata,
    Column("one", Integer, primary_key=True, autoincrement=False),
    Column("store", _ULID, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("last_seq", BigInteger, nullable=False),
    Column("head", _DIGEST_HEX),
    Column("last_snapshot", BigInteger, nullable=False),
    Column("policy", Text, nullable=False),
    CheckConstraint("one = 1", name="one_row"),
)

devices = Table(
    "devices",
    metadata,
    Column("number", _ROW_ID, primary_key=True),
    Column("id", _ULID, nullable=False, unique=True),
    Column("name", Text, nullable=False, unique=True),
    Column("url", Text, nullable=False),
    Column("zone", Text, nullable=False),
    Column("durability", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("capacity", BigInteger),
    Column("bandwidth", BigInteger),
    Column("rate_limit", BigInteger),
    Column("untrusted", Boolean, nullable=False),
    Column("flushed_seq", BigInteger, nullable=False, default=0),
    # What the last check found, as the JSON that the journal has too.
    Column("conformance", Text),
    sqlite_autoincrement=True,
)

models = Table(
    "models",
    metadata,
    Column("id", _ULID, primary_key=True),
    Column("name", Text, nullable=False),
    Column("folded", Text, nullable=False, unique=True),
    Column("policy", Text),
    Column("created_at", Text, nullable=False),
    Column("retention", Text),
)

versions = Table(
    "versions",
    metadata,
    Column("number", _ROW_ID, primary_key=True),
    Column("id", _VERSION, nullable=False, unique=True),
    Column("model", _ULID, ForeignKey("models.id"), nullable=False, index=True),
    Column("parent", _VERSION),
    Column("manifest", _DIGEST_HEX, nullable=False, index=True),
    Column("checks", _DIGEST_HEX, nullable=False),
    Column("message", Text, nullable=False),
    Column("author", Text, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("total_bytes", BigInteger, nullable=False),
    Column("policy", Text, nullable=False, index=True),
    # The seq of the entry that committed it, 0 for versions that a rebuild brought back; (seq, number) is the order of commits.
    Column("seq", BigInteger, nullable=False),
    # The commit's session: a repeated request answers as the first did. None for versions that a rebuild brought back.
    Column("token", Text, unique=True),
    sqlite_autoincrement=True,
)

refs = Table(
    "refs",
    metadata,
    Column("model", _ULID, ForeignKey("models.id"), primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("version", _VERSION, ForeignKey("versions.id"), nullable=False, index=True),
)

manifests = Table(
    "manifests",
    metadata,
    Column("digest", _DIGEST_HEX, primary_key=True),
    Column("body", LargeBinary, nullable=False),
)

parts = Table(
    "parts",
    metadata,
    Column("id", _ROW_ID, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("digest", LargeBinary(32), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    # PostgreSQL compares digests sooner than texts: 1,000 are found in half the time where they come first.
    UniqueConstraint("digest", "kind").ddl_if(dialect="postgresql"),
    UniqueConstraint("kind", "digest").ddl_if(dialect="sqlite"),
    sqlite_autoincrement=True,
)
"""Objects of every kind, not only parts: whatever has location rows."""

locations = Table(
    "locations",
    metadata,
    Column("id", _ROW_ID, primary_key=True),
    Column("part_id", BigInteger, ForeignKey("parts.id"), nullable=False, index=True),
    Column("device", _ULID, ForeignKey("devices.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("form", String(32), nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("length", BigInteger, nullable=False),
    Column("state", String(16), nullable=False),
    Column("session", Text),
    Column("condemned_at", _MOMENT),
    # Of fragments: which one, and how many of its form give the object; a whole copy does alone.
    Column("fragment", Integer),
    Column("needed", Integer, nullable=False, server_default="1"),
    UniqueConstraint("device", "name"),
    CheckConstraint("state IN ('staged', 'stored', 'live', 'bad', 'condemned')", name="state"),
    Index("ix_locations_unsettled", "part_id", sqlite_where=_UNSETTLED, postgresql_where=_UNSETTLED),
    Index("ix_locations_condemned", "id", sqlite_where=_CONDEMNED, postgresql_where=_CONDEMNED),
    Index("ix_locations_fragments", "part_id", sqlite_where=_FRAGMENTS, postgresql_where=_FRAGMENTS),
    sqlite_autoincrement=True,
)

is_unsettled = locations.c.state.in_([literal_column(f"'{state}'") for state in ("staged", "stored", "bad")])
"""Rows that gc looks at each time, spelled without parameters: so databases find that the partial index holds them."""

is_condemned = locations.c.state == literal_column("'condemned'")
"""The same for rows that wait to be deleted."""

version_parts = Table(
    "version_parts",
    metadata,
    Column("version", BigInteger, ForeignKey("versions.number"), primary_key=True, autoincrement=False),
    Column("part_id", BigInteger, ForeignKey("parts.id"), primary_key=True, autoincrement=False),
    Index(None, "part_id", "version"),
    sqlite_with_rowid=False,
)
"""All objects of a version, metadata included: ``versions.number`` and ``parts.id``."""

loose_parts = Table(
    "loose_parts",
    metadata,
    Column("id", _ROW_ID, primary_key=True),
    Column("part_id", BigInteger, nullable=False, index=True),
    sqlite_autoincrement=True,
)
"""Objects of removed versions, for gc to look at. No reference to ``parts`` and no unique key: whoever adds a row waits for nobody,
and gc takes out just the rows that it read before it judged."""

unread_versions = Table(
    "unread_versions",
    metadata,
    Column("version", BigInteger, ForeignKey("versions.number"), primary_key=True, autoincrement=False),
)
"""Versions whose checks object a rebuild could not read: their parts are not known."""

push_sessions = Table(
    "push_sessions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("heartbeat", _MOMENT, nullable=False),
)

scrubs = Table(
    "scrubs",
    metadata,
    Column("device", _ULID, ForeignKey("devices.id"), primary_key=True),
    Column("depth", String(16), primary_key=True),
    Column("after", BigInteger, nullable=False),
    Column("begun_at", _MOMENT),
    Column("ended_at", _MOMENT),
    Column("objects", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("bad", BigInteger, nullable=False),
)
"""How far the scrubs of each device are."""

orphans = Table(
    "orphans",
    metadata,
    Column("id", _ROW_ID, primary_key=True),
    Column("device", _ULID, ForeignKey("devices.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("noted_at", _MOMENT, nullable=False),
    UniqueConstraint("device", "name"),
    sqlite_autoincrement=True,
)
"""Objects that scrubs met on devices and that no row tells of, for gc to delete."""

journal = Table(
    "journal",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, nullable=False),
    Column("digest", _DIGEST_HEX, nullable=False),
    Column("snapshot", Boolean, nullable=False),
    Column("body", LargeBinary, nullable=False),
)
"""The outbox: entries that some device may still lack."""
