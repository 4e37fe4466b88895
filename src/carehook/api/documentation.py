"""The OpenAPI 3.1 document: what FastAPI reads off the routes, and what it cannot know.

That is which problems a route answers (its class and its parameters say), what is published (the catalogue says), and
the `webhooks` section: the requests that organizations receive.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic.json_schema import models_json_schema

from carehook.api.context import build_id_pattern
from carehook.api.problems import KINDS, MEDIA_TYPE, Problem
from carehook.api.publishing import BatchRoute, PublishRoute
from carehook.api.routes import MemberRoute, OperatorRoute, PublicRoute, TokenRoute
from carehook.api.webhooks import build_webhooks
from carehook.events import CATALOGUE
from carehook.ids import ORGANIZATION
from carehook.intake.accept import LONGEST_KEY

TAGS: Final[list[dict[str, Any]]] = [
    {"name": "Publishing", "description": "Tell Carehook that something happened, as it will be sent."},
    {"name": "Care", "description": "Tell Carehook what happens in care; it assembles the events."},
    {"name": "Organizations", "description": "The customers that receive."},
    {"name": "Endpoints", "description": "Their URLs, with event types and authentication."},
    {"name": "Events", "description": "What was accepted."},
    {"name": "Deliveries", "description": "What became of it: one event for one endpoint, with every attempt."},
    {"name": "Event types", "description": "The catalogue."},
    {"name": "Operation", "description": "For whoever runs Carehook. No token is needed."},
]


def _describe() -> str:
    problems = "\n".join(f"| {status} | `/problems/{kind.name}` | {kind.title} |" for status, kind in KINDS.items())
    return f"""A platform publishes what happened in care; the organizations' endpoints receive it: signed, retried,
never lost. The section `webhooks` describes what they receive.

**Tokens.** `Authorization: Bearer carehook_…`. An operator's token may do everything. A publisher's is bound to one
organization: it publishes, tells what happens in care, and reads the organization, its events and its deliveries.

**Lists** are `{{"data": [...], "next_cursor": ...}}`, newest first. Give `next_cursor` as `cursor` to go on; a list
stays stable while rows arrive.

**Instants** that end in `_at` are RFC 3339 in UTC. The contract's own fields are as the contract has them.

**Problems** are RFC 9457 documents. Nothing was stored, and nothing will be sent, when one is answered; but with 500
and 503 that is not known. Repeat such a request with the same `Idempotency-Key` or `id`: it is then stored once.

| status | type | |
| --- | --- | --- |
{problems}
"""


DESCRIPTION: Final = _describe()

_REF: Final = "#/components/schemas/{model}"
_SECURITY_SCHEMES: Final = {"bearer": {"type": "http", "scheme": "bearer", "description": "An API token."}}


def build_document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of an API whose routes are all of the classes in `routes`."""
    document = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=app.description,
        license_info=app.license_info,
        tags=app.openapi_tags,
        routes=app.routes,
    )
    published, sent, schemas = _build_event_schemas()
    components = document["components"]
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    _merge(components["schemas"], schemas)
    components["responses"] = {kind.name: _build_problem_response(status) for status, kind in KINDS.items()}
    components["securitySchemes"] = _SECURITY_SCHEMES
    for route, operation in _list_operations(app, document):
        _complete(route, operation)
        if isinstance(route, PublishRoute):
            _complete_publishing(route, operation, published)
    document["webhooks"] = build_webhooks(sent)
    return document


def _build_event_schemas() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """References to the schemas of events as published and as sent, by type, and the schemas themselves."""
    models = [entry.model for entry in CATALOGUE.values()]
    inputs = [(model, mode) for model in models for mode in ("validation", "serialization")]
    references, schema = models_json_schema([*inputs, (Problem, "serialization")], ref_template=_REF)  # type: ignore[list-item]
    published = {entry.name: references[entry.model, "validation"] for entry in CATALOGUE.values()}
    sent = {entry.name: references[entry.model, "serialization"] for entry in CATALOGUE.values()}
    return published, sent, schema["$defs"]


def _merge(schemas: dict[str, Any], more: dict[str, Any]) -> None:
    for name, schema in more.items():
        if schemas.setdefault(name, schema) != schema:
            raise ValueError(f"two models are called {name}, and their schemas differ")


def _build_problem_response(status: int) -> dict[str, Any]:
    kind = KINDS[status]
    response: dict[str, Any] = {
        "description": f"{kind.title}.",
        "content": {MEDIA_TYPE: {"schema": {"$ref": _REF.format(model="Problem")}}},
    }
    headers = {401: "WWW-Authenticate", 403: "WWW-Authenticate", 405: "Allow", 503: "Retry-After"}
    if status in headers:
        response["headers"] = {headers[status]: {"schema": {"type": "string"}}}
    return response


def _list_operations(app: FastAPI, document: dict[str, Any]) -> Iterator[tuple[PublicRoute, dict[str, Any]]]:
    for route in app.routes:
        if isinstance(route, PublicRoute):
            for method in route.methods or ():
                yield route, document["paths"][route.path_format][method.lower()]


def _complete(route: PublicRoute, operation: dict[str, Any]) -> None:
    operation["security"] = [{"bearer": []}] if isinstance(route, TokenRoute) else []
    for content in operation.get("requestBody", {}).get("content", {}).values():
        # A body may be left out, but `null` is none.
        content["schema"] = content["schema"].get("anyOf", [content["schema"]])[0]
    responses = operation["responses"]
    responses.pop("422", None)
    for status in sorted({*_list_problems(route), *(int(code) for code in responses if int(code) >= 400)}):
        responses[str(status)] = {"$ref": f"#/components/responses/{KINDS[status].name}"}


def _list_problems(route: PublicRoute) -> set[int]:
    """The statuses from 400 on that a route can answer, beside those it declares itself."""
    problems = {500}
    if route.path not in _WITHOUT_STORE:
        problems.add(503)
    if isinstance(route, TokenRoute):
        problems.add(401)
    if isinstance(route, OperatorRoute | MemberRoute):
        problems.add(403)
    if route.param_convertors:
        problems.add(404)
    if route.takes_body:
        problems |= {400, 413, 415, 422}
    if _has_rules(route):
        problems.add(422)
    return problems


_WITHOUT_STORE: Final = frozenset({"/healthz", "/metrics", "/openapi.json"})


def _has_rules(route: APIRoute) -> bool:
    """Whether a parameter can be refused: ids of ours cannot, they are just not found."""
    names = {field.name for field in route.dependant.path_params}
    return bool(route.dependant.query_params) or bool(names & {"patient_code", "professional_id", "consultation_id"})


def _complete_publishing(route: PublishRoute, operation: dict[str, Any], published: dict[str, Any]) -> None:
    event = {
        "oneOf": list(published.values()),
        "discriminator": {
            "propertyName": "type",
            "mapping": {name: reference["$ref"] for name, reference in published.items()},
        },
    }
    examples = {name: dict(entry.example) for name, entry in CATALOGUE.items()}
    schema: dict[str, Any] = event
    answer: dict[str, Any] = {
        "id": {"type": "string", "description": "The id of the event: every delivery's `webhook-id`."},
        "deliveries": {"type": "integer", "minimum": 0, "description": "How many endpoints it is sent to."},
    }
    if isinstance(route, BatchRoute):
        examples = {"two events": {"events": list(examples.values())}}
        events = {"type": "array", "items": event, "minItems": 1, "maxItems": 1000}
        schema = _build_object({"events": events})
        answer = {"ids": {"type": "array", "items": {"type": "string"}}}
    operation["parameters"] = [_ORGANIZATION, _IDEMPOTENCY_KEY]
    operation["requestBody"] = {
        "required": True,
        "content": {
            "application/json": {
                "schema": schema,
                "examples": {name: {"value": example} for name, example in examples.items()},
            }
        },
    }
    operation["responses"]["202"] = {
        "description": "Accepted: it is on disk.",
        "content": {"application/json": {"schema": _build_object(answer)}},
    }


def _build_object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_ORGANIZATION: Final = {
    "name": "organization_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": build_id_pattern(ORGANIZATION)},
}
_IDEMPOTENCY_KEY: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Makes a repeated request safe: within 7 days the same key and body get the first answer, and "
    "another body is refused.",
    "schema": {"type": "string", "pattern": "^[!-~]+$", "minLength": 1, "maxLength": LONGEST_KEY},
}
