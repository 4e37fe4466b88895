"""The API put together: every route, what refuses for them, and the document that describes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI

from carehook import __version__
from carehook.api import (
    care,
    deliveries,
    endpoints,
    event_types,
    events,
    organizations,
    probes,
    publishing,
)
from carehook.api.documentation import DESCRIPTION, TAGS, build_document
from carehook.api.refusing import Answers, refuse_with_problems
from carehook.application import Application

_ROUTERS = (
    # The hot path first: routes are tried in their order.
    publishing.single,
    publishing.batch,
    organizations.operators,
    organizations.members,
    endpoints.router,
    events.members,
    events.callers,
    events.operators,
    deliveries.members,
    deliveries.callers,
    deliveries.operators,
    care.callers,
    care.members,
    event_types.router,
    probes.router,
    probes.document,
)


class _Api(FastAPI):
    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = build_document(self)
        return self.openapi_schema


def build_api(application: Application, is_draining: Callable[[], bool] = lambda: False) -> FastAPI:
    """The ASGI application. `is_draining` says that the process is shutting down, so that it is no longer ready."""
    return _assemble(application, is_draining, _ROUTERS)


def build_probes(application: Application, is_draining: Callable[[], bool] = lambda: False) -> FastAPI:
    """The probes and metrics alone, for a worker that serves nothing else."""
    return _assemble(application, is_draining, (probes.router,))


def _assemble(application: Application, is_draining: Callable[[], bool], routers: Sequence[APIRouter]) -> FastAPI:
    api = _Api(
        title="Carehook",
        version=__version__,
        summary="Tells other systems, by webhook, what happened in care.",
        description=DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        openapi_tags=TAGS,
        # The usual pages for it fetch their scripts from elsewhere; ours is a probe, answered like everything here.
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # Paths may hold a patient's code, and what is told of requests is told by our own logs and metrics. To ask for
        # each request whether the environment names an exporter costs a twentieth of what accepting an event does.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    api.state.application = application
    api.state.is_draining = is_draining
    for router in routers:
        # Not `include_router`, which wraps every route once more: one flat list is what is matched and what is tested.
        api.router.routes.extend(router.routes)
    refuse_with_problems(api)
    api.add_middleware(Answers)
    return api
