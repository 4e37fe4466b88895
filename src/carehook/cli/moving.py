"""`carehook move`: from the embedded store to a server, with everything in it."""

from __future__ import annotations

import asyncio

from carehook.bootstrap import move_embedded_store
from carehook.cli.output import say
from carehook.cli.session import log_to_stderr
from carehook.config import load_settings


def move(target_url: str) -> None:
    """Move the embedded store that the settings name to the server at `target_url`. Raises what kept it from it."""
    log_to_stderr("warning")
    counts = asyncio.run(move_embedded_store(load_settings(), target_url))
    for name, count in counts.items():
        if count:
            print(f"{name:>18}  {count:>10,}")
    say("All of it is in the new store, and the old one is closed for good. Start Carehook with CAREHOOK_DATABASE_URL,")
    say("and with the encryption key of the old home folder.")
