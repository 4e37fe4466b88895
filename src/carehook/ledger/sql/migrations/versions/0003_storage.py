"""How PostgreSQL keeps the tables that grow: bodies beside their rows, and deliveries tidied up often."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_SETTINGS: dict[str, dict[str, object]] = {
    # A body of a few kilobytes stays in its row: to compress it and put it elsewhere takes longer than to store it.
    "events": {"toast_tuple_target": 8160},
    # A delivery is updated when it is claimed and when it is finished, and leaves a dead entry where the next claim of
    # its endpoint begins to look. So these are removed by their number, long before they are a fifth of a long history,
    # and from the indexes even where they are few for the table.
    "deliveries": {
        "autovacuum_vacuum_threshold": 50_000,
        "autovacuum_vacuum_scale_factor": 0.002,
        "autovacuum_analyze_scale_factor": 0.02,
        "vacuum_index_cleanup": "on",
    },
}


def upgrade() -> None:
    """Set what SQLite has no word for."""
    if op.get_bind().dialect.name != "postgresql":
        return
    for table, settings in _SETTINGS.items():
        given = ", ".join(f"{name} = {value}" for name, value in settings.items())
        op.execute(f"ALTER TABLE {table} SET ({given})")
