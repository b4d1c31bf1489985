"""What the last check of a device found."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the column; devices that were never checked have none."""
    op.add_column("devices", sa.Column("conformance", sa.Text(), nullable=True))
