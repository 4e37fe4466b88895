"""The `webhooks` section of the OpenAPI document: the requests that organizations receive, from the catalogue."""

from __future__ import annotations

from typing import Any, Final

from carehook import __version__
from carehook.events import CATALOGUE, EventType

_HEADERS: Final = (
    ("x-webhook-signature", "The value agreed with the support team for this endpoint.", "the-agreed-value"),
    (
        "webhook-id",
        "The id of the event: the same on every attempt, so that a receiver tells a duplicate.",
        "evt_019b76da8f7d7c5e9f3f1a2b3c4d5e6f",
    ),
    ("webhook-timestamp", "When this attempt was made, in Unix seconds.", "1704063605"),
    (
        "webhook-signature",
        "Standard Webhooks: `v1,` and HMAC-SHA256 of `id.timestamp.body`, or `v1a,` and Ed25519; two while rotating.",
        "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=",
    ),
    ("user-agent", "Carehook and its version.", f"Carehook/{__version__}"),
)

_RESPONSES: Final = {
    "2XX": {"description": "Received. Nothing else counts as success; redirects are not followed."},
    "410": {"description": "Gone for good: the endpoint is disabled."},
    "default": {"description": "Sent again later, after `Retry-After` where it is given."},
}


def build_webhooks(references: dict[str, Any]) -> dict[str, Any]:
    """The section. `references` holds a reference to the schema of what is sent, by event type."""
    return {entry.name: {"post": _build_operation(entry, references[entry.name])} for entry in CATALOGUE.values()}


def _build_operation(entry: EventType, reference: dict[str, Any]) -> dict[str, Any]:
    medical = "\n".join(f"- `{field}`" for field in sorted(entry.medical_fields))
    return {
        "operationId": f"receive_{entry.name}",
        "summary": entry.description,
        "description": f"Sent to each endpoint that is subscribed to `{entry.name}`, with its authentication. "
        f"Medical and personal data is in:\n\n{medical}",
        "tags": ["Webhooks"],
        "security": [],
        "parameters": [_build_header(*header) for header in _HEADERS],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": reference, "example": dict(entry.example)}},
        },
        "responses": _RESPONSES,
    }


def _build_header(name: str, description: str, example: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "header",
        "required": True,
        "description": description,
        "schema": {"type": "string"},
        "example": example,
    }
