"""A session with JetStream, where the client library does otherwise than one would think."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from nats.js import JetStreamContext

from carehook.ledger.jetstream.session import Session
from carehook.ledger.jetstream.stream import Stream


class SilentClient:
    """Takes whatever is published, and acknowledges nothing."""

    _inbox_prefix = bytearray(b"_INBOX")
    _nuid = SimpleNamespace(next=lambda: bytearray(b"n" * 22))

    async def subscribe(self, *_: Any, **__: Any) -> None:
        """Nothing ever comes."""

    async def publish(self, *_: Any, **__: Any) -> None:
        """It is lost."""


@pytest.mark.parametrize("waiting_for", ["a place", "an acknowledgement"])
async def test_who_is_cancelled_while_publishing_is_told_so(waiting_for: str) -> None:
    stream = Stream("installation")
    session: Any = Session(stream)
    client: Any = SilentClient()
    session._jetstream = JetStreamContext(client, publish_async_max_pending=1)
    if waiting_for == "a place":
        await session._jetstream.publish_async("subject", b"")
    publishing = asyncio.create_task(session.publish([stream.order_sweep("now")]))
    await asyncio.sleep(0.05)
    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publishing
