"""Statements that several queries share: a page of a list, and a move of deliveries along the table of transitions."""

from collections.abc import Callable
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from carehook.ledger.records import Page, PageRequest
from carehook.ledger.states import TRANSITIONS, Transition, states_before
from carehook.ledger.tables import deliveries, in_state

Row = TypeVar("Row")


async def fetch_page(
    connection: AsyncConnection,
    query: sa.Select[Any],
    id_column: sa.Column[str],
    request: PageRequest,
    build: Callable[[sa.Row[Any]], Row],
) -> Page[Row]:
    """A page of `query`, newest first. Ids grow with time, so rows that arrive meanwhile never shift a later page."""
    if request.cursor is not None:
        query = query.where(id_column < request.cursor)
    rows = (await connection.execute(query.order_by(id_column.desc()).limit(request.limit + 1))).all()
    shown = rows[: request.limit]
    more = len(rows) > request.limit
    return Page([build(row) for row in shown], shown[-1]._mapping[id_column] if more else None)


def build_move(transition: Transition, where: sa.ColumnElement[bool], **values: Any) -> sa.Update:
    """An update of the deliveries that match `where` and are in a state that `transition` can leave.

    Rows are locked in the order of their ids, as the port's laws say.
    """
    next_state = {state: TRANSITIONS[state][transition] for state in sorted(states_before(transition))}
    movable = sa.select(deliveries.c.id).where(where, in_state(*next_state)).order_by(deliveries.c.id).with_for_update()
    return (
        deliveries.update()
        .where(deliveries.c.id.in_(movable))
        .values(state=sa.case(next_state, value=deliveries.c.state), **values)
    )
