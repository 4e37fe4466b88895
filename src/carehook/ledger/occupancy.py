"""Who has an embedded store open: everybody who works on it together, or one who must be alone.

A lock on a file beside the database tells; it goes with its process, however that ends.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from carehook.ledger.connections.database import Database
from carehook.ledger.port import LedgerUnavailable


@contextmanager
def occupy(database: Database, *, alone: bool = False) -> Iterator[None]:
    """Hold the store for as long as the block runs. A server's store is not held: its own tools move it.

    Raises LedgerUnavailable where somebody else has it alone, or with `alone` where anybody has it.
    """
    if not database.is_sqlite:
        yield
        return
    path = f"{database.url.database}.users"
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise LedgerUnavailable(f"the file {path} cannot be opened: {reason}", rule="cannot be opened") from None
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise _refuse(alone) from None
    try:
        yield
    finally:
        os.close(descriptor)


def _refuse(alone: bool) -> LedgerUnavailable:
    if alone:
        return LedgerUnavailable("a Carehook works on this store: stop it first", rule="is in use")
    return LedgerUnavailable("this store is being moved to another: wait until that is done", rule="is being moved")
