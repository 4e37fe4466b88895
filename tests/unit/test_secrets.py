"""An endpoint's secrets as one value: masked wherever shown, sealed for one place, rotated with an overlap."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from pydantic import SecretStr

from carehook.directory.authentication import BearerAuthentication, NoAuthentication
from carehook.directory.secrets import (
    SIGNING_AT_MOST,
    EndpointSecrets,
    SigningSecretPeriod,
    open_secrets,
    seal_secrets,
)
from carehook.keyring import DamagedError, Keyring, WrongKeyError

NOW = datetime(2024, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
KEYRING = Keyring(bytes(range(32)))
HIDDEN = ("agreed-value", "whsec_first", "bearer-token")


def build_secrets() -> EndpointSecrets:
    return EndpointSecrets(
        signature_value=SecretStr("agreed-value"),
        signing_secrets=(SigningSecretPeriod(secret=SecretStr("whsec_first")),),
        authentication=BearerAuthentication(type="bearer", token=SecretStr("bearer-token")),
    )


def list_signing(secrets: EndpointSecrets, now: datetime) -> list[str]:
    return [each.secret.get_secret_value() for each in secrets.signing_at(now)]


def test_what_is_sealed_opens_as_it_was() -> None:
    rotated = build_secrets().rotate(SecretStr("whsec_second"), NOW, DAY)
    for secrets in (build_secrets(), rotated):
        assert open_secrets(seal_secrets(secrets, KEYRING, "ep_1"), KEYRING, "ep_1") == secrets


def test_what_is_sealed_shows_nothing_and_opens_nowhere_else() -> None:
    sealed = seal_secrets(build_secrets(), KEYRING, "ep_1")
    assert not any(hidden.encode() in sealed for hidden in HIDDEN)
    with pytest.raises(DamagedError):
        open_secrets(sealed, KEYRING, "ep_2")
    with pytest.raises(WrongKeyError):
        open_secrets(sealed, Keyring(bytes(32)), "ep_1")
    with pytest.raises(DamagedError):
        open_secrets(sealed[:-1] + bytes([sealed[-1] ^ 1]), KEYRING, "ep_1")
    with pytest.raises(DamagedError):
        open_secrets(b"", KEYRING, "ep_1")


def test_nothing_is_shown() -> None:
    secrets = build_secrets()
    for shown in (repr(secrets), str(secrets), secrets.model_dump_json(), str(secrets.model_dump(mode="json"))):
        assert not any(hidden in shown for hidden in HIDDEN)


def test_a_replaced_secret_signs_until_the_overlap_is_over() -> None:
    rotated = build_secrets().rotate(SecretStr("whsec_second"), NOW, DAY)
    assert list_signing(rotated, NOW) == ["whsec_second", "whsec_first"]
    assert list_signing(rotated, NOW + DAY - timedelta(microseconds=1)) == ["whsec_second", "whsec_first"]
    assert list_signing(rotated, NOW + DAY) == ["whsec_second"]


def test_a_later_rotation_ends_a_replaced_secret_no_later_but_may_end_it_sooner() -> None:
    twice = build_secrets().rotate(SecretStr("b"), NOW, DAY).rotate(SecretStr("c"), NOW + DAY / 2, DAY)
    assert [each.expires_at for each in twice.signing_secrets] == [None, NOW + 1.5 * DAY, NOW + DAY]
    at_once = twice.rotate(SecretStr("d"), NOW + DAY / 2, timedelta())
    assert list_signing(at_once, NOW + DAY / 2) == ["d"]


def test_the_rest_stays_when_a_secret_is_rotated() -> None:
    rotated = build_secrets().rotate(SecretStr("b"), NOW, DAY)
    assert (rotated.signature_value, rotated.authentication) == (
        build_secrets().signature_value,
        build_secrets().authentication,
    )
    assert rotated.authentication != NoAuthentication(type="none")


def test_the_newest_few_sign() -> None:
    secrets = build_secrets()
    for name in "bcdefg":
        secrets = secrets.rotate(SecretStr(name), NOW, DAY)
    assert list_signing(secrets, NOW) == ["g", "f", "e", "d"]
    assert len(secrets.signing_secrets) == SIGNING_AT_MOST
