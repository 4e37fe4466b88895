"""The story of one delivery: build the request, send it, decide what follows.

No transaction is open here, and nothing here raises: a bug of ours becomes an interrupted attempt, which costs the
receiver no retry and its neighbours nothing. An endpoint whose secrets do not open is disabled with the reason. An
attempt ends within `ATTEMPT_LIMIT`, however many requests its authentication makes of it, so that its result comes
before its lease is over; the sender's own time limit, for one request, is shorter.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

import structlog

from carehook.clock import Clock
from carehook.directory.authentication.flow import Answer, AuthenticationFlow, Step
from carehook.dispatch.access_tokens import AccessTokens
from carehook.dispatch.credentials import CredentialsCache
from carehook.dispatch.request import Credentials, build_request
from carehook.dispatch.retry import decide
from carehook.dispatch.sender import Sender
from carehook.exchange import Blocked, Interrupted, Outcome, Request, Responded, Unreachable
from carehook.ids import ATTEMPT, new_id
from carehook.keyring import Keyring, KeyringError
from carehook.ledger.records import Attempt, AttemptOutcome, ClaimedDelivery, FinishedAttempt

ATTEMPT_LIMIT: Final = timedelta(seconds=20)
"""How long an attempt may take: one request, or several where a token must be fetched first or anew."""

STOPPED: Final = "Carehook was stopped before the outcome was known; the receiver may have got it"

_log = structlog.get_logger("carehook.attempt")


class Deliverer:
    """Attempts deliveries. `schedule` holds the seconds before each retry."""

    def __init__(
        self,
        sender: Sender,
        tokens: AccessTokens,
        keyring: Keyring,
        schedule: Sequence[float],
        clock: Clock,
        attempt_limit: timedelta = ATTEMPT_LIMIT,
    ) -> None:
        self._sender = sender
        self._tokens = tokens
        self._keyring = keyring
        self._credentials = CredentialsCache(keyring)
        self._schedule = schedule
        self._clock = clock
        self._attempt_limit = attempt_limit.total_seconds()

    async def deliver_one(self, delivery: ClaimedDelivery, started_at: datetime) -> FinishedAttempt:
        """Attempt a claimed delivery now, at `started_at`: one exchange and what follows from it."""
        begun = time.perf_counter()
        disable_reason = None
        try:
            credentials = self._credentials.get(delivery.endpoint)
            outcome = await self._exchange(build_request(delivery, credentials, started_at), credentials)
        except KeyringError as error:
            # Time does not mend this: its deliveries are held until somebody has looked at it.
            disable_reason = f"its secrets cannot be used: {str(error).rstrip('.')}"
            outcome = Interrupted(f"the endpoint's secrets cannot be used: {error}")
        except Exception as error:
            _log.exception("attempt_failed_in_carehook", delivery_id=delivery.id)
            outcome = Interrupted(f"Carehook failed before the outcome was known ({type(error).__name__})")
        finished = self._conclude(delivery, outcome, started_at, time.perf_counter() - begun)
        if disable_reason is None:
            return finished
        return replace(finished, due_at=started_at, disable_reason=disable_reason)

    def interrupt(self, delivery: ClaimedDelivery, started_at: datetime) -> FinishedAttempt:
        """What is recorded of an attempt that we stopped."""
        duration = (self._clock() - started_at).total_seconds()
        return self._conclude(delivery, Interrupted(STOPPED), started_at, max(0.0, duration))

    async def _exchange(self, request: Request, credentials: Credentials) -> Outcome:
        """Drive the authentication's flow; the last answer of the endpoint, or what kept us from it, is the outcome."""
        deadline = asyncio.get_running_loop().time() + self._attempt_limit
        flow = credentials.authentication.authenticate(request)
        step = next(flow, None)
        if not isinstance(step, Request):
            return await self._go_on(flow, step, Interrupted("the authentication sent nothing"), deadline)
        # Most flows are this one request. The sender ends it in time, and a timer more would cost as much as the rest.
        outcome = await self._sender.send(step)
        if not isinstance(outcome, Responded) or (step := _advance(flow, outcome)) is None:
            return outcome
        return await self._go_on(flow, step, outcome, deadline)

    async def _go_on(self, flow: AuthenticationFlow, step: Step | None, outcome: Outcome, deadline: float) -> Outcome:
        try:
            async with asyncio.timeout_at(deadline):
                while step is not None:
                    answer = await (self._sender.send(step) if isinstance(step, Request) else self._tokens.get(step))
                    if isinstance(answer, Unreachable | Blocked | Interrupted):
                        return answer
                    if isinstance(answer, Responded):
                        outcome = answer
                    step = _advance(flow, answer)
                return outcome
        except TimeoutError:
            return Unreachable(f"no complete response within {self._attempt_limit:g} s, authentication included")

    def _conclude(
        self, delivery: ClaimedDelivery, outcome: Outcome, started_at: datetime, duration: float
    ) -> FinishedAttempt:
        now = self._clock()
        decision = decide(
            outcome,
            schedule=self._schedule,
            attempts=delivery.attempt_count,
            failures=delivery.failure_count,
            now=now,
            jitter=random.uniform(-1, 1),  # noqa: S311 (spreads load, guards nothing)
        )
        attempt = Attempt(
            id=new_id(ATTEMPT),
            delivery_id=delivery.id,
            number=delivery.attempt_count + 1,
            started_at=started_at,
            duration=duration,
            outcome=_OUTCOMES[type(outcome)],
            status_code=outcome.status if isinstance(outcome, Responded) else None,
            reason=describe(outcome),
            sealed_excerpt=self._seal_excerpt(delivery, outcome),
        )
        return FinishedAttempt(
            delivery_id=delivery.id,
            endpoint_id=delivery.endpoint.id,
            lease_token=delivery.lease_token,
            attempt=attempt,
            transition=decision.transition,
            due_at=decision.due_at,
            spends_retry=decision.spends_retry,
            disable_reason=decision.disable_reason,
        )

    def _seal_excerpt(self, delivery: ClaimedDelivery, outcome: Outcome) -> bytes | None:
        if not isinstance(outcome, Responded) or outcome.is_success or not outcome.body:
            return None
        return self._keyring.seal(outcome.body, context=f"excerpt:{delivery.id}")


def _advance(flow: AuthenticationFlow, answer: Answer) -> Step | None:
    try:
        return flow.send(answer)
    except StopIteration:
        return None


_OUTCOMES: Final = {
    Responded: AttemptOutcome.RESPONDED,
    Unreachable: AttemptOutcome.UNREACHABLE,
    Blocked: AttemptOutcome.BLOCKED,
    Interrupted: AttemptOutcome.INTERRUPTED,
}


def describe(outcome: Outcome) -> str | None:
    """Why an outcome is no success, for people; None where it is one."""
    if not isinstance(outcome, Responded):
        return outcome.reason
    if outcome.is_success:
        return None
    if 300 <= outcome.status <= 399:
        return f"the endpoint redirected ({outcome.status}); redirects are not followed"
    return f"the endpoint answered {outcome.status}"
