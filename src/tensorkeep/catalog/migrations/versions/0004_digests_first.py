"""On PostgreSQL, digests before kinds in the index that finds objects. SQLite would have to copy the table, and gains nothing."""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Put one unique constraint in place of the other."""
    if op.get_context().dialect.name == "postgresql":
        op.create_unique_constraint("uq_parts_digest_kind", "parts", ["digest", "kind"])
        op.drop_constraint("uq_parts_kind_digest", "parts", type_="unique")
