"""The books of a store after it was mistreated, compared with what its callers were told and its receivers got."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from carehook.ledger.connections.database import Database, parse_database_url
from tests.faults.callers import Callers

_SHOWN = 20
"""Surprises that a report tells at most."""


@dataclass(frozen=True)
class Recipient:
    """All that the receiver of an endpoint got."""

    endpoint_id: str
    arrived: Sequence[tuple[str, bytes]]
    """The event and the SHA-256 of the body of each request that came, and was as this endpoint's must be."""
    taken: Sequence[str]
    """The event of each request that was to be answered with 2xx."""
    refused: Sequence[str]
    """Why a request was not as it must be."""


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
    statuses: Sequence[int | None]


@dataclass(frozen=True)
class Account:
    """What came of it, over all endpoints. Whatever breaks the law is a surprise."""

    accepted: int
    """Events, of which each goes to every endpoint."""
    delivered: int
    lost: int
    repeated: int
    """How often something was taken again."""
    explained_by_interruption: int
    """Of these: its attempt was cut off, by the death of a worker or the end of a lease."""
    explained_by_connection: int
    """Of these: the connection broke, or nothing came over it in time, after the request had arrived."""
    unexplained: int
    interrupted: int
    """Attempts that were cut off."""
    surprises: Sequence[str]

    def holds(self) -> bool:
        """Whether the law was kept."""
        return not (self.lost or self.unexplained or self.surprises)


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
        attempts: dict[str, list[Any]] = defaultdict(list)
        for row in await select("delivery_id, number, outcome, status_code", "attempts ORDER BY delivery_id, number"):
            attempts[row.delivery_id].append(row)
        self.deliveries = [
            Delivery(
                row.event_id,
                row.endpoint_id,
                row.state,
                row.attempt_count,
                row.lease_until,
                [each.outcome for each in attempts[row.id]],
                [each.number for each in attempts[row.id]],
                [each.status_code for each in attempts[row.id]],
            )
            for row in await select("id, event_id, endpoint_id, state, attempt_count, lease_until", "deliveries")
        ]
        self.consultations = {row.id: row.finished_event_id for row in await select("*", "consultations")}
        self.reports = {row.id: row.event_id for row in await select("id, event_id", "reports")}
        await database.close()


def build_account(store: Store, callers: Callers, recipients: Sequence[Recipient]) -> Account:
    """What became of all that was accepted."""
    surprises = [*_compare_with_callers(store, callers)]
    digests = {event_id: hashlib.sha256(body).digest() for event_id, body in store.bodies.items()}
    deliveries = {(each.endpoint_id, each.event_id): each for each in store.deliveries}
    if not len(deliveries) == len(store.deliveries) == len(recipients) * len(digests):
        surprises.append(f"{len(store.deliveries)} deliveries of {len(digests)} events to {len(recipients)} endpoints")
    counts: Counter[str] = Counter()
    for recipient in recipients:
        surprises += recipient.refused
        surprises += [
            f"{event_id} came altered" for event_id, digest in recipient.arrived if digests[event_id] != digest
        ]
        arrived, taken = Counter(event_id for event_id, _ in recipient.arrived), Counter(recipient.taken)
        counts["lost"] += len(digests.keys() - taken.keys())
        counts["delivered"] += len(taken)
        for event_id in digests:
            delivery = deliveries.get((recipient.endpoint_id, event_id))
            if delivery is not None:
                surprises += _examine(delivery, arrived[event_id])
                counts.update(_explain(delivery, taken[event_id] - 1))
    return Account(
        accepted=len(digests),
        delivered=counts["delivered"],
        lost=counts["lost"],
        repeated=counts["repeated"],
        explained_by_interruption=counts["by interruption"],
        explained_by_connection=counts["by connection"],
        unexplained=counts["unexplained"],
        interrupted=sum(each.outcomes.count("interrupted") for each in store.deliveries),
        surprises=surprises[:_SHOWN],
    )


def _compare_with_callers(store: Store, callers: Callers) -> Iterator[str]:
    """Whatever was answered is stored, once, and nothing else is: neither half an event nor one that nobody sent."""
    yield from callers.surprises
    codes, told_finished = {}, {}
    for event_id, body in store.bodies.items():
        event = json.loads(body)
        if event["type"] == "patient_consultation_finished":
            told_finished[event["payload"]["consultation"]["id"]] = event_id
        elif not (code := event["payload"]["patient"]["code"]).startswith("care-"):
            codes[event_id] = code
    finished = {name: event_id for name, event_id in store.consultations.items() if event_id is not None}
    yield from _compare("events", callers.accepted, codes)
    yield from _compare("finished consultations", finished, told_finished)
    yield from _compare("reports", callers.reports, store.reports)
    if callers.finished != set(finished):
        yield f"finished as callers were told, or as the store has it: {callers.finished ^ set(finished)}"
    if len(set(codes.values())) != len(codes):
        yield "an event was stored twice"
    if set(store.bodies) != {*callers.accepted, *finished.values(), *store.reports.values()}:
        yield "events are stored that belong to nothing"


def _compare(what: str, told: dict[str, str], stored: dict[str, str]) -> Iterator[str]:
    if told != stored:
        yield f"{what}, told and stored otherwise: {sorted(told.items() ^ stored.items())[:4]}"


def _examine(delivery: Delivery, arrived: int) -> Iterator[str]:
    """What is wrong with the record of a delivery of which so many requests arrived."""
    outcomes = Counter(delivery.outcomes)
    succeeded = [status is not None and 200 <= status <= 299 for status in delivery.statuses]
    laws = {
        "it is not done": (delivery.state, delivery.lease_until) == ("succeeded", None),
        "its attempts have gaps": list(delivery.numbers) == list(range(1, delivery.attempt_count + 1)),
        "a success was not its end": succeeded.count(True) == 1 and succeeded[-1],
        # An attempt whose answer is known was one request; another was one or none.
        "requests and attempts do not match": outcomes["responded"] <= arrived <= delivery.attempt_count,
    }
    for law, kept in laws.items():
        if not kept:
            yield f"{law}: {delivery}, of which {arrived} requests arrived"


def _explain(delivery: Delivery, repeated: int) -> Counter[str]:
    """Only what was not known to have been taken is sent again."""
    if repeated <= 0:
        return Counter()
    by_interruption = min(repeated, delivery.outcomes.count("interrupted"))
    by_connection = min(repeated - by_interruption, delivery.outcomes.count("unreachable"))
    return Counter(
        {
            "repeated": repeated,
            "by interruption": by_interruption,
            "by connection": by_connection,
            "unexplained": repeated - by_interruption - by_connection,
        }
    )
