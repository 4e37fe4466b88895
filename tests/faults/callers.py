"""A platform that publishes and drives care while the service is killed, or parted from its store, under it.

Each thread has patients of its own, and begins with an event of a patient when the one before it was accepted. So the
order in which a patient's events were accepted is known without asking the store.
"""

from __future__ import annotations

import copy
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import requests

from carehook.events import CATALOGUE
from tests.faults.asking import Api, Asker, Unexpected

_REPORT = CATALOGUE["patient_report_sent"].example
_HISTORY: Mapping[str, Any] = {"allergies": [], "diseases": [], "medications": []}
_PROFESSIONAL = {"name": "A Doctor", "avatar": "https://platform.example/doctor.png"}
_BATCH: Final = 10
_PATIENTS: Final = 8
"""Of each publisher."""

_PATIENTS_IN_A_BATCH: Final = 3


@dataclass(frozen=True)
class Span:
    """When something was first asked for, and when it was answered, by the monotonic clock of the test."""

    asked: float
    answered: float


class Callers:
    """Threads that call the API, as an operator, for one organization, until the block ends."""

    def __init__(
        self,
        api: Api,
        organization_id: str,
        *,
        publishers: int,
        professionals: int,
        pause: float = 0.01,
    ) -> None:
        self._asker = Asker(api)
        self._pause = pause
        self._organization = f"/v1/organizations/{organization_id}"
        self._threads = [threading.Thread(target=self._run, args=(self._publish, n)) for n in range(publishers)]
        self._threads += [threading.Thread(target=self._run, args=(self._care, n)) for n in range(professionals)]
        self.accepted: dict[str, str] = {}
        """Events that were answered with 202, by id, each with the mark that tells it from the others."""
        self.of_patients: defaultdict[str, list[str]] = defaultdict(list)
        """The same by their patients, in the order in which they were accepted."""
        self.reports: dict[str, str] = {}
        """Reports whose sending was answered, by id, each with its event."""
        self.finished: set[str] = set()
        """Consultations of which an answer said that they are finished."""
        self.spans: dict[str, Span] = {}
        """When each event was published: by its mark, the id of its report or that of its consultation."""
        self.surprises: list[str] = []
        """What should not have happened."""

    @property
    def repeated(self) -> int:
        """Requests that were not answered."""
        return self._asker.repeated

    @property
    def unavailable(self) -> int:
        """Requests that were answered with 503 and a problem document that says so."""
        return self._asker.unavailable

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._asker.stopping.set()
        for thread in self._threads:
            thread.join()

    def _run(self, call_once: Callable[[requests.Session, int, int], None], number: int) -> None:
        with self._asker.open_session() as session:
            turn = 0
            while not self._asker.stopping.is_set():
                try:
                    call_once(session, number, turn)
                except Unexpected as surprise:
                    self.surprises.append(str(surprise))
                    return
                turn += 1
                time.sleep(self._pause)

    def _publish(self, session: requests.Session, number: int, turn: int) -> None:
        name = f"{number}-{turn}"
        asked = time.monotonic()
        if turn % _BATCH == _BATCH - 1:
            patients = [f"{number}-{(turn + n % _PATIENTS_IN_A_BATCH) % _PATIENTS}" for n in range(_BATCH)]
            marks = [f"batch-{name}-{position}" for position in range(_BATCH)]
            events = {"events": [_build_report(*each) for each in zip(patients, marks, strict=True)]}
            ids = self._ask(session, "POST", "/events/batch", events, {202}, key=f"batch-{name}")["ids"]
        else:
            patients, marks = [f"{number}-{turn % _PATIENTS}"], [f"single-{name}"]
            event = _build_report(patients[0], marks[0])
            ids = [self._ask(session, "POST", "/events", event, {202}, key=marks[0])["id"]]
        span = Span(asked, time.monotonic())
        for event_id, patient, mark in zip(ids, patients, marks, strict=True):
            self.spans[mark] = span
            self.accepted[event_id] = mark
            self.of_patients[patient].append(event_id)

    def _care(self, session: requests.Session, number: int, turn: int) -> None:
        """A consultation from its beginning to its end."""
        name = f"{number}-{turn}"
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
        asked = time.monotonic()
        self.reports[report] = self._ask(session, "POST", f"{path}/reports", content, {201})["event_id"]
        self.spans[report] = Span(asked, time.monotonic())
        self._ask(session, "POST", f"{path}/prescriptions", {"id": "p", "active_substances": ["a"]}, {201})
        asked = time.monotonic()
        # 409: it was finished the first time, and the answer got lost.
        self._ask(session, "POST", f"{path}/finish", {"end_date": "2024-01-01T00:30:00"}, {200, 409})
        self.finished.add(consultation)
        self.spans[consultation] = Span(asked, time.monotonic())

    def _ask(
        self,
        session: requests.Session,
        method: str,
        path: str,
        body: Any,
        expected: Collection[int],
        key: str | None = None,
    ) -> Any:
        """The body of the answer to a request that is repeated until there is one."""
        path = path if path.startswith("/v1") else self._organization + path
        return self._asker.ask(session, method, path, body, expected=expected, key=key).body


def _build_report(patient_code: str, mark: str) -> Any:
    event: Any = copy.deepcopy(dict(_REPORT))
    event["payload"]["patient"]["code"] = patient_code
    event["payload"]["content"]["plan"] = mark
    return event
