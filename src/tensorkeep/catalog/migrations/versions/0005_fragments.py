"""Rows of fragments: which one it is, and how many give the object."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_FRAGMENTS = sa.text("fragment IS NOT NULL")


def upgrade() -> None:
    """Add the columns; all rows of an older catalog are whole copies."""
    op.add_column("locations", sa.Column("fragment", sa.Integer(), nullable=True))
    op.add_column("locations", sa.Column("needed", sa.Integer(), nullable=False, server_default="1"))
    op.create_index(
        "ix_locations_fragments", "locations", ["part_id"], sqlite_where=_FRAGMENTS, postgresql_where=_FRAGMENTS
    )
