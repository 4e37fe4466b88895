"""What the support team sees of deliveries that wait, and of an endpoint that fails, and what they can do about it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from carehook.config import Settings
from carehook.directory.endpoints import EndpointChanges
from carehook.insights import CircuitState, DeliveryView, EndpointView, WaitKind
from carehook.ledger.records import DeliveryFilter
from carehook.ledger.states import DeliveryState, EndpointStatus
from tests.e2e.dispatching import Platform, StandingClock, eventually, make_settings, open_platform, running
from tests.receivers import RecordingReceiver
from tests.servers.postgres import PostgresServer
from tests.stores import ALL

OPENS_AT = 10
"""Failures in a row that open a circuit."""


@pytest.fixture
def clock() -> StandingClock:
    return StandingClock()


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings of an empty store, on each kind of database."""
    if request.param == "sqlite":
        return make_settings(tmp_path)
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name: str = request.getfixturevalue("postgres_database")
    return make_settings(tmp_path, database_url=SecretStr(server.url(name)))


@pytest.fixture
async def platform(settings: Settings, clock: StandingClock) -> AsyncIterator[Platform]:
    """Carehook at work, with a clock that stands still."""
    async with open_platform(settings, clock) as platform, running(platform.application.worker):
        yield platform


@pytest.fixture
def failing() -> Iterator[RecordingReceiver]:
    """A receiver that refuses until the circuit is open, and takes what comes after that."""
    with RecordingReceiver(*[500] * OPENS_AT) as receiver:
        yield receiver


async def show_deliveries(platform: Platform) -> list[DeliveryView]:
    """All deliveries, the oldest first."""
    page = await platform.application.insights.deliveries(platform.organization_id, DeliveryFilter(), ALL)
    return sorted(page.data, key=lambda delivery: delivery.id)


async def open_circuit(platform: Platform, receiver: RecordingReceiver, **fields: Any) -> str:
    """An endpoint that has just failed so often that its circuit is open; its id."""
    endpoint_id = (await platform.register(receiver, **fields)).endpoint.id
    await platform.publish(OPENS_AT)
    await wait_for_circuit(platform, endpoint_id, CircuitState.OPEN)
    return endpoint_id


async def wait_for_failures(platform: Platform, endpoint_id: str, count: int) -> None:
    async def reached() -> bool:
        return (await platform.application.insights.endpoint(endpoint_id)).circuit.failures == count

    await eventually(reached, f"{count} failures")


async def wait_for_circuit(platform: Platform, endpoint_id: str, state: CircuitState) -> EndpointView:
    """The endpoint, once its circuit is in a state."""

    async def reached() -> bool:
        return (await platform.application.insights.endpoint(endpoint_id)).circuit.state is state

    await eventually(reached, f"circuit {state}")
    return await platform.application.insights.endpoint(endpoint_id)


# ---------------------------------------------------------------- the circuit


async def test_an_endpoint_that_receives_has_a_closed_circuit(platform: Platform) -> None:
    with RecordingReceiver(500) as receiver:
        endpoint_id = (await platform.register(receiver)).endpoint.id
        circuit = (await platform.application.insights.endpoint(endpoint_id)).circuit
        assert (circuit.state, circuit.failures, circuit.in_words) == (CircuitState.CLOSED, 0, "closed")
        await platform.publish()
        await platform.wait_for_attempts(1)
        failed = (await platform.application.insights.endpoint(endpoint_id)).circuit
    assert (failed.state, failed.failures) == (CircuitState.CLOSED, 1)
    assert failed.in_words == "closed, with 1 failure, the last: the endpoint answered 500"


async def test_an_open_circuit_is_shown_with_its_reason_and_its_next_try(
    platform: Platform, clock: StandingClock, failing: RecordingReceiver
) -> None:
    endpoint_id = await open_circuit(platform, failing)
    circuit = (await platform.application.insights.endpoint(endpoint_id)).circuit
    assert (circuit.failures, circuit.last_failure) == (OPENS_AT, "the endpoint answered 500")
    assert (circuit.failing_since, circuit.opened_at) == (clock(), clock())
    assert circuit.next_probe_at is not None
    assert timedelta(seconds=8) <= circuit.next_probe_at - clock() <= timedelta(seconds=12)
    listed = await platform.application.insights.endpoints(platform.organization_id, ALL)
    assert [each.circuit for each in listed.data] == [circuit]


async def test_what_comes_meanwhile_waits_for_the_circuit_without_an_attempt(
    platform: Platform, failing: RecordingReceiver
) -> None:
    endpoint_id = await open_circuit(platform, failing)
    (event_id,) = await platform.publish()
    circuit = (await platform.application.insights.endpoint(endpoint_id)).circuit
    (delivery,) = (await platform.application.insights.event(event_id)).deliveries
    assert delivery.waits_for is not None
    assert (delivery.waits_for.kind, delivery.waits_for.since) == (WaitKind.CIRCUIT, circuit.opened_at)
    assert delivery.waits_for.until == circuit.next_probe_at
    assert "10 failures in a row, the last: the endpoint answered 500" in delivery.waits_for.detail
    assert (await platform.application.insights.delivery(delivery.id)).waits_for == delivery.waits_for
    assert len(failing.requests) == OPENS_AT


async def test_an_example_tries_the_endpoint_at_once(platform: Platform, failing: RecordingReceiver) -> None:
    # The clock stands still: nothing else lets a request through.
    endpoint_id = await open_circuit(platform, failing)
    sent = await platform.application.examples.send(endpoint_id)
    await wait_for_circuit(platform, endpoint_id, CircuitState.CLOSED)
    await platform.wait_for(DeliveryState.SUCCEEDED)
    assert (await platform.application.insights.delivery(sent.delivery_id)).state is DeliveryState.SUCCEEDED
    assert len(failing.requests) == OPENS_AT + 1


async def test_a_retry_and_a_recovery_try_the_endpoint_at_once(platform: Platform, failing: RecordingReceiver) -> None:
    failing.answers.append(500)
    endpoint_id = await open_circuit(platform, failing)
    (first, *_) = await show_deliveries(platform)
    await platform.application.interventions.retry(first.id)

    async def tried() -> bool:
        return (await platform.application.insights.endpoint(endpoint_id)).circuit.failures == OPENS_AT + 1

    await eventually(tried, "a try that fails")
    since = first.created_at - timedelta(minutes=1)
    assert await platform.application.interventions.recover(endpoint_id, since) == OPENS_AT
    await platform.wait_for(DeliveryState.SUCCEEDED, OPENS_AT)
    assert (await platform.application.insights.endpoint(endpoint_id)).circuit.state is CircuitState.CLOSED


async def test_resuming_closes_the_circuit_and_forgets_the_failures(
    platform: Platform, failing: RecordingReceiver
) -> None:
    endpoint_id = await open_circuit(platform, failing)
    await platform.application.endpoints.resume(endpoint_id)
    circuit = (await platform.application.insights.endpoint(endpoint_id)).circuit
    assert circuit.model_dump(exclude={"state"}, exclude_none=True) == {"failures": 0}
    assert circuit.state is CircuitState.CLOSED
    await platform.publish()
    await platform.wait_for(DeliveryState.SUCCEEDED)


async def test_another_url_closes_the_circuit(platform: Platform, failing: RecordingReceiver) -> None:
    endpoint_id = await open_circuit(platform, failing)
    with RecordingReceiver() as another:
        await platform.application.endpoints.change(endpoint_id, EndpointChanges(url=another.url))
        await wait_for_circuit(platform, endpoint_id, CircuitState.CLOSED)
        (event_id,) = await platform.publish()
        await platform.wait_for(DeliveryState.SUCCEEDED)
    assert event_id in [request.headers["webhook-id"] for request in another.requests]


async def test_five_days_of_nothing_but_failure_disable_it_and_the_reason_is_shown(
    platform: Platform, clock: StandingClock, failing: RecordingReceiver
) -> None:
    failing.then = 500
    endpoint_id = await open_circuit(platform, failing)
    begun = clock()
    insights = platform.application.insights
    assert (await insights.backlog()).circuits_open == 1
    # A day that nobody tried it, as the four before, does not count for the one in which it is tried in vain.
    for tried, hours in enumerate((4 * 24, 13, 13), OPENS_AT + 1):
        clock.advance(hours * 3600)
        await wait_for_failures(platform, endpoint_id, tried)

    async def is_disabled() -> bool:
        is_idle = not any(delivery.in_flight for delivery in await show_deliveries(platform))
        return is_idle and (await insights.endpoint(endpoint_id)).status is EndpointStatus.DISABLED

    await eventually(is_disabled, "disabled endpoint")
    shown = await insights.endpoint(endpoint_id)
    reason = f"every attempt since {begun:%Y-%m-%dT%H:%M:%SZ} failed; of the last one: the endpoint answered 500"
    assert (shown.status_reason, shown.circuit.next_probe_at) == (reason, None)
    backlog = await insights.backlog()
    assert (backlog.endpoints_disabled, backlog.circuits_open, backlog.held) == (1, 0, OPENS_AT)
    for delivery in await show_deliveries(platform):
        assert delivery.waits_for is not None
        assert delivery.waits_for.kind is WaitKind.ENDPOINT
        assert delivery.waits_for.detail == f"The endpoint is disabled: {reason}. Resume it to go on."

    failing.then = 200
    await platform.application.endpoints.resume(endpoint_id)
    resumed = await insights.endpoint(endpoint_id)
    assert (resumed.status, resumed.status_reason) == (EndpointStatus.ACTIVE, None)
    assert resumed.circuit.state is CircuitState.CLOSED
    clock.advance(24 * 3600)
    await platform.wait_for(DeliveryState.SUCCEEDED, OPENS_AT)


# ---------------------------------------------------------------- order, schedule, pause


async def test_a_patients_later_delivery_names_the_one_that_it_waits_for(platform: Platform) -> None:
    with RecordingReceiver(500) as receiver:
        await platform.register(receiver, ordering="patient")
        await platform.publish(1)
        await platform.wait_for_attempts(1)
        await platform.publish(2)
        first, *behind = await show_deliveries(platform)
        assert first.waits_for is not None
        assert (first.waits_for.kind, first.waits_for.until) == (WaitKind.SCHEDULE, first.due_at)
        for delivery in behind:
            assert delivery.waits_for is not None
            assert (delivery.waits_for.kind, delivery.waits_for.delivery_id) == (WaitKind.ORDER, first.id)
        await platform.application.interventions.cancel(first.id)
        await platform.wait_for(DeliveryState.SUCCEEDED, 2)
        assert [each.waits_for for each in await show_deliveries(platform)] == [None] * 3


async def test_a_paused_endpoints_deliveries_say_so(platform: Platform) -> None:
    endpoint_id = (await platform.register("http://127.0.0.1:9/")).endpoint.id
    await platform.application.endpoints.pause(endpoint_id)
    await platform.publish()
    (delivery,) = await show_deliveries(platform)
    assert delivery.waits_for is not None
    assert delivery.waits_for.detail == "The endpoint is paused. Resume it to go on."


# ---------------------------------------------------------------- what lists cost


@contextmanager
def count_statements() -> Iterator[list[str]]:
    """Each statement that SQLAlchemy executes while the block lasts."""
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)


async def test_a_list_takes_as_many_queries_for_many_rows_as_for_one(settings: Settings) -> None:
    async with open_platform(settings) as platform:
        insights = platform.application.insights
        counts: list[tuple[int, int, int]] = []
        for _ in range(2):
            await platform.register("http://127.0.0.1:9/", ordering="patient")
            await platform.publish(1 if not counts else 20)
            with count_statements() as statements:
                deliveries = await insights.deliveries(platform.organization_id, DeliveryFilter(), ALL)
                endpoints = await insights.endpoints(platform.organization_id, ALL)
            counts.append((len(deliveries.data), len(endpoints.data), len(statements)))
    assert [rows[:2] for rows in counts] == [(1, 1), (41, 2)]
    assert counts[0][2] == counts[1][2]
