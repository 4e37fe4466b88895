"""The commands of `carehook`, each with its help; what they do is imported when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from carehook.cli import deliveries, endpoints, events, organizations, tokens
from carehook.cli.failures import EXIT_CODES_HELP
from carehook.cli.options import Json
from carehook.cli.output import print_json, say

_RUNNING = "Run"
_STORE = "Work on the store, beside a running service"
_SETTINGS_HELP = "Settings are environment variables, CAREHOOK_…; `carehook settings` lists them."

app = typer.Typer(
    name="carehook",
    help="Tells other systems, by webhook, what happened in care.",
    epilog=f"{_SETTINGS_HELP}\n\n{EXIT_CODES_HELP}",
    no_args_is_help=True,
    # A traceback with local variables would show secrets and patients.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(organizations.app, name="org", rich_help_panel=_STORE)
app.add_typer(endpoints.app, name="endpoint", rich_help_panel=_STORE)
app.add_typer(events.app, name="event", rich_help_panel=_STORE)
app.add_typer(deliveries.app, name="delivery", rich_help_panel=_STORE)
app.add_typer(tokens.app, name="token", rich_help_panel=_STORE)

_Host = Annotated[str | None, typer.Option(help="The address to listen on, instead of CAREHOOK_HOST.")]
_Port = Annotated[
    int | None, typer.Option(min=0, max=65535, help="The port, instead of CAREHOOK_PORT; 0 takes a free one.")
]
_ProbePort = Annotated[
    int | None,
    typer.Option(min=0, max=65535, help="The port of its probes, instead of CAREHOOK_WORKER_PORT; 0 takes a free one."),
]
_Processes = Annotated[int, typer.Option(min=1, max=256, help="How many processes; one that dies is started anew.")]
_UntilStdinCloses = Annotated[bool, typer.Option("--until-stdin-closes", hidden=True)]


def _print_version(wanted: bool) -> None:
    if wanted:
        from carehook import __version__

        print(f"carehook {__version__}")
        raise typer.Exit


@app.callback()
def carehook(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Tells other systems, by webhook, what happened in care."""


@app.command(rich_help_panel=_RUNNING, epilog=_SETTINGS_HELP)
def serve(
    host: _Host = None, port: _Port = None, as_json: Json = False, until_stdin_closes: _UntilStdinCloses = False
) -> None:
    """Serve the API and deliver, in one process.

    On an empty store it makes what it needs and prints the first operator token, which is shown this once.

    SIGTERM or Ctrl-C drains: requests in flight end, nothing new is begun. A second one ends it at once.
    """
    from carehook.cli.serving import Parts, serve_until_stopped

    parts = Parts(api=True, worker=True, until_stdin_closes=until_stdin_closes)
    serve_until_stopped(parts, host, port, as_json=as_json)


@app.command(rich_help_panel=_RUNNING, epilog=_SETTINGS_HELP)
def api(host: _Host = None, port: _Port = None, as_json: Json = False) -> None:
    """Serve the API without delivering, beside `carehook worker`."""
    from carehook.cli.serving import Parts, serve_until_stopped

    serve_until_stopped(Parts(api=True, worker=False), host, port, as_json=as_json)


@app.command(rich_help_panel=_RUNNING, epilog=_SETTINGS_HELP)
def worker(processes: _Processes = 1, port: _ProbePort = None, until_stdin_closes: _UntilStdinCloses = False) -> None:
    """Deliver without serving the API, in one process or several."""
    if processes > 1:
        from carehook.cli.supervision import supervise_workers

        supervise_workers(processes, port)
    else:
        from carehook.cli.serving import Parts, serve_until_stopped

        serve_until_stopped(Parts(api=False, worker=True, until_stdin_closes=until_stdin_closes), port=port)


@app.command(rich_help_panel=_RUNNING, epilog=_SETTINGS_HELP)
def migrate() -> None:
    """Bring the store to this version's schema. The embedded store does so by itself."""
    import asyncio

    from carehook.bootstrap import migrate_store
    from carehook.cli.session import find_new_store, log_to_stderr, tell_of_new_store
    from carehook.config import load_settings

    log_to_stderr("warning")
    settings = load_settings()
    new_store = find_new_store(settings)
    asyncio.run(migrate_store(settings))
    tell_of_new_store(new_store)
    say("The store has this version's schema.")


@app.command(rich_help_panel=_RUNNING, epilog=_SETTINGS_HELP)
def move(
    target: Annotated[
        str, typer.Argument(metavar="URL", help="The empty database: postgresql://user:password@host/name")
    ],
) -> None:
    """Move the embedded store, with all that is in it, to a PostgreSQL server.

    Stop Carehook before. Every row is copied and counted; where anything goes wrong, nothing has changed. Afterwards
    the embedded store is closed for good, so that nothing is sent from two places.
    """
    from carehook.cli import moving

    moving.move(target)


@app.command(rich_help_panel=_RUNNING)
def settings(as_json: Json = False) -> None:
    """List the settings: their environment variables, what they are now, and what they mean."""
    from carehook.cli.settings_list import list_settings
    from carehook.config import load_settings

    listed = list_settings(load_settings())
    if as_json:
        print_json({"data": [each.model_dump() for each in listed]})
    else:
        from carehook.cli.output import print_table

        print_table(listed, ["variable", "value", "description"])


@app.command(rich_help_panel="Try")
def demo(
    once: Annotated[
        bool, typer.Option("--once", help="End when all has arrived: exit code 0 if it has and was verified, else 1.")
    ] = False,
) -> None:
    """Show all of it on this machine: a service, an organization that receives, and a consultation.

    Everything lies in a temporary folder and is gone afterwards; nothing leaves this machine.
    """
    from carehook.cli.demo.run import run_demo

    run_demo(once=once)


@app.command(rich_help_panel="Try")
def bench(
    scale: Annotated[float, typer.Option(min=0.001, max=100, help="How much is done, times the usual.")] = 1.0,
    only: Annotated[
        list[str] | None, typer.Option(metavar="SCENARIO", help="Measure this alone; may be repeated.")
    ] = None,
    setups: Annotated[
        list[str] | None,
        typer.Option("--on", metavar="SETUP", help="Measure on this alone; may be repeated."),
    ] = None,
    list_all: Annotated[bool, typer.Option("--list", help="List the scenarios and the setups.")] = False,
    database_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="A PostgreSQL server to measure on, instead of CAREHOOK_DATABASE_URL."),
    ] = None,
    queue_url: Annotated[
        str | None, typer.Option(metavar="URL", help="A NATS server to measure on, instead of CAREHOOK_QUEUE_URL.")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, max=256, help="How many worker processes run where API and workers are apart.")
    ] = 1,
    largest_backlog: Annotated[
        int, typer.Option(min=10_000, help="Backlogs up to this many due deliveries; 5000000 take minutes to load.")
    ] = 1_000_000,
    keep: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", file_okay=False, help="Keep the result here, as JSON and as a plot (SVG)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure this machine: what is accepted and delivered a second, how fast, in how much memory.

    The embedded store is always measured; PostgreSQL, and JetStream beside it, where their servers are named. On a
    server the run makes a database of its own and drops it at the end; no other is touched. With --scale 1 the embedded
    store takes some minutes, and all of it, with both servers, about a quarter of an hour.

    A figure that misses what is wanted is marked; the exit code is 0 all the same, since machines differ.
    """
    from carehook.cli.bench.command import Request, list_choices, measure

    if list_all:
        list_choices()
    else:
        measure(Request(scale, only, setups, database_url, queue_url, workers, largest_backlog, keep, as_json))
