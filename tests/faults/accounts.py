"""The books of a store after it was mistreated, compared with what its callers were told and its receivers got."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tests.faults.books import Delivery, Store
from tests.faults.callers import Callers, Span
from tests.faults.endpoints import Endpoint, Registered
from tests.faults.interventions import Interventions
from tests.faults.laws import find_crowds, find_disorder, find_haste, find_noise
from tests.faults.recipients import Arrival

SCHEDULE: Final = [0.2] * 25
"""Retries at once, and for longer than any receiver fails that does not refuse an event for ever."""

_SHOWN: Final = 20
"""Surprises that a report tells at most."""

_TOLERANCE: Final = 0.1
"""Seconds' worth of requests that may go at once under a rate limit."""


@dataclass(frozen=True)
class Account:
    """What came of it, over all endpoints. Whatever breaks the law is a surprise."""

    accepted: int
    """Events."""
    delivered: int
    """Events that an endpoint took, over all endpoints."""
    lost: int
    """Those that it did not take, and nobody wanted that; what follows is apart."""
    cancelled: int
    """Not taken, for somebody cancelled it or deleted its endpoint."""
    given_up: int
    """Not taken, for all attempts of the schedule failed."""
    held: int
    """Not taken, for its endpoint is paused."""
    repeated: int
    """How often something was taken again that nobody wanted resent."""
    explained_by_interruption: int
    """Of these: its attempt was cut off, by the death of a worker or the end of a lease."""
    explained_by_connection: int
    """Of these: the connection broke, or nothing came over it in time, after the request had arrived."""
    unexplained: int
    resent: int
    """How often something was taken again that somebody wanted resent."""
    interrupted: int
    """Attempts that were cut off."""
    in_order: int
    """Requests that had to wait for their turn in the order of a patient, had there been another before them."""
    interventions: Mapping[str, int]
    """What people asked for, and how often."""
    silences: int
    """How often nothing might be sent any more to an endpoint, to a URL or of a delivery."""
    surprises: Sequence[str]

    def holds(self) -> bool:
        """Whether the law was kept."""
        return not (self.lost or self.unexplained or self.surprises)


class _Accountant:
    def __init__(
        self, store: Store, callers: Callers, registered: Registered, interventions: Interventions, jumps: int
    ) -> None:
        self._store = store
        self._callers = callers
        self._registered = registered
        self._interventions = interventions
        self._jumps = jumps
        self._counts: Counter[str] = Counter()
        self._spans = self._find_spans()
        self._asked = {event_id: span.asked for event_id, span in self._spans.items()}
        self._digests = {event_id: hashlib.sha256(body).digest() for event_id, body in store.bodies.items()}
        self._deliveries: dict[str, dict[str, Delivery]] = {}
        for each in store.deliveries:
            self._deliveries.setdefault(each.endpoint_id, {})[each.event_id] = each

    def build_account(self) -> Account:
        surprises = [*self._compare_with_callers(), *self._interventions.surprises]
        for endpoint in self._registered.endpoints:
            surprises += [f"{endpoint.name}: {each}" for each in self._examine_endpoint(endpoint)]
        counts = self._counts
        return Account(
            accepted=len(self._digests),
            delivered=counts["delivered"],
            lost=counts["lost"],
            cancelled=counts["cancelled"],
            given_up=counts["exhausted"],
            held=counts["held"],
            repeated=counts["repeated"],
            explained_by_interruption=counts["by interruption"],
            explained_by_connection=counts["by connection"],
            unexplained=counts["unexplained"],
            resent=counts["resent"],
            interrupted=sum(each.ends["interrupted"] for each in self._store.deliveries),
            in_order=counts["in order"],
            interventions=dict(sorted(self._interventions.counts.items())),
            silences=len(self._interventions.silences),
            surprises=surprises[:_SHOWN],
        )

    # ---------------------------------------------------------------- callers

    def _find_spans(self) -> dict[str, Span]:
        """When each event was published."""
        names = dict(self._callers.accepted)
        names |= {event_id: name for name, event_id in (self._store.reports | self._store.finished).items()}
        return {event_id: self._callers.spans[name] for event_id, name in names.items() if name in self._callers.spans}

    def _compare_with_callers(self) -> Iterator[str]:
        """Whatever was answered is stored, once, and nothing else is: neither half an event nor one nobody sent."""
        callers, store = self._callers, self._store
        yield from callers.surprises
        marks, told_finished = {}, {}
        for event_id, event in store.events.items():
            if event["type"] == "patient_consultation_finished":
                told_finished[event["payload"]["consultation"]["id"]] = event_id
            elif not event["payload"]["patient"]["code"].startswith("care-"):
                marks[event_id] = event["payload"]["content"]["plan"]
        yield from _compare("events", callers.accepted, marks)
        yield from _compare("finished consultations", store.finished, told_finished)
        yield from _compare("reports", callers.reports, store.reports)
        if callers.finished != set(store.finished):
            yield f"finished as callers were told, or as the store has it: {callers.finished ^ set(store.finished)}"
        if len(set(marks.values())) != len(marks):
            yield "an event was stored twice"
        if set(store.bodies) != {*callers.accepted, *store.finished.values(), *store.reports.values()}:
            yield "events are stored that belong to nothing"

    # ---------------------------------------------------------------- endpoints

    def _examine_endpoint(self, endpoint: Endpoint) -> Iterator[str]:
        arrivals = [each for each in endpoint.receiver.arrivals if each.name == endpoint.name]
        deliveries = self._deliveries.get(endpoint.id, {})
        yield from (why for name, why in endpoint.receiver.refused if name == endpoint.name)
        yield from self._compare_with_arrivals(arrivals, deliveries)
        yield from self._compare_with_subscription(endpoint, deliveries)
        arrived = Counter(each.event_id for each in arrivals)
        taken = Counter(each.event_id for each in arrivals if each.is_taken)
        for event_id, delivery in deliveries.items():
            resent = self._interventions.resent[endpoint.id, event_id]
            yield from _examine(delivery, arrived[event_id], resent)
            yield from self._judge(endpoint, delivery, taken[event_id])
            self._counts.update(explain(delivery, taken[event_id] - 1, resent))
        yield from self._examine_limits(endpoint, arrivals, deliveries)
        yield from self._examine_silences(endpoint, arrivals, deliveries)
        if endpoint.fields.get("ordering") == "patient":
            yield from self._examine_order(arrivals, deliveries)

    def _compare_with_arrivals(self, arrivals: Sequence[Arrival], deliveries: Mapping[str, Delivery]) -> Iterator[str]:
        for each in arrivals:
            if each.event_id not in deliveries:
                yield f"{each.event_id} came, of which there is no delivery"
            elif self._digests[each.event_id] != each.digest:
                yield f"{each.event_id} came altered"

    def _compare_with_subscription(self, endpoint: Endpoint, deliveries: Mapping[str, Delivery]) -> Iterator[str]:
        """What was published while the endpoint was there has a delivery, and nothing else has."""
        types = endpoint.fields.get("event_types") or {event["type"] for event in self._store.events.values()}
        for event_id, span in self._spans.items():
            is_subscribed = self._store.events[event_id]["type"] in types
            must = is_subscribed and endpoint.created.answered <= span.asked and span.answered <= endpoint.deleted.asked
            may = is_subscribed and endpoint.created.asked <= span.answered and span.asked <= endpoint.deleted.answered
            if event_id not in deliveries and must:
                self._counts["lost"] += 1
                yield f"{event_id} has no delivery"
            if event_id in deliveries and not may:
                yield f"{event_id} has a delivery though the endpoint was not there, or not for it"

    def _judge(self, endpoint: Endpoint, delivery: Delivery, taken: int) -> Iterator[str]:
        """What became of a delivery in the end, and whether that may be."""
        state, key = delivery.state, (endpoint.id, delivery.event_id)
        may_be = {
            "succeeded": taken > 0,
            "cancelled": key in self._interventions.cancelled or endpoint.is_deleted,
            "exhausted": delivery.failures > len(SCHEDULE),
            "held": endpoint.is_paused,
        }
        if taken:
            self._counts["delivered"] += 1
        elif may_be.get(state) and state != "succeeded":
            self._counts[state] += 1
        else:
            self._counts["lost"] += 1
        if not may_be.get(state):
            yield f"nothing explains its state: {delivery}, which was taken {taken} times"

    # ---------------------------------------------------------------- laws of what was seen

    def _examine_order(self, arrivals: Sequence[Arrival], deliveries: Mapping[str, Delivery]) -> Iterator[str]:
        cut_off = _find_cut_off(deliveries)
        attempts = Counter(each.event_id for each in arrivals)
        given_up = {name: attempts[name] for name, each in deliveries.items() if each.state == "cancelled"}
        # Whatever became of it since: somebody may have wanted it retried.
        exhausted = [name for name, each in deliveries.items() if each.failures > len(SCHEDULE)]
        given_up |= dict.fromkeys(exhausted, len(SCHEDULE) + 1)
        in_order: dict[str, list[Arrival]] = {}
        for sequence in self._list_sequences():
            in_order.update({event_id: [] for event_id in sequence})
        for each in arrivals:
            in_order.get(each.event_id, []).append(each)
        for sequence in self._list_sequences():
            of_patient = sorted((each for name in sequence for each in in_order[name]), key=lambda each: each.began)
            self._counts["in order"] += len(of_patient) - len(in_order[sequence[0]])
            given = {name: given_up[name] for name in sequence if name in given_up}
            for event_id, earlier in find_disorder(sequence, of_patient, given, cut_off):
                yield f"{event_id} was sent before one of the same patient was done: {deliveries.get(earlier, earlier)}"

    def _list_sequences(self) -> Iterator[Sequence[str]]:
        """The events of each patient in the order in which they were accepted."""
        yield from self._callers.of_patients.values()
        for name, event_id in self._callers.reports.items():
            if (finished := self._store.finished.get(name.replace("report", "consultation"))) is not None:
                yield [event_id, finished]

    def _examine_limits(
        self, endpoint: Endpoint, arrivals: Sequence[Arrival], deliveries: Mapping[str, Delivery]
    ) -> Iterator[str]:
        if (most := endpoint.fields.get("max_in_flight")) is not None:
            yield from find_crowds(arrivals, most, _find_cut_off(deliveries))
        if (rate := endpoint.fields.get("rate_limit")) is not None:
            # A clock that jumps begins anew, and what is tried at an open circuit goes whatever the rate.
            tried = sum(not each.is_taken for each in arrivals)
            allowed = (1 + self._jumps) * (rate * _TOLERANCE + 2) + tried
            limited = [each for each in arrivals if each.began < self._registered.opened_at]
            yield from find_haste(limited, self._registered.began, rate, allowed)

    def _examine_silences(
        self, endpoint: Endpoint, arrivals: Sequence[Arrival], deliveries: Mapping[str, Delivery]
    ) -> Iterator[str]:
        cut_off = _find_cut_off(deliveries)
        for silence in self._interventions.silences:
            if silence.endpoint_id == endpoint.id:
                yield from find_noise(silence, arrivals, self._asked, cut_off)


def build_account(
    store: Store, callers: Callers, registered: Registered, interventions: Interventions, jumps: int
) -> Account:
    """What became of all that was accepted, when the clock had jumped so many times."""
    began = time.monotonic()
    account = _Accountant(store, callers, registered, interventions, jumps).build_account()
    print(f"accounts in {time.monotonic() - began:.1f} s")
    return account


def _find_cut_off(deliveries: Mapping[str, Delivery]) -> set[str]:
    return {event_id for event_id, each in deliveries.items() if each.is_cut_off}


def _compare(what: str, told: dict[str, str], stored: dict[str, str]) -> Iterator[str]:
    if told != stored:
        yield f"{what}, told and stored otherwise: {sorted(told.items() ^ stored.items())[:4]}"


def _examine(delivery: Delivery, arrived: int, resent: int) -> Iterator[str]:
    """What is wrong with the record of a delivery of which so many requests arrived."""
    successes = delivery.successes
    laws = {
        # Of what is not to be sent any more, a worker that died may still have the lease.
        "it is not done": delivery.lease_until is None or delivery.state in ("held", "cancelled"),
        "its attempts have gaps": list(delivery.numbers) == list(range(1, delivery.attempt_count + 1)),
        "a success was not its end": successes.count(True) <= 1 + resent
        and (delivery.state == "succeeded") <= (successes[-1:] == [True])
        and (resent > 0 or True not in successes[:-1]),
        # An attempt whose answer is known was one request; another was one or none.
        "requests and attempts do not match": delivery.ends["responded"] <= arrived
        and (arrived <= delivery.attempt_count + (delivery.lease_until is not None)),
    }
    for law, kept in laws.items():
        if not kept:
            yield f"{law}: {delivery}, of which {arrived} requests arrived"


def explain(delivery: Delivery, again: int, resent: int) -> Counter[str]:
    """Only what was not known to have been taken is sent again, or what somebody wanted resent."""
    if again <= 0:
        return Counter()
    by_request = min(again, resent)
    repeated = again - by_request
    by_interruption = min(repeated, delivery.ends["interrupted"])
    by_connection = min(repeated - by_interruption, delivery.ends["unreachable"])
    return Counter(
        {
            "resent": by_request,
            "repeated": repeated,
            "by interruption": by_interruption,
            "by connection": by_connection,
            "unexplained": repeated - by_interruption - by_connection,
        }
    )
