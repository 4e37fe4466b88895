"""One delivery from its event to its end: every kind of receiver, on the embedded store, over loopback."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from carehook import Webhook
from carehook.config import Settings
from carehook.directory.authentication import BasicAuthentication, OAuth2ClientCredentials
from carehook.directory.authentication.bearer import BearerAuthentication
from carehook.directory.authentication.flow import AuthenticationMethod
from carehook.directory.authentication.headers import HeadersAuthentication
from carehook.ledger.records import AttemptOutcome
from carehook.ledger.states import DeliveryState, EndpointStatus
from tests.e2e.dispatching import (
    Platform,
    StandingClock,
    eventually,
    make_settings,
    open_platform,
    open_worker,
    running,
)
from tests.receivers import HOSTILITIES, Answer, Certificates, HostileReceiver, RecordingReceiver
from tests.servers.authorization_server import BASIC_CLIENT, SECRET, AuthorizationServer

SCHEDULE = (5.0, 300.0, 1800.0)
LONGEST = 1800.0 * 1.2


@pytest.fixture
def clock() -> StandingClock:
    return StandingClock()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(tmp_path / "home", retry_schedule=SCHEDULE)


@pytest.fixture
async def platform(settings: Settings, clock: StandingClock) -> AsyncIterator[Platform]:
    """Carehook at work, with a clock that stands still."""
    async with open_platform(settings, clock) as platform, running(platform.application.worker):
        yield platform


# What a receiver gets.


async def test_every_attempt_sends_the_same_bytes_under_the_same_id_with_its_own_timestamp(
    platform: Platform, clock: StandingClock
) -> None:
    with RecordingReceiver(500, Answer(302, {"location": "/elsewhere"}), 503) as receiver:
        endpoint = await platform.register(receiver, signature_value=SecretStr("agreed"))
        (event_id,) = await platform.publish()
        for attempt in range(1, 4):
            delivery = await platform.wait_for_attempts(attempt)
            assert (delivery.state, len(receiver.requests)) == (DeliveryState.PENDING, attempt)
            clock.advance(LONGEST)
        await platform.wait_for(DeliveryState.SUCCEEDED)

    webhook = Webhook(signature_value="agreed", signing_secret=endpoint.verification_secret.get_secret_value())
    for request in receiver.requests:
        webhook.verify(request.body, request.headers, now=float(request.headers["webhook-timestamp"]))
    assert {request.headers["webhook-id"] for request in receiver.requests} == {event_id}
    assert len({request.headers["webhook-timestamp"] for request in receiver.requests}) == 4
    async with platform.application.ledger.snapshot() as snapshot:
        event = await snapshot.events.get(event_id)
    assert event is not None
    assert [request.body for request in receiver.requests] == [event.body] * 4


async def test_a_redirect_is_a_failure_and_is_not_followed(platform: Platform) -> None:
    with RecordingReceiver() as elsewhere, RecordingReceiver(Answer(307, {"location": elsewhere.url})) as receiver:
        await platform.register(receiver)
        await platform.publish()
        delivery = await platform.wait_for_attempts(1)
    (attempt,) = delivery.attempts
    assert attempt.reason == "the endpoint redirected (307); redirects are not followed"
    assert (len(receiver.requests), len(elsewhere.requests)) == (1, 0)
    assert delivery.state is DeliveryState.PENDING


async def test_changed_authentication_and_signing_secrets_hold_from_the_next_attempt_on(
    platform: Platform, clock: StandingClock
) -> None:
    with RecordingReceiver(500) as receiver:
        before = await platform.register(receiver)
        await platform.publish()
        await platform.wait_for_attempts(1)
        after = await platform.application.endpoints.rotate_secret(before.endpoint.id)
        clock.advance(LONGEST)
        await platform.wait_for(DeliveryState.SUCCEEDED)
    first, second = receiver.requests
    assert len(first.headers["webhook-signature"].split(" ")) == 1
    assert len(second.headers["webhook-signature"].split(" ")) == 2
    for secret in (before, after):
        webhook = Webhook(signing_secret=secret.verification_secret.get_secret_value())
        webhook.verify(second.body, second.headers, now=clock().timestamp())


# What becomes of a delivery.


async def test_retry_after_is_when_the_next_attempt_is_due(platform: Platform, clock: StandingClock) -> None:
    with RecordingReceiver(Answer(503, {"retry-after": "7200"})) as receiver:
        await platform.register(receiver)
        await platform.publish()
        delivery = await platform.wait_for_attempts(1)
        assert delivery.due_at == clock() + timedelta(hours=2)
        clock.advance(7200)
        await platform.wait_for(DeliveryState.SUCCEEDED)
    assert len(receiver.requests) == 2


@pytest.mark.parametrize(
    "value", ["9" * 30, "22 Nov 2026 12:2" + "9" * 40 + ":00 GMT", "Fri, 31 Dec 9999 23:59:59 -2359"], ids=repr
)
async def test_a_monstrous_retry_after_spoils_neither_the_record_nor_the_wait(
    platform: Platform, clock: StandingClock, value: str
) -> None:
    with RecordingReceiver(Answer(503, {"retry-after": value})) as receiver:
        await platform.register(receiver)
        await platform.publish()
        delivery = await platform.wait_for_attempts(1)
        assert [attempt.status_code for attempt in delivery.attempts] == [503]
        assert delivery.due_at is not None
        assert clock() < delivery.due_at <= clock() + timedelta(hours=24)


async def test_a_delivery_is_exhausted_after_its_whole_schedule(platform: Platform, clock: StandingClock) -> None:
    with RecordingReceiver(then=Answer(500, body=b"out of order")) as receiver:
        await platform.register(receiver)
        await platform.publish()
        for attempt in range(1, len(SCHEDULE) + 1):
            await platform.wait_for_attempts(attempt)
            clock.advance(LONGEST)
        await platform.wait_for(DeliveryState.EXHAUSTED)
        delivery = await platform.get_delivery()
        assert [attempt.number for attempt in delivery.attempts] == [1, 2, 3, 4]
        assert {attempt.response_excerpt for attempt in delivery.attempts} == {"out of order"}
        assert (delivery.due_at, delivery.finished_at) == (None, clock())
        clock.advance(10 * LONGEST)
        await platform.publish()
        await receiver.wait_for_requests(len(SCHEDULE) + 2)
    assert len(receiver.requests) == len(SCHEDULE) + 2


async def test_410_disables_the_endpoint_and_holds_its_deliveries_until_it_is_resumed(platform: Platform) -> None:
    with RecordingReceiver(then=410) as receiver:
        endpoint_id = (await platform.register(receiver)).endpoint.id
        await platform.publish(20)
        await platform.wait_for(DeliveryState.HELD, 20)
        await platform.publish(5)
        assert (await platform.count_states())[DeliveryState.HELD] == 25
        endpoint = await platform.application.insights.endpoint(endpoint_id)
        assert endpoint.status is EndpointStatus.DISABLED
        assert endpoint.status_reason == "the endpoint answered 410 Gone"

        receiver.then = 200
        sent = len(receiver.requests)
        await platform.application.endpoints.resume(endpoint_id)
        await platform.wait_for(DeliveryState.SUCCEEDED, 25)
    assert len(receiver.requests) == sent + 25
    assert (await platform.application.insights.endpoint(endpoint_id)).status is EndpointStatus.ACTIVE


async def test_an_endpoint_whose_network_is_allowed_no_more_is_not_contacted(
    settings: Settings, clock: StandingClock
) -> None:
    with RecordingReceiver() as receiver:
        async with open_platform(settings, clock) as platform:
            await platform.register(receiver)
            await platform.publish()
            strict = make_settings(settings.home, allowed_networks=())
            async with open_worker(strict, clock=clock) as worker, running(worker):
                (attempt,) = (await platform.wait_for_attempts(1)).attempts
    assert attempt.outcome is AttemptOutcome.BLOCKED
    assert attempt.reason is not None
    assert "loopback" in attempt.reason
    assert receiver.connections == 0


async def test_an_endpoint_whose_secrets_do_not_open_is_disabled_and_says_why(platform: Platform) -> None:
    with RecordingReceiver() as receiver, RecordingReceiver() as healthy:
        damaged = (await platform.register(receiver)).endpoint
        sound = (await platform.register(healthy)).endpoint
        async with platform.application.ledger.transaction() as transaction:
            await transaction.endpoints.update(dataclasses.replace(damaged, sealed_secrets=b"\x01 not what was sealed"))
        await platform.publish(10)
        await platform.wait_for(DeliveryState.SUCCEEDED, 10, sound.id)
        await platform.wait_for(DeliveryState.HELD, 10, damaged.id)
        deliveries = await platform.list_deliveries(damaged.id)
        shown = await platform.application.insights.endpoint(damaged.id)
        # Once it is mended, what was held goes on.
        async with platform.application.ledger.transaction() as transaction:
            await transaction.endpoints.update(dataclasses.replace(damaged, status=EndpointStatus.DISABLED))
        await platform.application.endpoints.resume(damaged.id)
        await platform.wait_for(DeliveryState.SUCCEEDED, 10, damaged.id)
    assert shown.status is EndpointStatus.DISABLED
    assert (shown.status_reason or "").startswith("its secrets cannot be used: A stored secret ")
    attempts = [attempt for delivery in deliveries for attempt in delivery.attempts]
    assert attempts
    for attempt in attempts:
        assert attempt.outcome is AttemptOutcome.INTERRUPTED
        assert (attempt.reason or "").startswith("the endpoint's secrets cannot be used: ")
    assert (len(receiver.requests), len(healthy.requests)) == (10, 10)


# Receivers that break the rules, all at once, beside one that does not.

REASONS = {
    "hang_before_headers": "no complete response within 1 s",
    "hang_after_headers": "no complete response within 1 s",
    "hang_in_handshake": "no complete response within 1 s",
    "trickle_body": "no complete response within 1 s",
    "endless_body": None,
    "drop_at_once": "the connection was closed before a complete response",
    "drop_before_headers": "the connection was closed before a complete response",
    "drop_mid_headers": "the connection was closed before a complete response",
    "drop_mid_body": "the connection was closed before a complete response",
    "redirect": "the endpoint redirected (307); redirects are not followed",
    "garbage": "the response is not valid HTTP",
    "garbage_at_once": "the response is not valid HTTP",
    "garbage_body": "the response is not valid HTTP",
    "garbage_header": None,
    "huge_header": "the response has too many or too large headers",
    "many_headers": "the response has too many or too large headers",
    "gzip_bomb": None,
}


async def test_whatever_receivers_do_is_an_attempt_with_a_plain_reason_and_their_neighbours_do_not_notice(
    settings: Settings, clock: StandingClock
) -> None:
    with ExitStack() as stack:
        healthy = stack.enter_context(RecordingReceiver())
        hostile = {name: stack.enter_context(HostileReceiver(name)) for name in HOSTILITIES}
        async with open_platform(settings, clock) as platform:
            ids = {}
            for name, receiver in hostile.items():
                url = receiver.url.replace("http:", "https:") if name == "hang_in_handshake" else receiver.url
                ids[name] = (await platform.register(url)).endpoint.id
            sound = (await platform.register(healthy)).endpoint.id
            event_ids = await platform.publish(8)
            async with open_worker(settings, clock=clock, request_limit=1.0) as worker, running(worker):
                await platform.wait_for(DeliveryState.SUCCEEDED, 8, sound)
                for name, reason in REASONS.items():
                    state = DeliveryState.PENDING if reason else DeliveryState.SUCCEEDED

                    async def settled(endpoint_id: str = ids[name], expected: DeliveryState = state) -> bool:
                        deliveries = await platform.list_deliveries(endpoint_id)
                        return all(each.attempt_count == 1 and each.state is expected for each in deliveries)

                    await eventually(settled, f"{name} is recorded")
            reasons = {
                name: {each.attempts[0].reason for each in await platform.list_deliveries(endpoint_id)}
                for name, endpoint_id in ids.items()
            }
    # It may be said before the request is sent, or after.
    assert reasons.pop("garbage_at_once") <= {REASONS["garbage_at_once"], "the connection failed"}
    assert reasons == {name: {reason} for name, reason in REASONS.items() if name in reasons}
    assert sorted(request.headers["webhook-id"] for request in healthy.requests) == sorted(event_ids)


async def test_a_bad_certificate_is_refused_and_a_good_one_beside_it_is_not(tmp_path: Path) -> None:
    certificates = Certificates()
    authority = tmp_path / "authority.pem"
    authority.write_bytes(certificates.root_pem)
    settings = make_settings(tmp_path / "home", ca_file=authority, allow_http=False)
    with (
        RecordingReceiver(tls=certificates.for_hosts("127.0.0.1")) as good,
        RecordingReceiver(tls=certificates.expired("127.0.0.1")) as expired,
        RecordingReceiver(tls=certificates.for_hosts("127.0.0.2")) as foreign,
        RecordingReceiver(tls=certificates.self_signed("127.0.0.1")) as unknown,
    ):
        async with open_platform(settings) as platform, running(platform.application.worker):
            ids = [(await platform.register(each)).endpoint.id for each in (good, expired, foreign, unknown)]
            await platform.publish()
            deliveries = [await platform.wait_for_attempts(1, endpoint_id) for endpoint_id in ids]
    assert [delivery.attempts[0].reason for delivery in deliveries] == [
        None,
        "the TLS certificate has expired",
        "the TLS certificate is for another host name",
        "the TLS certificate is from an unknown issuer or self-signed",
    ]
    assert [len(each.requests) for each in (good, expired, foreign, unknown)] == [1, 0, 0, 0]


# OAuth 2.0 and the like.


@pytest.fixture(scope="module")
def authorization_process() -> Iterator[AuthorizationServer]:
    with AuthorizationServer() as server:
        yield server


@pytest.fixture
def authorization_server(authorization_process: AuthorizationServer) -> AuthorizationServer:
    authorization_process.reset()
    return authorization_process


def make_client(server: AuthorizationServer) -> OAuth2ClientCredentials:
    return OAuth2ClientCredentials(
        type="oauth2_client_credentials",
        token_url=server.token_url,
        client_id=BASIC_CLIENT,
        client_secret=SecretStr(SECRET),
    )


async def test_oauth2_one_token_serves_many_deliveries_and_is_renewed_once_when_it_is_refused(
    platform: Platform, authorization_server: AuthorizationServer
) -> None:
    await platform.register(f"{authorization_server.url}/hook", authentication=make_client(authorization_server))
    await platform.publish(20)
    await platform.wait_for(DeliveryState.SUCCEEDED, 20)
    assert len(authorization_server.get_token_requests()) == 1
    assert len(authorization_server.get_hooks()) == 20

    authorization_server.revoke_all()
    await platform.publish()
    await platform.wait_for(DeliveryState.SUCCEEDED, 21)
    assert len(authorization_server.get_token_requests()) == 2
    # The refused request and the one with the new token are one attempt.
    assert len(authorization_server.get_hooks()) == 22
    assert {delivery.attempt_count for delivery in await platform.list_deliveries()} == {1}


async def test_oauth2_a_receiver_that_refuses_every_token_is_asked_twice_and_then_it_is_a_failure(
    platform: Platform, authorization_server: AuthorizationServer
) -> None:
    await platform.register(f"{authorization_server.url}/closed-hook", authentication=make_client(authorization_server))
    await platform.publish()
    delivery = await platform.wait_for_attempts(1)
    assert [attempt.status_code for attempt in delivery.attempts] == [401]
    assert delivery.attempts[0].reason == "the endpoint answered 401"
    assert len(authorization_server.get_token_requests()) == 2
    assert len(authorization_server.get_hooks()) == 2


async def test_oauth2_a_token_endpoint_that_is_down_is_the_reason_and_nothing_is_sent_without_a_token(
    platform: Platform, clock: StandingClock, authorization_server: AuthorizationServer
) -> None:
    authorization_server.break_down()
    await platform.register(f"{authorization_server.url}/hook", authentication=make_client(authorization_server))
    await platform.publish()
    delivery = await platform.wait_for_attempts(1)
    (attempt,) = delivery.attempts
    assert attempt.outcome is AttemptOutcome.UNREACHABLE
    assert attempt.reason == "the authorization server answered 503"
    assert SECRET not in repr(delivery)
    assert authorization_server.get_hooks() == []

    authorization_server.reset()
    clock.advance(LONGEST)
    await platform.wait_for(DeliveryState.SUCCEEDED)
    assert len(authorization_server.get_hooks()) == 1


async def test_a_slow_authorization_server_cannot_make_an_attempt_outlive_its_lease(
    settings: Settings, clock: StandingClock
) -> None:
    with HostileReceiver("hang_before_headers") as hanging, RecordingReceiver() as receiver:
        async with open_platform(settings, clock) as platform:
            client = OAuth2ClientCredentials(
                type="oauth2_client_credentials",
                token_url=hanging.url,
                client_id="carehook",
                client_secret=SecretStr("secret"),
            )
            await platform.register(receiver, authentication=client)
            await platform.publish()
            limit = timedelta(seconds=0.2)
            async with open_worker(settings, clock=clock, attempt_limit=limit) as worker, running(worker):
                (attempt,) = (await platform.wait_for_attempts(1)).attempts
    assert attempt.reason == "no complete response within 0.2 s, authentication included"
    assert receiver.connections == 0


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [
        (
            BasicAuthentication(type="basic", username="carehook", password=SecretStr("s:cret")),
            "authorization",
            "Basic Y2FyZWhvb2s6czpjcmV0",
        ),
        (BearerAuthentication(type="bearer", token=SecretStr("mF_9.B5f")), "authorization", "Bearer mF_9.B5f"),
        (HeadersAuthentication(type="headers", headers={"x-api-key": SecretStr("31d8-key")}), "x-api-key", "31d8-key"),
    ],
)
async def test_authentication_is_on_the_wire(
    platform: Platform, method: AuthenticationMethod, name: str, value: str
) -> None:
    with RecordingReceiver() as receiver:
        await platform.register(receiver, authentication=method)
        await platform.publish()
        (request,) = await receiver.wait_for_requests()
    assert request.headers[name] == value


async def test_the_agreed_value_is_on_every_request_resent_and_after_a_new_secret_as_well(platform: Platform) -> None:
    with RecordingReceiver() as receiver:
        endpoint = await platform.register(receiver, signature_value=SecretStr("agreed"))
        (event_id,) = await platform.publish()
        await platform.wait_for(DeliveryState.SUCCEEDED)
        rotated = await platform.application.endpoints.rotate_secret(endpoint.endpoint.id, timedelta(0))
        await platform.application.interventions.resend(event_id)
        first, again = await receiver.wait_for_requests(2)

    assert (first.body, first.headers["webhook-id"]) == (again.body, again.headers["webhook-id"])
    for request, secret in ((first, endpoint.verification_secret), (again, rotated.verification_secret)):
        assert request.headers["x-webhook-signature"] == "agreed"
        webhook = Webhook(signature_value="agreed", signing_secret=secret.get_secret_value())
        webhook.verify(request.body, request.headers, now=float(request.headers["webhook-timestamp"]))
