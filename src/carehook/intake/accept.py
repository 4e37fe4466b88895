"""Accepting events: choose the recipients, freeze the bodies, store. When `accept` returns, it is on disk.

Laws:
- An event and its deliveries are stored in one transaction; a batch wholly or not at all.
- Concurrent publishes share a transaction (group commit), but one's refusal is its own.
- A repeated idempotency key returns the first answer and stores nothing; with another request it is refused.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from typing import Final

from carehook.batching import Batcher
from carehook.clock import Clock
from carehook.events import AnyEvent
from carehook.ids import ORGANIZATION, is_id
from carehook.intake.recipients import build_deliveries, freeze_event, match_recipients
from carehook.ledger.port import DuplicateKey, Ledger, Transaction
from carehook.ledger.records import Additions, Answered, Endpoint, Known, NewDelivery, StoredEvent
from carehook.metrics import Metrics
from carehook.refusals import Refusal, build_invalid, build_not_found

KEYS_KEPT: Final = timedelta(days=7)
"""For how long an idempotency key is remembered."""

LONGEST_KEY: Final = 255

_EVENTS_IN_A_TRANSACTION: Final = 500
_TRIES: Final = 3

_Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Accepted:
    """What was stored: the ids of the events in their order, and how many deliveries they make."""

    event_ids: tuple[str, ...]
    deliveries: int


@dataclass(frozen=True, slots=True)
class Submission:
    """Events of one request, frozen, with its idempotency key if it has one."""

    organization_id: str
    events: tuple[StoredEvent, ...]
    key: str | None

    @property
    def fingerprint(self) -> str:
        """A digest that tells this request from another one under the same key."""
        digest = sha256()
        for event in self.events:
            digest.update(len(event.body).to_bytes(8, "big") + event.body)
        return digest.hexdigest()


class Intake:
    """Where events are accepted."""

    def __init__(self, ledger: Ledger, metrics: Metrics, clock: Clock) -> None:
        self._ledger = ledger
        self._metrics = metrics
        self._clock = clock
        # Only a key can be at fault alone; for any other error, as of a store that is gone, all are told at once.
        self._batcher: Batcher[Submission, Accepted | Refusal] = Batcher(
            self._write,
            _EVENTS_IN_A_TRANSACTION,
            weigh=lambda submission: len(submission.events),
            isolate_on=DuplicateKey,
        )

    async def accept(
        self, organization_id: str, events: Sequence[AnyEvent], idempotency_key: str | None = None
    ) -> Accepted:
        """Store events and their deliveries.

        Raises `NotFound` for an unknown organization, `Invalid` for no events and for an idempotency key that is none
        or was used for another request.
        """
        if not events:
            raise build_invalid("events", "must hold at least one event")
        if not is_id(ORGANIZATION, organization_id):
            raise build_not_found("organization", organization_id)
        if idempotency_key is not None:
            check_key(idempotency_key)
        now = self._clock()
        frozen = tuple(freeze_event(organization_id, event, now) for event in events)
        del events
        answer = await self._batcher.submit(Submission(organization_id, frozen, idempotency_key))
        if isinstance(answer, Refusal):
            raise answer
        return answer

    def count(self, events: Sequence[StoredEvent]) -> None:
        """Count events that were stored."""
        for event_type, count in Counter(event.type for event in events).items():
            self._metrics.events_accepted.labels(event_type).inc(count)

    async def forget_old_keys(self) -> int:
        """Forget the idempotency keys that are older than `KEYS_KEPT`; how many."""
        async with self._ledger.transaction() as transaction:
            return await transaction.idempotency_keys.forget(self._clock() - KEYS_KEPT)

    async def close(self) -> None:
        """Return when all that was submitted is stored; refuse the rest."""
        await self._batcher.close()

    async def _write(self, submissions: Sequence[Submission]) -> Sequence[Accepted | Refusal]:
        for _ in range(_TRIES - 1):
            try:
                return await self._write_once(submissions)
            except DuplicateKey:
                # Another process answered one of the keys in this moment: now it will be found.
                continue
        return await self._write_once(submissions)

    async def _write_once(self, submissions: Sequence[Submission]) -> Sequence[Accepted | Refusal]:
        organization_ids = {each.organization_id for each in submissions}
        keys = {(each.organization_id, each.key) for each in submissions if each.key is not None}
        plan = _Plan(submissions)
        await self._ledger.accept(organization_ids, keys, plan.decide, self._clock())
        self.count(plan.additions.events)
        return plan.answers


class _Plan:
    """What becomes of each submission: decided within the transaction, answered after it."""

    def __init__(self, submissions: Sequence[Submission]) -> None:
        self._submissions = submissions
        self.answers: Sequence[Accepted | Refusal] = ()
        self.additions = Additions((), (), {})

    def decide(self, known: Known) -> Additions:
        """Decide, given what is known now."""
        self.answers, self.additions = decide_additions(self._submissions, known)
        return self.additions


def decide_additions(submissions: Sequence[Submission], known: Known) -> tuple[Sequence[Accepted | Refusal], Additions]:
    """Decide what is answered to each submission and what is stored for it, given what is stored already."""
    answers: list[Accepted | Refusal] = []
    events: list[StoredEvent] = []
    deliveries: list[NewDelivery] = []
    new_keys: dict[_Key, Answered] = {}
    endpoints_of: defaultdict[str, list[Endpoint]] = defaultdict(list)
    for endpoint in known.endpoints:
        endpoints_of[endpoint.organization_id].append(endpoint)
    for submission in submissions:
        key = (submission.organization_id, submission.key) if submission.key is not None else None
        first = (known.answered.get(key) or new_keys.get(key)) if key else None
        if submission.organization_id not in known.organizations:
            answers.append(build_not_found("organization", submission.organization_id))
        elif first is not None:
            answers.append(_answer_again(first, submission))
        else:
            own = [
                delivery
                for event in submission.events
                for delivery in build_deliveries(event, match_recipients(event, endpoints_of[event.organization_id]))
            ]
            accepted = Accepted(tuple(event.id for event in submission.events), len(own))
            answers.append(accepted)
            events.extend(submission.events)
            deliveries.extend(own)
            if key:
                answer = {"event_ids": list(accepted.event_ids), "deliveries": accepted.deliveries}
                new_keys[key] = Answered(submission.fingerprint, answer)
    return answers, Additions(events, deliveries, new_keys)


def check_key(key: str) -> None:
    """Raises `Invalid` unless `key` can be an idempotency key: 1 to 255 characters of visible ASCII."""
    if not (1 <= len(key) <= LONGEST_KEY and key.isascii() and key.isprintable() and " " not in key):
        raise build_invalid("Idempotency-Key", f"must be 1 to {LONGEST_KEY} visible ASCII characters without spaces")


def _answer_again(first: Answered, submission: Submission) -> Accepted | Refusal:
    if first.fingerprint != submission.fingerprint:
        # draft-ietf-httpapi-idempotency-key-header §2.7: a key reused for another payload is a 422.
        return build_invalid("Idempotency-Key", "was used for another request; repeat a request unchanged")
    return Accepted(tuple(first.answer["event_ids"]), first.answer["deliveries"])


async def store_event(transaction: Transaction, event: StoredEvent) -> Accepted:
    """Store one event and its deliveries within a transaction that stores what it tells of as well."""
    endpoints = await transaction.endpoints.recipients([event.organization_id])
    deliveries = build_deliveries(event, match_recipients(event, endpoints))
    await transaction.events.add([event])
    if deliveries:
        await transaction.deliveries.add(deliveries)
    return Accepted((event.id,), len(deliveries))
