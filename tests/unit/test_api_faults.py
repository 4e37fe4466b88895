"""What the API answers when something is broken: nothing of the exception's text, and an incident that the log has."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from fastapi import FastAPI
from opentelemetry import trace
from structlog.testing import capture_logs

from carehook.api import build_api
from carehook.api.refusing import Answers, refuse_with_problems
from carehook.batching import BatcherClosedError
from carehook.ledger.port import DuplicateKey, LedgerUnavailable

SECRET = "patient Jane Roe"


async def call(app: Callable[..., Awaitable[None]], path: str) -> tuple[int, dict[str, str], Any]:
    """One request to an ASGI application: the status, the headers and the parsed body of its answer."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 1),
        "scheme": "http",
        "http_version": "1.1",
    }
    await app(scope, receive, send)
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, orjson.loads(sent[1]["body"])


def build_failing(error: Exception) -> FastAPI:
    app = FastAPI(openapi_url=None)

    @app.get("/patients/{code}")
    async def fail(code: str) -> None:
        raise error

    refuse_with_problems(app)
    app.add_middleware(Answers)
    return app


@pytest.mark.parametrize("error", [KeyError(SECRET), PermissionError(SECRET)])
async def test_an_unexpected_exception_tells_an_incident_alone(
    error: Exception, capfd: pytest.CaptureFixture[str]
) -> None:
    with capture_logs() as logs:
        status, headers, problem = await call(build_failing(error), "/patients/jane-roe")
    assert (status, problem["type"]) == (500, "/problems/internal-error")
    assert headers["content-type"] == "application/problem+json"
    assert headers["cache-control"] == "no-store"
    (line,) = logs
    assert (line["incident"], line["error"]) == (problem["incident"], type(error).__name__)
    assert line["route"] == "/patients/{code}"
    assert any(place.endswith(" fail") for place in line["where"])
    told = repr((problem, logs, capfd.readouterr()))
    assert SECRET not in told
    assert "jane-roe" not in told


@pytest.mark.parametrize(
    "error",
    [
        DuplicateKey(SECRET),
        BatcherClosedError(SECRET),
    ],
)
async def test_a_store_that_is_out_of_reach_says_when_to_repeat(error: Exception) -> None:
    with capture_logs() as logs:
        status, headers, problem = await call(build_failing(error), "/patients/1")
    assert (status, problem["type"]) == (503, "/problems/unavailable")
    assert int(headers["retry-after"]) >= 1
    assert "not known whether the request was stored" in problem["detail"]
    assert "same `Idempotency-Key`" in problem["detail"]
    assert SECRET not in repr((problem, logs))
    assert logs[0]["incident"] == problem["incident"]


async def test_why_the_store_is_out_of_reach_is_for_the_operator() -> None:
    error = LedgerUnavailable("the database carehook@db.internal is old", rule="is old: run `carehook migrate`")
    with capture_logs() as logs:
        status, _, problem = await call(build_failing(error), "/patients/1")
    assert status == 503
    assert problem["detail"].startswith("The store is old: run `carehook migrate`. It is not known whether")
    assert "db.internal" not in repr(problem)
    assert (logs[0]["incident"], logs[0]["reason"]) == (problem["incident"], str(error))


@pytest.mark.parametrize(
    ("error", "rule"),
    [
        (LedgerUnavailable(SECRET), "does not answer"),
        (LedgerUnavailable(SECRET, rule="has another schema"), "has another schema"),
        (BatcherClosedError(SECRET), "does not answer"),
    ],
)
async def test_readiness_tells_what_is_not_ready(error: Exception, rule: str) -> None:
    async def check() -> None:
        raise error

    application: Any = SimpleNamespace(ledger=SimpleNamespace(check=check))
    app = build_api(application)
    status, headers, problem = await call(app, "/readyz")
    assert (status, problem["errors"]) == (503, [{"field": "store", "rule": rule}])
    assert problem["detail"] == f"Not ready: the store {rule}."
    assert SECRET not in repr(problem)
    assert headers["retry-after"]
    assert (await call(app, "/healthz"))[0] == 200


async def test_a_caller_who_goes_is_no_fault_of_ours() -> None:
    with capture_logs() as logs, pytest.raises(asyncio.CancelledError):
        await call(build_failing(asyncio.CancelledError()), "/patients/1")  # type: ignore[arg-type]
    assert logs == []


async def test_no_exporter_named_by_the_environment_hears_of_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    # FastAPI tells OpenTelemetry the path of each request by itself, where the process has a provider.
    spans: list[str] = []

    class Tracer(trace.NoOpTracer):
        def start_span(self, name: str, *_: Any, **given: Any) -> trace.Span:
            spans.append(f"{name} {given}")
            return trace.INVALID_SPAN

    class Provider(trace.TracerProvider):
        def get_tracer(self, *_: Any, **__: Any) -> trace.Tracer:
            return Tracer()

    monkeypatch.setattr(trace, "get_tracer_provider", Provider)
    application: Any = SimpleNamespace()
    assert (await call(build_api(application), "/healthz"))[0] == 200
    assert spans == []
