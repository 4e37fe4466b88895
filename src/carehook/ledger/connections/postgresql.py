"""Connections straight to PostgreSQL's driver, for what happens thousands of times a second.

There a statement is a transaction: one trip, one commit. Everything else goes through SQLAlchemy (`database`).
No error tells the arguments of its statement, for bodies are among them.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from inspect import signature
from typing import Any, Final

import asyncpg
from sqlalchemy.engine import URL, Dialect

from carehook.ledger.connections.sessions import end
from carehook.ledger.connections.tls import TLS_OPTIONS, build_tls
from carehook.ledger.port import LedgerUnavailable

CONNECT_TIMEOUT: Final = 10.0
STATEMENT_TIMEOUT: Final = 20.0
"""Seconds after which a server that does not answer is taken to be away: well before a lease ends."""

_CLOSE_TIMEOUT: Final = 2.0

_TCP_OPTIONS: Final = {
    # In all the same 20 seconds, whether something was sent that nobody acknowledges (RFC 5482), or nothing is heard.
    socket.TCP_USER_TIMEOUT: 20_000,
    socket.TCP_KEEPIDLE: 10,
    socket.TCP_KEEPINTVL: 5,
    socket.TCP_KEEPCNT: 2,
}

_UNUSABLE_CLASSES: Final = frozenset({"08", "53", "57", "58"})
"""PostgreSQL's classes of errors that say nothing about the statement: connection, resources, operator, system."""

_READ_ONLY: Final = "25006"
"""The server takes no writes: a standby, or a primary that has become one."""

OTHER_SCHEMA: Final = frozenset({"42703", "42P01"})
"""A column or a table is not there: another version has migrated the store under this one."""

DRIVER_ERRORS: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""What the driver raises; the third where a connection breaks in the middle of its conversation."""

_SETTINGS: Final = {
    "application_name": "carehook",
    # So that a row that was waited for is read as it was left, whatever the server's default is.
    "default_transaction_isolation": "read committed",
    # Each statement goes from its arguments by index to the rows they name. Whatever the statistics say of tables that
    # were empty a minute ago and hold millions now, no other plan is as good, and none needs to be made anew.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}

# What SQLAlchemy's dialect keeps to itself of a URL's options.
_OF_SQLALCHEMY: Final = frozenset(
    {"async_fallback", "async_creator_fn", "prepared_statement_cache_size", "prepared_statement_name_func"}
)


_NUMBERS: Final[Mapping[str, Callable[[str], float]]] = {
    "timeout": float,
    "command_timeout": float,
    "statement_cache_size": int,
    "max_cached_statement_lifetime": int,
    "max_cacheable_statement_size": int,
}
"""Options of the driver's that a URL gives as text."""

# Of the driver's, what no text can say.
_OF_CODE: Final = frozenset(
    {"dsn", "loop", "connection_class", "record_class", "server_settings", "direct_tls", "ssl"}
).difference(TLS_OPTIONS)

_KNOWN_OPTIONS: Final = frozenset({*TLS_OPTIONS, *_OF_SQLALCHEMY, *signature(asyncpg.connect).parameters}) - _OF_CODE


def check_options(url: URL) -> None:
    """Raises ValueError, with a sentence for people, where a URL has an option that is not understood.

    One that is passed over might be one that somebody relies on.
    """
    unknown = sorted(set(url.query) - _KNOWN_OPTIONS)
    if unknown:
        raise ValueError(f"the database URL has options that are not known here: {', '.join(unknown)}")
    read_numbers(url)
    build_tls(url)


def read_numbers(url: URL) -> dict[str, float]:
    """The driver's options that are numbers. Raises ValueError, with a sentence for people, where one is none."""
    numbers = {}
    for name in _NUMBERS.keys() & url.query.keys():
        try:
            numbers[name] = _NUMBERS[name](str(url.query[name]))
        except ValueError:
            raise ValueError(f"the database URL's {name} must be a number") from None
    return numbers


class StatementError(Exception):
    """A statement was refused, by our fault. The message names the error and the constraint, and no value."""

    def __init__(self, error: Exception) -> None:
        self.constraint: str | None = getattr(error, "constraint_name", None)
        state = getattr(error, "sqlstate", None)
        parts = [type(error).__name__, state and f"SQLSTATE {state}", self.constraint and f"of {self.constraint}"]
        super().__init__(" ".join(part for part in parts if part))


class Connections:
    """Few connections, opened when they are needed: some whose commits are on disk, some whose commits need not be."""

    def __init__(
        self,
        url: URL,
        dialect: Dialect,
        explain: Callable[[Exception], LedgerUnavailable],
        *,
        durable: int = 4,
        relaxed: int = 2,
    ) -> None:
        _, options = dialect.create_connect_args(url.difference_update_query(TLS_OPTIONS))
        self._options = {name: value for name, value in options.items() if name not in _OF_SQLALCHEMY}
        self._options |= read_numbers(url)
        self._options["ssl"] = build_tls(url)
        self._explain = explain
        self._durable = _Pool(durable, self.open)
        self._relaxed = _Pool(relaxed, partial(self.open, synchronous_commit="off"))

    async def fetch(self, statement: str, *arguments: object, durable: bool = True) -> Sequence[asyncpg.Record]:
        """The rows of a statement, once it is committed.

        Where it need not be `durable`, a power cut may undo it, but nothing that was committed before it or after.
        Raises `LedgerUnavailable`, or `StatementError`. A caller that is cancelled is told so only when it has ended.
        """
        return await end(self._fetch(self._durable if durable else self._relaxed, statement, arguments))

    async def _fetch(self, pool: _Pool, statement: str, arguments: Sequence[object]) -> Sequence[asyncpg.Record]:
        async with pool.connection() as connection:
            try:
                rows: Sequence[asyncpg.Record] = await connection.fetch(statement, *arguments)
            except DRIVER_ERRORS as error:
                if not _is_the_stores_fault(error):
                    raise StatementError(error) from None
                raise self._explain(error) from error
        return rows

    async def open(self, **settings: str) -> asyncpg.Connection[asyncpg.Record]:
        """A connection of the caller's own, with PostgreSQL's settings. Raises `LedgerUnavailable`."""
        try:
            connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(
                **{"timeout": CONNECT_TIMEOUT, "command_timeout": STATEMENT_TIMEOUT, **self._options},
                server_settings={**_SETTINGS, **settings},
            )
        except DRIVER_ERRORS as error:
            raise self._explain(error) from error
        watch_socket(connection)
        return connection

    async def close(self) -> None:
        """Close every connection."""
        await self._durable.close()
        await self._relaxed.close()


def watch_socket(connection: Any) -> None:
    """Have the kernel end a connection whose server has fallen silent, as where its host is gone without a word.

    By its own defaults Linux tries for a quarter of an hour.
    """
    # The driver gives its socket away nowhere else.
    connected = connection._transport.get_extra_info("socket")
    if connected is None or connected.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _TCP_OPTIONS.items():
        connected.setsockopt(socket.IPPROTO_TCP, option, value)


class _Pool:
    """At most `size` connections. One that is not known to be sound is not used again."""

    def __init__(self, size: int, open_connection: Callable[[], Awaitable[asyncpg.Connection[asyncpg.Record]]]) -> None:
        self._open_connection = open_connection
        self._turns = asyncio.Semaphore(size)
        self._idle: list[asyncpg.Connection[asyncpg.Record]] = []
        self._is_closed = False

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
        """A connection that nobody else uses meanwhile."""
        async with self._turns:
            connection = self._take_idle() or await self._open_connection()
            try:
                yield connection
            except StatementError:
                await self._put_back(connection)
                raise
            except BaseException:
                connection.terminate()
                raise
            await self._put_back(connection)

    async def _put_back(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        if self._is_closed:
            await close_connection(connection)
        else:
            self._idle.append(connection)

    def _take_idle(self) -> asyncpg.Connection[asyncpg.Record] | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        return None

    async def close(self) -> None:
        self._is_closed = True
        while self._idle:
            await close_connection(self._idle.pop())


async def close_connection(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    """End a connection, whether the server still answers or not."""
    try:
        await connection.close(timeout=_CLOSE_TIMEOUT)
    except DRIVER_ERRORS:
        connection.terminate()


def is_unusable(sqlstate: str | None) -> bool:
    """Whether an error of PostgreSQL's says that the store cannot be used now, and nothing about the statement."""
    return sqlstate is not None and (
        sqlstate[:2] in _UNUSABLE_CLASSES or sqlstate == _READ_ONLY or sqlstate in OTHER_SCHEMA
    )


def _is_the_stores_fault(error: Exception) -> bool:
    if isinstance(error, asyncpg.PostgresError):
        return is_unusable(error.sqlstate)
    # A ValueError of the driver's is about an argument, which it shows.
    return not isinstance(error, ValueError)


def take_columns(rows: Sequence[Sequence[Any]], width: int) -> Sequence[Sequence[Any]]:
    """The columns of rows of `width` values, as the arrays that a statement unnests together.

    A column without any value is left empty, and `unnest` fills it up: the driver takes its time over each None.
    """
    if not rows:
        return [()] * width
    return [() if column.count(None) == len(column) else column for column in zip(*rows, strict=True)]
