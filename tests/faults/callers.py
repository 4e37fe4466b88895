"""A platform that publishes and drives care while the service is killed, or parted from its store, under it.

A caller whose request was not answered, or answered with 503, cannot know whether it was accepted, so it repeats it,
with the same `Idempotency-Key` or ids, until it is answered. That is what the documentation tells platforms to do.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import Any, Self

import requests

from carehook.events import CATALOGUE

_REPORT = CATALOGUE["patient_report_sent"].example
_HISTORY: Mapping[str, Any] = {"allergies": [], "diseases": [], "medications": []}
_PROFESSIONAL = {"name": "A Doctor", "avatar": "https://platform.example/doctor.png"}
_PAUSE_BEFORE_REPEATING = 0.05
_BATCH = 10
_PATIENCE = 60.0
"""Seconds for which a request is repeated after the end of the load."""


class Callers:
    """Threads that call the API of `url`, as an operator, for one organization, until the block ends."""

    def __init__(
        self,
        url: str,
        token: str,
        organization_id: str,
        *,
        publishers: int,
        professionals: int,
        pause: float = 0.01,
    ) -> None:
        self._url = url
        self._pause = pause
        self._headers = {"authorization": f"Bearer {token}"}
        self._organization = f"/v1/organizations/{organization_id}"
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(self._publish, n)) for n in range(publishers)]
        self._threads += [threading.Thread(target=self._run, args=(self._care, n)) for n in range(professionals)]
        self.accepted: dict[str, str] = {}
        """Events that were answered with 202, by id, each with the patient code that tells it from the others."""
        self.reports: dict[str, str] = {}
        """Reports whose sending was answered, by id, each with its event."""
        self.finished: set[str] = set()
        """Consultations of which an answer said that they are finished."""
        self.repeated = 0
        """Requests that were not answered."""
        self.unavailable = 0
        """Requests that were answered with 503 and a problem document that says so."""
        self.surprises: list[str] = []
        """What should not have happened."""

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _run(self, call_once: Callable[[requests.Session, str], None], number: int) -> None:
        with requests.Session() as session:
            session.trust_env = False
            turn = 0
            while not self._stopping.is_set():
                try:
                    call_once(session, f"{number}-{turn}")
                except Unexpected as surprise:
                    self.surprises.append(str(surprise))
                    return
                turn += 1
                time.sleep(self._pause)

    def _publish(self, session: requests.Session, name: str) -> None:
        if name.endswith("7"):
            codes = [f"batch-{name}-{position}" for position in range(_BATCH)]
            events = {"events": [_build_report(code) for code in codes]}
            ids = self._ask(session, "POST", "/events/batch", events, {202}, key=f"batch-{name}")["ids"]
            self.accepted.update(zip(ids, codes, strict=True))
        else:
            code = f"single-{name}"
            answer = self._ask(session, "POST", "/events", _build_report(code), {202}, key=code)
            self.accepted[answer["id"]] = code

    def _care(self, session: requests.Session, name: str) -> None:
        """A consultation from its beginning to its end."""
        patient, consultation, report = f"care-{name}", f"consultation-{name}", f"report-{name}"
        self._ask(session, "PUT", f"/patients/{patient}", _HISTORY, {200})
        self._ask(session, "PUT", "/v1/professionals/doctor", _PROFESSIONAL, {200})
        began = {
            "id": consultation,
            "type": "chat",
            "patient_code": patient,
            "professional_id": "doctor",
            # Said, for clocks may jump between the beginning and the end.
            "start_date": "2024-01-01T00:00:00",
            "speciality": {"id": 1, "name": "Medicina General"},
        }
        self._ask(session, "POST", "/consultations", began, {201})
        path = f"/consultations/{consultation}"
        content = {"id": report, "type": "soap", "content": _REPORT["payload"]["content"]}
        self.reports[report] = self._ask(session, "POST", f"{path}/reports", content, {201})["event_id"]
        self._ask(session, "POST", f"{path}/prescriptions", {"id": "p", "active_substances": ["a"]}, {201})
        # 409: it was finished the first time, and the answer got lost.
        self._ask(session, "POST", f"{path}/finish", {"end_date": "2024-01-01T00:30:00"}, {200, 409})
        self.finished.add(consultation)

    def _ask(
        self,
        session: requests.Session,
        method: str,
        path: str,
        body: Any,
        expected: Collection[int],
        key: str | None = None,
    ) -> Any:
        """The answer to a request that is repeated until there is one."""
        url = self._url + (path if path.startswith("/v1") else self._organization + path)
        headers = self._headers | ({"idempotency-key": key} if key else {})
        patience = _PATIENCE
        while patience > 0:
            try:
                answer = session.request(method, url, json=body, headers=headers, timeout=30)
            except requests.RequestException:
                self.repeated += 1
            else:
                if answer.status_code in expected:
                    return answer.json() if answer.content else None
                if not _is_unavailable(answer):
                    raise Unexpected(f"{method} {path} was answered {answer.status_code}: {answer.text}")
                self.unavailable += 1
            time.sleep(_PAUSE_BEFORE_REPEATING)
            patience -= _PAUSE_BEFORE_REPEATING if self._stopping.is_set() else 0
        raise Unexpected(f"{method} {path} was never answered")


class Unexpected(Exception):
    """An answer that no fault explains."""


def _is_unavailable(answer: requests.Response) -> bool:
    """Whether it says in our own words (RFC 9457) that nothing is known and the request is to be repeated."""
    if answer.status_code != 503 or answer.headers["content-type"] != "application/problem+json":
        return False
    problem = answer.json()
    return problem["type"] == "/problems/unavailable" and problem["status"] == 503 and "repeat it" in problem["detail"]


def _build_report(patient_code: str) -> Any:
    event: Any = copy.deepcopy(dict(_REPORT))
    event["payload"]["patient"]["code"] = patient_code
    return event
