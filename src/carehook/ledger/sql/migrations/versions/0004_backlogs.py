"""Long backlogs follow their endpoint's status in parts; orders are parked, positions are counted apart from lanes."""

import sqlalchemy as sa
from alembic import op

from carehook.ledger.sql.tables import Instant

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_SET_ASIDE = sa.text("state = 'held' OR state = 'exhausted'")
_UNSETTLED = sa.text("unsettled_since IS NOT NULL")


def upgrade() -> None:
    """Give positions a table of their own, and lanes a note of what their endpoint's deliveries have yet to follow."""
    op.create_table(
        "positions",
        sa.Column("endpoint_id", sa.Text(), nullable=False),
        sa.Column("last_position", sa.BigInteger(), server_default="0", nullable=False),
        sa.ForeignKeyConstraint(["endpoint_id"], ["endpoints.id"], name=op.f("fk_positions_endpoint_id")),
        sa.PrimaryKeyConstraint("endpoint_id", name=op.f("pk_positions")),
    )
    op.execute("INSERT INTO positions (endpoint_id, last_position) SELECT endpoint_id, last_position FROM lanes")
    op.drop_column("lanes", "last_position")
    op.add_column("lanes", sa.Column("unsettled_since", Instant(), nullable=True))
    op.create_index(
        "ix_lanes_unsettled",
        "lanes",
        ["unsettled_since"],
        sqlite_where=_UNSETTLED,
        postgresql_where=_UNSETTLED,
    )
    op.drop_index("ix_deliveries_set_aside", "deliveries")
    op.create_index(
        "ix_deliveries_set_aside",
        "deliveries",
        ["endpoint_id", "state", "id"],
        sqlite_where=_SET_ASIDE,
        postgresql_where=_SET_ASIDE,
    )
    # What waited for another was put off until that was tried again. Now it is due, is looked at once, and parked.
    op.execute(
        "UPDATE deliveries SET due_at = created_at WHERE due_at > created_at AND failure_count = 0 "
        "AND order_key IS NOT NULL AND (state = 'pending' OR state = 'held')"
    )
    # Where nothing is in an order any more, neither is what was over then and was sent again since.
    op.execute(
        "UPDATE deliveries SET order_key = NULL, position = NULL "
        "WHERE order_key IS NOT NULL AND (state = 'pending' OR state = 'held') "
        "AND endpoint_id IN (SELECT id FROM endpoints WHERE ordering = 'none')"
    )
