"""On PostgreSQL, text is compared by its bytes and not by the rules of the server's language (see `tables`)."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_TEXTS = (
    ("organizations", ("id", "name")),
    ("endpoints", ("id", "organization_id", "url", "description", "status", "status_reason", "ordering")),
    ("lanes", ("endpoint_id", "last_failure")),
    ("positions", ("endpoint_id",)),
    ("events", ("id", "organization_id", "type", "patient_key")),
    ("deliveries", ("id", "event_id", "endpoint_id", "organization_id", "event_type", "state", "order_key")),
    ("attempts", ("delivery_id", "id", "outcome", "reason")),
    ("idempotency_keys", ("organization_id", "key", "fingerprint")),
    ("tokens", ("id", "digest", "role", "organization_id")),
    ("installation", ("name",)),
    ("patients", ("organization_id", "code")),
    ("professionals", ("scope", "id", "name", "avatar")),
    (
        "consultations",
        ("organization_id", "id", "type", "patient_code", "professional_id", "finished_event_id"),
    ),
    ("reports", ("organization_id", "consultation_id", "id", "type", "event_id")),
    ("prescriptions", ("organization_id", "consultation_id", "id")),
)


def upgrade() -> None:
    """Make the indexes of each table anew, in one go; its rows stay as they are."""
    if op.get_bind().dialect.name != "postgresql":
        return
    for table, columns in _TEXTS:
        changes = ", ".join(f'ALTER COLUMN "{column}" TYPE text COLLATE "C"' for column in columns)
        op.execute(sa.text(f"ALTER TABLE {table} {changes}"))
