"""Statements that several queries share: a page of a list, a move along the table of transitions, one for many rows."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeAlias, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.asyncio import AsyncConnection

from carehook.ledger.records import Page, PageRequest
from carehook.ledger.states import TRANSITIONS, DeliveryState, Transition, states_before
from carehook.ledger.tables import deliveries, in_state

Row = TypeVar("Row")
_Parameter: TypeAlias = tuple[int, Callable[[Any], Any] | None]
"""The place in a row of a parameter's value, and how the dialect wants it."""


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


def build_move(
    transition: Transition, where: sa.ColumnElement[bool], *, silent: Collection[str] = (), **values: Any
) -> sa.Update:
    """An update of the deliveries that match `where` and are in a state that `transition` can leave.

    Those of the endpoints in `silent`, which do not receive now, are held at once. Rows are locked in the order of
    their ids, as the port's laws say.
    """
    next_state = {state: TRANSITIONS[state][transition] for state in sorted(states_before(transition))}
    moved = sa.case(next_state, value=deliveries.c.state)
    if silent:
        held = {state: _hold(after) for state, after in next_state.items()}
        moved = sa.case(
            (deliveries.c.endpoint_id.in_(sorted(silent)), sa.case(held, value=deliveries.c.state)), else_=moved
        )
    movable = (
        sa.select(deliveries.c.id)
        .where(where, in_state(*next_state))
        .order_by(deliveries.c.id)
        .with_for_update(key_share=True)
    )
    return deliveries.update().where(deliveries.c.id.in_(movable)).values(state=moved, **values)


def _hold(state: DeliveryState) -> DeliveryState:
    return TRANSITIONS[state].get(Transition.HOLD, state)


class Bulk:
    """A statement for hundreds of rows, each a tuple of values for the parameters in `names`.

    It is compiled once for a dialect, and the rows go to the driver's `executemany` column by column: SQLAlchemy's own
    way takes as long for each parameter as the database does for a row.
    """

    def __init__(self, statement: sa.Insert | sa.Update, names: Sequence[str]) -> None:
        self._statement = statement
        self._names = names
        self._compiled: dict[str, tuple[str, Sequence[_Parameter]]] = {}

    async def execute(self, connection: AsyncConnection, rows: Sequence[Sequence[Any]]) -> None:
        """Run the statement for each of the rows, if there are any."""
        if not rows:
            return
        dialect = connection.dialect
        if dialect.name not in self._compiled:
            self._compiled[dialect.name] = self._compile(dialect)
        text, parameters = self._compiled[dialect.name]
        columns = list(zip(*rows, strict=True))
        taken = [
            map(convert, columns[position]) if convert is not None else columns[position]
            for position, convert in parameters
        ]
        await connection.exec_driver_sql(text, list(zip(*taken, strict=True)))

    def _compile(self, dialect: Dialect) -> tuple[str, Sequence[_Parameter]]:
        compiled: Any = self._statement.compile(dialect=dialect, column_keys=list(self._names))
        return str(compiled), [
            (self._names.index(name), compiled.binds[name].type.dialect_impl(dialect).bind_processor(dialect))
            for name in compiled.positiontup
        ]
