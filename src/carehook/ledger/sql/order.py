"""The order of an ordered endpoint's deliveries: a position, counted for each endpoint.

The count's row is locked until the positions are committed, so at an endpoint they grow in the order of the commits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from carehook.ledger.connections.sessions import Session
from carehook.ledger.records import NewDelivery
from carehook.ledger.sql.statements import Prepared, lock_deliveries
from carehook.ledger.sql.tables import deliveries, events, in_state, lanes, positions
from carehook.ledger.states import DeliveryState, Ordering

_ADVANCE = Prepared(
    positions.update()
    .where(positions.c.endpoint_id == sa.bindparam("endpoint"))
    .values(last_position=positions.c.last_position + sa.bindparam("count", type_=sa.BigInteger))
    .returning(positions.c.last_position)
)


def assign_positions(session: Session, new: Sequence[NewDelivery]) -> list[int | None]:
    """The position of each new delivery; None for those that are in no order."""
    counts = Counter(delivery.endpoint_id for delivery in new if delivery.order_key is not None)
    next_position: dict[str, int] = {}
    for endpoint_id, count in sorted(counts.items()):
        [(last,)] = _ADVANCE.fetch(session, endpoint=endpoint_id, count=count)
        next_position[endpoint_id] = last - count
    assigned: list[int | None] = []
    for delivery in new:
        if delivery.order_key is None:
            assigned.append(None)
        else:
            next_position[delivery.endpoint_id] += 1
            assigned.append(next_position[delivery.endpoint_id])
    return assigned


async def set_ordering(connection: AsyncConnection, endpoint_id: str, ordering: Ordering) -> None:
    """Put what is not finished of an endpoint into the order that it has from now on."""
    for table in (positions, lanes):
        of_endpoint = sa.select(table.c.endpoint_id).where(table.c.endpoint_id == endpoint_id)
        await connection.execute(of_endpoint.with_for_update(key_share=True))
    unfinished = in_state(DeliveryState.PENDING, DeliveryState.HELD, where=deliveries.c.endpoint_id == endpoint_id)
    locked = lock_deliveries(unfinished, deliveries.c.id)
    if ordering is Ordering.NONE:
        # What was parked waits for nobody now.
        due_at = sa.func.coalesce(deliveries.c.due_at, deliveries.c.created_at)
        leave = deliveries.update().where(deliveries.c.id.in_(locked))
        await connection.execute(leave.values(order_key=None, position=None, due_at=due_at))
        return
    await connection.execute(locked)
    last = sa.select(positions.c.last_position).where(positions.c.endpoint_id == endpoint_id).scalar_subquery()
    place = sa.func.row_number().over(order_by=(deliveries.c.created_at, deliveries.c.id))
    numbered = (
        sa.select(deliveries.c.id, events.c.patient_key, (last + place).label("position"))
        .join_from(deliveries, events)
        .where(unfinished, events.c.patient_key.is_not(None))
        .subquery()
    )
    move = (
        deliveries.update()
        .where(deliveries.c.id == numbered.c.id)
        .values(order_key=numbered.c.patient_key, position=numbered.c.position)
    )
    count = (await connection.execute(move)).rowcount
    await connection.execute(
        positions.update()
        .where(positions.c.endpoint_id == endpoint_id)
        .values(last_position=positions.c.last_position + count)
    )
