"""Who begins next: nobody passes a limit, nobody is starved, nothing that was claimed is lost or begun twice."""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from carehook.dispatch import lanes as lanes_module
from carehook.dispatch.lanes import Lanes
from carehook.dispatch.window import FAILURES_IN_A_ROW, START, Ending
from carehook.ledger.records import ClaimedDelivery, Endpoint
from carehook.ledger.states import EndpointStatus

NOW = datetime(2024, 1, 1, tzinfo=UTC)
LATEST = NOW + timedelta(seconds=20)
"""Leases must last longer than this for a delivery to begin."""

ASKED_AT = 100.0
"""When the store was asked, in seconds of some clock."""

TRUSTED = 3
"""For how long it is trusted, where that matters."""

SLOW, FAST = 1.0, 0.001
"""How long an answer took, in seconds."""


def claim(endpoint_id: str, number: int = 0, *, lease: float = 45.0, revision: int = 0) -> ClaimedDelivery:
    """A delivery as the queue hands it out."""
    endpoint = Endpoint(
        id=endpoint_id,
        organization_id="org_1",
        url="https://example.com/hook",
        description="",
        event_types=(),
        status=EndpointStatus.ACTIVE,
        status_reason=None,
        sealed_secrets=b"",
        created_at=NOW,
        updated_at=NOW,
        revision=revision,
    )
    return ClaimedDelivery(
        id=f"{endpoint_id}-{number}",
        lease_token=1,
        lease_until=NOW + timedelta(seconds=lease),
        attempt_count=0,
        failure_count=0,
        event_id=f"evt_{number}",
        event_type="patient_report_sent",
        accepted_at=NOW,
        body=b"{}",
        endpoint=endpoint,
    )


def claim_many(endpoint_id: str, count: int, *, lease: float = 45.0, revision: int = 0) -> list[ClaimedDelivery]:
    return [claim(endpoint_id, number, lease=lease, revision=revision) for number in range(count)]


def begin_all(lanes: Lanes) -> list[str]:
    """The endpoints of all that may begin, in their order."""
    begun = []
    while (delivery := lanes.begin(LATEST, ASKED_AT)) is not None:
        begun.append(delivery.endpoint.id)
    return begun


def fill(lanes: Lanes, endpoint_id: str, count: int = 1000) -> int:
    """Claim of an endpoint with a long backlog what there is room for, and begin what may begin; how many did."""
    lanes.add(claim_many(endpoint_id, min(count, max(0, lanes.room(endpoint_id)))), ASKED_AT)
    return len(begin_all(lanes))


def prove(lanes: Lanes, endpoint_id: str, rounds: int = 1, seconds: float = SLOW) -> None:
    """Let an endpoint answer all it is sent, until nothing is in flight to it."""
    for _ in range(rounds):
        for _ in range(fill(lanes, endpoint_id)):
            lanes.end(endpoint_id, Ending.SUCCEEDED, seconds)
        while begun := begin_all(lanes):
            for _ in begun:
                lanes.end(endpoint_id, Ending.SUCCEEDED, seconds)


# Windows.


def test_an_unknown_endpoint_gets_a_few_requests_and_nothing_is_claimed_ahead() -> None:
    lanes = Lanes(1024, 64)
    assert lanes.room("a") == START
    assert fill(lanes, "a") == START
    assert lanes.room("a") <= 0
    assert (lanes.in_flight, lanes.waiting) == (START, 0)


def test_an_endpoint_that_answers_gets_more_and_as_much_is_claimed_ahead() -> None:
    lanes = Lanes(1024, 64)
    prove(lanes, "a", rounds=4)
    assert lanes.room("a") == 128
    assert fill(lanes, "a") == 64
    assert lanes.waiting == 64
    assert lanes.room("a") <= 0


def test_an_endpoint_that_does_not_answer_is_left_with_one_request() -> None:
    lanes = Lanes(1024, 64)
    prove(lanes, "a", rounds=4)
    for _ in range(fill(lanes, "a")):
        lanes.end("a", Ending.UNANSWERED, SLOW)
    lanes.withdraw(LATEST)
    assert lanes.held == 0, "what was claimed ahead is given back"
    assert fill(lanes, "a") == 1
    assert lanes.room("a") <= 0


def test_an_attempt_that_says_nothing_of_the_endpoint_changes_no_window() -> None:
    lanes = Lanes(1024, 64)
    for _ in range(fill(lanes, "a")):
        lanes.end("a", Ending.UNTOLD, SLOW)
    assert lanes.room("a") == START


def test_an_answer_lets_two_begin_where_one_was() -> None:
    lanes = Lanes(1024, 64)
    fill(lanes, "a")
    lanes.add(claim_many("a", 10), ASKED_AT)
    assert begin_all(lanes) == []
    lanes.end("a", Ending.SUCCEEDED, SLOW)
    assert begin_all(lanes) == ["a", "a"]


# Shares.


def test_the_fewer_an_endpoint_has_in_flight_the_sooner_it_goes_on() -> None:
    lanes = Lanes(1024, 64)
    lanes.add(claim_many("busy", 3), ASKED_AT)
    assert begin_all(lanes) == ["busy"] * 3
    lanes.add(claim_many("busy", 2) + claim_many("new", 5), ASKED_AT)
    assert begin_all(lanes) == ["new"] * 3 + ["busy", "new", "busy", "new"]


def test_equals_take_turns_however_much_each_has_waiting() -> None:
    lanes = Lanes(1024, 64)
    lanes.add(claim_many("a", 7) + claim_many("b", 2) + claim_many("c", 2), ASKED_AT)
    assert begin_all(lanes) == ["a", "b", "c", "a", "b", "c", "a", "a", "a", "a", "a"]


def test_requests_in_flight_never_pass_the_limit_of_all() -> None:
    lanes = Lanes(10, 64)
    for number in range(50):
        lanes.add(claim_many(f"ep_{number}", 8), ASKED_AT)
    assert len(begin_all(lanes)) == 10
    assert lanes.in_flight == 10


@pytest.mark.parametrize("hogs", [100, 300, 890])
@pytest.mark.parametrize("rounds", [0, 4], ids=["never answered", "answered until now"])
def test_however_many_endpoints_hang_others_find_a_place(hogs: int, rounds: int) -> None:
    lanes = Lanes(1024, 64)
    for number in range(hogs):
        prove(lanes, f"hog_{number}", rounds=rounds)
    for _ in range(8):
        for number in range(hogs):
            fill(lanes, f"hog_{number}", count=1)
    assert 1024 - lanes.in_flight >= 120
    for number in range(100):
        assert fill(lanes, f"new_{number}") >= 1


def test_endpoints_that_never_answered_take_half_of_the_places_but_for_one_request_each() -> None:
    lanes = Lanes(1024, 64)
    for number in range(60):
        fill(lanes, f"dead_{number}")
    assert lanes.in_flight == 60 * START
    for number in range(60):
        fill(lanes, f"more_dead_{number}")
    assert 512 <= lanes.in_flight <= 512 + 60


@pytest.mark.parametrize("first", ["proven", "new"])
def test_whether_an_endpoint_has_answered_does_not_decide_among_equals(first: str) -> None:
    lanes = Lanes(1024, 64)
    prove(lanes, "proven")
    second = "new" if first == "proven" else "proven"
    lanes.add([claim(first, 1), claim(second, 1), claim(first, 2)], ASKED_AT)
    assert begin_all(lanes) == [first, second, first]


def test_one_endpoint_alone_gets_its_limit_of_a_worker_with_the_usual_limits() -> None:
    lanes = Lanes(1024, 64)
    prove(lanes, "a", rounds=4)
    assert fill(lanes, "a") == 64


@pytest.mark.parametrize("concurrency", [1, 2, 3, 8])
def test_every_worker_has_a_place_for_an_endpoint(concurrency: int) -> None:
    lanes = Lanes(concurrency, 1)
    assert fill(lanes, "a") == 1
    lanes.end("a", Ending.SUCCEEDED, SLOW)
    assert fill(lanes, "a") == 1


# Claims.


def test_small_claims_are_put_off_while_enough_is_claimed_ahead() -> None:
    lanes = Lanes(1024, 64)
    prove(lanes, "a", rounds=4)
    fill(lanes, "a")
    asked = []
    for _ in range(40):
        lanes.end("a", Ending.SUCCEEDED, SLOW)
        assert begin_all(lanes) == ["a"]
        asked.append(lanes.room("a"))
    assert asked == [0] * 31 + list(range(32, 41))


def test_the_queue_is_told_once_there_is_room_for_what_it_was_refused() -> None:
    lanes = Lanes(1024, 64)
    fill(lanes, "a")
    assert lanes.room("a") == 0
    assert lanes.end("a", Ending.UNTOLD, SLOW)
    assert not lanes.end("a", Ending.UNTOLD, SLOW), "it knows already"


def test_the_queue_is_told_nothing_where_it_gave_less_than_was_asked_for() -> None:
    lanes = Lanes(1024, 64)
    assert fill(lanes, "a", count=START - 1) == START - 1
    assert not lanes.end("a", Ending.SUCCEEDED, SLOW)


def test_the_queue_is_told_of_room_where_it_gave_all_that_was_asked_for() -> None:
    lanes = Lanes(1024, 64)
    assert fill(lanes, "a") == START
    assert lanes.end("a", Ending.SUCCEEDED, SLOW)


def test_the_faster_an_endpoint_answers_the_more_is_claimed_ahead() -> None:
    lanes = Lanes(1024, 64)
    prove(lanes, "a", rounds=4, seconds=FAST)
    assert lanes.room("a") == 64 + 4 * 64
    fill(lanes, "a")
    assert (lanes.in_flight, lanes.waiting) == (64, 256)
    assert lanes.withdraw(LATEST) == []


@pytest.mark.parametrize("endpoints", [10, 100, 300])
def test_the_more_endpoints_are_busy_the_less_is_claimed_ahead_of_each(endpoints: int) -> None:
    lanes = Lanes(1024, 64)
    names = [f"busy_{number}" for number in range(endpoints)]
    for name in names:
        prove(lanes, name, rounds=4, seconds=FAST)
    for _ in range(80):
        for name in names:
            lanes.add(claim_many(name, min(4, max(0, lanes.room(name)))), ASKED_AT)
            begin_all(lanes)
    assert lanes.held < 2 * 1024, "there is room for who comes next"
    assert lanes.room("new") >= 1


# Leases.


def test_what_waits_until_its_lease_would_be_over_is_not_begun_but_given_back() -> None:
    lanes = Lanes(1024, 64)
    late, early = claim("a", 1, lease=20), claim("a", 2, lease=21)
    lanes.add([late, early], ASKED_AT)
    assert lanes.begin(LATEST, ASKED_AT) == early
    assert lanes.begin(LATEST, ASKED_AT) is None
    assert lanes.withdraw(LATEST) == [late]
    assert (lanes.in_flight, lanes.waiting) == (1, 0)


def test_what_waits_for_a_place_is_given_back_in_time() -> None:
    lanes = Lanes(1, 1)
    fill(lanes, "a")
    waiting = claim("b", 1, lease=30)
    lanes.add([waiting], ASKED_AT)
    assert lanes.withdraw(LATEST) == []
    assert lanes.withdraw(NOW + timedelta(seconds=30)) == [waiting]
    assert lanes.held == 1


def test_what_was_claimed_ahead_of_an_endpoint_that_stops_answering_is_given_back() -> None:
    lanes = Lanes(1024, 64)
    prove(lanes, "a", rounds=4)
    fill(lanes, "a")
    assert lanes.withdraw(LATEST) == []
    for _ in range(7):
        lanes.end("a", Ending.UNANSWERED, SLOW)
    withdrawn = lanes.withdraw(LATEST)
    assert len(withdrawn) == 64
    assert (lanes.in_flight, lanes.waiting) == (57, 0)


def test_what_was_claimed_ahead_of_an_endpoint_that_fails_is_given_back_before_all_of_it_has_failed() -> None:
    lanes = Lanes(1024, 64)
    prove(lanes, "a", rounds=4, seconds=FAST)
    fill(lanes, "a")
    attempted = 64
    for _ in range(FAILURES_IN_A_ROW):
        lanes.end("a", Ending.FAILED, FAST)
        attempted += len(begin_all(lanes))
    assert attempted <= 64 + FAILURES_IN_A_ROW
    assert len(lanes.withdraw(LATEST)) >= 256 - FAILURES_IN_A_ROW
    assert lanes.held <= 64


def test_what_was_given_back_is_asked_for_again_when_there_is_room() -> None:
    lanes = Lanes(1024, 64)
    prove(lanes, "a")
    lanes.room("a")
    lanes.add(claim_many("a", 20), ASKED_AT)
    begun = begin_all(lanes)
    for _ in begun[:-1]:
        lanes.end("a", Ending.UNANSWERED, SLOW)
    assert lanes.withdraw(LATEST)
    assert lanes.end("a", Ending.SUCCEEDED, SLOW)


# What changes in the store.


def test_what_was_claimed_ahead_of_an_endpoint_that_changed_is_given_back_and_does_not_begin() -> None:
    lanes = Lanes(1024, 64)
    changed, others = claim_many("a", START + 4, revision=1), claim_many("b", START + 4)
    lanes.add([*changed, *others], ASKED_AT)
    begin_all(lanes)
    asked = lanes.find_waiting()
    assert asked == [*changed[START:], *others[START:]]
    lanes.confirm(asked, changed[START:], ASKED_AT)
    lanes.end("a", Ending.SUCCEEDED, SLOW)
    assert begin_all(lanes) == []
    assert lanes.withdraw(LATEST) == changed[START:]
    lanes.end("b", Ending.SUCCEEDED, SLOW)
    assert begin_all(lanes) == ["b", "b"]
    assert lanes.find_waiting() == others[START + 2 :]


def test_a_delivery_that_is_not_to_be_sent_any_more_is_given_back_alone_and_the_others_keep_their_order() -> None:
    lanes = Lanes(1024, 64)
    first, cancelled, last = claim_many("a", 3)
    lanes.add([first, cancelled, last], ASKED_AT)
    lanes.confirm(lanes.find_waiting(), [cancelled], ASKED_AT + 1)
    assert [lanes.begin(LATEST, ASKED_AT + 1) for _ in range(3)] == [first, last, None], "their endpoint is as it was"
    assert lanes.withdraw(LATEST) == [cancelled]
    assert (lanes.in_flight, lanes.waiting) == (2, 0)


def test_one_that_is_not_to_be_sent_any_more_goes_on_where_it_has_begun() -> None:
    lanes = Lanes(1024, 64)
    lanes.add(claim_many("a", 2), ASKED_AT)
    asked = lanes.find_waiting()
    begun = lanes.begin(LATEST, ASKED_AT)
    assert begun == asked[0]
    lanes.confirm(asked, [begun], ASKED_AT + 1)
    assert lanes.withdraw(LATEST) == []
    assert (lanes.in_flight, lanes.waiting) == (1, 1)


def test_a_claim_anew_of_what_was_not_to_be_sent_under_its_old_lease_begins() -> None:
    lanes = Lanes(1024, 64)
    old = claim("a", 1)
    lanes.add([old], ASKED_AT)
    asked, new = lanes.find_waiting(), replace(old, lease_token=2)
    lanes.add([new], ASKED_AT)
    lanes.confirm(asked, [old], ASKED_AT)
    assert [lanes.begin(LATEST, ASKED_AT) for _ in range(2)] == [new, None]
    assert lanes.withdraw(LATEST) == [old]


def test_what_is_claimed_of_a_changed_endpoint_takes_the_place_of_what_was_claimed_before() -> None:
    lanes = Lanes(1024, 64)
    prove(lanes, "a")
    before, anew = claim_many("a", 3, revision=1), claim_many("a", 2, revision=2)
    lanes.add(before, ASKED_AT)
    lanes.add(anew, ASKED_AT)
    assert lanes.find_waiting() == anew
    assert [lanes.begin(LATEST, ASKED_AT) for _ in range(3)] == [*anew, None]
    assert lanes.withdraw(LATEST) == before
    assert (lanes.in_flight, lanes.waiting) == (2, 0)


@pytest.mark.parametrize("is_changed", [True, False])
def test_what_was_claimed_while_the_store_was_asked_is_not_what_it_was_asked_for(is_changed: bool) -> None:
    lanes = Lanes(1024, 64)
    lanes.add([claim("a", 1, revision=1)], ASKED_AT)
    asked = lanes.find_waiting()
    lanes.add([claim("a", 2, revision=2)], ASKED_AT)
    lanes.confirm(asked, asked if is_changed else [], ASKED_AT + 1)
    assert lanes.begin(LATEST, ASKED_AT + 1) is None, "of this one the store has said nothing"
    lanes.confirm(lanes.find_waiting(), [], ASKED_AT + 1)
    assert lanes.begin(LATEST, ASKED_AT + 1) == claim("a", 2, revision=2)


def test_that_all_that_it_was_asked_for_changed_says_nothing_of_what_was_claimed_meanwhile() -> None:
    """The endpoint may have changed after this claim, or one delivery have been cancelled."""
    lanes = Lanes(1024, 64)
    lanes.add([claim("a", 1)], ASKED_AT)
    asked = lanes.find_waiting()
    lanes.add([claim("a", 2)], ASKED_AT)
    lanes.confirm(asked, asked, ASKED_AT + 1)
    assert lanes.begin(LATEST, ASKED_AT + 1) is None
    lanes.confirm(lanes.find_waiting(), [], ASKED_AT + 1)
    assert lanes.begin(LATEST, ASKED_AT + 1) == claim("a", 2)


def test_nothing_begins_by_what_was_known_too_long_ago_and_nobody_else_waits_for_it() -> None:
    lanes = Lanes(1024, 64)
    lanes.add(claim_many("old", 3), ASKED_AT)
    lanes.add(claim_many("new", 3), ASKED_AT + 1)
    assert [lanes.begin(LATEST, ASKED_AT + 1) for _ in range(4)] == [*claim_many("new", 3), None]
    assert (lanes.in_flight, lanes.waiting) == (3, 3)
    assert lanes.withdraw(LATEST) == [], "it waits until the store is back"
    lanes.confirm(lanes.find_waiting(), [], ASKED_AT + 1)
    assert [lanes.begin(LATEST, ASKED_AT + 1) for _ in range(4)] == [*claim_many("old", 3), None]


@pytest.mark.parametrize("was_tried", [True, False])
def test_a_claim_of_more_does_not_say_that_what_waited_before_is_still_to_be_sent(was_tried: bool) -> None:
    lanes = Lanes(1024, 64)
    lanes.add([claim("a", 1)], ASKED_AT)
    if was_tried:
        assert lanes.begin(LATEST, ASKED_AT + 1) is None
    lanes.add([claim("a", 2)], ASKED_AT + 1)
    assert lanes.begin(LATEST, ASKED_AT + 1) is None
    lanes.confirm(lanes.find_waiting(), [claim("a", 1)], ASKED_AT + 1)
    assert [lanes.begin(LATEST, ASKED_AT + 1) for _ in range(2)] == [claim("a", 2), None]


def test_a_claim_that_was_answered_late_goes_by_when_it_was_asked_for() -> None:
    lanes = Lanes(1024, 64)
    lanes.add([claim("a", 1)], ASKED_AT)
    lanes.confirm(lanes.find_waiting(), [], ASKED_AT + 5)
    assert lanes.begin(LATEST, ASKED_AT + 5) == claim("a", 1)
    lanes.add([claim("a", 2)], ASKED_AT)
    assert lanes.begin(LATEST, ASKED_AT + 1) is None


def test_a_confirmation_says_nothing_of_what_it_did_not_ask_about() -> None:
    lanes = Lanes(1024, 64)
    lanes.add([claim("a", 1)], ASKED_AT)
    asked = lanes.find_waiting()
    lanes.add([claim("a", 2)], ASKED_AT)
    lanes.confirm(asked, [], ASKED_AT + 5)
    assert [lanes.begin(LATEST, ASKED_AT + 5) for _ in range(2)] == [claim("a", 1), None]


def test_a_claim_of_an_endpoint_of_which_nothing_waits_is_news_enough() -> None:
    lanes = Lanes(1024, 64)
    lanes.add([claim("a", 1)], ASKED_AT)
    assert lanes.begin(LATEST, ASKED_AT) is not None
    lanes.add(claim_many("a", 2), ASKED_AT + 1)
    assert [lanes.begin(LATEST, ASKED_AT + 1) for _ in range(2)] == claim_many("a", 2)


def test_what_is_in_doubt_is_given_back_before_its_lease_ends_and_when_all_is_over() -> None:
    lanes = Lanes(1024, 64)
    lanes.add([claim("a", 1, lease=20), claim("a", 2)], ASKED_AT)
    assert lanes.begin(LATEST, ASKED_AT + 1) is None
    assert lanes.withdraw(LATEST) == [claim("a", 1, lease=20)]
    lanes.close()
    lanes.confirm(lanes.find_waiting(), [], ASKED_AT + 1)
    assert lanes.begin(LATEST, ASKED_AT + 1) is None
    assert lanes.clear() == [claim("a", 2)]
    assert lanes.held == 0


def test_an_answer_that_comes_when_nothing_waits_any_more_changes_nothing() -> None:
    lanes = Lanes(1024, 64)
    lanes.add(claim_many("a", 3), ASKED_AT)
    asked = [*lanes.find_waiting(), claim("forgotten")]
    assert len(begin_all(lanes)) == 3
    for changed in (asked, []):
        lanes.confirm(asked, changed, ASKED_AT + 1)
        assert (lanes.in_flight, lanes.waiting, lanes.withdraw(LATEST)) == (3, 0, [])


# The end.


def test_once_closed_nothing_begins_and_all_that_waits_is_handed_over() -> None:
    lanes = Lanes(1024, 64)
    lanes.add([*claim_many("a", 12), claim("b", 1, lease=1)], ASKED_AT)
    begun = len(begin_all(lanes))
    lanes.close()
    lanes.end("a", Ending.SUCCEEDED, SLOW)
    assert begin_all(lanes) == []
    assert sorted(each.id for each in lanes.clear()) == ["a-10", "a-11", "a-8", "a-9", "b-1"]
    assert (begun, lanes.waiting) == (START, 0)
    assert lanes.clear() == []


def test_windows_of_idle_endpoints_are_forgotten_only_beyond_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes_module, "LANES_KEPT", 3)
    lanes = Lanes(1024, 64)
    for endpoint_id in ("busy", "old", "new", "newer"):
        prove(lanes, endpoint_id, rounds=4)
    fill(lanes, "busy")
    lanes.withdraw(LATEST)
    assert [lanes.room(endpoint_id) for endpoint_id in ("old", "new", "newer")] == [START, 128, 128]
    lanes.end("busy", Ending.SUCCEEDED, SLOW)
    assert lanes.in_flight == 63


# All of it, at random.


class Storm:
    """Everything at once, by chance: what the store says comes late, but in turn."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.concurrency, self.limit = self.chance.choice([(1, 1), (5, 2), (16, 4), (64, 16)])
        self.lanes = Lanes(self.concurrency, self.limit)
        self.backlog = {f"ep_{number}": deque(range(40)) for number in range(12)}
        self.revisions = dict.fromkeys(self.backlog, 0)
        self.replaced_at: dict[tuple[str, int], int] = {}
        self.cancelled_at: dict[str, int] = {}
        self.known_cancelled: set[str] = set()
        self.claims: deque[tuple[list[ClaimedDelivery], int]] = deque()
        self.confirmations: deque[tuple[list[ClaimedDelivery], list[ClaimedDelivery], int]] = deque()
        self.in_flight: list[ClaimedDelivery] = []
        self.done: list[str] = []
        self.now = 0

    def goes_on(self) -> bool:
        return bool(self.backlog or self.claims or self.lanes.held)

    def claim(self) -> None:
        for endpoint_id in self.chance.sample(sorted(self.backlog), min(4, len(self.backlog))):
            due = self.backlog[endpoint_id]
            room = range(min(len(due), self.lanes.room(endpoint_id)))
            claimed = [claim(endpoint_id, due.popleft(), revision=self.revisions[endpoint_id]) for _ in room]
            self.claims.append((claimed, self.now))
            if not due:
                del self.backlog[endpoint_id]

    def cancel_and_change(self) -> None:
        leased = [*self.lanes.find_waiting(), *(each for claimed, _ in self.claims for each in claimed)]
        cancelled = {each.id for each in leased if self.chance.random() < 0.02}
        self.cancelled_at = dict.fromkeys(cancelled, self.now) | self.cancelled_at
        for endpoint_id in self.chance.sample(sorted(self.revisions), 2):
            self.replaced_at[endpoint_id, self.revisions[endpoint_id]] = self.now
            self.revisions[endpoint_id] += 1

    def ask(self) -> None:
        asked = self.lanes.find_waiting()
        changed = [
            each
            for each in asked
            if each.endpoint.revision != self.revisions[each.endpoint.id] or each.id in self.cancelled_at
        ]
        if self.chance.random() < 0.25:
            self.confirmations.append((asked, changed, self.now))

    def answer(self) -> None:
        while self.claims and self.chance.random() < 0.8:
            self.lanes.add(*self.claims.popleft())
        while self.confirmations and self.chance.random() < 0.8:
            asked, changed, at = self.confirmations.popleft()
            self.lanes.confirm(asked, changed, at)
            self.known_cancelled |= {each.id for each in changed if each.id in self.cancelled_at}

    def begin(self) -> None:
        oldest = self.now - TRUSTED
        while (delivery := self.lanes.begin(LATEST, oldest)) is not None:
            assert self.replaced_at.get((delivery.endpoint.id, delivery.endpoint.revision), self.now) >= oldest
            assert delivery.id not in self.known_cancelled
            assert self.cancelled_at.get(delivery.id, self.now) >= oldest
            self.in_flight.append(delivery)
        assert self.lanes.in_flight == len(self.in_flight) <= self.concurrency
        assert max(Counter(each.endpoint.id for each in self.in_flight).values(), default=0) <= self.limit

    def give_back(self) -> None:
        for each in self.lanes.withdraw(LATEST):
            if each.id in self.cancelled_at:
                self.done.append(each.id)
            else:
                self.backlog.setdefault(each.endpoint.id, deque()).append(int(each.id.rpartition("-")[2]))

    def end(self) -> None:
        self.chance.shuffle(self.in_flight)
        least = 0 if self.backlog else min(1, len(self.in_flight))
        for _ in range(self.chance.randint(least, len(self.in_flight))):
            delivery = self.in_flight.pop()
            ending = self.chance.choice([*Ending, Ending.SUCCEEDED])
            self.lanes.end(delivery.endpoint.id, ending, self.chance.choice([FAST, SLOW]))
            self.done.append(delivery.id)


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_lost_begun_twice_begun_by_old_values_or_when_cancelled_and_no_limit_is_passed(seed: int) -> None:
    storm = Storm(seed)
    while storm.goes_on():
        storm.now += 1
        storm.claim()
        storm.ask()
        storm.cancel_and_change()
        storm.answer()
        storm.begin()
        storm.give_back()
        storm.end()
    assert sorted(storm.done) == sorted(f"ep_{endpoint}-{number}" for endpoint in range(12) for number in range(40))
