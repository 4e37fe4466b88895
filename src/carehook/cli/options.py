"""Options and arguments that several commands have, described once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

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
