"""A Carehook on a fresh embedded store, with its worker running: all that the walkthrough needs."""

import asyncio
from collections.abc import AsyncIterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from carehook.application import Application
from carehook.bootstrap import open_carehook
from carehook.config import Settings


@pytest.fixture
async def carehook(tmp_path: Path) -> AsyncIterator[Application]:
    """Carehook at work. Its endpoints may lie on loopback, and a failed attempt is repeated almost at once."""
    settings = Settings(
        home=tmp_path / "home",
        allow_http=True,
        allowed_networks=(ip_network("127.0.0.0/8"),),
        retry_schedule=(0.05, 0.05),
    )
    async with open_carehook(settings) as application:
        working = asyncio.create_task(application.worker.run())
        yield application
        application.worker.stop()
        await working
