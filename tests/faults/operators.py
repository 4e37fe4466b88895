"""People who intervene while all is mistreated: pause, resume, change, delete, resend, retry, cancel, recover.

Each does one thing at a time, and asks until there is an answer. What they were told is kept, for it must hold.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from random import Random
from types import TracebackType
from typing import Any, Final, Self

from tests.faults.asking import Api, Asker, Unexpected
from tests.faults.callers import Span
from tests.faults.endpoints import Endpoint, Registered
from tests.faults.interventions import Interventions, Silence
from tests.faults.recipients import FailingReceiver

_FOREVER: Final = float("inf")
_PAGES: Final = 25
"""Of deliveries that are looked through at most, to see which are in flight."""

_RECENT: Final = 300
"""Requests among which one is sent again."""


class Operators:
    """A thread that intervenes, at random, at the lasting endpoints and at one that comes and goes.

    The last of those that come and go is left paused when the block ends; every other endpoint receives then.
    """

    def __init__(
        self, api: Api, registered: Registered, passing: FailingReceiver, chance: Random, pause: float
    ) -> None:
        self._asker = Asker(api)
        self._registered = registered
        self._receiver = passing
        self._chance = chance
        self._pause = pause
        self._thread = threading.Thread(target=self._run)
        self._strike: Callable[[], object] | None = None
        self._struck = threading.Event()
        self._numbers = 0
        self.interventions = Interventions()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._asker.stopping.set()
        self._thread.join()

    def strike_after_the_next_change(self, strike: Callable[[], object]) -> threading.Event:
        """Call `strike` as soon as the next change was answered, of an endpoint or a delivery; set once it was."""
        self._struck = threading.Event()
        self._strike = strike
        return self._struck

    def _run(self) -> None:
        with self._asker.open_session() as self._session:
            try:
                self._create()
                # Each once, so that a short run has seen it; then at random.
                first = list(_ACTIONS)
                self._chance.shuffle(first)
                while not self._asker.stopping.is_set():
                    self._resume_what_is_disabled()
                    (first.pop() if first else self._chance.choice(_ACTIONS))(self)
                    self._wait_a_while()
                self._finish()
            except Unexpected as surprise:
                self.interventions.surprises.append(str(surprise))

    def _finish(self) -> None:
        self._resume_what_is_disabled()
        last = self._registered.passing[-1]
        self._act(last, "pause", expected={200, 409})
        last.is_paused = True

    def _wait_a_while(self) -> None:
        self._asker.stopping.wait(self._chance.uniform(0, 2 * self._pause))

    # ---------------------------------------------------------------- endpoints

    def pause(self) -> None:
        """Pause an endpoint and resume it; between the two nothing is claimed."""
        endpoint = self._choose()
        answered = self._act(endpoint, "pause", expected={200, 409})
        in_flight, since = self._list_in_flight(endpoint, "pending", "held"), time.monotonic()
        self._wait_a_while()
        until = time.monotonic()
        self._act(endpoint, "resume")
        if in_flight is not None:
            self._note(Silence("it was paused", endpoint.id, answered, since, until, in_flight))

    def change_url(self) -> None:
        """Send an endpoint's requests elsewhere; the old URL then gets no more."""
        endpoint = self._choose()
        old_path, endpoint.revision = endpoint.path, endpoint.revision + 1
        self._ask("PATCH", f"/v1/endpoints/{endpoint.id}", {"url": endpoint.url})
        answered = self._answered("change_url")
        in_flight = self._list_in_flight(endpoint, "pending", "held")
        if in_flight is not None:
            silence = Silence(
                "its URL was changed", endpoint.id, answered, time.monotonic(), _FOREVER, in_flight, old_path
            )
            self._note(silence)

    def change_rules(self) -> None:
        """Give the first endpoint an order and a limit, or take them away: what waits must go on by the new rules."""
        rules = {"ordering": self._chance.choice(["none", "patient"]), "max_in_flight": self._chance.choice([None, 20])}
        # 409: too much waits.
        self._ask("PATCH", f"/v1/endpoints/{self._registered.lasting[0].id}", rules, {200, 409})
        self._answered("change_rules")

    def replace(self) -> None:
        """Delete the endpoint that comes and goes, and create another."""
        endpoint = self._registered.passing[-1]
        asked = time.monotonic()
        # 404: it was deleted the first time, and the answer got lost.
        endpoint.deleted = Span(asked, _FOREVER)
        self._ask("DELETE", f"/v1/endpoints/{endpoint.id}", expected={204, 404})
        answered = self._answered("delete")
        endpoint.deleted = Span(asked, answered)
        in_flight = self._list_in_flight(endpoint, "pending", "held", "cancelled")
        if in_flight is not None:
            self._note(Silence("it was deleted", endpoint.id, answered, time.monotonic(), _FOREVER, in_flight))
        self._create()

    def recover(self) -> None:
        """Let all that failed at an endpoint within a minute be attempted at once."""
        since = datetime.now(UTC) - timedelta(minutes=1)
        self._act(self._choose(), "recover", {"since": since.isoformat()}, expected={202, 409})

    def _create(self) -> None:
        """An endpoint under a name of its own for each try: nobody knows the secrets of one that was not answered."""
        tried = []
        while True:
            self._numbers += 1
            endpoint = Endpoint("", f"passing-{self._numbers}", self._receiver)
            tried.append(endpoint.url)
            asked = time.monotonic()
            body = {"url": endpoint.url, **endpoint.fields}
            answer = self._asker.ask(
                self._session, "POST", f"{self._registered.path}/endpoints", body, expected={201}, once=True
            )
            if answer.status == 201:
                break
            self._wait_a_while()
        endpoint.id = answer.body["id"]
        endpoint.created = Span(asked, self._answered("create"))
        endpoint.receiver.expect(endpoint.name, answer.body["signature_value"], answer.body["signing_secret"])
        self._registered.passing.append(endpoint)
        if len(tried) > 1:
            for found in self._ask("GET", f"{self._registered.path}/endpoints?limit=200")["data"]:
                if found["url"] in tried[:-1]:
                    self._ask("DELETE", f"/v1/endpoints/{found['id']}", expected={204, 404})

    def _resume_what_is_disabled(self) -> None:
        for endpoint in self._registered.lasting:
            if self._ask("GET", f"/v1/endpoints/{endpoint.id}")["status"] == "disabled":
                self._act(endpoint, "resume")
                self.interventions.counts["resume_disabled"] += 1

    # ---------------------------------------------------------------- deliveries

    def resend(self) -> None:
        """Send an event again that an endpoint has got."""
        endpoint = self._choose()
        recent = [each.event_id for each in endpoint.receiver.arrivals[-_RECENT:] if each.name == endpoint.name]
        fit = [event_id for event_id in recent if (endpoint.id, event_id) not in self.interventions.cancelled]
        if not fit:
            return
        event_id = self._chance.choice(fit)
        path, body = f"/v1/events/{event_id}/resend", {"endpoint_id": endpoint.id}
        answer = self._asker.ask(self._session, "POST", path, body, expected={202})
        self.interventions.resent[endpoint.id, event_id] += answer.tries
        self._answered("resend")

    def retry(self) -> None:
        """Let a delivery be attempted at once."""
        endpoint = self._choose()
        if (delivery := self._choose_pending(endpoint, in_flight=False)) is not None:
            self.interventions.retried.add((endpoint.id, delivery["event_id"]))
            self._ask("POST", f"/v1/deliveries/{delivery['id']}/retry", expected={202, 409})
            self._answered("retry")

    def cancel(self) -> None:
        """Cancel a delivery; it is then sent no more."""
        endpoint = self._choose()
        if (delivery := self._choose_pending(endpoint, in_flight=True)) is None:
            return
        event_id = delivery["event_id"]
        self.interventions.cancelled.add((endpoint.id, event_id))
        path = f"/v1/deliveries/{delivery['id']}/cancel"
        answer = self._asker.ask(self._session, "POST", path, expected={200, 409})
        answered = self._answered("cancel")
        if answer.status == 200 and answer.body["state"] == "cancelled":
            in_flight = frozenset([event_id] if answer.body["in_flight"] else [])
            self._note(
                Silence("it was cancelled", endpoint.id, answered, answered, _FOREVER, in_flight, event_id=event_id)
            )

    def _choose_pending(self, endpoint: Endpoint, *, in_flight: bool) -> Any:
        """A delivery that goes on and of which nobody wants the opposite; in flight or not, if there is such."""
        done = self.interventions
        fit = [
            each
            for each in self._ask("GET", self._path_of(endpoint, "pending", 50))["data"]
            if (key := (endpoint.id, each["event_id"])) not in done.resent
            and key not in done.retried
            and key not in done.cancelled
        ]
        best = [each for each in fit if each["in_flight"] is in_flight]
        return self._chance.choice(best or fit) if fit else None

    # ---------------------------------------------------------------- asking

    def _choose(self) -> Endpoint:
        return self._chance.choice([*self._registered.lasting, self._registered.passing[-1]])

    def _act(self, endpoint: Endpoint, action: str, body: Any = None, expected: set[int] | None = None) -> float:
        """Do something to an endpoint; the instant at which it was answered."""
        self._ask("POST", f"/v1/endpoints/{endpoint.id}/{action}", body, expected)
        return self._answered(action)

    def _ask(self, method: str, path: str, body: Any = None, expected: set[int] | None = None) -> Any:
        return self._asker.ask(self._session, method, path, body, expected=expected or {200}).body

    def _answered(self, what: str) -> float:
        answered = time.monotonic()
        self.interventions.counts[what] += 1
        if self._strike is not None and what in ("pause", "resume", "delete", "change_url", "cancel"):
            strike, self._strike = self._strike, None
            strike()
            self._struck.set()
        return answered

    def _note(self, silence: Silence) -> None:
        self.interventions.silences.append(silence)

    def _list_in_flight(self, endpoint: Endpoint, *states: str) -> frozenset[str] | None:
        """The events that are in flight to an endpoint; None where there is too much to look through.

        The states are those that a delivery goes through, in that order, so that none slips by.
        """
        found, pages = set(), 0
        for state in states:
            path = first = self._path_of(endpoint, state, 200)
            while True:
                page = self._ask("GET", path)
                found |= {each["event_id"] for each in page["data"] if each["in_flight"]}
                pages += 1
                if page["next_cursor"] is None:
                    break
                if pages == _PAGES:
                    return None
                path = f"{first}&cursor={page['next_cursor']}"
        return frozenset(found)

    def _path_of(self, endpoint: Endpoint, state: str, limit: int) -> str:
        return f"{self._registered.path}/deliveries?endpoint_id={endpoint.id}&state={state}&limit={limit}"


_ACTIONS: Final[tuple[Callable[[Operators], None], ...]] = (
    Operators.pause,
    Operators.change_url,
    Operators.change_rules,
    Operators.replace,
    Operators.recover,
    Operators.resend,
    Operators.retry,
    Operators.cancel,
)
