"""A running API for tests: uvicorn on a loopback port, on a real embedded store, in a thread of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import pytest
import requests
import uvicorn

from carehook.api import build_api
from carehook.application import Application
from carehook.bootstrap import open_carehook
from carehook.config import Settings
from carehook.events import CATALOGUE
from carehook.ledger.records import Role
from tests.receivers import RecordingReceiver

Result = TypeVar("Result")

ALLOWED = "127.0.0.0/8"
REPORT = dict(CATALOGUE["patient_report_sent"].example)


class RunningApi:
    """The API of a fresh store. `draining` is what its readiness goes by."""

    def __init__(self, settings: Settings, *, is_working: bool = True) -> None:
        self._settings = settings
        self._is_working = is_working
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self.draining = False

    def ask(self, what: Callable[[Application], Awaitable[Result]]) -> Result:
        """Do something with the application itself, in its own loop."""

        async def do() -> Result:
            return await what(self.application)

        return asyncio.run_coroutine_threadsafe(do(), self._loop).result(30)

    def create_token(self, role: Role, organization_id: str | None = None) -> str:
        """The secret of a new token."""
        return self.ask(lambda carehook: carehook.tokens.create(role, organization_id)).secret.get_secret_value()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, name="api", daemon=True)
        self._thread.start()
        assert self._ready.wait(30)
        if self._error:
            raise self._error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join(30)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._error = error
            self._ready.set()

    async def _serve(self) -> None:
        async with open_carehook(self._settings) as self.application:
            app = build_api(self.application, lambda: self.draining)
            self._server = uvicorn.Server(
                uvicorn.Config(app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=5)
            )
            self._loop = asyncio.get_running_loop()
            # It listens from here on: whoever connects before the server accepts waits in the backlog.
            # Named as TCP, or asyncio leaves Nagle's algorithm on, and every answer waits for an acknowledgement.
            listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            listening.bind(("127.0.0.1", 0))
            listening.listen(128)
            self.port: int = listening.getsockname()[1]
            self._ready.set()
            working = asyncio.create_task(self.application.worker.run()) if self._is_working else None
            await self._server.serve(sockets=[listening])
            if working:
                self.application.worker.stop()
                await working


@dataclass(frozen=True, slots=True)
class Client:
    """Calls the API with one token, or with none."""

    url: str
    token: str | None
    session: requests.Session

    def call(self, method: str, path: str, json: Any = None, **options: Any) -> requests.Response:
        """One call; `json` is the body."""
        headers = {**({"authorization": f"Bearer {self.token}"} if self.token else {}), **options.pop("headers", {})}
        return self.session.request(method, self.url + path, json=json, headers=headers, timeout=30, **options)

    def take(self, method: str, path: str, json: Any = None, **options: Any) -> Any:
        """The body of a call that must succeed."""
        response = self.call(method, path, json, **options)
        assert response.ok, response.text
        return response.json() if response.content else None

    def publish(self, organization_id: str, event: Any = REPORT, **headers: str) -> Any:
        """Publish one event; what was answered."""
        return self.take("POST", f"/v1/organizations/{organization_id}/events", event, headers=headers)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApi]:
    """One API for the tests of a module; each makes organizations of its own."""
    home: Path = tmp_path_factory.mktemp("carehook")
    settings = Settings(home=home, allow_http=True, allowed_networks=ALLOWED, retry_schedule="600")  # type: ignore[arg-type]
    with RunningApi(settings) as running:
        yield running


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    """Kept-alive connections."""
    with requests.Session() as session:
        session.trust_env = False
        yield session


@pytest.fixture(scope="module")
def operator(api: RunningApi, session: requests.Session) -> Client:
    """An operator."""
    return Client(f"http://127.0.0.1:{api.port}", api.create_token(Role.OPERATOR), session)


@pytest.fixture(scope="module")
def anonymous(api: RunningApi, session: requests.Session) -> Client:
    """Someone without a token."""
    return Client(f"http://127.0.0.1:{api.port}", None, session)


@pytest.fixture
def organization(operator: Client) -> str:
    """The id of an organization of this test alone."""
    return str(operator.take("POST", "/v1/organizations", {"name": "Hospital"})["id"])


@pytest.fixture
def publisher(api: RunningApi, operator: Client, organization: str) -> Client:
    """A publisher of the test's organization."""
    return Client(operator.url, api.create_token(Role.PUBLISHER, organization), operator.session)


@pytest.fixture
def stranger(api: RunningApi, operator: Client) -> Client:
    """A publisher of another organization."""
    other = operator.take("POST", "/v1/organizations", {"name": "Another"})["id"]
    return Client(operator.url, api.create_token(Role.PUBLISHER, other), operator.session)


@pytest.fixture(scope="module")
def receiver() -> Iterator[RecordingReceiver]:
    """A receiver that takes everything."""
    with RecordingReceiver() as receiver:
        yield receiver


@pytest.fixture
def endpoint(operator: Client, organization: str, receiver: RecordingReceiver) -> Any:
    """An endpoint of the test's organization, with its secrets as they were shown once."""
    return operator.take("POST", f"/v1/organizations/{organization}/endpoints", {"url": receiver.url})
