"""`carehook delivery`: what became of an event at an endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from carehook.cli.options import Cursor, DeliveryId, Json, Limit, OrganizationId, check_event_type, check_id, read_page
from carehook.cli.output import format_value, print_heading, print_list, print_table, print_view
from carehook.cli.session import run
from carehook.ids import DELIVERY, ENDPOINT, EVENT
from carehook.ledger.states import DeliveryState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from carehook.application import Application
    from carehook.insights import DeliveryDetailView, DeliveryView, ListView

app = typer.Typer(help="Deliveries: one event for one endpoint, and its attempts.", no_args_is_help=True)

_COLUMNS = [
    "id",
    "event_type",
    "state",
    "attempt_count",
    "last_attempt_at",
    "due_at",
    "waits_for",
    "endpoint_id",
    "event_id",
]
_ATTEMPT_COLUMNS = ["number", "started_at", "duration_ms", "outcome", "status_code", "reason"]
_EXCERPT_SHOWN = 300


@app.command("list")
def list_all(
    organization_id: OrganizationId,
    state: Annotated[DeliveryState | None, typer.Option(help="Those in this state alone.")] = None,
    endpoint: Annotated[str | None, typer.Option(metavar="ENDPOINT", help="Those for this endpoint alone.")] = None,
    event_type: Annotated[str | None, typer.Option(metavar="TYPE", help="Those of this event type alone.")] = None,
    event: Annotated[str | None, typer.Option(metavar="EVENT", help="Those of this event alone.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
    as_json: Json = False,
) -> None:
    """List an organization's deliveries."""
    check_id(endpoint, ENDPOINT, "--endpoint")
    check_id(event, EVENT, "--event")
    check_event_type(event_type, "--event-type")
    page = read_page(limit, cursor, DELIVERY)

    async def work(carehook: Application) -> ListView[DeliveryView]:
        from carehook.ledger.records import DeliveryFilter

        only = DeliveryFilter(state=state, endpoint_id=endpoint, event_type=event_type, event_id=event)
        return await carehook.insights.deliveries(organization_id, only, page)

    print_list(run(work), _COLUMNS, as_json=as_json)


@app.command()
def show(delivery_id: DeliveryId, as_json: Json = False) -> None:
    """Show one delivery and its attempts."""

    async def work(carehook: Application) -> DeliveryDetailView:
        return await carehook.insights.delivery(delivery_id)

    _print(run(work), as_json=as_json)


@app.command()
def retry(delivery_id: DeliveryId, as_json: Json = False) -> None:
    """Attempt now a delivery that has not succeeded, with its schedule begun anew."""
    _print(_change(delivery_id, lambda carehook: carehook.interventions.retry(delivery_id)), as_json=as_json)


@app.command()
def cancel(delivery_id: DeliveryId, as_json: Json = False) -> None:
    """Send a delivery no more. A request that began before, or begins within 3 seconds, may still arrive."""
    _print(_change(delivery_id, lambda carehook: carehook.interventions.cancel(delivery_id)), as_json=as_json)


def _change(delivery_id: str, change: Callable[[Application], Awaitable[None]]) -> DeliveryDetailView:
    async def work(carehook: Application) -> DeliveryDetailView:
        await change(carehook)
        return await carehook.insights.delivery(delivery_id)

    return run(work)


def _print(delivery: DeliveryDetailView, *, as_json: bool) -> None:
    print_view(delivery, as_json=as_json, without=["attempts"])
    if as_json:
        return
    print_heading("Attempts")
    print_table(delivery.attempts, _ATTEMPT_COLUMNS)
    excerpt = delivery.attempts[-1].response_excerpt if delivery.attempts else None
    if excerpt:
        print_heading("How the last response began")
        print(format_value(excerpt[:_EXCERPT_SHOWN]))
