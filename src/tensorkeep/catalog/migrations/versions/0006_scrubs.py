"""How far scrubs are, and the objects that they met and no row tells of."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add the tables, empty."""
    op.create_table(
        "scrubs",
        sa.Column("device", sa.String(26), nullable=False),
        sa.Column("depth", sa.String(16), nullable=False),
        sa.Column("after", sa.BigInteger(), nullable=False),
        sa.Column("begun_at", sa.String(27)),
        sa.Column("ended_at", sa.String(27)),
        sa.Column("objects", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("bad", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["devices.id"], name=op.f("fk_scrubs_device")),
        sa.PrimaryKeyConstraint("device", "depth", name=op.f("pk_scrubs")),
    )
    op.create_table(
        "orphans",
        sa.Column("id", _ROW_ID, nullable=False),
        sa.Column("device", sa.String(26), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("noted_at", sa.String(27), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["devices.id"], name=op.f("fk_orphans_device")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_orphans")),
        sa.UniqueConstraint("device", "name", name=op.f("uq_orphans_device_name")),
        sqlite_autoincrement=True,
    )
