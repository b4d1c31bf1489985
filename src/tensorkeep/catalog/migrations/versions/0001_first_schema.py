"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision: str | None = None

_ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make all tables."""
    _make_store()
    _make_models()
    _make_objects()


def _make_store() -> None:
    op.create_table(
        "devices",
        sa.Column("number", _ROW_ID, nullable=False),
        sa.Column("id", sa.String(length=26), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("zone", sa.Text(), nullable=False),
        sa.Column("durability", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("capacity", sa.BigInteger(), nullable=True),
        sa.Column("bandwidth", sa.BigInteger(), nullable=True),
        sa.Column("rate_limit", sa.BigInteger(), nullable=True),
        sa.Column("untrusted", sa.Boolean(), nullable=False),
        sa.Column("flushed_seq", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_devices")),
        sa.UniqueConstraint("id", name=op.f("uq_devices_id")),
        sa.UniqueConstraint("name", name=op.f("uq_devices_name")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "journal",
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("snapshot", sa.Boolean(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_journal")),
    )
    op.create_table(
        "push_sessions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("heartbeat", sa.String(length=27), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_push_sessions")),
    )
    op.create_table(
        "store",
        sa.Column("one", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("store", sa.String(length=26), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("last_seq", sa.BigInteger(), nullable=False),
        sa.Column("head", sa.String(length=64), nullable=True),
        sa.Column("last_snapshot", sa.BigInteger(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.CheckConstraint("one = 1", name=op.f("ck_store_one_row")),
        sa.PrimaryKeyConstraint("one", name=op.f("pk_store")),
    )


def _make_models() -> None:
    op.create_table(
        "manifests",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_manifests")),
    )
    op.create_table(
        "models",
        sa.Column("id", sa.String(length=26), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("folded", sa.Text(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_models")),
        sa.UniqueConstraint("folded", name=op.f("uq_models_folded")),
    )
    op.create_table(
        "versions",
        sa.Column("number", _ROW_ID, nullable=False),
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("model", sa.String(length=26), nullable=False),
        sa.Column("parent", sa.String(length=40), nullable=True),
        sa.Column("manifest", sa.String(length=64), nullable=False),
        sa.Column("checks", sa.String(length=64), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Text(), nullable=False),
        sa.Column("total_bytes", sa.BigInteger(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("token", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["model"], ["models.id"], name=op.f("fk_versions_model")),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_versions")),
        sa.UniqueConstraint("id", name=op.f("uq_versions_id")),
        sa.UniqueConstraint("token", name=op.f("uq_versions_token")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_versions_model"), "versions", ["model"], unique=False)
    op.create_table(
        "refs",
        sa.Column("model", sa.String(length=26), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.String(length=40), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["models.id"], name=op.f("fk_refs_model")),
        sa.ForeignKeyConstraint(["version"], ["versions.id"], name=op.f("fk_refs_version")),
        sa.PrimaryKeyConstraint("model", "kind", "name", name=op.f("pk_refs")),
    )
    op.create_index(op.f("ix_refs_version"), "refs", ["version"], unique=False)


def _make_objects() -> None:
    op.create_table(
        "parts",
        sa.Column("id", _ROW_ID, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_parts")),
        sa.UniqueConstraint("kind", "digest", name=op.f("uq_parts_kind_digest")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "locations",
        sa.Column("id", _ROW_ID, nullable=False),
        sa.Column("part_id", sa.BigInteger(), nullable=False),
        sa.Column("device", sa.String(length=26), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("form", sa.String(length=32), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("length", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("session", sa.Text(), nullable=True),
        sa.Column("condemned_at", sa.String(length=27), nullable=True),
        sa.CheckConstraint(
            "state IN ('staged', 'stored', 'live', 'bad', 'condemned')", name=op.f("ck_locations_state")
        ),
        sa.ForeignKeyConstraint(["device"], ["devices.id"], name=op.f("fk_locations_device")),
        sa.ForeignKeyConstraint(["part_id"], ["parts.id"], name=op.f("fk_locations_part_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_locations")),
        sa.UniqueConstraint("device", "name", name=op.f("uq_locations_device_name")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_locations_part_id"), "locations", ["part_id"], unique=False)
    op.create_table(
        "version_parts",
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("part_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(["part_id"], ["parts.id"], name=op.f("fk_version_parts_part_id")),
        sa.ForeignKeyConstraint(["version"], ["versions.number"], name=op.f("fk_version_parts_version")),
        sa.PrimaryKeyConstraint("version", "part_id", name=op.f("pk_version_parts")),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_version_parts_part_id_version"), "version_parts", ["part_id", "version"], unique=False)
