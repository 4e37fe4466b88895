"""What the rest of Carehook asks of a ledger and of a queue. One behavioural suite, tests/conformance, runs on each.

Laws:
- A transaction is all or nothing; when its block ends without an exception it is on disk.
- No I/O but the ledger's own happens inside a transaction.
- Rows are locked in one order, so that transactions do not deadlock: endpoints, organizations, positions, lanes,
  deliveries, each by id. Who changes an endpoint changes its organization's revision at once; who accepts holds that
  still, and no endpoint and no lane.
- What is not finished of an endpoint is where its status has it, or else the endpoint is among the unsettled.
- A claim waits for no row: what another transaction has locked, it passes over and comes back to.
- A result counts only with the lease token under which the delivery was claimed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import Protocol

from carehook.ledger.records import (
    Additions,
    Attempt,
    Backlog,
    ClaimedDelivery,
    ConsultationRow,
    Delivery,
    DeliveryFilter,
    Endpoint,
    FinishedAttempt,
    Known,
    Lane,
    NewDelivery,
    Organization,
    Page,
    PageRequest,
    PatientRow,
    PrescriptionRow,
    ProfessionalRow,
    Prospect,
    ReportRow,
    Settled,
    StoredEvent,
    Token,
)


class LedgerUnavailable(Exception):
    """The store cannot be used now.

    The message is a plain sentence for whoever runs Carehook, which says why and what to do. It may name the server,
    the user and the database, so nobody else may see it; `public` is for them.
    """

    def __init__(self, reason: str, *, rule: str = "does not answer") -> None:
        super().__init__(reason)
        self.rule = rule
        """What is wrong with the store, for anyone: "does not answer"."""

    @property
    def public(self) -> str:
        """A sentence for anyone, which tells nothing of where the store is."""
        return f"The store {self.rule}."


class Organizations(Protocol):
    """Customers that receive."""

    async def add(self, organization: Organization) -> None: ...
    async def get(self, organization_id: str) -> Organization | None: ...
    async def existing(self, organization_ids: Collection[str]) -> frozenset[str]:
        """Those of the ids that there are."""
        ...

    async def page(self, request: PageRequest) -> Page[Organization]: ...


class Endpoints(Protocol):
    """URLs of organizations. A deleted one is kept for its history and is not found by any method here."""

    async def add(self, endpoint: Endpoint) -> None: ...
    async def get(self, endpoint_id: str, *, lock: bool = False) -> Endpoint | None:
        """One endpoint. With `lock`, nobody else changes it before this transaction ends."""
        ...

    async def update(self, endpoint: Endpoint) -> None:
        """Store every field of an endpoint that is there but its `revision`, which grows.

        Where its status changes, `Ledger.settle` has its deliveries follow; where its ordering changes, those that are
        not finished follow at once; where its URL changes, its failures are forgotten.
        """
        ...

    async def lanes(self, endpoint_ids: Collection[str]) -> Mapping[str, Lane]:
        """How it goes at each of the endpoints."""
        ...

    async def close_circuit(self, endpoint_id: str) -> None:
        """Forget its failures, as when it was resumed."""
        ...

    async def try_now(self, endpoint_id: str, now: datetime) -> None:
        """Where its circuit is open, let the next request through now."""
        ...

    async def page(self, organization_id: str, request: PageRequest) -> Page[Endpoint]: ...
    async def recipients(self, organization_ids: Collection[str]) -> Sequence[Endpoint]:
        """All endpoints of the organizations, whatever they subscribe to, fixed until this transaction ends."""
        ...


class Events(Protocol):
    """Accepted events."""

    async def add(self, events: Sequence[StoredEvent]) -> None:
        """Store new events. Raises `DanglingReference` where one is of an organization that there is not."""
        ...

    async def get(self, event_id: str) -> StoredEvent | None: ...
    async def page(self, organization_id: str, request: PageRequest) -> Page[StoredEvent]: ...


class Deliveries(Protocol):
    """Deliveries outside of the queue. Each method that moves some keeps to `states.TRANSITIONS`."""

    async def add(self, deliveries: Sequence[NewDelivery]) -> None:
        """Store new deliveries; the pending ones are due at their `created_at`.

        Raises `DanglingReference` where one is of an organization, an event or an endpoint that there is not.
        """
        ...

    async def get(self, delivery_id: str) -> Delivery | None: ...
    async def of_event(self, event_id: str) -> Sequence[Delivery]: ...
    async def page(self, organization_id: str, only: DeliveryFilter, request: PageRequest) -> Page[Delivery]: ...
    async def attempts(self, delivery_id: str) -> Sequence[Attempt]:
        """The attempts of a delivery, first to last."""
        ...

    async def prospects(self, delivery_ids: Collection[str]) -> Mapping[str, Prospect]:
        """What decides when each goes on, of those of the deliveries that are not finished."""
        ...

    async def retry(self, delivery_id: str, now: datetime) -> bool:
        """Make it due now with its schedule begun anew, or held where its endpoint does not receive now.

        Where the endpoint's circuit is open it is tried now. False where its state, a request in flight or the
        deletion of its endpoint forbids it.
        """
        ...

    async def resend(self, delivery_ids: Collection[str], now: datetime) -> int:
        """The same for any state but with no effect on those in flight; how many were changed."""
        ...

    async def cancel(self, delivery_id: str, now: datetime) -> bool:
        """Send it no more; False where its state forbids it. A lease holds on, and what was sent may still arrive."""
        ...

    async def count_unfinished(self, endpoint_id: str, *, at_most: int) -> int:
        """How many of an endpoint's deliveries are pending or held, counted no further than `at_most`."""
        ...

    async def recover(self, endpoint_id: str, since: datetime, now: datetime) -> int:
        """Make due now all that exhausted its schedule, or waits to be retried, after a failure since; how many."""
        ...

    async def backlog(self) -> Backlog:
        """What waits and what keeps it, over all organizations."""
        ...


class IdempotencyKeys(Protocol):
    """First answers, by organization and key. They are read and stored by `Ledger.accept`."""

    async def forget(self, before: datetime) -> int:
        """Forget answers given before an instant; how many."""
        ...


class DuplicateKey(Exception):
    """Another transaction stored a row of the same key first; begin anew and it will be found."""


class DanglingReference(Exception):
    """A new event or delivery refers to an organization, endpoint or event that is not there: a bug of ours."""


class Care(Protocol):
    """What the care API keeps until a consultation is finished."""

    async def put_patient(self, patient: PatientRow) -> None: ...
    async def patient(self, organization_id: str, code: str) -> PatientRow | None: ...
    async def put_professional(self, professional: ProfessionalRow) -> None: ...
    async def professional(self, organization_id: str, professional_id: str) -> ProfessionalRow | None:
        """The professional as the organization knows them, else as the platform does."""
        ...

    async def add_consultation(self, consultation: ConsultationRow) -> None:
        """Raises `DuplicateKey` where the organization has one of that id."""
        ...

    async def consultation(
        self, organization_id: str, consultation_id: str, *, lock: bool = False
    ) -> ConsultationRow | None:
        """One consultation. With `lock`, nothing is added to it before this transaction ends."""
        ...

    async def finish_consultation(self, consultation: ConsultationRow) -> None:
        """Store its `end_date` and `finished_event_id`."""
        ...

    async def add_report(self, report: ReportRow) -> None:
        """Raises `DuplicateKey` where the consultation has one of that id."""
        ...

    async def reports(self, organization_id: str, consultation_id: str) -> Sequence[ReportRow]:
        """The reports of a consultation in their order."""
        ...

    async def add_prescription(self, prescription: PrescriptionRow) -> None:
        """Raises `DuplicateKey` where the consultation has one of that id."""
        ...

    async def prescriptions(self, organization_id: str, consultation_id: str) -> Sequence[PrescriptionRow]:
        """The prescriptions of a consultation in their order."""
        ...


class Tokens(Protocol):
    """API tokens, found by the digest of their secret."""

    async def add(self, token: Token, digest: str) -> None: ...
    async def find(self, digest: str) -> Token | None: ...
    async def page(self, request: PageRequest) -> Page[Token]: ...
    async def revoke(self, token_id: str, now: datetime) -> bool:
        """False where there is no such token or it is revoked already."""
        ...

    async def any_operator(self) -> bool:
        """Whether there is an operator's token that is not revoked."""
        ...


class Installation(Protocol):
    """Facts about this installation that must agree with the settings."""

    async def get(self, name: str) -> bytes | None: ...
    async def put_first(self, name: str, value: bytes) -> bytes:
        """Store a value unless there is one; the value that is stored now."""
        ...


class Transaction(Protocol):
    """What can be read and written within one transaction."""

    @property
    def organizations(self) -> Organizations: ...
    @property
    def endpoints(self) -> Endpoints: ...
    @property
    def events(self) -> Events: ...
    @property
    def deliveries(self) -> Deliveries: ...
    @property
    def idempotency_keys(self) -> IdempotencyKeys: ...
    @property
    def care(self) -> Care: ...
    @property
    def tokens(self) -> Tokens: ...
    @property
    def installation(self) -> Installation: ...


class Ledger(Protocol):
    """The store: what was accepted, for whom, and what became of it.

    Here and in the queue, all raise `LedgerUnavailable` where the store does not answer.
    """

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Read and write; committed when the block ends, rolled back when it raises."""
        ...

    def snapshot(self) -> AbstractAsyncContextManager[Transaction]:
        """Read alone, one state of the store throughout, without holding up writers."""
        ...

    async def accept(
        self,
        organization_ids: Collection[str],
        keys: Collection[tuple[str, str]],
        decide: Callable[[Known], Additions],
        now: datetime,
    ) -> None:
        """Add what `decide` says, in one transaction, given what is known of the organizations and idempotency keys.

        The endpoints stay as they are until it is committed. `decide` may be called on another thread, and again; it
        must not wait for anything. Raises `DuplicateKey` where another transaction has just used one of the keys,
        `DanglingReference` where what it says refers to what is neither known nor added, and what `decide` raises.
        """
        ...

    async def settle(self, endpoint_id: str, now: datetime, *, waits: bool) -> Settled:
        """Have some of an endpoint's deliveries follow its status, in a short transaction of their own.

        What is not finished is pending while it is active, held while it is paused or disabled, and cancelled once it
        is deleted; a request in flight keeps its lease, and its result counts. No delivery is waited for: what another
        has locked is left for later. Where somebody is at the endpoint it `waits` for them, or leaves it to them. To be
        called until it is complete.
        """
        ...

    async def unsettled(self) -> Sequence[str]:
        """The endpoints of which deliveries may have yet to follow a status, the longest waiting first."""
        ...

    async def check(self) -> None:
        """Raises `LedgerUnavailable` where the store does not answer or its schema is not this version's."""
        ...

    async def close(self) -> None: ...


class Queue(Protocol):
    """Due deliveries under lease. The ledger's rows are its only truth."""

    async def claim(
        self, limit: int, *, room: Callable[[str], int], now: datetime, lease: timedelta
    ) -> Sequence[ClaimedDelivery]:
        """Lease at most `limit` deliveries that are due, of each endpoint at most as many as there is `room` for.

        `room` is asked about each endpoint that may have something due; where it says 0, nothing of it is looked at.
        Endpoints take turns; those that a survey of the store found come by their oldest due delivery. Where more of
        them are due than `limit`, each gets one.

        Kept here, over all workers, are the limits of an endpoint's own: the requests in flight, their rate, its open
        circuit, and the order of its deliveries.
        """
        ...

    async def finish(self, finished: Sequence[FinishedAttempt], now: datetime) -> Sequence[bool]:
        """Record attempts and move their deliveries; False for each whose lease was lost.

        One that is on record already, as after a failure that left the rest of them unrecorded, is told so again.

        What counts is told to the endpoints' circuits (`circuit`), and one that has failed for too long is disabled.
        """
        ...

    async def give_back(self, claimed: Iterable[ClaimedDelivery]) -> None:
        """End leases of deliveries that were not attempted; they are due as before."""
        ...

    async def find_changed(self, claimed: Collection[ClaimedDelivery]) -> Sequence[ClaimedDelivery]:
        """Those of the deliveries that are not to be sent any more as they were claimed.

        That is where one is not pending under that lease by now, or its endpoint has another revision or does not
        receive.
        """
        ...

    async def recover_lost(self, now: datetime) -> int:
        """Record an interrupted attempt for each lease that ran out and make its delivery due; how many."""
        ...

    def wake(self, endpoint_ids: Collection[str] = ()) -> None:
        """Make a `wait` return at once: these endpoints may have something due, or room for it; none named, any may."""
        ...

    async def wait(self, *, at_most: timedelta) -> None:
        """Return when something may be due that was not at the last claim, or after `at_most`."""
        ...

    def find_missing(self) -> str | None:
        """What it goes on without for now, in a sentence for anyone; None where nothing is missing."""
        ...


__all__ = [
    "Care",
    "DanglingReference",
    "Deliveries",
    "DuplicateKey",
    "Endpoints",
    "Events",
    "IdempotencyKeys",
    "Installation",
    "Ledger",
    "LedgerUnavailable",
    "Organizations",
    "Queue",
    "Tokens",
    "Transaction",
]
