"""The tables, for SQLite and PostgreSQL alike. A change here needs a migration; a test compares the two.

The indexes on `deliveries` are partial: what a claim looks through is only what waits, however long the history is.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Dialect

from carehook.ledger.states import DeliveryState

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Instant(sa.TypeDecorator[datetime]):
    """An aware UTC instant; SQLite, which has no type for one, keeps the microseconds since 1970."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> sa.types.TypeEngine[Any]:
        """An integer on SQLite."""
        return dialect.type_descriptor(sa.BigInteger() if dialect.name == "sqlite" else sa.DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        """Refuse naive instants: nobody could say when they are."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("an instant needs a time zone")
        return (value - _EPOCH) // _MICROSECOND if dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Give back an aware UTC instant."""
        if isinstance(value, int):
            return _EPOCH + timedelta(microseconds=value)
        if value is None:
            return None
        # asyncpg gives back PostgreSQL's infinities as the first and the last naive instant.
        instant: datetime = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        return instant


Text: Final = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
"""Text that is compared by its bytes, wherever the database is.

By the rules of a server's language the same indexes take twice as long, and those rules change with its C library: an
index that was made by the old ones then misses rows (PostgreSQL's documentation, "Collation Support").
"""

metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
    }
)


def _refer(column: str, to: str) -> sa.ForeignKeyConstraint:
    """That each row refers to one that is there, checked by SQLite alone.

    PostgreSQL's check is a query for each row and column, which took a fifth of all that it did for a delivery. There
    whoever adds rows sees to it (`references`), attempts come with the delivery that they are found by, and nothing
    that is referred to is ever removed.
    """
    return sa.ForeignKeyConstraint([column], [to], info={ONLY_ON: "sqlite"}).ddl_if(dialect="sqlite")


ONLY_ON = "only on"
"""In the `info` of a constraint: the one dialect that has it."""

organizations = sa.Table(
    "organizations",
    metadata,
    sa.Column("id", Text, primary_key=True),
    sa.Column("name", Text, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    # Grows whenever one of its endpoints is added or changed.
    sa.Column("revision", sa.BigInteger, nullable=False, server_default="0"),
)

endpoints = sa.Table(
    "endpoints",
    metadata,
    sa.Column("id", Text, primary_key=True),
    sa.Column("organization_id", sa.ForeignKey("organizations.id"), nullable=False, index=True),
    sa.Column("url", Text, nullable=False),
    sa.Column("description", Text, nullable=False),
    sa.Column("event_types", sa.JSON, nullable=False),
    sa.Column("status", Text, nullable=False),
    sa.Column("status_reason", Text),
    sa.Column("sealed_secrets", sa.LargeBinary, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("updated_at", Instant, nullable=False),
    sa.Column("max_in_flight", sa.Integer),
    sa.Column("rate_limit", sa.Double),
    sa.Column("ordering", Text, nullable=False, server_default="none"),
    sa.Column("revision", sa.BigInteger, nullable=False, server_default="0"),
)

lanes = sa.Table(
    "lanes",
    metadata,
    sa.Column("endpoint_id", sa.ForeignKey("endpoints.id"), primary_key=True),
    sa.Column("failure_streak", sa.Integer, nullable=False, server_default="0"),
    sa.Column("failing_since", Instant),
    sa.Column("last_failure", Text),
    sa.Column("opened_at", Instant),
    sa.Column("probe_at", Instant),
    sa.Column("probes", sa.Integer, nullable=False, server_default="0"),
    sa.Column("next_slot_at", Instant),
    # Since when deliveries of its endpoint have had to follow a status that the endpoint was given.
    sa.Column("unsettled_since", Instant),
)
_unsettled = lanes.c.unsettled_since.is_not(None)
sa.Index("ix_lanes_unsettled", lanes.c.unsettled_since, sqlite_where=_unsettled, postgresql_where=_unsettled)

# Apart from the lanes, so that who accepts waits for nobody who claims or records results.
positions = sa.Table(
    "positions",
    metadata,
    sa.Column("endpoint_id", sa.ForeignKey("endpoints.id"), primary_key=True),
    sa.Column("last_position", sa.BigInteger, nullable=False, server_default="0"),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", Text, primary_key=True),
    sa.Column("organization_id", Text, nullable=False),
    sa.Column("type", Text, nullable=False),
    sa.Column("occurred_on", sa.Double, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("is_test", sa.Boolean(create_constraint=False), nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("patient_key", Text),
    _refer("organization_id", "organizations.id"),
    sa.Index("ix_events_organization_id", "organization_id", "id"),
)

deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("id", Text, primary_key=True),
    sa.Column("event_id", Text, nullable=False),
    sa.Column("endpoint_id", Text, nullable=False),
    sa.Column("organization_id", Text, nullable=False),
    sa.Column("event_type", Text, nullable=False),
    sa.Column("state", Text, nullable=False),
    sa.Column("due_at", Instant),
    sa.Column("leased_at", Instant),
    sa.Column("lease_until", Instant),
    sa.Column("lease_token", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("attempt_count", sa.Integer, nullable=False, server_default="0"),
    sa.Column("failure_count", sa.Integer, nullable=False, server_default="0"),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("last_attempt_at", Instant),
    sa.Column("finished_at", Instant),
    sa.Column("order_key", Text),
    sa.Column("position", sa.BigInteger),
    _refer("event_id", "events.id"),
    _refer("endpoint_id", "endpoints.id"),
    _refer("organization_id", "organizations.id"),
    sa.UniqueConstraint("event_id", "endpoint_id"),
    sa.Index("ix_deliveries_organization_id", "organization_id", "id"),
)


def _is(state: DeliveryState) -> sa.ColumnElement[bool]:
    # Written out: with a parameter a partial index goes unused.
    return deliveries.c.state == sa.literal_column(f"'{state}'")


WAITING = _is(DeliveryState.PENDING) & deliveries.c.lease_until.is_(None)
"""What a worker may claim, once it is due."""

LEASED = deliveries.c.lease_until.is_not(None)
"""What a worker has claimed."""

UNFINISHED_STATES = (DeliveryState.PENDING, DeliveryState.HELD)
"""Those in which something more happens to a delivery by itself."""


# Not by an equality, or PostgreSQL would take an order by state and id for one by the id alone, of which there is an
# index as well, through the whole history.
_held = sa.or_(_is(DeliveryState.HELD), _is(DeliveryState.EXHAUSTED)) & (
    deliveries.c.state > sa.literal_column(f"'{DeliveryState.EXHAUSTED}'")
)

STRETCHES: Mapping[DeliveryState, Sequence[tuple[sa.ColumnElement[bool], Sequence[sa.Column[Any]]]]] = {
    DeliveryState.PENDING: (
        (WAITING, (deliveries.c.due_at,)),
        (_is(DeliveryState.PENDING) & LEASED, (deliveries.c.lease_until,)),
    ),
    DeliveryState.HELD: ((_held, (deliveries.c.state, deliveries.c.id)),),
}
"""The deliveries of an endpoint in an unfinished state: each stretch has a partial index, and the order of that."""


def in_state(*states: DeliveryState, where: sa.ColumnElement[bool] | None = None) -> sa.ColumnElement[bool]:
    """Whether a delivery is in one of these states, and `where` holds, put so that each state has its partial index."""
    found = [_is(state) for state in states if state is not DeliveryState.PENDING]
    if DeliveryState.PENDING in states:
        found += [WAITING, _is(DeliveryState.PENDING) & LEASED]
    # SQLite chooses an index for each side of an OR by that side alone.
    return sa.or_(*(rows if where is None else where & rows for rows in found))


def holds_back(of: sa.FromClause) -> sa.ColumnElement[bool]:
    """Whether a delivery, of the table or an alias of it, keeps those behind it in its order from being sent.

    It does until it is finished and, where somebody cancelled it meanwhile, its request is in flight no more.
    """
    unfinished = (of.c.state == sa.literal_column(f"'{state}'") for state in UNFINISHED_STATES)
    return of.c.order_key.is_not(None) & sa.or_(*unfinished, of.c.lease_until.is_not(None))


for _name, _columns, _rows in (
    ("ix_deliveries_due", (deliveries.c.endpoint_id, deliveries.c.due_at), WAITING),
    ("ix_deliveries_leased", (deliveries.c.endpoint_id, deliveries.c.lease_until), LEASED),
    (
        "ix_deliveries_in_order",
        (deliveries.c.endpoint_id, deliveries.c.order_key, deliveries.c.position),
        holds_back(deliveries),
    ),
    (
        "ix_deliveries_set_aside",
        (deliveries.c.endpoint_id, deliveries.c.state, deliveries.c.id),
        in_state(DeliveryState.HELD, DeliveryState.EXHAUSTED),
    ),
):
    sa.Index(_name, *_columns, sqlite_where=_rows, postgresql_where=_rows)

attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("delivery_id", Text, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("id", Text, nullable=False),
    sa.Column("started_at", Instant, nullable=False),
    sa.Column("duration", sa.Double, nullable=False),
    sa.Column("outcome", Text, nullable=False),
    sa.Column("status_code", sa.Integer),
    sa.Column("reason", Text),
    sa.Column("sealed_excerpt", sa.LargeBinary),
    _refer("delivery_id", "deliveries.id"),
    sqlite_with_rowid=False,
)

idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("organization_id", sa.ForeignKey("organizations.id"), primary_key=True),
    sa.Column("key", Text, primary_key=True),
    sa.Column("fingerprint", Text, nullable=False),
    sa.Column("answer", sa.JSON, nullable=False),
    sa.Column("created_at", Instant, nullable=False, index=True),
)

tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("id", Text, primary_key=True),
    sa.Column("digest", Text, nullable=False, unique=True),
    sa.Column("role", Text, nullable=False),
    sa.Column("organization_id", sa.ForeignKey("organizations.id")),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("revoked_at", Instant),
)

installation = sa.Table(
    "installation",
    metadata,
    sa.Column("name", Text, primary_key=True),
    sa.Column("value", sa.LargeBinary, nullable=False),
)

patients = sa.Table(
    "patients",
    metadata,
    sa.Column("organization_id", sa.ForeignKey("organizations.id"), primary_key=True),
    sa.Column("code", Text, primary_key=True),
    sa.Column("history", sa.JSON, nullable=False),
)

professionals = sa.Table(
    "professionals",
    metadata,
    sa.Column("scope", Text, primary_key=True),
    sa.Column("id", Text, primary_key=True),
    sa.Column("name", Text, nullable=False),
    sa.Column("avatar", Text, nullable=False),
)

consultations = sa.Table(
    "consultations",
    metadata,
    sa.Column("organization_id", sa.ForeignKey("organizations.id"), primary_key=True),
    sa.Column("id", Text, primary_key=True),
    sa.Column("type", Text, nullable=False),
    sa.Column("patient_code", Text, nullable=False),
    sa.Column("professional_id", Text, nullable=False),
    sa.Column("speciality", sa.JSON, nullable=False),
    sa.Column("start_date", Instant, nullable=False),
    sa.Column("end_date", Instant),
    sa.Column("finished_event_id", sa.ForeignKey("events.id")),
    sa.Column("created_at", Instant, nullable=False),
)

reports = sa.Table(
    "reports",
    metadata,
    sa.Column("organization_id", Text, primary_key=True),
    sa.Column("consultation_id", Text, primary_key=True),
    sa.Column("id", Text, primary_key=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("type", Text, nullable=False),
    sa.Column("content", sa.JSON, nullable=False),
    sa.Column("event_id", sa.ForeignKey("events.id"), nullable=False),
    sa.ForeignKeyConstraint(
        ["organization_id", "consultation_id"], ["consultations.organization_id", "consultations.id"]
    ),
)

prescriptions = sa.Table(
    "prescriptions",
    metadata,
    sa.Column("organization_id", Text, primary_key=True),
    sa.Column("consultation_id", Text, primary_key=True),
    sa.Column("id", Text, primary_key=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("active_substances", sa.JSON, nullable=False),
    sa.ForeignKeyConstraint(
        ["organization_id", "consultation_id"], ["consultations.organization_id", "consultations.id"]
    ),
)
