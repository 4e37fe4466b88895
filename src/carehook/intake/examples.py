"""Sending an event type's example to one endpoint, to see whether it receives."""

from __future__ import annotations

from dataclasses import dataclass

from carehook.clock import Clock
from carehook.events import CATALOGUE
from carehook.intake.recipients import build_deliveries, freeze_event
from carehook.ledger.port import Ledger
from carehook.ledger.states import EndpointStatus
from carehook.refusals import Conflict, build_invalid, build_not_found


@dataclass(frozen=True, slots=True)
class ExampleSent:
    """The event that holds the example, and its delivery."""

    event_id: str
    delivery_id: str


class Examples:
    """Sends examples."""

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock

    async def send(self, endpoint_id: str, event_type: str | None = None) -> ExampleSent:
        """Send the example of `event_type`, or of the first type it is subscribed to, to this endpoint alone.

        An endpoint whose circuit is open is tried now, with the oldest of what waits for it.

        Raises a `Refusal` where there is no such endpoint or event type, or the endpoint does not receive now.
        """
        if event_type is not None and event_type not in CATALOGUE:
            raise build_invalid("event_type", f"must be one of {', '.join(CATALOGUE)}")
        async with self._ledger.transaction() as transaction:
            endpoint = await transaction.endpoints.get(endpoint_id, lock=True)
            if endpoint is None:
                raise build_not_found("endpoint", endpoint_id)
            if endpoint.status is not EndpointStatus.ACTIVE:
                raise Conflict(f"The endpoint is {endpoint.status}. Resume it first.")
            entry = CATALOGUE[event_type or next(iter(endpoint.event_types or CATALOGUE))]
            example = entry.model.model_validate(entry.example)
            event = freeze_event(endpoint.organization_id, example, self._clock(), is_test=True)
            (delivery,) = build_deliveries(event, [endpoint])
            await transaction.events.add([event])
            await transaction.deliveries.add([delivery])
            await transaction.endpoints.try_now(endpoint_id, event.created_at)
        return ExampleSent(event.id, delivery.id)
