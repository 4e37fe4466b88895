"""What handlers ask for by type: the assembled Carehook, the caller's token, ids in paths."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from fastapi import Depends, Path
from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import PydanticCustomError
from starlette.requests import Request

from carehook.api.routes import TOKEN_KEY, find_application
from carehook.application import Application
from carehook.events import CATALOGUE
from carehook.ids import DELIVERY, ENDPOINT, EVENT, ORGANIZATION
from carehook.intake.consultations import CareId
from carehook.ledger.records import Role, Token


async def get_application(request: Request) -> Application:
    """The Carehook that this request is for."""
    return find_application(request.scope)


async def get_token(request: Request) -> Token:
    """The caller's token; only on routes that need one."""
    token: Token = request.scope[TOKEN_KEY]
    return token


Carehook: TypeAlias = Annotated[Application, Depends(get_application)]
Caller: TypeAlias = Annotated[Token, Depends(get_token)]


def may_see(token: Token, organization_id: str) -> bool:
    """Whether something of an organization exists for this caller."""
    return token.role is Role.OPERATOR or token.organization_id == organization_id


def build_id_pattern(prefix: str) -> str:
    """What an id looks like, as a regular expression. See `carehook.ids`."""
    return f"^{prefix}_[0-9a-f]{{12}}7[0-9a-f]{{3}}[89ab][0-9a-f]{{15}}$"


def _describe_id(prefix: str) -> dict[str, str]:
    # For the documentation alone: in a path, what does not match is simply not found (see `routes`).
    return {"pattern": build_id_pattern(prefix)}


OrganizationId: TypeAlias = Annotated[str, Path(json_schema_extra=_describe_id(ORGANIZATION))]
EndpointId: TypeAlias = Annotated[str, Path(json_schema_extra=_describe_id(ENDPOINT))]
EventId: TypeAlias = Annotated[str, Path(json_schema_extra=_describe_id(EVENT))]
DeliveryId: TypeAlias = Annotated[str, Path(json_schema_extra=_describe_id(DELIVERY))]

PatientCode: TypeAlias = Annotated[CareId, Path(description="The code that platform and organization share.")]
ProfessionalId: TypeAlias = Annotated[CareId, Path(description="The platform's id of the professional.")]
ConsultationId: TypeAlias = Annotated[CareId, Path(description="The id that the consultation began with.")]


def _check_event_type(name: str) -> str:
    if name not in CATALOGUE:
        raise PydanticCustomError("event_type", "{rule}", {"rule": f"must be one of {', '.join(CATALOGUE)}"})
    return name


EventTypeName: TypeAlias = Annotated[
    str, AfterValidator(_check_event_type), WithJsonSchema({"type": "string", "enum": list(CATALOGUE)})
]
"""The name of an entry of the catalogue."""
