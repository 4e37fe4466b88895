"""What is told of attempts: one wide log line each, and the metrics. By the batch, which makes both cheap.

Neither holds a payload, a secret or a URL: reasons are Carehook's own sentences.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from carehook.ledger.records import AttemptOutcome, ClaimedDelivery, FinishedAttempt
from carehook.logs import log_all
from carehook.metrics import Metrics

_LOGGER: Final = "carehook.attempt"


class Result(NamedTuple):
    """An attempt that has ended, and the delivery as it was claimed."""

    delivery: ClaimedDelivery
    finished: FinishedAttempt

    @property
    def outcome(self) -> str:
        """In a word: succeeded, failed (the status says no), unreachable, blocked or interrupted."""
        if self.finished.succeeded:
            return "succeeded"
        outcome = self.finished.attempt.outcome
        return "failed" if outcome is AttemptOutcome.RESPONDED else outcome.value

    @property
    def since_accepted(self) -> float:
        """Seconds from the acceptance of the event to the end of the attempt."""
        attempt = self.finished.attempt
        return (attempt.started_at - self.delivery.accepted_at).total_seconds() + attempt.duration


def observe(results: Sequence[Result], metrics: Metrics) -> None:
    """Count attempts, and write a line about each."""
    durations: defaultdict[str, list[float]] = defaultdict(list)
    for each in results:
        durations[each.outcome].append(each.finished.attempt.duration)
    for outcome, took in durations.items():
        metrics.count_attempts(outcome, took)
    metrics.delivery_seconds.observe(each.since_accepted for each in results if each.finished.succeeded)
    log_all(_LOGGER, "attempt", map(_build_line, results))


def _build_line(result: Result) -> dict[str, Any]:
    delivery, finished = result
    attempt = finished.attempt
    return {
        "outcome": result.outcome,
        "status_code": attempt.status_code,
        "reason": attempt.reason,
        "duration_ms": round(attempt.duration * 1000, 1),
        "since_accepted_s": round(result.since_accepted, 3),
        "attempt": attempt.number,
        "next": finished.transition.value,
        "due_at": finished.due_at.isoformat() if finished.due_at else None,
        "delivery_id": delivery.id,
        "event_id": delivery.event_id,
        "event_type": delivery.event_type,
        "endpoint_id": delivery.endpoint.id,
        "organization_id": delivery.endpoint.organization_id,
    }
