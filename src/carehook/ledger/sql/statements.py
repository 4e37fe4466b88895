"""Parts of statements that several queries share: being one of many ids, a page of a list, a move of deliveries along
the table of transitions, and a statement for many rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from carehook.ledger.connections.sessions import Session
from carehook.ledger.records import Page, PageRequest
from carehook.ledger.sql.tables import deliveries, in_state
from carehook.ledger.states import TRANSITIONS, DeliveryState, Transition, states_before

Row = TypeVar("Row")
_Parameter: TypeAlias = tuple[int, Callable[[Any], Any] | None]
"""The place in a row of a parameter's value, and how the dialect wants it."""


class Ids(sa.TypeDecorator[Collection[str]]):
    """Any number of ids as one parameter: an array on PostgreSQL, a JSON array on SQLite."""

    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> sa.types.TypeEngine[Any]:
        """What the dialect takes."""
        return dialect.type_descriptor(sa.Text() if dialect.name == "sqlite" else postgresql.ARRAY(sa.Text()))

    def process_bind_param(self, value: Collection[str] | None, dialect: Dialect) -> Any:
        """The ids in a list."""
        ids = list(value or ())
        return json.dumps(ids) if dialect.name == "sqlite" else ids


class _Among(FunctionElement[Any]):
    # Not a Boolean: of one of those SQLAlchemy would ask on SQLite whether it equals 1, and no index would be used.
    name = "among"
    type = sa.types.NullType()
    inherit_cache = True


@compiles(_Among, "sqlite")
def _compile_for_sqlite(element: _Among, compiler: SQLCompiler, **options: Any) -> str:
    column, ids = (compiler.process(clause, **options) for clause in element.clauses)
    return f"{column} IN (SELECT value FROM json_each({ids}))"  # noqa: S608 (both are compiled)


@compiles(_Among, "postgresql")
def _compile_for_postgresql(element: _Among, compiler: SQLCompiler, **options: Any) -> str:
    column, ids = (compiler.process(clause, **options) for clause in element.clauses)
    return f"{column} = ANY ({ids})"


def among(column: sa.Column[str], ids: Collection[str] | sa.BindParameter[Collection[str]]) -> sa.ColumnElement[bool]:
    """Whether a column is one of the ids. Unlike `IN` it is the same statement for any number of them."""
    given = ids if isinstance(ids, sa.BindParameter) else sa.bindparam(None, ids, type_=Ids(), unique=True)
    return _Among(column, given)


def insert(connection: AsyncConnection, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
    """An insert that may say what to do on a conflict, which the dialects spell alike but SQLAlchemy keeps apart."""
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)


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


def lock_deliveries(which: sa.ColumnElement[bool], *columns: sa.Column[Any]) -> sa.Select[Any]:
    """A query of deliveries that keeps others from changing them, locked in the order of their ids."""
    # Not by the bare column, or SQLite would walk through the whole history in its order to save a little sorting.
    in_order = deliveries.c.id.concat(sa.literal_column("''"))
    return sa.select(*columns).where(which).order_by(in_order).with_for_update(key_share=True)


def build_move(
    transition: Transition,
    where: sa.ColumnElement[bool],
    *,
    among_states: Collection[DeliveryState] = tuple(DeliveryState),
    silent: Collection[str] = (),
    **values: Any,
) -> sa.Update:
    """An update of the deliveries that match `where` and are in one of the states that `transition` can leave.

    Those of the endpoints in `silent`, which do not receive now, are held at once.
    """
    leaving = sorted(states_before(transition).intersection(among_states))
    next_state = {state: TRANSITIONS[state][transition] for state in leaving}
    moved = sa.case(next_state, value=deliveries.c.state)
    if silent:
        held = {state: _hold(after) for state, after in next_state.items()}
        held_instead = sa.case(held, value=deliveries.c.state)
        moved = sa.case((among(deliveries.c.endpoint_id, silent), held_instead), else_=moved)
    movable = lock_deliveries(in_state(*next_state, where=where), deliveries.c.id)
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
        if rows:
            await connection.exec_driver_sql(*self._take(connection.dialect, rows))

    def run(self, session: Session, rows: Sequence[Sequence[Any]]) -> None:
        """The same within a session."""
        if rows:
            session.execute_many(*self._take(session.dialect, rows))

    def _take(self, dialect: Dialect, rows: Sequence[Sequence[Any]]) -> tuple[str, list[tuple[Any, ...]]]:
        if dialect.name not in self._compiled:
            self._compiled[dialect.name] = self._compile(dialect)
        text, parameters = self._compiled[dialect.name]
        columns = list(zip(*rows, strict=True))
        taken = [
            map(convert, columns[position]) if convert is not None else columns[position]
            for position, convert in parameters
        ]
        return text, list(zip(*taken, strict=True))

    def _compile(self, dialect: Dialect) -> tuple[str, Sequence[_Parameter]]:
        compiled: Any = self._statement.compile(dialect=dialect, column_keys=list(self._names))
        return str(compiled), [
            (self._names.index(name), compiled.binds[name].type.dialect_impl(dialect).bind_processor(dialect))
            for name in compiled.positiontup
        ]


class Prepared:
    """A statement for a session: compiled once for a dialect, then handed to the driver as text and values."""

    def __init__(self, statement: sa.sql.expression.UpdateBase | sa.Select[Any]) -> None:
        self._statement = statement
        self._compiled: dict[str, _Compiled] = {}

    def fetch(self, session: Session, **parameters: Any) -> Sequence[tuple[Any, ...]]:
        """The rows that the statement gives for these parameters, their values as the columns' types have them."""
        compiled = self._compiled.get(session.dialect.name)
        if compiled is None:
            compiled = self._compiled[session.dialect.name] = self._compile(session.dialect)
        given = {**compiled.defaults, **parameters}
        values = [given[name] if convert is None else convert(given[name]) for name, convert in compiled.parameters]
        rows = session.fetch(compiled.text, values)
        converters = compiled.converters
        if not rows or not converters:
            return rows
        columns = list(zip(*rows, strict=True))
        for position, convert in converters:
            columns[position] = tuple(map(convert, columns[position]))
        return list(zip(*columns, strict=True))

    def _compile(self, dialect: Dialect) -> _Compiled:
        compiled: Any = self._statement.compile(dialect=dialect)
        # Both drivers give floats as they are; what SQLAlchemy makes of one hangs on what only a cursor could tell.
        results = [
            None
            if isinstance(entry.type, sa.Float)
            else entry.type.dialect_impl(dialect).result_processor(dialect, None)
            for entry in compiled._result_columns
        ]
        return _Compiled(
            text=str(compiled),
            parameters=[
                (name, compiled.binds[name].type.dialect_impl(dialect).bind_processor(dialect))
                for name in compiled.positiontup
            ],
            defaults={name: value for name, value in compiled.params.items() if value is not None},
            converters=[(position, convert) for position, convert in enumerate(results) if convert is not None],
        )


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A statement as the driver takes it, with what its parameters and columns are converted by."""

    text: str
    parameters: Sequence[tuple[str, Callable[[Any], Any] | None]]
    defaults: Mapping[str, Any]
    converters: Sequence[tuple[int, Callable[[Any], Any]]]
