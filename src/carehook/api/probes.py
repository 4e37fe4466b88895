"""What whoever runs Carehook asks, without a token: does it live, is it ready, how is it doing, what can it do."""

from __future__ import annotations

import asyncio
from typing import Final, Literal

import orjson
import structlog
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from carehook.api.context import Carehook
from carehook.api.problems import build_problem
from carehook.api.refusing import RETRY_AFTER_SECONDS, STORE_ERRORS, describe_reason
from carehook.api.routes import PublicRoute, build_router
from carehook.field_errors import FieldError
from carehook.ledger.port import LedgerUnavailable

router = build_router(PublicRoute, "Operation")
document = build_router(PublicRoute, "Operation")

_STORE_SECONDS: Final = 5.0
"""How long the store may take before a probe says that it does not answer: where a link is cut, nothing else would."""

_BACKLOG_SECONDS: Final = 9.0
"""How long counting the backlog may take: Prometheus waits for 10 seconds unless it is told otherwise."""

_PROBE_ERRORS: Final[tuple[type[Exception], ...]] = (*STORE_ERRORS, TimeoutError)

_log = structlog.get_logger("carehook.api")


class Alive(BaseModel):
    """The process runs."""

    status: Literal["alive"]


class Ready(BaseModel):
    """Requests can be served."""

    status: Literal["ready"]
    without: str | None = Field(default=None, description="What it goes on without for now; left out where nothing is.")


@router.get("/healthz")
async def get_health() -> Alive:
    """Answer as long as the process runs. It asks nothing else."""
    return Alive(status="alive")


@router.get("/readyz", response_model=Ready, response_model_exclude_none=True)
async def get_readiness(request: Request, carehook: Carehook) -> Ready | Response:
    """Tell whether requests can be served now, or what is not ready."""
    if request.app.state.is_draining():
        return _build_not_ready("process", "is shutting down")
    try:
        async with asyncio.timeout(_STORE_SECONDS):
            await carehook.ledger.check()
    except _PROBE_ERRORS as error:
        _log.error("not_ready", part="store", error=type(error).__name__, **describe_reason(error))
        return _build_not_ready("store", error.rule if isinstance(error, LedgerUnavailable) else "does not answer")
    return Ready(status="ready", without=carehook.queue.find_missing())


# Load balancers ask by HEAD. The server sends the headers of these answers and leaves their bodies out.
@router.head("/healthz", response_class=Response)
async def head_health() -> Response:
    """Answer as GET does, without the body."""
    return _build_answer(await get_health())


@router.head("/readyz", response_class=Response)
async def head_readiness(request: Request, carehook: Carehook) -> Response:
    """Answer as GET does, without the body."""
    readiness = await get_readiness(request, carehook)
    return readiness if isinstance(readiness, Response) else _build_answer(readiness)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def get_metrics(carehook: Carehook) -> Response:
    """Show what Prometheus scrapes. While the store is away, that is all but the backlog, and `carehook_store_up` 0."""
    try:
        async with asyncio.timeout(_BACKLOG_SECONDS):
            backlog = await carehook.insights.backlog()
    except _PROBE_ERRORS as error:
        _log.error("backlog_unknown", error=type(error).__name__, **describe_reason(error))
        backlog = None
    return Response(carehook.metrics.render(backlog, carehook.clock()), headers={"content-type": CONTENT_TYPE_LATEST})


@document.get("/openapi.json", response_class=Response, responses={200: {"content": {"application/json": {}}}})
async def get_openapi(request: Request) -> Response:
    """Show this document."""
    return Response(orjson.dumps(request.app.openapi()), media_type="application/json")


def _build_answer(status: Alive | Ready) -> Response:
    return Response(status.model_dump_json(exclude_none=True), media_type="application/json")


def _build_not_ready(part: str, rule: str) -> Response:
    error = FieldError(part, rule)
    return build_problem(503, f"Not ready: the {error}.", [error], headers={"Retry-After": str(RETRY_AFTER_SECONDS)})
