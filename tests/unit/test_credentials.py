"""Secrets are opened once, are never older than the store's, and are bound to their endpoint."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

import pytest
from pydantic import SecretStr

from carehook.directory.secrets import EndpointSecrets, SigningSecretPeriod, seal_secrets
from carehook.dispatch.credentials import CredentialsCache
from carehook.ids import ENDPOINT, ORGANIZATION, new_id
from carehook.keyring import DamagedError, Keyring, WrongKeyError
from carehook.ledger.records import Endpoint
from carehook.ledger.states import EndpointStatus
from carehook.signature import generate_signing_secret

NOW = datetime(2026, 11, 22, tzinfo=UTC)


class CountingKeyring(Keyring):
    """Counts what it opens."""

    opened = 0

    def open(self, sealed: bytes, *, context: str) -> bytes:
        self.opened += 1
        return super().open(sealed, context=context)


@pytest.fixture
def keyring() -> CountingKeyring:
    return CountingKeyring(bytes(32))


def make_endpoint(keyring: Keyring, signature_value: str = "agreed") -> Endpoint:
    endpoint_id = new_id(ENDPOINT)
    return Endpoint(
        id=endpoint_id,
        organization_id=new_id(ORGANIZATION),
        url="https://hospital.example/hook",
        description="",
        event_types=(),
        status=EndpointStatus.ACTIVE,
        status_reason=None,
        sealed_secrets=seal(keyring, endpoint_id, signature_value),
        created_at=NOW,
        updated_at=NOW,
    )


def seal(keyring: Keyring, endpoint_id: str, signature_value: str) -> bytes:
    secrets = EndpointSecrets(
        signature_value=SecretStr(signature_value),
        signing_secrets=(SigningSecretPeriod(secret=SecretStr(generate_signing_secret())),),
    )
    return seal_secrets(secrets, keyring, endpoint_id)


def test_secrets_are_opened_once_for_all_deliveries_of_an_endpoint(keyring: CountingKeyring) -> None:
    cache, endpoint = CredentialsCache(keyring), make_endpoint(keyring)
    first = cache.get(endpoint)
    # Another row of the same endpoint, as each claim brings one.
    second = cache.get(
        dataclasses.replace(endpoint, description="renamed", sealed_secrets=bytes(endpoint.sealed_secrets))
    )
    assert first is second
    assert keyring.opened == 1


def test_changed_secrets_are_used_from_the_next_delivery_on(keyring: CountingKeyring) -> None:
    cache, endpoint = CredentialsCache(keyring), make_endpoint(keyring, "old")
    assert cache.get(endpoint).signature_value.get_secret_value() == "old"
    changed = dataclasses.replace(endpoint, sealed_secrets=seal(keyring, endpoint.id, "new"))
    assert cache.get(changed).signature_value.get_secret_value() == "new"


def test_endpoints_never_share_credentials(keyring: CountingKeyring) -> None:
    cache = CredentialsCache(keyring)
    endpoints = [make_endpoint(keyring, name) for name in ("a", "b", "c")]
    for _ in range(2):
        found = [cache.get(endpoint).signature_value.get_secret_value() for endpoint in endpoints]
        assert found == ["a", "b", "c"]


def test_the_one_unused_for_longest_goes_when_there_are_too_many(keyring: CountingKeyring) -> None:
    cache = CredentialsCache(keyring, capacity=2)
    first, second, third = (make_endpoint(keyring) for _ in range(3))
    for endpoint in (first, second, first, third, first):
        cache.get(endpoint)
    assert keyring.opened == 3
    cache.get(second)
    assert keyring.opened == 4


def test_secrets_moved_to_another_endpoint_do_not_open(keyring: CountingKeyring) -> None:
    endpoint, other = make_endpoint(keyring), make_endpoint(keyring)
    with pytest.raises(DamagedError):
        CredentialsCache(keyring).get(dataclasses.replace(endpoint, sealed_secrets=other.sealed_secrets))


def test_a_failure_to_open_is_not_remembered_and_spares_what_is_kept(keyring: CountingKeyring) -> None:
    cache, endpoint = CredentialsCache(keyring), make_endpoint(keyring)
    good = cache.get(endpoint)
    foreign = seal(Keyring(b"another key, also of 32 bytes ok"), endpoint.id, "foreign")
    with pytest.raises(WrongKeyError):
        cache.get(dataclasses.replace(endpoint, sealed_secrets=foreign))
    assert cache.get(endpoint) is good


def test_a_deleted_endpoints_empty_secrets_do_not_fall_back_to_those_that_were_kept(keyring: CountingKeyring) -> None:
    cache, endpoint = CredentialsCache(keyring), make_endpoint(keyring)
    cache.get(endpoint)
    with pytest.raises(DamagedError):
        cache.get(dataclasses.replace(endpoint, sealed_secrets=b""))
