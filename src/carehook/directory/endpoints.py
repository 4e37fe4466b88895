"""Endpoints: where an organization receives, what, and how it knows that it is us.

Laws: a URL is judged by the address rules before it is stored, and so is every other URL that its authentication asks;
names are resolved outside of any transaction. A pause, a resume or a deletion counts from its commit on; the deliveries
follow in parts, some of them at once, the rest by the workers. Limits are kept over all workers together, by the queue.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, SecretStr, Strict, StringConstraints

from carehook.clock import Clock
from carehook.directory.authentication import Authentication, AuthenticationMethod, NoAuthentication
from carehook.directory.authentication.fields import SecretHeaderValue
from carehook.directory.organizations import OneLine
from carehook.directory.secrets import (
    ROTATION_OVERLAP,
    EndpointSecrets,
    SigningSecretPeriod,
    open_secrets,
    seal_secrets,
)
from carehook.events import CATALOGUE
from carehook.ids import ENDPOINT, new_id
from carehook.keyring import Keyring, KeyringError
from carehook.ledger.port import Ledger, LedgerUnavailable, Transaction
from carehook.ledger.records import Endpoint, Settled
from carehook.ledger.states import EndpointStatus, Ordering
from carehook.refusals import Conflict, build_invalid, build_not_found
from carehook.signature import derive_public_key, generate_signing_key, generate_signing_secret

SignatureScheme = Literal["v1", "v1a"]


class TargetRules(Protocol):
    """Which URLs may be contacted."""

    async def resolve(self, url: str) -> object:
        """Raises ValueError where a URL may not be contacted or its host is unknown.

        The message is for people, begins with "the URL" and has no full stop.
        """
        ...


Url = Annotated[str, Field(json_schema_extra={"format": "uri", "pattern": "^https?://", "maxLength": 2048})]
"""An endpoint's URL. The schema describes what `TargetRules` decide."""

EventTypes = tuple[Annotated[str, Field(json_schema_extra={"enum": list(CATALOGUE)})], ...]
"""Names of the catalogue; see `check_event_types`."""

MaxInFlight = Annotated[
    Annotated[int, Strict(), Field(ge=1, le=1000)] | None,
    Field(description="Requests in flight at most, over all workers. Null for no limit beside each worker's own."),
]

RateLimit = Annotated[
    Annotated[float, Strict(), Field(ge=0.01, le=10_000)] | None,
    Field(description="Requests a second at most, over all workers: 0.2 is one in five seconds. Null for no limit."),
]

_ORDERING: Final = (
    "`patient`: a patient's deliveries go one after another, in the order in which their events were accepted, and one "
    "that fails holds back that patient's alone, until it succeeds, is given up or is cancelled. `none`: each goes as "
    "soon as it can."
)


PARTS_AT_ONCE: Final = 5
"""How many parts of a backlog, of 5,000 deliveries each, follow a new status before whoever asked is answered."""

MOST_REORDERED: Final = 100_000
"""Unfinished deliveries with which an endpoint's ordering may still be changed: they all move in one transaction."""


class NewEndpoint(BaseModel):
    """What is said of an endpoint when it is registered. No event types means all, those to come as well."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    url: Annotated[Url, Field(description="Where requests are sent: https, and publicly reachable.")]
    event_types: Annotated[EventTypes, Field(max_length=100)] = ()
    description: Annotated[OneLine, StringConstraints(max_length=500)] = ""
    signature_value: Annotated[
        SecretHeaderValue | None,
        Field(description="The agreed value of `x-webhook-signature`; one is made where it is left out."),
    ] = None
    signature_scheme: Annotated[
        SignatureScheme, Field(description="`v1` HMAC-SHA256 with a shared secret, or `v1a` Ed25519.")
    ] = "v1"
    authentication: Authentication = NoAuthentication(type="none")
    max_in_flight: MaxInFlight = None
    rate_limit: RateLimit = None
    ordering: Annotated[Ordering, Field(description=_ORDERING)] = Ordering.NONE


class EndpointChanges(BaseModel):
    """What is changed of an endpoint; what is left out stays as it is.

    A limit that is given as None is taken away; any other field stays then, too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    url: Url | None = None
    event_types: Annotated[EventTypes | None, Field(max_length=100)] = None
    description: Annotated[OneLine, StringConstraints(max_length=500)] | None = None
    signature_value: SecretHeaderValue | None = None
    authentication: Authentication | None = None
    max_in_flight: MaxInFlight = None
    rate_limit: RateLimit = None
    ordering: Annotated[Ordering | None, Field(description=_ORDERING)] = None

    @property
    def limits(self) -> Mapping[str, Any]:
        """The limits that are changed, with None for those that are taken away."""
        return {name: getattr(self, name) for name in ("max_in_flight", "rate_limit") if name in self.model_fields_set}


@dataclass(frozen=True, slots=True)
class EndpointWithSecrets:
    """An endpoint with its secrets opened."""

    endpoint: Endpoint
    secrets: EndpointSecrets

    @property
    def verification_secret(self) -> SecretStr:
        """What the organization verifies signatures with: the shared secret, or the public key of a private one."""
        newest = self.secrets.signing_secrets[0].secret.get_secret_value()
        return SecretStr(derive_public_key(newest) if newest.startswith("whsk_") else newest)


class Endpoints:
    """Registers and changes endpoints. Every method raises a `Refusal` where it cannot do what was asked."""

    def __init__(self, ledger: Ledger, keyring: Keyring, rules: TargetRules, clock: Clock) -> None:
        self._ledger = ledger
        self._keyring = keyring
        self._rules = rules
        self._clock = clock

    async def register(self, organization_id: str, new: NewEndpoint) -> EndpointWithSecrets:
        """Register an endpoint of an organization. Its secrets are to be shown this once."""
        event_types = check_event_types(new.event_types)
        await self._check_urls(new.url, new.authentication)
        opened = EndpointSecrets(
            signature_value=new.signature_value or SecretStr(secrets.token_urlsafe(32)),
            signing_secrets=(SigningSecretPeriod(secret=_generate_secret(new.signature_scheme)),),
            authentication=new.authentication,
        )
        now = self._clock()
        endpoint_id = new_id(ENDPOINT)
        endpoint = Endpoint(
            id=endpoint_id,
            organization_id=organization_id,
            url=new.url,
            description=new.description,
            event_types=event_types,
            status=EndpointStatus.ACTIVE,
            status_reason=None,
            sealed_secrets=seal_secrets(opened, self._keyring, endpoint_id),
            created_at=now,
            updated_at=now,
            max_in_flight=new.max_in_flight,
            rate_limit=new.rate_limit,
            ordering=new.ordering,
        )
        async with self._ledger.transaction() as transaction:
            if not await transaction.organizations.existing([organization_id]):
                raise build_not_found("organization", organization_id)
            await transaction.endpoints.add(endpoint)
        return EndpointWithSecrets(endpoint, opened)

    async def change(self, endpoint_id: str, changes: EndpointChanges) -> Endpoint:
        """Change what `changes` names. Workers go by the new values within seconds."""
        event_types = None if changes.event_types is None else check_event_types(changes.event_types)
        await self._check_urls(changes.url, changes.authentication)
        async with self._locked(endpoint_id) as (transaction, endpoint, now):
            changed = dataclasses.replace(
                endpoint,
                url=changes.url or endpoint.url,
                event_types=endpoint.event_types if event_types is None else event_types,
                description=endpoint.description if changes.description is None else changes.description,
                sealed_secrets=self._change_secrets(endpoint, changes),
                ordering=changes.ordering or endpoint.ordering,
                updated_at=now,
                **changes.limits,
            )
            if changed.ordering is not endpoint.ordering:
                await _check_reorderable(transaction, endpoint_id)
            await transaction.endpoints.update(changed)
        return changed

    async def pause(self, endpoint_id: str) -> Endpoint:
        """Send nothing to it until it is resumed; its deliveries are held."""
        async with self._locked(endpoint_id) as (transaction, endpoint, now):
            if endpoint.status is EndpointStatus.DISABLED:
                raise Conflict(f"The endpoint is disabled already ({endpoint.status_reason}). Resume it to go on.")
            paused = dataclasses.replace(endpoint, status=EndpointStatus.PAUSED, updated_at=now)
            await transaction.endpoints.update(paused)
        await self._settle(endpoint_id)
        return paused

    async def resume(self, endpoint_id: str) -> Endpoint:
        """Send to it again, whether it was paused or disabled; what was held goes on."""
        async with self._locked(endpoint_id) as (transaction, endpoint, now):
            resumed = dataclasses.replace(endpoint, status=EndpointStatus.ACTIVE, status_reason=None, updated_at=now)
            await transaction.endpoints.update(resumed)
            await transaction.endpoints.close_circuit(endpoint_id)
        await self._settle(endpoint_id)
        return resumed

    async def delete(self, endpoint_id: str) -> Settled:
        """Send nothing to it ever again, and forget its secrets.

        How many deliveries were cancelled at once, and whether that is all.
        """
        async with self._locked(endpoint_id) as (transaction, endpoint, now):
            deleted = dataclasses.replace(endpoint, status=EndpointStatus.DELETED, sealed_secrets=b"", updated_at=now)
            await transaction.endpoints.update(deleted)
        return await self._settle(endpoint_id)

    async def rotate_secret(self, endpoint_id: str, overlap: timedelta = ROTATION_OVERLAP) -> EndpointWithSecrets:
        """Give it a new signing secret, to be shown this once; the old one signs beside it for `overlap`."""
        async with self._locked(endpoint_id) as (transaction, endpoint, now):
            opened = self._open(endpoint)
            is_v1a = opened.signing_secrets[0].secret.get_secret_value().startswith("whsk_")
            rotated = opened.rotate(_generate_secret("v1a" if is_v1a else "v1"), now, overlap)
            changed = dataclasses.replace(
                endpoint, sealed_secrets=seal_secrets(rotated, self._keyring, endpoint.id), updated_at=now
            )
            await transaction.endpoints.update(changed)
        return EndpointWithSecrets(changed, rotated)

    @asynccontextmanager
    async def _locked(self, endpoint_id: str) -> AsyncIterator[tuple[Transaction, Endpoint, datetime]]:
        async with self._ledger.transaction() as transaction:
            endpoint = await transaction.endpoints.get(endpoint_id, lock=True)
            if endpoint is None:
                raise build_not_found("endpoint", endpoint_id)
            yield transaction, endpoint, self._clock()

    async def _settle(self, endpoint_id: str) -> Settled:
        """Let its deliveries follow its status, unless they are too many to wait for: workers do the rest."""
        moved = 0
        # The status is stored, and its deliveries follow it whatever becomes of this.
        with contextlib.suppress(LedgerUnavailable):
            for _ in range(PARTS_AT_ONCE):
                settled = await self._ledger.settle(endpoint_id, self._clock(), waits=True)
                moved += settled.moved
                if settled.is_complete:
                    return Settled(moved, is_complete=True)
        return Settled(moved, is_complete=False)

    def _change_secrets(self, endpoint: Endpoint, changes: EndpointChanges) -> bytes:
        values = {"signature_value": changes.signature_value, "authentication": changes.authentication}
        named = {name: value for name, value in values.items() if value is not None}
        if not named:
            return endpoint.sealed_secrets
        return seal_secrets(self._open(endpoint).model_copy(update=named), self._keyring, endpoint.id)

    def _open(self, endpoint: Endpoint) -> EndpointSecrets:
        try:
            return open_secrets(endpoint.sealed_secrets, self._keyring, endpoint.id)
        except KeyringError as error:
            raise Conflict(f"{error} Delete the endpoint and register it anew.") from None

    async def _check_urls(self, url: str | None, authentication: AuthenticationMethod | None) -> None:
        if url is not None:
            await self._check_url("url", url)
        for name, contacted in authentication.contacted_urls if authentication else ():
            await self._check_url(f"authentication.{name}", contacted)

    async def _check_url(self, field: str, url: str) -> None:
        try:
            await self._rules.resolve(url)
        except ValueError as error:
            raise build_invalid(field, str(error).removeprefix("the URL ")) from None


async def _check_reorderable(transaction: Transaction, endpoint_id: str) -> None:
    unfinished = await transaction.deliveries.count_unfinished(endpoint_id, at_most=MOST_REORDERED + 1)
    if unfinished > MOST_REORDERED:
        raise Conflict(
            f"More than {MOST_REORDERED:,} of the endpoint's deliveries are not finished, too many to change their "
            "order. Wait until fewer are, or register another endpoint with that ordering in its place."
        )


def check_event_types(event_types: Sequence[str]) -> tuple[str, ...]:
    """The event types, each once. Raises `Invalid` where one is not in the catalogue."""
    for position, name in enumerate(event_types):
        if name not in CATALOGUE:
            raise build_invalid(f"event_types.{position}", f"must be one of {', '.join(CATALOGUE)}")
    return tuple(dict.fromkeys(event_types))


_GENERATE: dict[SignatureScheme, Callable[[], str]] = {"v1": generate_signing_secret, "v1a": generate_signing_key}


def _generate_secret(scheme: SignatureScheme) -> SecretStr:
    return SecretStr(_GENERATE[scheme]())
