"""The books of a store after it was mistreated, compared with what its callers were told and its receivers got."""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from carehook import Webhook
from carehook.ledger.database import Database, parse_database_url
from tests.faults.callers import Callers
from tests.receivers import ReceivedRequest


@dataclass(frozen=True)
class Recipient:
    """An endpoint with all that its receiver got, and the ids of what it answered with 2xx, once for each time."""

    endpoint_id: str
    signature_value: str
    signing_secret: str
    requests: Sequence[ReceivedRequest]
    taken: Sequence[str]


@dataclass(frozen=True)
class Delivery:
    """A row of the deliveries with how its attempts ended."""

    event_id: str
    endpoint_id: str
    state: str
    attempt_count: int
    lease_until: object
    outcomes: Sequence[str]
    numbers: Sequence[int]


class Store:
    """Every row that matters."""

    def __init__(self, database_url: str) -> None:
        asyncio.run(self._read(database_url))

    async def _read(self, database_url: str) -> None:
        database = Database(parse_database_url(database_url))

        async def select(columns: str, table: str) -> Sequence[Any]:
            async with database.read() as connection:
                return (await connection.execute(sa.text(f"SELECT {columns} FROM {table}"))).all()

        self.bodies = {row.id: bytes(row.body) for row in await select("id, body", "events")}
        attempts: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for row in await select("delivery_id, number, outcome", "attempts ORDER BY delivery_id, number"):
            attempts[row.delivery_id].append((row.number, row.outcome))
        self.deliveries = [
            Delivery(
                row.event_id,
                row.endpoint_id,
                row.state,
                row.attempt_count,
                row.lease_until,
                [outcome for _, outcome in attempts[row.id]],
                [number for number, _ in attempts[row.id]],
            )
            for row in await select("id, event_id, endpoint_id, state, attempt_count, lease_until", "deliveries")
        ]
        self.consultations = {row.id: row.finished_event_id for row in await select("*", "consultations")}
        self.reports = {row.id: row.event_id for row in await select("id, event_id", "reports")}
        await database.close()


def check_callers(store: Store, callers: Callers) -> None:
    """Whatever was answered is stored, once, and nothing else is: neither half an event nor one that nobody sent."""
    assert callers.surprises == [], callers.surprises
    payloads = {event_id: json.loads(body) for event_id, body in store.bodies.items()}
    codes = {
        event_id: event["payload"]["patient"]["code"]
        for event_id, event in payloads.items()
        if event["type"] == "patient_report_sent" and not event["payload"]["patient"]["code"].startswith("care-")
    }
    assert codes == callers.accepted
    assert len(set(codes.values())) == len(codes)

    told_finished = {
        event["payload"]["consultation"]["id"]: event_id
        for event_id, event in payloads.items()
        if event["type"] == "patient_consultation_finished"
    }
    finished = {name: event_id for name, event_id in store.consultations.items() if event_id is not None}
    assert told_finished == finished
    assert callers.finished == set(finished)
    assert callers.reports == store.reports
    assert len(store.bodies) == len(callers.accepted) + len(finished) + len(store.reports)
    assert set(store.bodies) == {*callers.accepted, *finished.values(), *store.reports.values()}


@dataclass(frozen=True)
class Report:
    """What came of it, over all endpoints."""

    accepted: int
    delivered: int
    lost: int
    unknown: int
    duplicates: int
    interrupted: int


def check_recipients(store: Store, recipients: Sequence[Recipient]) -> Report:
    """Every event arrived at every endpoint as it was stored, and every request is accounted for by an attempt."""
    lost = unknown = duplicates = delivered = 0
    deliveries = {(each.endpoint_id, each.event_id): each for each in store.deliveries}
    assert len(deliveries) == len(store.deliveries) == len(recipients) * len(store.bodies)
    for recipient in recipients:
        webhook = Webhook(signature_value=recipient.signature_value, signing_secret=recipient.signing_secret)
        for request in recipient.requests:
            webhook.verify(request.body, request.headers, now=float(request.headers["webhook-timestamp"]))
            assert request.body == store.bodies[request.headers["webhook-id"]]
        received = Counter(request.headers["webhook-id"] for request in recipient.requests)
        taken = Counter(recipient.taken)
        lost += len(set(store.bodies) - set(taken))
        unknown += len(set(received) - set(store.bodies))
        delivered += len(taken)
        duplicates += taken.total() - len(taken)
        for event_id in store.bodies:
            _check_delivery(deliveries[recipient.endpoint_id, event_id], received[event_id], taken[event_id])
    interrupted = sum(each.outcomes.count("interrupted") for each in store.deliveries)
    return Report(len(store.bodies), delivered, lost, unknown, duplicates, interrupted)


def _check_delivery(delivery: Delivery, received: int, taken: int) -> None:
    assert (delivery.state, delivery.lease_until) == ("succeeded", None), delivery
    assert list(delivery.numbers) == list(range(1, delivery.attempt_count + 1)), delivery
    outcomes = Counter(delivery.outcomes)
    # An attempt whose outcome is known was one request; one that was interrupted was one or none.
    assert outcomes["responded"] <= received <= delivery.attempt_count, (delivery, received)
    # Only what was interrupted is sent again after it was taken.
    assert 1 <= taken <= 1 + outcomes["interrupted"], (delivery, taken)
