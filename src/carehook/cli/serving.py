"""A service in one process: the API, the worker, or both on one event loop, until a signal drains it.

Laws:
- The port is taken first and the store opened second; what cannot start has started nothing.
- The first signal drains: readiness turns 503 and nothing more is claimed; listeners close, after a notice to load
  balancers where it is SIGTERM; requests in flight, of clients and to endpoints, end, and leases of what was not begun
  are given back. A second signal ends the process at once.
- A worker alone answers probes until it is done.
- Should one part fail, the others are drained and the process fails: a service that is half there is not kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Coroutine, Generator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import orjson
import structlog
import uvicorn
import uvloop

from carehook import __version__
from carehook.application import Application
from carehook.bootstrap import StartupError, open_carehook
from carehook.cli.session import log_to_stderr
from carehook.config import Settings, load_settings

GRACE_SECONDS: Final = 20
"""How long clients' requests in flight may take to end once the service is draining."""

HOUSEKEEPING_SECONDS: Final = 3600.0
"""How often what is out of date is forgotten."""

_BACKLOG: Final = 2048

_COLLECTOR_THRESHOLD: Final = 50_000
"""New containers before a pass over the youngest; a batch of 500 events makes about as many."""

_log = structlog.get_logger("carehook.service")


@dataclass(frozen=True, slots=True)
class Parts:
    """What a process does. `until_stdin_closes` drains it as well when whoever started it has gone."""

    api: bool
    worker: bool
    until_stdin_closes: bool = False


def serve_until_stopped(
    parts: Parts, host: str | None = None, port: int | None = None, *, as_json: bool = False
) -> None:
    """Run the parts until a signal, then drain. Raises what kept it from starting, or what a part failed of."""
    own_port = "port" if parts.api else "worker_port"
    given = {name: value for name, value in (("host", host), (own_port, port)) if value is not None}
    settings = load_settings(**given)
    log_to_stderr(settings.log_level)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, parts, as_json=as_json))


async def _serve(settings: Settings, parts: Parts, *, as_json: bool) -> None:
    listener = _take_port_of(parts, settings)
    with contextlib.closing(listener) if listener else contextlib.nullcontext():
        async with open_carehook(settings, create=parts.api and parts.worker) as carehook:
            with Draining(settings.drain_notice, until_stdin_closes=parts.until_stdin_closes) as draining:
                await _run(carehook, parts, draining, listener, as_json=as_json)


def _take_port_of(parts: Parts, settings: Settings) -> socket.socket | None:
    if parts.api:
        return take_port(settings.host, settings.port)
    if settings.worker_port is None:
        return None
    return take_port(settings.host, settings.worker_port, "CAREHOOK_WORKER_PORT")


async def _run(
    carehook: Application, parts: Parts, draining: Draining, listener: socket.socket | None, *, as_json: bool
) -> None:
    async with _together(draining) as start:
        server = None if listener is None else _build_server(carehook, parts, draining)
        if listener is not None and server is not None:
            start(server.serve(sockets=[listener]))
        if parts.api:
            start(_end_with(draining, server))
            start(_keep_house(carehook, draining))
        if parts.worker:
            start(_work(carehook, None if parts.api else server))
            start(_stop_with(draining, carehook))
        _spare_the_collector()
        _open_as_many_files_as_allowed()
        await _announce(carehook, parts, listener, as_json=as_json)


def _open_as_many_files_as_allowed() -> None:
    """Raise the limit of open files to the highest that this process may have: each request in flight is a socket."""
    _, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, highest))


def _spare_the_collector() -> None:
    """Keep Python's cyclic garbage collector from going over what lives as long as the process.

    Events and results are freed by reference counting. At its usual threshold, the collector's passes over hundreds of
    thousands of long-lived objects doubled the cost of parsing a batch, and stopped everything while they ran.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECTOR_THRESHOLD)


@asynccontextmanager
async def _together(draining: Draining) -> AsyncIterator[Any]:
    """Run what is started in the block until all of it has ended; the first failure drains the rest, and is raised."""
    tasks: list[asyncio.Task[None]] = []

    def start(work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        task.add_done_callback(lambda _: draining.begin())
        tasks.append(task)

    try:
        yield start
    except BaseException:
        draining.begin()
        raise
    finally:
        if tasks:
            await asyncio.wait(tasks)
    for task in tasks:
        task.result()


class _Server(uvicorn.Server):
    """uvicorn without signal handlers of its own: the process has one place that decides when it ends."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave the signals alone."""
        yield


def _build_server(carehook: Application, parts: Parts, draining: Draining) -> _Server:
    from carehook.api import build_api, build_probes

    build = build_api if parts.api else build_probes
    return _Server(
        uvicorn.Config(
            build(carehook, is_draining=draining.has_begun),
            access_log=False,
            log_config=None,
            lifespan="off",
            ws="none",
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
    )


async def _end_with(draining: Draining, server: _Server | None) -> None:
    await draining.wait_for_notice()
    _end(server)


async def _work(carehook: Application, probes: _Server | None) -> None:
    try:
        await carehook.worker.run()
    finally:
        _end(probes)


def _end(server: _Server | None) -> None:
    if server is not None:
        server.should_exit = True


async def _stop_with(draining: Draining, carehook: Application) -> None:
    await draining.wait()
    carehook.worker.stop()


async def _keep_house(carehook: Application, draining: Draining) -> None:
    while not draining.has_begun():
        try:
            await carehook.intake.forget_old_keys()
        except Exception:
            _log.exception("old_keys_not_forgotten")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(draining.wait(), HOUSEKEEPING_SECONDS)


async def _announce(carehook: Application, parts: Parts, listener: socket.socket | None, *, as_json: bool) -> None:
    """Say what runs and where, and show the first operator token if there was none."""
    url = describe_url(listener) if listener else None
    if not parts.api:
        _log.info("worker_started", version=__version__, pid=os.getpid(), probes=url)
        return
    _log.info("service_started", version=__version__, url=url, pid=os.getpid(), delivers=parts.worker)
    first = await carehook.tokens.create_first_operator() if parts.worker else None
    token = first.secret.get_secret_value() if first else None
    if as_json:
        print(orjson.dumps({"url": url, "first_operator_token": token}).decode())
    else:
        print(f"Carehook {__version__} listens on {url}")
        if token:
            print("The first operator token, which is shown this once; keep it where secrets are kept:")
            print(token)
    sys.stdout.flush()


def take_port(host: str, port: int, setting: str = "CAREHOOK_PORT") -> socket.socket:
    """A socket that listens there; connections wait until they are served.

    Raises `StartupError`, which names the `setting` that the port is from, where it cannot.
    """
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        # Of a name that is unknown the number is negative; of the rest Python's text repeats the address.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else (error.strerror or str(error))
        raise StartupError(
            f"it cannot listen on {shown}: {reason.lower()}. Choose another with CAREHOOK_HOST and {setting}."
        ) from None


def describe_url(listener: socket.socket) -> str:
    """Where a socket that listens is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Draining:
    """Whether the process is on its way out. Within its block signals begin that.

    `notice` is for how many seconds load balancers are told before listeners close, where SIGTERM began it.
    """

    def __init__(self, notice: float = 0, *, until_stdin_closes: bool = False) -> None:
        self._begun = asyncio.Event()
        self._notice = notice
        self._is_announced = False
        self._until_stdin_closes = until_stdin_closes
        self._watch: asyncio.Task[None] | None = None

    def has_begun(self) -> bool:
        """Whether it has begun."""
        return self._begun.is_set()

    def begin(self) -> None:
        """Begin it, if it has not."""
        if not self._begun.is_set():
            _log.info("draining")
            self._begun.set()

    async def wait(self) -> None:
        """Return when it has begun."""
        await self._begun.wait()

    async def wait_for_notice(self) -> None:
        """Return when it has begun and load balancers have had time to see it."""
        await self._begun.wait()
        if self._is_announced:
            await asyncio.sleep(self._notice)

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._hear, number)
        if self._until_stdin_closes:
            self._watch = asyncio.create_task(self._watch_stdin())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watch is not None:
            self._watch.cancel()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    def _hear(self, number: signal.Signals) -> None:
        if not self.has_begun():
            # A person at a terminal has no load balancer, and whoever closes our input waits for us.
            self._is_announced = number is signal.SIGTERM
            self.begin()
            return
        asyncio.get_running_loop().remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    async def _watch_stdin(self) -> None:
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        await reader.read()
        self.begin()
