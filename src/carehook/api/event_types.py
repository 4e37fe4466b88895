"""Event types: the catalogue, for whoever publishes or receives."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from carehook.api.routes import TokenRoute, build_router
from carehook.events import CATALOGUE
from carehook.insights import ListView

router = build_router(TokenRoute, "Event types")


class EventTypeView(BaseModel):
    """An event type with all that is needed to publish or to receive it."""

    model_config = ConfigDict(frozen=True)

    name: str
    description: str
    json_schema: dict[str, Any] = Field(description="JSON Schema (draft 2020-12) of the body that is sent.")
    example: dict[str, Any] = Field(description="A body as it is sent.")
    medical_fields: list[str] = Field(description="The paths of medical and personal data in the body.")


@router.get("/v1/event-types")
async def list_event_types() -> ListView[EventTypeView]:
    """List all event types; they come in one part."""
    views = [
        EventTypeView(
            name=entry.name,
            description=entry.description,
            json_schema=entry.json_schema,
            example=dict(entry.example),
            medical_fields=sorted(entry.medical_fields),
        )
        for entry in CATALOGUE.values()
    ]
    return ListView(data=views, next_cursor=None)
