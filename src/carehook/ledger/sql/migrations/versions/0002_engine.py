"""Limits and order of endpoints, how it goes at each of them, and revisions that tell what has changed."""

import sqlalchemy as sa
from alembic import op

from carehook.ledger.sql.tables import Instant

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_LEASED = sa.text("lease_until IS NOT NULL")
_IN_ORDER = sa.text("order_key IS NOT NULL AND (state = 'pending' OR state = 'held' OR lease_until IS NOT NULL)")


def upgrade() -> None:
    """Add columns to what there is, and a lane for each endpoint."""
    op.add_column("organizations", sa.Column("revision", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("endpoints", sa.Column("max_in_flight", sa.Integer(), nullable=True))
    op.add_column("endpoints", sa.Column("rate_limit", sa.Double(), nullable=True))
    op.add_column("endpoints", sa.Column("ordering", sa.Text(), server_default="none", nullable=False))
    op.add_column("endpoints", sa.Column("revision", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("events", sa.Column("patient_key", sa.Text(), nullable=True))
    op.add_column("deliveries", sa.Column("order_key", sa.Text(), nullable=True))
    op.add_column("deliveries", sa.Column("position", sa.BigInteger(), nullable=True))
    op.create_table(
        "lanes",
        sa.Column("endpoint_id", sa.Text(), nullable=False),
        sa.Column("failure_streak", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failing_since", Instant(), nullable=True),
        sa.Column("last_failure", sa.Text(), nullable=True),
        sa.Column("opened_at", Instant(), nullable=True),
        sa.Column("probe_at", Instant(), nullable=True),
        sa.Column("probes", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_slot_at", Instant(), nullable=True),
        sa.Column("last_position", sa.BigInteger(), server_default="0", nullable=False),
        sa.ForeignKeyConstraint(["endpoint_id"], ["endpoints.id"], name=op.f("fk_lanes_endpoint_id")),
        sa.PrimaryKeyConstraint("endpoint_id", name=op.f("pk_lanes")),
    )
    op.execute("INSERT INTO lanes (endpoint_id) SELECT id FROM endpoints")
    op.drop_index("ix_deliveries_leased", "deliveries")
    op.create_index(
        "ix_deliveries_leased",
        "deliveries",
        ["endpoint_id", "lease_until"],
        sqlite_where=_LEASED,
        postgresql_where=_LEASED,
    )
    op.create_index(
        "ix_deliveries_in_order",
        "deliveries",
        ["endpoint_id", "order_key", "position"],
        sqlite_where=_IN_ORDER,
        postgresql_where=_IN_ORDER,
    )
