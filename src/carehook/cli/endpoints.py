"""`carehook endpoint`: where organizations receive."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from carehook.cli.options import STDIN, Cursor, EndpointId, Json, Limit, OrganizationId, read_page, read_source
from carehook.cli.output import print_json, print_list, print_view, say
from carehook.cli.session import build_model, run
from carehook.ids import ENDPOINT
from carehook.ledger.states import Ordering

if TYPE_CHECKING:
    from carehook.application import Application
    from carehook.insights import EndpointCreatedView, EndpointView, ListView
    from carehook.intake.examples import ExampleSent
    from carehook.ledger.records import Settled

app = typer.Typer(
    help="Endpoints, where organizations receive.",
    no_args_is_help=True,
    epilog="Secrets given as arguments can be read by every user of this machine while the command runs, and stay in "
    "the shell's history: give them in a file, or on standard input with `-`.",
)

_COLUMNS = ["id", "status", "circuit", "url", "event_types", "description"]

_EventTypes = Annotated[
    list[str] | None, typer.Option("--event-type", metavar="TYPE", help="An event type it receives; may be repeated.")
]
_Description = Annotated[str | None, typer.Option(help="What people should know of it.")]
_SignatureValue = Annotated[
    str | None,
    typer.Option(
        metavar="VALUE",
        help="The agreed value of x-webhook-signature. Other users of this machine can see arguments, and the shell "
        "keeps them: rather use --signature-value-file.",
    ),
]
_SignatureValueFile = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="A file that holds that value on its first line; - reads standard input."),
]
_Authentication = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help='A file that holds what requests authenticate with, as JSON such as {"type": "bearer", "token": "…"}; - '
        "reads standard input. Not an argument by itself, since other users of this machine can see those.",
    ),
]
_MaxInFlight = Annotated[
    int | None, typer.Option(metavar="COUNT", help="Requests in flight at most, over all workers: 1 to 1000.")
]
_RateLimit = Annotated[
    float | None,
    typer.Option(metavar="PER_SECOND", help="Requests a second at most, over all workers: 0.01 to 10000."),
]
_Ordering = Annotated[
    Ordering | None,
    typer.Option(help="patient: a patient's deliveries go one after another, as accepted. none: as soon as they can."),
]
_Scheme = Annotated[Literal["v1", "v1a"], typer.Option(help="v1 HMAC-SHA256 with a shared secret, v1a Ed25519.")]


@app.command()
def create(
    organization_id: OrganizationId,
    url: Annotated[str, typer.Argument(metavar="URL", help="Where requests are sent.")],
    event_type: _EventTypes = None,
    description: _Description = None,
    signature_value: _SignatureValue = None,
    signature_value_file: _SignatureValueFile = None,
    signature_scheme: _Scheme = "v1",
    authentication: _Authentication = None,
    max_in_flight: _MaxInFlight = None,
    rate_limit: _RateLimit = None,
    ordering: _Ordering = Ordering.NONE,
    as_json: Json = False,
) -> None:
    """Register an endpoint, for all event types unless some are named. Its secrets are shown this once."""
    fields: dict[str, Any] = {
        "url": url,
        "event_types": tuple(event_type or ()),
        "description": description or "",
        "signature_scheme": signature_scheme,
        "max_in_flight": max_in_flight,
        "rate_limit": rate_limit,
        "ordering": ordering,
        **_read_secrets(signature_value, signature_value_file, authentication),
    }

    async def work(carehook: Application) -> EndpointCreatedView:
        from carehook.directory.endpoints import NewEndpoint

        created = await carehook.endpoints.register(organization_id, build_model(NewEndpoint, **fields))
        return await carehook.insights.created(created, reveal_signature_value=True)

    _print_created(run(work), as_json=as_json)


@app.command("list")
def list_all(organization_id: OrganizationId, limit: Limit = 50, cursor: Cursor = None, as_json: Json = False) -> None:
    """List an organization's endpoints."""
    page = read_page(limit, cursor, ENDPOINT)

    async def work(carehook: Application) -> ListView[EndpointView]:
        return await carehook.insights.endpoints(organization_id, page)

    print_list(run(work), _COLUMNS, as_json=as_json)


@app.command()
def show(endpoint_id: EndpointId, as_json: Json = False) -> None:
    """Show one endpoint, its secrets masked."""

    async def work(carehook: Application) -> EndpointView:
        return await carehook.insights.endpoint(endpoint_id)

    print_view(run(work), as_json=as_json)


@app.command()
def update(
    endpoint_id: EndpointId,
    url: Annotated[str | None, typer.Option(help="Where requests are sent.")] = None,
    event_type: _EventTypes = None,
    all_event_types: Annotated[bool, typer.Option("--all-event-types", help="Receive every event type.")] = False,
    description: _Description = None,
    signature_value: _SignatureValue = None,
    signature_value_file: _SignatureValueFile = None,
    authentication: _Authentication = None,
    max_in_flight: _MaxInFlight = None,
    no_max_in_flight: Annotated[bool, typer.Option("--no-max-in-flight", help="Take that limit away.")] = False,
    rate_limit: _RateLimit = None,
    no_rate_limit: Annotated[bool, typer.Option("--no-rate-limit", help="Take that limit away.")] = False,
    ordering: _Ordering = None,
    as_json: Json = False,
) -> None:
    """Change an endpoint; what is not named stays as it is. Deliveries that wait go by the new values.

    Requests that begin within 3 seconds may still go by the old ones.
    """
    if event_type and all_event_types:
        raise typer.BadParameter("name some event types or take all, not both.", param_hint="--all-event-types")
    named: dict[str, Any] = {"url": url, "description": description, "ordering": ordering}
    fields = {name: value for name, value in named.items() if value is not None}
    fields |= _read_limit("max_in_flight", max_in_flight, is_taken_away=no_max_in_flight)
    fields |= _read_limit("rate_limit", rate_limit, is_taken_away=no_rate_limit)
    if event_type or all_event_types:
        fields["event_types"] = tuple(event_type or ())
    fields |= _read_secrets(signature_value, signature_value_file, authentication)
    if not fields:
        raise typer.BadParameter("name what to change.", param_hint="OPTIONS")

    async def work(carehook: Application) -> EndpointView:
        from carehook.directory.endpoints import EndpointChanges

        await carehook.endpoints.change(endpoint_id, build_model(EndpointChanges, **fields))
        return await carehook.insights.endpoint(endpoint_id)

    print_view(run(work), as_json=as_json)


@app.command()
def pause(endpoint_id: EndpointId, as_json: Json = False) -> None:
    """Send nothing to it until it is resumed; its deliveries are held.

    A request that began before, or begins within 3 seconds, may still arrive.
    """

    async def work(carehook: Application) -> EndpointView:
        await carehook.endpoints.pause(endpoint_id)
        return await carehook.insights.endpoint(endpoint_id)

    print_view(run(work), as_json=as_json)


@app.command()
def resume(endpoint_id: EndpointId, as_json: Json = False) -> None:
    """Send to it again, whether it was paused or disabled; what was held goes on, and its circuit is closed."""

    async def work(carehook: Application) -> EndpointView:
        await carehook.endpoints.resume(endpoint_id)
        return await carehook.insights.endpoint(endpoint_id)

    print_view(run(work), as_json=as_json)


@app.command()
def delete(endpoint_id: EndpointId, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False) -> None:
    """Send nothing to it ever again, cancel what waits for it, and forget its secrets.

    A request that began before, or begins within 3 seconds, may still arrive.
    """
    if not yes:
        if not sys.stdin.isatty():
            raise typer.BadParameter("is needed where nobody can be asked: there is no terminal.", param_hint="--yes")
        typer.confirm(f"Delete {endpoint_id}, cancel what waits for it and forget its secrets?", abort=True, err=True)

    async def work(carehook: Application) -> Settled:
        return await carehook.endpoints.delete(endpoint_id)

    cancelled = run(work)
    rest = "" if cancelled.is_complete else ", and workers cancel the rest"
    say(f"{endpoint_id} is deleted; deliveries cancelled: {cancelled.moved}{rest}.")


@app.command()
def rotate_secret(
    endpoint_id: EndpointId,
    overlap: Annotated[
        int,
        typer.Option(
            metavar="SECONDS", min=0, max=604_800, help="How long the old one signs beside it; 0 ends it at once."
        ),
    ] = 86_400,
    as_json: Json = False,
) -> None:
    """Give it a new signing secret, shown this once.

    Requests that begin within 3 seconds may still carry the old one's signature alone.
    """

    async def work(carehook: Application) -> EndpointCreatedView:
        rotated = await carehook.endpoints.rotate_secret(endpoint_id, timedelta(seconds=overlap))
        return await carehook.insights.created(rotated, reveal_signature_value=False)

    _print_created(run(work), as_json=as_json)


@app.command("test")
def send_example(
    endpoint_id: EndpointId,
    event_type: Annotated[str | None, typer.Option(metavar="TYPE", help="The type whose example is sent.")] = None,
    as_json: Json = False,
) -> None:
    """Send an event type's example to it, to see whether it receives. A running service does the sending."""

    async def work(carehook: Application) -> ExampleSent:
        return await carehook.examples.send(endpoint_id, event_type)

    sent = run(work)
    if as_json:
        print_json({"event_id": sent.event_id, "delivery_id": sent.delivery_id})
    else:
        say(f"An example is due. What becomes of it: carehook delivery show {sent.delivery_id}")
        print(sent.delivery_id)


@app.command()
def recover(
    endpoint_id: EndpointId,
    since: Annotated[
        str, typer.Option(metavar="WHEN", help="An instant such as 2026-01-31T08:00:00Z, or how long ago: 90m, 6h, 2d.")
    ],
    as_json: Json = False,
) -> None:
    """Make all that failed since then due again, now."""

    async def work(carehook: Application) -> int:
        return await carehook.interventions.recover(endpoint_id, read_instant(since, carehook.clock()))

    due = run(work)
    if as_json:
        print_json({"deliveries": due})
    else:
        say(f"Deliveries that are due again: {due}.")


def read_instant(text: str, now: datetime) -> datetime:
    """The instant that `text` names: RFC 3339, in UTC where no offset is given, or an age in s, m, h or d."""
    seconds = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(text[-1:])
    try:
        if seconds is not None and text[:-1].isdecimal():
            return now - timedelta(seconds=int(text[:-1]) * seconds)
        instant = datetime.fromisoformat(text)
        return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{text!r} is no instant. Write 2026-01-31T08:00:00Z, or how long ago as 90m, 6h or 2d.",
            param_hint="--since",
        ) from None


def _read_limit(name: str, value: float | None, *, is_taken_away: bool) -> dict[str, float | None]:
    """The field of a limit that is changed."""
    option = f"--no-{name.replace('_', '-')}"
    if is_taken_away and value is not None:
        raise typer.BadParameter("give the limit or take it away, not both.", param_hint=option)
    return {name: value} if is_taken_away or value is not None else {}


def _read_secrets(value: str | None, value_file: str | None, authentication: str | None) -> dict[str, Any]:
    """The fields that hold secrets, from wherever the person keeps them."""
    if value is not None and value_file is not None:
        raise typer.BadParameter("give the value or a file, not both.", param_hint="--signature-value-file")
    if value_file == authentication == STDIN:
        raise typer.BadParameter("standard input can be read once only.", param_hint="--authentication")
    fields: dict[str, Any] = {}
    if value_file is not None:
        lines = read_source(value_file, "--signature-value-file").decode("utf-8", "replace").splitlines()
        value = lines[0] if lines else ""
    if value is not None:
        fields["signature_value"] = value
    if authentication is not None:
        fields["authentication"] = _parse_object(read_source(authentication, "--authentication"))
    return fields


def _parse_object(data: bytes) -> object:
    import orjson

    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        # Without a cause: its words may repeat what was read, which is a secret.
        raise typer.BadParameter("what was read is not JSON.", param_hint="--authentication") from None


def _print_created(view: EndpointCreatedView, *, as_json: bool) -> None:
    print_view(view, as_json=as_json)
    if not as_json:
        say("The signing secret is shown this once; hand it to the organization by a safe way.")
