"""Refusals as RFC 9457 problem documents: what is wrong, in words for whoever sent the request.

Law: a problem never shows what was in a field, nor the text of an exception that was not written for the sender.

`type` is a URI reference that stays the same for a kind of problem, `/problems/not-found`; clients may switch on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import orjson
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from carehook.field_errors import FieldError

MEDIA_TYPE: Final = "application/problem+json"


@dataclass(frozen=True, slots=True)
class ProblemKind:
    """A kind of problem: `name` ends its `type`, `detail` is said where nothing better is known."""

    name: str
    title: str
    detail: str


KINDS: Final[Mapping[int, ProblemKind]] = {
    400: ProblemKind("malformed", "The request cannot be read", "The body could not be read as JSON."),
    401: ProblemKind("unauthenticated", "A valid token is required", "Send a token as `Authorization: Bearer …`."),
    403: ProblemKind("forbidden", "The token does not allow this", "Use a token that allows this call."),
    404: ProblemKind("not-found", "Not found", "There is nothing at this path."),
    405: ProblemKind("method-not-allowed", "Method not allowed", "See the header `Allow` for what this path takes."),
    409: ProblemKind("conflict", "Not possible in the present state", "What is there already does not allow this."),
    413: ProblemKind("too-large", "The body is too large", "Send a smaller body."),
    415: ProblemKind("unsupported-media-type", "The body must be JSON", "Send `Content-Type: application/json`."),
    422: ProblemKind("invalid", "The request breaks a rule", "See `errors` for each field and its rule."),
    500: ProblemKind("internal-error", "Carehook failed", "This is a fault of Carehook. Report it with `incident`."),
    503: ProblemKind(
        "unavailable",
        "Not available at the moment",
        "It is not known whether the request was stored: repeat it later, with the same `Idempotency-Key` or `id`.",
    ),
}
"""The kinds by status; there is one for each status that the API answers."""


class FieldProblem(BaseModel):
    """One broken rule."""

    field: str = Field(
        description="A dotted path into the body (`authentication.password`), or the name of a parameter or header; "
        "`body` for all of it.",
        examples=["payload.consultation.start_date"],
    )
    rule: str = Field(examples=["is required"])


class Problem(BaseModel):
    """Why a request was not carried out (RFC 9457).

    Nothing was stored and nothing will be sent; but with 500 and 503 that is not known.
    """

    type: str = Field(
        description="Names the kind of problem; stays the same.",
        json_schema_extra={"format": "uri-reference"},
        examples=["/problems/invalid"],
    )
    title: str = Field(description="The kind of problem in words.")
    status: int = Field(description="The status of the answer.", ge=400, le=599)
    detail: str = Field(description="What is wrong with this request, and what to do.")
    errors: list[FieldProblem] = Field(description="The fields that break a rule, at most 50; empty where none does.")
    incident: str | None = Field(
        default=None, description="With 500 and 503: names the line in Carehook's log that belongs to this answer."
    )


class RequestRefused(HTTPException):
    """A request that is refused before any use case sees it."""

    def __init__(
        self,
        status: int,
        detail: str,
        errors: Iterable[FieldError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, detail, headers)
        self.errors = tuple(errors)


def build_problem(
    status: int,
    detail: str | None = None,
    errors: Iterable[FieldError] = (),
    *,
    headers: Mapping[str, str] | None = None,
    incident: str | None = None,
) -> Response:
    """The answer that refuses a request."""
    kind = KINDS.get(status)
    problem: dict[str, object] = {
        "type": f"/problems/{kind.name}" if kind else "about:blank",
        "title": kind.title if kind else HTTPStatus(status).phrase,
        "status": status,
        "detail": detail or (kind.detail if kind else HTTPStatus(status).description),
        "errors": [{"field": error.field, "rule": error.rule} for error in errors],
    }
    if incident is not None:
        problem["incident"] = incident
    return Response(orjson.dumps(problem), status, headers, MEDIA_TYPE)
