"""What the walkthrough asks of a delivery, over and over: where does it stand?"""

import asyncio

from carehook.application import Application
from carehook.insights import DeliveryDetailView
from carehook.ledger.states import DeliveryState


async def wait_for_delivery(carehook: Application, event_id: str, state: DeliveryState) -> DeliveryDetailView:
    """The one delivery of an event, once it is in `state` and nothing of it is in flight."""
    async with asyncio.timeout(20):
        while True:
            (delivery,) = (await carehook.insights.event(event_id)).deliveries
            if delivery.state is state and not delivery.in_flight:
                return await carehook.insights.delivery(delivery.id)
            await asyncio.sleep(0.02)
