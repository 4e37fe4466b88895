"""The demo from its start to its end: what is shown on the way, and the verdict."""

from __future__ import annotations

import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from carehook import Webhook
from carehook.cli.demo.receiver import Arrival, ExampleOrganization
from carehook.cli.demo.service import Service, start_service
from carehook.cli.demo.story import Expected, tell_story
from carehook.cli.demo.verdict import Delivery, find_faults
from carehook.cli.failures import CommandFailed
from carehook.cli.output import open_console, print_unbroken

SETTLE_SECONDS: Final = 30.0
_ASK_EVERY_SECONDS: Final = 0.1

WebhookBuilder = Callable[[str, str], Webhook]
"""Signature value and signing secret in, what the example organization verifies with out."""


def run_demo(*, once: bool, build_webhook: WebhookBuilder = Webhook) -> None:
    """Run the demo; without `once` it stays up, when all has arrived, until it is interrupted.

    Raises `CommandFailed`, with a plain reason, unless everything arrived and was verified.
    """
    console = open_console()
    with (
        _ending_on_sigterm(),
        tempfile.TemporaryDirectory(prefix="carehook-demo-") as folder,
        ExampleOrganization(lambda arrival: _show_arrival(console, arrival)) as receiver,
    ):
        _show_heading(console, "Carehook on this machine, with a fresh store in a temporary folder")
        with start_service(Path(folder)) as service:
            _show_step(console, f"carehook serve listens on {service.url}")
            organization_id, token = _prepare(service, receiver, build_webhook, console)
            _show_heading(console, "A consultation, told over the care API")
            expected = list(tell_story(service, organization_id, token, lambda what: _show_step(console, what)))
            deliveries = _wait_until_settled(service, token, expected)
            _show_deliveries(console, expected, receiver.arrivals, deliveries)
            faults = find_faults(expected, receiver.arrivals, deliveries)
            if faults:
                raise CommandFailed(f"The demo failed: {'; '.join(faults)}")
            _show_heading(console, f"All {len(expected)} events arrived and were verified, one of them after a retry")
            if not once:
                _show_where_to_look(console, service, organization_id, token)
                _wait_until_interrupted()


def _prepare(
    service: Service, receiver: ExampleOrganization, build_webhook: WebhookBuilder, console: Console
) -> tuple[str, str]:
    """Register the example organization and its endpoint; its id, and a token to publish with."""
    operator = service.operator_token
    organization = service.call(operator, "POST", "/v1/organizations", {"name": "Example Hospital"})
    endpoint = service.call(
        operator, "POST", f"/v1/organizations/{organization['id']}/endpoints", {"url": receiver.url}
    )
    receiver.webhook = build_webhook(endpoint["signature_value"], endpoint["signing_secret"])
    _show_step(console, f"{organization['name']} receives at {receiver.url} and verifies with carehook.Webhook")
    token = service.run("token", "create", "--role", "publisher", "--organization", organization["id"])[-1]
    _show_step(console, "the platform has a publisher's token, bound to this organization")
    return organization["id"], token


def _wait_until_settled(service: Service, token: str, expected: Sequence[Expected]) -> dict[str, list[Delivery]]:
    """The deliveries of each event with their attempts, once none of them goes on or the time is over."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        deliveries = {each.event_id: _read_deliveries(service, token, each.event_id) for each in expected}
        goes_on = any(each["state"] in ("pending", "held") for own in deliveries.values() for each in own)
        if not goes_on or time.monotonic() > deadline:
            return deliveries
        time.sleep(_ASK_EVERY_SECONDS)


def _read_deliveries(service: Service, token: str, event_id: str) -> list[Delivery]:
    event = service.call(token, "GET", f"/v1/events/{event_id}")
    return [service.call(token, "GET", f"/v1/deliveries/{each['id']}") for each in event["deliveries"]]


def _show_heading(console: Console, text: str) -> None:
    console.print(Text(f"\n{text}", style="bold"))


def _show_step(console: Console, text: str) -> None:
    console.print(Text.assemble(("  · ", "dim"), text))


def _show_arrival(console: Console, arrival: Arrival) -> None:
    if arrival.event is None:
        what, style = f"not verified: {arrival.refusal}", "red"
    elif arrival.status == 500:
        what, style = f"{arrival.event.type}, verified, but answered 500 this once to see a retry", "yellow"
    else:
        what, style = f"{arrival.event.type}, verified: {describe_event(arrival.event)}", "green"
    console.print(Text.assemble(("    arrived ", style), f"{arrival.webhook_id} {what}"))


def describe_event(event: Any) -> str:
    """What the example organization reads in a typed event."""
    if event.type == "patient_report_sent":
        return f"a {event.payload.type} report for {event.payload.patient.code}"
    payload = event.payload
    return (
        f"{payload.consultation.id} with {len(payload.reports)} reports and {len(payload.prescriptions)} prescriptions"
    )


def _show_deliveries(
    console: Console,
    expected: Sequence[Expected],
    arrivals: Sequence[Arrival],
    deliveries: dict[str, list[Delivery]],
) -> None:
    _show_heading(console, "Deliveries, as the API shows them, and what the receiver made of them")
    table = Table("event", "of", "delivery", "state", "attempts", "receiver", box=SIMPLE_HEAD, pad_edge=False)
    for each in expected:
        verified = any(one.webhook_id == each.event_id and one.event is not None for one in arrivals)
        for delivery in deliveries[each.event_id]:
            attempts = ", then ".join(_describe_attempt(attempt) for attempt in delivery["attempts"])
            succeeded = delivery["state"] == "succeeded"
            table.add_row(
                each.event_type,
                each.what,
                delivery["id"],
                Text(delivery["state"], style="green" if succeeded else "red"),
                attempts,
                Text("verified" if verified else "not verified", style="green" if verified else "red"),
            )
    print_unbroken(console, table)


def _describe_attempt(attempt: dict[str, Any]) -> str:
    return f"{attempt['status_code'] or attempt['outcome']} in {attempt['duration_ms']:.0f} ms"


def _show_where_to_look(console: Console, service: Service, organization_id: str, token: str) -> None:
    _show_heading(console, "The service stays up until Ctrl-C; these tokens end with it")
    lines = [
        f"API              {service.url}  (its description: /openapi.json)",
        f"operator token   {service.operator_token}",
        f"publisher token  {token}",
        "",
        f"curl -H 'Authorization: Bearer {token}' {service.url}/v1/organizations/{organization_id}/deliveries",
        f"curl -H 'Authorization: Bearer {token}' {service.url}/v1/event-types",
        f"curl {service.url}/metrics",
        f"CAREHOOK_HOME={service.environment['CAREHOOK_HOME']} carehook delivery list {organization_id}",
    ]
    for line in lines:
        console.print(Text(f"  {line}"))


def _wait_until_interrupted() -> None:
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        return


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Within the block SIGTERM is as Ctrl-C, so that the service ends and the folder goes whichever way we end."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
