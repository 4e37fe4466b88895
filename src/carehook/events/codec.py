"""Bytes to events and back. Whatever the bytes are, they become an event or an `InvalidEvent`.

There is one serialisation, `build_body`: the bytes that are frozen when an event is accepted, and sent on every
attempt.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import to_json

from carehook.events.catalogue import AnyEvent
from carehook.events.envelope import Event
from carehook.events.errors import InvalidEvent, build_invalid_event
from carehook.field_errors import FieldError

_Discriminated = Annotated[AnyEvent, Field(discriminator="type")]


class _Batch(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    events: list[_Discriminated]


_Parsed = TypeVar("_Parsed")

_EVENT: TypeAdapter[AnyEvent] = TypeAdapter(_Discriminated)
_BATCH: TypeAdapter[_Batch] = TypeAdapter(_Batch)


def parse_event(data: bytes | bytearray, *, ignore_unknown_fields: bool = False) -> AnyEvent:
    """Parse the JSON of one event.

    Args:
        data: the envelope, as UTF-8.
        ignore_unknown_fields: for receivers, which must outlive a newer sender. Publishers leave it out, so that
            no patient data leaves by accident.

    Raises:
        UnknownEventType: the `type` is not in the catalogue.
        InvalidEvent: anything else is wrong, from the encoding to a single field.
    """
    return _parse(_EVENT, data, ignore_unknown_fields=ignore_unknown_fields)


def parse_events(data: bytes | bytearray, limit: int = 1000) -> list[AnyEvent]:
    """Parse the JSON of a batch, `{"events": [...]}`: 1 to `limit` events, all of them or none.

    Raises:
        InvalidEvent: an event is wrong, at `events.<position from 0>.<field>`, or `events` has the wrong length.
    """
    events = _parse(_BATCH, data, ignore_unknown_fields=False).events
    if not 1 <= len(events) <= limit:
        raise InvalidEvent([FieldError("events", f"must hold 1 to {limit} events")])
    return events


def build_body(event: Event[Any]) -> bytes:
    """Build the body that is sent: compact JSON in UTF-8, in the contract's order, the same bytes each time."""
    return to_json(event)


def _parse(adapter: TypeAdapter[_Parsed], data: bytes | bytearray, *, ignore_unknown_fields: bool) -> _Parsed:
    try:
        return adapter.validate_json(data, extra="ignore" if ignore_unknown_fields else None)
    except ValidationError as refusal:
        error = build_invalid_event(refusal, _find_tags())
    raise error  # outside of `except`: pydantic's error, which holds the input, must not be its context


@cache
def _find_tags() -> frozenset[str]:
    """Every value by which the models choose among variants: the event types and the report types."""
    return frozenset(_find_mapped(_EVENT.json_schema()))


def _find_mapped(schema: object) -> set[str]:
    if isinstance(schema, list):
        return set().union(*map(_find_mapped, schema))
    if not isinstance(schema, dict):
        return set()
    mapping = schema.get("discriminator", {}).get("mapping", {})
    return set(mapping).union(*map(_find_mapped, schema.values()))
