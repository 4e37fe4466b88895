"""SQLAlchemy's connections to PostgreSQL: sound when they are handed out, and ended where the server falls silent.

A server that is gone is noticed by the kernel. One that is there and does not go on, as where its disk stands still, is
not: its connection is then ended from our side, which whoever waits for it sees as a connection that was lost. To
cancel the waiting instead would have the driver ask the same server to cancel the statement, and wait for that.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, Self

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from carehook.ledger.connections.postgresql import CONNECT_TIMEOUT, STATEMENT_TIMEOUT, read_numbers, watch_socket
from carehook.ledger.connections.tls import TLS_OPTIONS, build_tls

_SETTINGS: Final = {
    "application_name": "carehook",
    # So that what is counted under a lock is counted as it is then, whatever the server's default is.
    "default_transaction_isolation": "read committed",
    # A process that stands still in a transaction, or whose host is gone, holds what it has locked for no longer.
    # Whoever waits for that can still record what was answered meanwhile before its lease is over.
    "idle_in_transaction_session_timeout": "10s",
    "tcp_keepalives_idle": "30s",
    "tcp_keepalives_interval": "10s",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "60s",
}

BE_PATIENT: Final = sa.text("SET LOCAL idle_in_transaction_session_timeout = '10min'")
"""For a transaction in which something else may be waited for, as a slow disk while what it needs is loaded."""

_IS_NEW: Final = "is new"


def create_engine(url: URL, pool_size: int) -> AsyncEngine:
    """An engine on PostgreSQL, which opens nothing until it is first used."""
    engine = create_async_engine(
        url.difference_update_query(TLS_OPTIONS),
        pool_size=pool_size,
        pool_timeout=STATEMENT_TIMEOUT,
        hide_parameters=True,
        connect_args={
            "ssl": build_tls(url),
            "server_settings": dict(_SETTINGS),
            # The driver's own patience is a minute.
            "timeout": CONNECT_TIMEOUT,
            **read_numbers(url),
        },
    )
    event.listen(engine.sync_engine, "connect", _greet)
    event.listen(engine.sync_engine, "checkout", _try_out)
    return engine


class Deadline:
    """Ends a connection that is in use for longer than it may be."""

    def __init__(self, driver: Any, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(seconds, driver.terminate)

    @classmethod
    async def set(cls, connection: AsyncConnection, seconds: float) -> Self:
        """One for a connection of SQLAlchemy's, from now on."""
        return cls((await connection.get_raw_connection()).driver_connection, seconds)

    @property
    def is_over(self) -> bool:
        """Whether the connection was ended, unless that was called off before."""
        return self._timer.when() <= self._loop.time()

    def call_off(self) -> None:
        """The connection is in use no more."""
        self._timer.cancel()


def _greet(connection: Any, record: Any) -> None:
    record.info[_IS_NEW] = True
    watch_socket(connection.driver_connection)


def _try_out(connection: Any, record: Any, _: object) -> None:
    """Have SQLAlchemy open another connection, where one that was idle is lost, and trust none that is as old."""
    if record.info.pop(_IS_NEW, False):
        return
    deadline = Deadline(connection.driver_connection, CONNECT_TIMEOUT)
    try:
        connection.ping()
    except Exception as error:
        raise sa.exc.InvalidatePoolError from error
    finally:
        deadline.call_off()
