"""Who is told: endpoints registered, changed, paused and deleted, and no URL stored that may not be contacted."""

from __future__ import annotations

import base64
import dataclasses
import stat
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from carehook.application import Application
from carehook.bootstrap import open_carehook
from carehook.directory.authentication import (
    BasicAuthentication,
    BearerAuthentication,
    HeadersAuthentication,
    NoAuthentication,
    OAuth2ClientCredentials,
)
from carehook.directory.endpoints import EndpointChanges, Endpoints, EndpointWithSecrets, NewEndpoint
from carehook.directory.organizations import NewOrganization
from carehook.directory.secrets import ROTATION_OVERLAP, SIGNING_AT_MOST
from carehook.dispatch.addresses import AddressRules
from carehook.dispatch.request import build_credentials, build_request
from carehook.events import CATALOGUE
from carehook.keyring import KEY_FILE, DamagedError, Keyring, load_keyring
from carehook.ledger.records import ClaimedDelivery, Settled
from carehook.ledger.states import DeliveryState, EndpointStatus
from carehook.refusals import Conflict, Invalid, NotFound
from carehook.signature import SigningSecret, verify
from tests.stores import ALL, SetClock, build_settings, create_organization, list_deliveries

URL = "https://hospital.example/hook"
NAMES = {
    "hospital.example": ["93.184.216.34"],
    "login.hospital.example": ["93.184.216.34", "2606:2800:220:1::1"],
    "inside.example": ["10.0.0.7"],
    "half.example": ["93.184.216.34", "127.0.0.1"],
    "metadata.example": ["169.254.169.254"],
    "mapped.example": ["::ffff:127.0.0.1"],
}
UNKNOWN = "org_018cc251f4007000800000000000dead"


async def look_up(host: str, port: int) -> Sequence[str]:
    if host not in NAMES:
        raise OSError("no such name")
    return NAMES[host]


@dataclass
class Site:
    """A Carehook whose endpoints are under the default address rules, with names of its own."""

    carehook: Application
    home: Path
    clock: SetClock
    organization: str
    keyring: Keyring

    @property
    def endpoints(self) -> Endpoints:
        return Endpoints(self.carehook.ledger, self.keyring, AddressRules(resolve=look_up), self.clock)

    async def register(self, **fields: Any) -> EndpointWithSecrets:
        return await self.endpoints.register(self.organization, NewEndpoint.model_validate({"url": URL} | fields))

    async def count(self) -> int:
        return len((await self.carehook.insights.endpoints(self.organization, ALL)).data)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    home = tmp_path / "home"
    clock = SetClock()
    async with open_carehook(build_settings(home), clock=clock) as carehook:
        yield Site(carehook, home, clock, await create_organization(carehook), load_keyring(home, None))


def build_oauth2(token_url: str) -> dict[str, str]:
    return {
        "type": "oauth2_client_credentials",
        "token_url": token_url,
        "client_id": "carehook",
        "client_secret": "client-secret-of-hospital",
    }


# ------------------------------------------------------------------------------------ registering


async def test_an_endpoint_has_what_was_given_and_secrets_of_its_own(site: Site) -> None:
    registered = await site.register(
        event_types=["patient_report_sent", "patient_report_sent"],
        description="the new portal",
        signature_value="agreed with support",
        authentication={"type": "basic", "username": "carehook", "password": "open sesame"},
    )
    assert registered.endpoint.event_types == ("patient_report_sent",)
    assert registered.endpoint.description == "the new portal"
    assert registered.endpoint.status is EndpointStatus.ACTIVE
    assert registered.secrets.signature_value.get_secret_value() == "agreed with support"
    assert registered.verification_secret.get_secret_value().startswith("whsec_")
    shown = await site.carehook.insights.endpoint(registered.endpoint.id)
    assert (shown.url, shown.created_at) == (URL, site.clock())


async def test_no_two_endpoints_share_a_secret(site: Site) -> None:
    one, other = await site.register(), await site.register()
    for name in ("signature_value", "signing_secrets"):
        assert getattr(one.secrets, name) != getattr(other.secrets, name)
    assert len(one.secrets.signature_value.get_secret_value()) >= 32


async def test_an_unknown_organization_has_no_endpoints(site: Site) -> None:
    with pytest.raises(NotFound, match="There is no organization"):
        await site.endpoints.register(UNKNOWN, NewEndpoint(url=URL))


async def test_a_rule_about_a_url_follows_the_name_of_its_field(site: Site) -> None:
    inside = "has a host with an address in a forbidden range (private"
    for fields, sentence in (
        ({"url": "https://inside.example/"}, f"url {inside}"),
        ({"url": "https://nowhere.example/"}, "url has a host name that does not resolve to an address."),
        ({"url": "https://hospital.example/#part"}, "url must not have a fragment (the part after #)."),
        ({"authentication": build_oauth2("https://inside.example/token")}, f"authentication.token_url {inside}"),
    ):
        with pytest.raises(Invalid) as raised:
            await site.register(**fields)
        assert str(raised.value).startswith(sentence)


class TwoServers(BearerAuthentication):
    """A method that asks another server, in a field of its own."""

    @property
    def contacted_urls(self) -> tuple[tuple[str, str], ...]:
        """One that may be asked, and one that may not."""
        return (("token_url", URL), ("introspection_url", "https://inside.example/"))


async def test_every_url_of_a_method_is_judged_under_the_name_of_its_field(site: Site) -> None:
    method = TwoServers(type="bearer", token=SecretStr("t"))
    with pytest.raises(Invalid) as raised:
        await site.register(authentication=method)
    assert [error.field for error in raised.value.errors] == ["authentication.introspection_url"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"event_types": ["patient_report_sent", "patient_born"]}, "event_types.1"),
        ({"event_types": [""]}, "event_types.0"),
        ({"url": "https://inside.example/"}, "url"),
        ({"authentication": build_oauth2("https://inside.example/token")}, "authentication.token_url"),
    ],
)
async def test_a_refusal_names_its_field_and_nothing_is_stored(site: Site, fields: dict[str, Any], named: str) -> None:
    with pytest.raises(Invalid) as raised:
        await site.register(**fields)
    assert [error.field for error in raised.value.errors] == [named]
    assert await site.count() == 0
    registered = await site.register()
    before = await site.carehook.insights.endpoint(registered.endpoint.id)
    with pytest.raises(Invalid) as raised:
        await site.endpoints.change(registered.endpoint.id, EndpointChanges.model_validate(fields))
    assert [error.field for error in raised.value.errors] == [named]
    assert await site.carehook.insights.endpoint(registered.endpoint.id) == before


@pytest.mark.parametrize(
    "url",
    [
        "http://hospital.example/",
        "ftp://hospital.example/",
        "//hospital.example/",
        "hospital.example",
        "",
        "https://",
        "https://user:secret@hospital.example/",
        "https://secret@hospital.example/",
        "https://hospital.example/#part",
        "https://hospital.example:0/",
        "https://hospital.example/a b",
        "https://127.0.0.1/",
        "https://2130706433/",
        "https://0x7f.1/",
        "https://0177.0.0.1/",
        "https://127.1/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[fe80::1%25eth0]/",
        "https://10.0.0.1/",
        "https://169.254.169.254/latest/meta-data",
        "https://0.0.0.0/",
        "https://224.0.0.1/",
        "https://100.64.0.1/",
        "https://１２７.0.0.1/",
        "https://inside.example/",
        "https://inside.example./",
        "https://half.example/",
        "https://metadata.example/",
        "https://mapped.example/",
        "https://nowhere.example/",
        "https://localhost/",
        "https://hospital.example/" + "x" * 3000,
    ],
)
async def test_a_url_that_may_not_be_contacted_is_refused_wherever_it_is_given(site: Site, url: str) -> None:
    for fields, named in (
        ({"url": url}, "url"),
        ({"authentication": build_oauth2(url)}, "token_url"),
    ):
        with pytest.raises((Invalid, ValidationError)) as raised:
            await site.register(**fields)
        assert named in str(raised.value)
        assert "secret" not in str(raised.value)
    assert await site.count() == 0


@pytest.mark.parametrize("value", ["", "a\r\nx-evil: 1", "a\x00", " padded ", "ñ", "x" * 4097, "********"])
async def test_a_signature_value_that_no_header_can_carry_is_refused(value: str) -> None:
    with pytest.raises(ValidationError, match="signature_value") as raised:
        NewEndpoint(url=URL, signature_value=SecretStr(value))
    assert value == "" or repr(value) not in str(raised.value)
    with pytest.raises(ValidationError, match="signature_value"):
        EndpointChanges(signature_value=SecretStr(value))


@pytest.mark.parametrize(
    "name",
    ["", " ", "\u00a0\u3000", "two\nlines", "\x1b[2J", "\x9b2J", "\u2028", "x" * 201, "\x00"],
    ids=lambda name: repr(name[:9]),
)
def test_a_name_is_one_line_that_no_terminal_acts_on(name: str) -> None:
    with pytest.raises(ValidationError):
        NewOrganization(name=name)


@pytest.mark.parametrize("description", ["two\nlines", "\x1b[2J", "x" * 501])
def test_a_description_is_one_line_too(description: str) -> None:
    for model in (NewEndpoint, EndpointChanges):
        with pytest.raises(ValidationError, match="description"):
            model.model_validate({"url": URL, "description": description})


@pytest.mark.parametrize("name", ["x", "Hospital Sant Joan de Déu", "病院", "a" * 200])
def test_a_name_may_be_in_any_script(name: str) -> None:
    assert NewOrganization(name=name).name == name


# ------------------------------------------------------------------------------------ changing


async def test_a_change_is_of_what_it_names_alone(site: Site) -> None:
    registered = await site.register(signature_value="first", authentication={"type": "bearer", "token": "t0ken"})
    site.clock.advance(minutes=1)
    changed = await site.endpoints.change(
        registered.endpoint.id,
        EndpointChanges(url="https://login.hospital.example/", event_types=("patient_report_sent",)),
    )
    assert changed == dataclasses.replace(
        registered.endpoint,
        url="https://login.hospital.example/",
        event_types=("patient_report_sent",),
        updated_at=site.clock(),
    )
    await site.endpoints.change(registered.endpoint.id, EndpointChanges(signature_value=SecretStr("second")))
    rotated = await site.endpoints.rotate_secret(registered.endpoint.id)
    assert rotated.secrets.signature_value.get_secret_value() == "second"
    assert rotated.secrets.authentication == BearerAuthentication(type="bearer", token=SecretStr("t0ken"))
    await site.endpoints.change(
        registered.endpoint.id, EndpointChanges(authentication=NoAuthentication(type="none"), event_types=())
    )
    shown = await site.carehook.insights.endpoint(registered.endpoint.id)
    assert (shown.event_types, shown.authentication) == ([], NoAuthentication(type="none"))


async def test_pausing_holds_resuming_goes_on_and_deleting_cancels(site: Site) -> None:
    endpoint = (await site.register()).endpoint
    example = CATALOGUE["patient_report_sent"]
    event = example.model.model_validate(example.example)
    await site.carehook.intake.accept(site.organization, [event])

    async def state() -> DeliveryState:
        (delivery,) = await list_deliveries(site.carehook, site.organization)
        return delivery.state

    for _ in range(2):
        assert (await site.endpoints.pause(endpoint.id)).status is EndpointStatus.PAUSED
        assert await state() is DeliveryState.HELD
    for _ in range(2):
        assert (await site.endpoints.resume(endpoint.id)).status is EndpointStatus.ACTIVE
        assert await state() is DeliveryState.PENDING
    assert await site.endpoints.delete(endpoint.id) == Settled(1, is_complete=True)
    assert await state() is DeliveryState.CANCELLED


async def test_a_disabled_endpoint_is_resumed_not_paused(site: Site) -> None:
    endpoint = (await site.register()).endpoint
    async with site.carehook.ledger.transaction() as transaction:
        disabled = dataclasses.replace(endpoint, status=EndpointStatus.DISABLED, status_reason="it answered 410")
        await transaction.endpoints.update(disabled)
    with pytest.raises(Conflict, match="disabled already"):
        await site.endpoints.pause(endpoint.id)
    resumed = await site.endpoints.resume(endpoint.id)
    assert (resumed.status, resumed.status_reason) == (EndpointStatus.ACTIVE, None)


async def test_a_deleted_endpoint_is_gone_with_its_secrets_but_its_deliveries_still_show(site: Site) -> None:
    endpoint = (await site.register()).endpoint
    sent = await site.carehook.examples.send(endpoint.id)
    await site.endpoints.delete(endpoint.id)
    for call in (site.endpoints.pause, site.endpoints.resume, site.endpoints.delete, site.endpoints.rotate_secret):
        with pytest.raises(NotFound, match="There is no endpoint"):
            await call(endpoint.id)
    with pytest.raises(NotFound):
        await site.carehook.insights.endpoint(endpoint.id)
    assert await site.count() == 0
    shown = await site.carehook.insights.delivery(sent.delivery_id)
    assert (shown.endpoint_id, shown.state) == (endpoint.id, DeliveryState.CANCELLED)
    assert [each.id for each in await list_deliveries(site.carehook, site.organization)] == [sent.delivery_id]


# ------------------------------------------------------------------------------------ signing secrets


def count_signatures(site: Site, endpoint: EndpointWithSecrets, *secrets: str) -> list[bool]:
    """Whether the request of an attempt now verifies under each of the secrets."""
    claimed = ClaimedDelivery(
        id="dlv_1",
        lease_token=1,
        lease_until=site.clock(),
        attempt_count=0,
        failure_count=0,
        event_id="evt_1",
        event_type="patient_report_sent",
        accepted_at=site.clock(),
        body=b"{}",
        endpoint=endpoint.endpoint,
    )
    headers = build_request(claimed, build_credentials(endpoint.secrets), site.clock()).headers
    found = []
    for secret in secrets:
        try:
            verify(
                headers["webhook-id"],
                headers["webhook-timestamp"],
                b"{}",
                headers["webhook-signature"],
                [SigningSecret.parse(secret)],
                now=site.clock().timestamp(),
            )
        except ValueError:
            found.append(False)
        else:
            found.append(True)
    return found


@pytest.mark.parametrize("scheme", ["v1", "v1a"])
async def test_after_a_rotation_both_secrets_sign_and_later_the_new_one_alone(site: Site, scheme: str) -> None:
    registered = await site.register(signature_scheme=scheme)
    old = registered.verification_secret.get_secret_value()
    rotated = await site.endpoints.rotate_secret(registered.endpoint.id)
    new = rotated.verification_secret.get_secret_value()
    assert old != new
    assert new.startswith("whpk_" if scheme == "v1a" else "whsec_")
    assert count_signatures(site, rotated, old, new) == [True, True]
    site.clock.now += ROTATION_OVERLAP - timedelta(seconds=1)
    assert count_signatures(site, rotated, old, new) == [True, True]
    site.clock.advance(seconds=1)
    assert count_signatures(site, rotated, old, new) == [False, True]


async def test_a_leaked_secret_can_be_ended_at_once(site: Site) -> None:
    registered = await site.register()
    rotated = await site.endpoints.rotate_secret(registered.endpoint.id, timedelta())
    old, new = (each.verification_secret.get_secret_value() for each in (registered, rotated))
    assert count_signatures(site, rotated, old, new) == [False, True]


async def test_a_second_rotation_does_not_prolong_the_first_secret(site: Site) -> None:
    registered = await site.register()
    await site.endpoints.rotate_secret(registered.endpoint.id)
    site.clock.advance(hours=12)
    rotated = await site.endpoints.rotate_secret(registered.endpoint.id)
    assert len(rotated.secrets.signing_at(site.clock())) == 3
    site.clock.advance(hours=12)
    assert count_signatures(site, rotated, registered.verification_secret.get_secret_value()) == [False]
    assert len(rotated.secrets.signing_at(site.clock())) == 2


async def test_however_often_it_is_rotated_receivers_can_read_the_header(site: Site) -> None:
    registered = await site.register()
    rotated = registered
    for _ in range(20):
        rotated = await site.endpoints.rotate_secret(registered.endpoint.id)
    assert len(rotated.secrets.signing_secrets) == SIGNING_AT_MOST
    assert count_signatures(site, rotated, rotated.verification_secret.get_secret_value()) == [True]


async def test_the_private_key_of_v1a_is_shown_nowhere(site: Site) -> None:
    registered = await site.register(signature_scheme="v1a")
    private = registered.secrets.signing_secrets[0].secret.get_secret_value()
    assert private.startswith("whsk_")
    created = await site.carehook.insights.created(registered, reveal_signature_value=True)
    assert created.signing_secret.startswith("whpk_")
    for shown in (created.model_dump_json(), repr(created), repr(registered), repr(registered.secrets)):
        assert private.removeprefix("whsk_") not in shown


# ------------------------------------------------------------------------------------ secrets at rest

SECRETS: dict[str, dict[str, Any]] = {
    "signature-value-of-hospital": {"signature_value": "signature-value-of-hospital"},
    "password-of-hospital": {
        "authentication": BasicAuthentication(
            type="basic", username="carehook", password=SecretStr("password-of-hospital")
        )
    },
    "bearer-of-hospital": {
        "authentication": BearerAuthentication(type="bearer", token=SecretStr("bearer-of-hospital"))
    },
    "api-key-of-hospital": {
        "authentication": HeadersAuthentication(type="headers", headers={"x-api-key": SecretStr("api-key-of-hospital")})
    },
    "client-secret-of-hospital": {
        "authentication": OAuth2ClientCredentials.model_validate(build_oauth2("https://login.hospital.example/token"))
    },
}


def spell(secret: str) -> list[bytes]:
    """The ways in which a secret could lie in a file."""
    raw = secret.encode()
    middles = [base64.b64encode(b"\0" * shift + raw)[4:-4] for shift in range(3)]
    return [raw, raw.hex().encode(), raw.hex().upper().encode(), raw[::-1], *middles]


async def test_no_secret_lies_readable_in_any_file_of_the_home(site: Site) -> None:
    found = list(SECRETS)
    for fields in SECRETS.values():
        registered = await site.register(**fields)
        rotated = await site.endpoints.rotate_secret(registered.endpoint.id)
        found += [each.secret.get_secret_value().partition("_")[2] for each in rotated.secrets.signing_secrets]
        found.append(registered.secrets.signature_value.get_secret_value())
    token = await site.carehook.tokens.create_first_operator()
    assert token is not None
    found.append(token.secret.get_secret_value())
    files = {path.name: path.read_bytes() for path in site.home.iterdir()}
    assert {"carehook.db", "carehook.db-wal", KEY_FILE} <= set(files)
    # The search works: what is no secret is found.
    assert any(URL.encode() in content for content in files.values())
    for secret in found:
        for spelling in spell(secret):
            assert not any(spelling in content for content in files.values())


async def test_the_files_are_their_owners_alone(site: Site) -> None:
    await site.register()
    assert stat.S_IMODE(site.home.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in site.home.iterdir()} == {0o600}


@pytest.mark.parametrize("secret", list(SECRETS))
async def test_no_secret_is_shown_when_an_endpoint_is(site: Site, secret: str) -> None:
    new = NewEndpoint.model_validate({"url": URL} | SECRETS[secret])
    registered = await site.endpoints.register(site.organization, new)
    view = await site.carehook.insights.endpoint(registered.endpoint.id)
    listed = await site.carehook.insights.endpoints(site.organization, ALL)
    created = await site.carehook.insights.created(registered, reveal_signature_value=False)
    for value in (new, registered, registered.secrets, view, listed, created):
        assert secret not in repr(value)
        assert secret not in str(value)
    for model in (new, registered.secrets, view, listed, created):
        assert secret not in model.model_dump_json()
    assert view.signature_value == "********"


async def test_a_secret_moved_to_another_row_does_not_open(site: Site) -> None:
    one = (await site.register(authentication={"type": "bearer", "token": "t0ken"})).endpoint
    other = (await site.register()).endpoint
    async with site.carehook.ledger.transaction() as transaction:
        await transaction.endpoints.update(dataclasses.replace(other, sealed_secrets=one.sealed_secrets))
    assert (await site.carehook.insights.endpoint(other.id)).authentication is None
    with pytest.raises(DamagedError, match="moved here from another place"):
        site.keyring.open(one.sealed_secrets, context=f"endpoint:{other.id}")
    with pytest.raises(Conflict, match="Delete the endpoint and register it anew"):
        await site.endpoints.rotate_secret(other.id)
    with pytest.raises(Conflict, match="Delete the endpoint and register it anew"):
        await site.endpoints.change(other.id, EndpointChanges(signature_value=SecretStr("new")))
    # What does not touch its secrets goes on.
    await site.endpoints.change(other.id, EndpointChanges(description="damaged"))
    await site.endpoints.delete(other.id)
