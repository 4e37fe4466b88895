"""Asking the API of a service that is mistreated.

Whoever was not answered, or answered with 503, cannot know whether what was asked was done, and asks again until there
is an answer. That is what the documentation tells platforms to do.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import requests

_PAUSE_BEFORE_REPEATING: Final = 0.05
_PATIENCE: Final = 60.0
"""Seconds for which a request is repeated after the end of the load."""

_TIMEOUT: Final = 30.0
"""Seconds."""


class Api:
    """The API as an operator calls it."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self.token = token

    def get_readiness(self) -> int | None:
        """The status by which it says whether it can work; None where it says nothing."""
        try:
            return requests.get(f"{self.url}/readyz", timeout=_TIMEOUT).status_code
        except requests.RequestException:
            return None

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """What it answers. Raises `requests.RequestException` where that is no success."""
        headers = {"authorization": f"Bearer {self.token}"}
        answer = requests.request(method, f"{self.url}{path}", json=body, headers=headers, timeout=_TIMEOUT)
        answer.raise_for_status()
        return answer.json() if answer.content else None


class Unexpected(Exception):
    """An answer that no fault explains."""


@dataclass(frozen=True)
class Answer:
    """What was answered in the end, and how often it had to be asked for."""

    status: int
    body: Any
    tries: int


class Asker:
    """Asks `api` until it is answered. Several threads may, each in a session of its own."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._headers = {"authorization": f"Bearer {api.token}"}
        self.stopping = threading.Event()
        """Set once there is no more to be done; what was begun is still asked for, but not for ever."""
        self.repeated = 0
        """Requests that were not answered."""
        self.unavailable = 0
        """Requests that were answered with 503 and a problem document that says so."""

    def open_session(self) -> requests.Session:
        """A session that keeps its connection."""
        session = requests.Session()
        session.trust_env = False
        return session

    def ask(
        self,
        session: requests.Session,
        method: str,
        path: str,
        body: Any = None,
        *,
        expected: Collection[int],
        key: str | None = None,
        once: bool = False,
    ) -> Answer:
        """The answer, one of those `expected`; with `once`, status 0 where there was none to the first request.

        Raises `Unexpected` for another.
        """
        headers = self._headers | ({"idempotency-key": key} if key else {})
        patience, tries = _PATIENCE, 0
        while patience > 0:
            tries += 1
            try:
                answer = session.request(method, self._api.url + path, json=body, headers=headers, timeout=_TIMEOUT)
            except requests.RequestException:
                self.repeated += 1
            else:
                if answer.status_code in expected:
                    return Answer(answer.status_code, answer.json() if answer.content else None, tries)
                if not _is_unavailable(answer):
                    raise Unexpected(f"{method} {path} was answered {answer.status_code}: {answer.text}")
                self.unavailable += 1
            if once:
                return Answer(0, None, tries)
            time.sleep(_PAUSE_BEFORE_REPEATING)
            patience -= _PAUSE_BEFORE_REPEATING if self.stopping.is_set() else 0
        raise Unexpected(f"{method} {path} was never answered")


def _is_unavailable(answer: requests.Response) -> bool:
    """Whether it says in our own words (RFC 9457) that nothing is known and the request is to be repeated."""
    if answer.status_code != 503 or answer.headers["content-type"] != "application/problem+json":
        return False
    problem = answer.json()
    return problem["type"] == "/problems/unavailable" and problem["status"] == 503 and "repeat it" in problem["detail"]
