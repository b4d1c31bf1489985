"""What gc has to look at, found without reading every row."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_UNSETTLED = sa.text("state IN ('staged', 'stored', 'bad')")
_CONDEMNED = sa.text("state = 'condemned'")


def upgrade() -> None:
    """Add indexes and lists, and list what an older catalog has."""
    op.create_index("ix_versions_manifest", "versions", ["manifest"])
    op.create_index("ix_versions_policy", "versions", ["policy"])
    for name, column, rows in (
        ("ix_locations_unsettled", "part_id", _UNSETTLED),
        ("ix_locations_condemned", "id", _CONDEMNED),
    ):
        op.create_index(name, "locations", [column], sqlite_where=rows, postgresql_where=rows)
    _make_loose_parts()
    _make_unread_versions()


def _make_loose_parts() -> None:
    op.create_table(
        "loose_parts",
        sa.Column("id", _ROW_ID, nullable=False),
        sa.Column("part_id", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_loose_parts")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_loose_parts_part_id", "loose_parts", ["part_id"])
    op.execute(
        "INSERT INTO loose_parts (part_id) SELECT id FROM parts "
        "WHERE NOT EXISTS (SELECT 1 FROM version_parts WHERE part_id = parts.id)"
    )


def _make_unread_versions() -> None:
    op.create_table(
        "unread_versions",
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(["version"], ["versions.number"], name=op.f("fk_unread_versions_version")),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_unread_versions")),
    )
    op.execute(
        "INSERT INTO unread_versions (version) SELECT number FROM versions WHERE number NOT IN "
        "(SELECT version FROM version_parts JOIN parts ON parts.id = part_id WHERE kind = 'checks')"
    )
