"""What Prometheus sees: counts, times and the backlog, and no id of anybody."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

from prometheus_client.parser import text_string_to_metric_families

from carehook.ledger.records import Backlog
from carehook.metrics import Metrics

NOW = datetime(2024, 1, 1, tzinfo=UTC)
EMPTY = Backlog(waiting=0, in_flight=0, held=0, oldest_due_at=None)


def read(metrics: Metrics, backlog: Backlog | None = EMPTY) -> dict[tuple[str, str], float]:
    """Every sample, by its name and the values of its labels."""
    text = metrics.render(backlog, NOW).decode()
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_backlog_is_that_of_the_moment() -> None:
    metrics = Metrics()
    read(metrics, Backlog(waiting=9, in_flight=9, held=9, oldest_due_at=NOW - timedelta(hours=1)))
    samples = read(metrics, Backlog(waiting=3, in_flight=2, held=1, oldest_due_at=NOW - timedelta(seconds=90)))
    assert samples["carehook_backlog_deliveries", "waiting"] == 3
    assert samples["carehook_backlog_deliveries", "in_flight"] == 2
    assert samples["carehook_backlog_deliveries", "held"] == 1
    assert samples["carehook_oldest_due_seconds", ""] == 90
    assert read(metrics)["carehook_oldest_due_seconds", ""] == 0


def test_without_the_store_there_is_no_backlog_but_all_that_was_counted() -> None:
    metrics = Metrics()
    metrics.attempts.labels("failed").inc()
    known = read(metrics, Backlog(waiting=9, in_flight=0, held=0, oldest_due_at=NOW))
    unknown = read(metrics, None)
    assert (known["carehook_store_up", ""], unknown["carehook_store_up", ""]) == (1, 0)
    assert unknown["carehook_attempts_total", "failed"] == 1
    assert {name for name, _ in known.keys() - unknown.keys()} == {
        "carehook_backlog_deliveries",
        "carehook_circuits_open",
        "carehook_endpoints_disabled",
        "carehook_oldest_due_seconds",
    }
    assert read(metrics)["carehook_store_up", ""] == 1


def test_what_keeps_deliveries_is_counted_as_it_is_now() -> None:
    metrics = Metrics()
    read(metrics, dataclasses.replace(EMPTY, circuits_open=5, endpoints_disabled=5))
    samples = read(metrics, dataclasses.replace(EMPTY, circuits_open=2, endpoints_disabled=1))
    assert (samples["carehook_circuits_open", ""], samples["carehook_endpoints_disabled", ""]) == (2, 1)


def test_what_is_due_later_has_no_age() -> None:
    backlog = Backlog(waiting=1, in_flight=0, held=0, oldest_due_at=NOW + timedelta(hours=1))
    assert read(Metrics(), backlog)["carehook_oldest_due_seconds", ""] == 0


def test_counts_and_times_are_by_type_and_outcome() -> None:
    metrics = Metrics()
    metrics.events_accepted.labels("patient_report_sent").inc(2)
    metrics.count_attempts("failed", [0.02])
    metrics.count_attempts("succeeded", [0.025, 100_000.0])
    metrics.delivery_seconds.observe([1.5])
    samples = read(metrics)
    assert samples["carehook_events_accepted_total", "patient_report_sent"] == 2
    assert samples["carehook_attempts_total", "failed"] == 1
    assert samples["carehook_attempts_total", "succeeded"] == 2
    assert samples["carehook_attempt_seconds_count", ""] == 3
    assert samples["carehook_attempt_seconds_bucket", "0.01"] == 0
    assert samples["carehook_attempt_seconds_bucket", "0.025"] == 2, "a bucket holds what is as long as its bound"
    assert samples["carehook_attempt_seconds_bucket", "86400.0"] == 2
    assert samples["carehook_attempt_seconds_bucket", "+Inf"] == 3
    assert samples["carehook_delivery_seconds_sum", ""] == 1.5


def test_two_services_in_one_process_do_not_mix() -> None:
    one, other = Metrics(), Metrics()
    one.attempts.labels("succeeded").inc()
    assert ("carehook_attempts_total", "succeeded") not in read(other)


def test_labels_are_of_few_values_none_of_them_an_id() -> None:
    text = Metrics().render(EMPTY, NOW).decode()
    families = text_string_to_metric_families(text)
    labels = {label for family in families for sample in family.samples for label in sample.labels}
    assert "state" in labels
    assert labels <= {"event_type", "outcome", "state", "le"}
