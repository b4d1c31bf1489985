"""Which versions of a model stay."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the column: all versions stay."""
    op.add_column("models", sa.Column("retention", sa.Text()))
