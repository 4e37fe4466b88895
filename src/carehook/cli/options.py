"""Options and arguments that several commands have, described once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from carehook.ledger.records import PageRequest

Json = Annotated[bool, typer.Option("--json", help="Print JSON, with the values of the API.")]
Limit = Annotated[int, typer.Option(min=1, max=10_000, help="How many to show, newest first.")]
Cursor = Annotated[str | None, typer.Option(help="Go on where a former list ended.")]

OrganizationId = Annotated[str, typer.Argument(metavar="ORG", help="The organization's id, org_….")]
EndpointId = Annotated[str, typer.Argument(metavar="ENDPOINT", help="The endpoint's id, ep_….")]
EventId = Annotated[str, typer.Argument(metavar="EVENT", help="The event's id, evt_….")]
DeliveryId = Annotated[str, typer.Argument(metavar="DELIVERY", help="The delivery's id, dlv_….")]

STDIN = "-"


def read_source(source: str, option: str) -> bytes:
    """What stands in the file `source`, or on standard input where that is `-`."""
    if source == STDIN:
        return sys.stdin.buffer.read()
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{source} cannot be read: {error.strerror}.", param_hint=option) from None


def read_page(limit: int, cursor: str | None, prefix: str) -> PageRequest:
    """Which part of a list of ids with `prefix` is asked for."""
    from carehook.cursors import decode_cursor
    from carehook.ledger.records import PageRequest

    try:
        return PageRequest(limit, None if cursor is None else decode_cursor(cursor, prefix))
    except ValueError as error:
        raise typer.BadParameter(f"{error}.", param_hint="--cursor") from None


def check_id(identifier: str | None, prefix: str, option: str) -> None:
    """Raises `BadParameter` where an id that narrows a list is none: an empty list would look like an answer."""
    from carehook.ids import is_id

    if identifier is not None and not is_id(prefix, identifier):
        raise typer.BadParameter(f"must be an id, {prefix}_….", param_hint=option)


def check_event_type(name: str | None, option: str) -> None:
    """Raises `BadParameter` where an event type that narrows a list is not in the catalogue."""
    from carehook.events import CATALOGUE

    if name is not None and name not in CATALOGUE:
        raise typer.BadParameter(f"must be one of {', '.join(CATALOGUE)}.", param_hint=option)
