"""Prometheus metrics, held by one object that `bootstrap` makes, so that two services in one process do not mix."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from carehook.ledger.records import Backlog

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 600.0, 3600.0, 86400.0)


class Durations(Collector):
    """A histogram of seconds that takes many at once; the library's own takes a lock, twice, for each."""

    def __init__(self, name: str, documentation: str, registry: CollectorRegistry) -> None:
        self._name = name
        self._documentation = documentation
        self._counts = [0] * (len(_SECONDS) + 1)
        self._sum = 0.0
        registry.register(self)

    def observe(self, durations: Iterable[float]) -> None:
        """Count durations, each in its bucket."""
        counts = self._counts
        for seconds in durations:
            counts[bisect_left(_SECONDS, seconds)] += 1
            self._sum += seconds

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """What Prometheus sees: of each bucket how many were as short or shorter."""
        bounds = [*map(str, _SECONDS), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        yield HistogramMetricFamily(self._name, self._documentation, buckets=buckets, sum_value=self._sum)


class Metrics:
    """What Carehook counts. No label ever holds an id of a patient or a URL."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.events_accepted = Counter(
            "carehook_events_accepted", "Events accepted, by type.", ["event_type"], registry=self.registry
        )
        self.attempts = Counter(
            "carehook_attempts",
            "Attempts made here, by outcome: succeeded, failed (by its status), unreachable, blocked, interrupted.",
            ["outcome"],
            registry=self.registry,
        )
        self.attempts_unrecorded = Counter(
            "carehook_attempts_unrecorded",
            "Attempts made here whose results the store does not have: their leases were over before.",
            registry=self.registry,
        )
        self.leases_lost = Counter(
            "carehook_leases_lost",
            "Leases, of any worker, found here to be over without a result; each is an interrupted attempt.",
            registry=self.registry,
        )
        self.attempt_seconds = Durations("carehook_attempt_seconds", "How long attempts took.", self.registry)
        self.delivery_seconds = Durations(
            "carehook_delivery_seconds", "From the acceptance of an event to the success of a delivery.", self.registry
        )
        self._store_up = Gauge(
            "carehook_store_up", "Whether the store answers: 1, or 0 while it is away.", registry=self.registry
        )
        # Apart, for what is not known is not shown: an old backlog would look like a new one.
        self._backlog_registry = CollectorRegistry()
        self._deliveries = Gauge(
            "carehook_backlog_deliveries",
            "Deliveries that are not finished: waiting, in_flight or held.",
            ["state"],
            registry=self._backlog_registry,
        )
        self._oldest_due = Gauge(
            "carehook_oldest_due_seconds",
            "For how long the oldest due delivery of an active endpoint is due, those behind open circuits aside; "
            "0 when none is.",
            registry=self._backlog_registry,
        )
        self._circuits_open = Gauge(
            "carehook_circuits_open",
            "Active endpoints whose circuit is open, since they keep failing.",
            registry=self._backlog_registry,
        )
        self._endpoints_disabled = Gauge(
            "carehook_endpoints_disabled", "Endpoints that Carehook disabled.", registry=self._backlog_registry
        )

    def count_attempts(self, outcome: str, durations: Sequence[float]) -> None:
        """Count attempts of one outcome by how long each took, in seconds."""
        self.attempts.labels(outcome).inc(len(durations))
        self.attempt_seconds.observe(durations)

    def render(self, backlog: Backlog | None, now: datetime) -> bytes:
        """Everything in Prometheus' text format, with the backlog as it is now; None while the store is away."""
        self._store_up.set(backlog is not None)
        counted = generate_latest(self.registry)
        if backlog is None:
            return counted
        self._show(backlog, now)
        return counted + generate_latest(self._backlog_registry)

    def _show(self, backlog: Backlog, now: datetime) -> None:
        self._deliveries.labels("waiting").set(backlog.waiting)
        self._deliveries.labels("in_flight").set(backlog.in_flight)
        self._deliveries.labels("held").set(backlog.held)
        self._circuits_open.set(backlog.circuits_open)
        self._endpoints_disabled.set(backlog.endpoints_disabled)
        due_at = backlog.oldest_due_at
        self._oldest_due.set(max(0.0, (now - due_at).total_seconds()) if due_at else 0.0)
