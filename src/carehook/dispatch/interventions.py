"""What the support team does to deliveries: retry, cancel, resend, recover. The worker then does the sending.

Everything is sent only to endpoints of the event's own organization.
"""

from __future__ import annotations

from datetime import datetime

from carehook.clock import Clock
from carehook.ids import DELIVERY, new_id
from carehook.ledger.port import Ledger, Transaction
from carehook.ledger.records import Delivery, Endpoint, StoredEvent, build_delivery
from carehook.ledger.states import DeliveryState, EndpointStatus, Transition, states_before
from carehook.refusals import Conflict, build_invalid, build_not_found


class Interventions:
    """Every method raises a `Refusal` where it cannot do what was asked; nothing has changed then."""

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock

    async def retry(self, delivery_id: str) -> None:
        """Attempt now a delivery that has not succeeded, with its schedule begun anew."""
        async with self._ledger.transaction() as transaction:
            delivery = await _find_delivery(transaction, delivery_id)
            await _lock_active(transaction, delivery.endpoint_id)
            if not await transaction.deliveries.retry(delivery_id, self._clock()):
                # Read again: its attempt may have ended meanwhile.
                raise _build_retry_conflict(await _find_delivery(transaction, delivery_id))

    async def cancel(self, delivery_id: str) -> None:
        """Send a delivery no more."""
        async with self._ledger.transaction() as transaction:
            await _find_delivery(transaction, delivery_id)
            if not await transaction.deliveries.cancel(delivery_id, self._clock()):
                # Read again: its attempt may have ended meanwhile.
                delivery = await _find_delivery(transaction, delivery_id)
                raise Conflict(f"The delivery is {delivery.state} already.")

    async def resend(self, event_id: str, endpoint_id: str | None = None) -> int:
        """Send an event again, whether it arrived or not; how many deliveries that makes due.

        Without an endpoint, to those it was accepted for and that are still there. With one, to that alone, which may
        be newer than the event.
        """
        async with self._ledger.transaction() as transaction:
            event = await transaction.events.get(event_id)
            if event is None:
                raise build_not_found("event", event_id)
            if endpoint_id is not None:
                return await self._resend_to(transaction, event, endpoint_id)
            deliveries = await transaction.deliveries.of_event(event_id)
            return await transaction.deliveries.resend([each.id for each in deliveries], self._clock())

    async def _resend_to(self, transaction: Transaction, event: StoredEvent, endpoint_id: str) -> int:
        # Locked first, so that two who ask at once do not both find no delivery and add one.
        endpoint = _check_endpoint(await transaction.endpoints.get(endpoint_id, lock=True), event)
        for present in await transaction.deliveries.of_event(event.id):
            if present.endpoint_id == endpoint_id:
                return await transaction.deliveries.resend([present.id], self._clock())
        await transaction.deliveries.add([build_delivery(new_id(DELIVERY), event, endpoint, self._clock())])
        return 1

    async def recover(self, endpoint_id: str, since: datetime) -> int:
        """Attempt now all that failed at an endpoint since an instant; how many deliveries."""
        async with self._ledger.transaction() as transaction:
            await _lock_active(transaction, endpoint_id)
            return await transaction.deliveries.recover(endpoint_id, since, self._clock())


async def _find_delivery(transaction: Transaction, delivery_id: str) -> Delivery:
    delivery = await transaction.deliveries.get(delivery_id)
    if delivery is None:
        raise build_not_found("delivery", delivery_id)
    return delivery


async def _lock_active(transaction: Transaction, endpoint_id: str) -> None:
    endpoint = await transaction.endpoints.get(endpoint_id, lock=True)
    if endpoint is None:
        raise build_not_found("endpoint", endpoint_id)
    if endpoint.status is not EndpointStatus.ACTIVE:
        raise Conflict(f"The endpoint is {endpoint.status}. Resume it first.")


def _build_retry_conflict(delivery: Delivery) -> Conflict:
    if delivery.state is DeliveryState.HELD:
        # Of an endpoint that is active.
        return Conflict("The delivery is being released, since its endpoint was resumed. Try again in a moment.")
    if delivery.state not in states_before(Transition.RETRY):
        return Conflict(f"The delivery is {delivery.state}. To send the event again, resend it.")
    return Conflict("A request of this delivery is in flight. Wait for its outcome.")


def _check_endpoint(endpoint: Endpoint | None, event: StoredEvent) -> Endpoint:
    if endpoint is None or endpoint.organization_id != event.organization_id:
        raise build_invalid("endpoint_id", "names no endpoint of the event's organization")
    if endpoint.event_types and event.type not in endpoint.event_types:
        raise build_invalid("endpoint_id", f"names an endpoint that is not subscribed to {event.type}")
    return endpoint
