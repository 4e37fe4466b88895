"""`carehook event`: what happened, and who was told."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from carehook.cli.options import Cursor, EventId, Json, Limit, OrganizationId, read_page, read_source
from carehook.cli.output import open_console, print_heading, print_json, print_list, print_table, print_view, say
from carehook.cli.session import run
from carehook.ids import EVENT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from carehook.application import Application
    from carehook.events import AnyEvent
    from carehook.insights import EventDetailView, EventView, ListView
    from carehook.intake.accept import Accepted

app = typer.Typer(help="Events: what happened, and who was told.", no_args_is_help=True)

BATCH = 1000
"""Events that are stored in one transaction at most."""


@app.command()
def publish(
    organization_id: OrganizationId,
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help='The envelope as JSON, or {"events": […]} with up to 1000; - reads standard input.'
        ),
    ] = "-",
    lines: Annotated[
        bool, typer.Option("--lines", help="The file holds an envelope a line, as many as you like.")
    ] = False,
    idempotency_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Publishing again under the same key stores nothing new.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Accept events for an organization. Prints their ids.

    Everything is checked before anything is stored.

    A batch is stored wholly or not at all; with --lines that holds for each 1000.
    """
    data = read_source(file, "FILE")
    events = _parse_lines(data) if lines else _parse(data)

    async def work(carehook: Application) -> list[Accepted]:
        return await _accept(carehook, organization_id, events, idempotency_key)

    accepted = run(work)
    ids = [event_id for each in accepted for event_id in each.event_ids]
    deliveries = sum(each.deliveries for each in accepted)
    if as_json:
        names = {"ids": ids} if lines or _is_batch(data) else {"id": ids[0]}
        print_json({**names, "deliveries": deliveries})
        return
    say(f"Events accepted: {len(ids)}; deliveries: {deliveries}.")
    print("\n".join(ids))


@app.command("list")
def list_all(organization_id: OrganizationId, limit: Limit = 50, cursor: Cursor = None, as_json: Json = False) -> None:
    """List an organization's events."""
    page = read_page(limit, cursor, EVENT)

    async def work(carehook: Application) -> ListView[EventView]:
        return await carehook.insights.events(organization_id, page)

    print_list(run(work), ["id", "type", "accepted_at", "is_test"], as_json=as_json)


@app.command()
def show(event_id: EventId, as_json: Json = False) -> None:
    """Show one event, without its payload, and its deliveries."""

    async def work(carehook: Application) -> EventDetailView:
        return await carehook.insights.event(event_id)

    event = run(work)
    print_view(event, as_json=as_json, without=["deliveries"])
    if not as_json:
        print_heading("Deliveries")
        columns = ["id", "endpoint_id", "state", "attempt_count", "due_at", "waits_for", "finished_at"]
        print_table(event.deliveries, columns)


@app.command()
def resend(
    event_id: EventId,
    endpoint: Annotated[
        str | None,
        typer.Option(metavar="ENDPOINT", help="To this endpoint alone, which may be newer than the event."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Send an event again, whether it arrived or not."""

    async def work(carehook: Application) -> int:
        return await carehook.interventions.resend(event_id, endpoint)

    due = run(work)
    if as_json:
        print_json({"deliveries": due})
    else:
        say(f"Deliveries that are due again: {due}.")


def _is_batch(data: bytes) -> bool:
    import orjson

    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    return isinstance(value, dict) and "events" in value


def _parse(data: bytes) -> Sequence[AnyEvent]:
    from carehook.events import parse_event, parse_events

    return parse_events(data, BATCH) if _is_batch(data) else [parse_event(data)]


def _parse_lines(data: bytes) -> Sequence[AnyEvent]:
    from carehook.cli.failures import CommandFailed
    from carehook.events import InvalidEvent, parse_event

    events = []
    for number, line in enumerate(data.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            events.append(parse_event(line))
        except InvalidEvent as refusal:
            raise CommandFailed(f"Nothing was accepted: on line {number}, {refusal}") from None
    if not events:
        raise CommandFailed("Nothing was accepted: there is no event in what was read")
    return events


async def _accept(
    carehook: Application, organization_id: str, events: Sequence[AnyEvent], key: str | None
) -> list[Accepted]:
    from rich.progress import Progress

    from carehook.cli.failures import CommandFailed

    accepted: list[Accepted] = []
    parts = [events[start : start + BATCH] for start in range(0, len(events), BATCH)]
    with Progress(console=open_console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("Accepting events", total=len(events))
        for number, part in enumerate(parts, start=1):
            try:
                part_key = f"{key}.{number}" if key is not None and len(parts) > 1 else key
                accepted.append(await carehook.intake.accept(organization_id, part, part_key))
            except Exception as error:
                if number == 1:
                    raise
                done = (number - 1) * BATCH
                raise CommandFailed(f"The first {done} of {len(events)} events were accepted, then: {error}") from error
            progress.advance(task, len(part))
    return accepted
