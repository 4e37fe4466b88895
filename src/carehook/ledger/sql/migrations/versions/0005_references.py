"""On PostgreSQL, whoever adds events, deliveries and attempts sees to what they refer to (see `tables`)."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_UNCHECKED = (
    ("events", "organization_id"),
    ("deliveries", "event_id"),
    ("deliveries", "endpoint_id"),
    ("deliveries", "organization_id"),
    ("attempts", "delivery_id"),
)


def upgrade() -> None:
    """Drop the foreign keys that cost most, where they do."""
    if op.get_bind().dialect.name != "postgresql":
        return
    for table, column in _UNCHECKED:
        op.drop_constraint(f"fk_{table}_{column}", table, type_="foreignkey")
