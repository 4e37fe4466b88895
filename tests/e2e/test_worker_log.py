"""What the worker logs while it cannot reach the store."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from carehook.ledger.port import LedgerUnavailable, Queue
from tests.e2e.dispatching import WatchedQueue, eventually, make_settings, open_worker, running


class FailingQueue(WatchedQueue):
    """A real queue whose first claim fails."""

    def __init__(self, queue: Queue, error: Exception) -> None:
        super().__init__(queue)
        self.broken = 1
        self._error = error

    def _fail_if_broken(self) -> None:
        if self.broken:
            self.broken -= 1
            raise self._error


@pytest.mark.parametrize(
    ("error", "reason", "has_places"),
    [
        (LedgerUnavailable("the database does not answer"), "the database does not answer", False),
        (RuntimeError("a bug"), None, True),
    ],
)
async def test_a_store_that_is_away_is_logged_by_its_reason_and_a_bug_by_its_places(
    tmp_path: Path, error: Exception, reason: str | None, *, has_places: bool
) -> None:
    settings = make_settings(tmp_path)
    with capture_logs() as logs:
        async with open_worker(settings, wrap=lambda queue: FailingQueue(queue, error)) as worker, running(worker):

            async def logged() -> bool:
                return any(line["event"] == "claim_failed" for line in logs)

            await eventually(logged, "log line")
    line = next(line for line in logs if line["event"] == "claim_failed")
    assert line["log_level"] == "error"
    assert line.get("reason") == reason
    assert (line.get("exc_info") is error) is has_places
