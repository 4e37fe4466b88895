"""The guarded sender against real sockets: nothing forbidden is contacted, and every misbehaviour is an outcome."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_network

import pytest

from carehook.dispatch.addresses import AddressRules
from carehook.dispatch.sender import GuardedSender
from carehook.exchange import Blocked, Interrupted, Outcome, Request, Responded, Unreachable
from tests.receivers import Answer, Certificates, HostileReceiver, RecordingReceiver
from tests.receivers.hostile import GZIP_BOMB

LOOPBACK = "127.0.0.0/8"
NAME = "receiver.invalid"  # no resolver but the test's own can know it
HEADERS = {"user-agent": "Carehook/1.2.3", "content-type": "application/json", "x-webhook-signature": "agreed"}
BODY = b'{"type":"patient_report_sent"}'


class Names:
    """A resolver: each call answers with the next list of addresses, the last one for ever."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@asynccontextmanager
async def open_sender(
    *addresses: Sequence[str],
    allowed: str = LOOPBACK,
    time_limit: float = 10,
    connect_timeout: float = 5,
    root_certificates: bytes | None = None,
    client_limit: int = 1000,
) -> AsyncIterator[GuardedSender]:
    """A sender for which every name has `addresses`, one list for each resolution."""
    names = Names(*(addresses or (["127.0.0.1"],)))
    sender = GuardedSender(
        AddressRules(
            [ip_network(part) for part in allowed.split(",") if part],
            allow_http=True,
            resolve=names,
            resolution_lifetime=0,
        ),
        timeout=time_limit,
        connect_timeout=connect_timeout,
        root_certificates=root_certificates,
        client_limit=client_limit,
    )
    try:
        yield sender
    finally:
        await sender.close()


def make_request(url: str) -> Request:
    return Request("POST", url, HEADERS, BODY)


@pytest.fixture(scope="module")
def certificates() -> Certificates:
    return Certificates()


# What a receiver gets, and what we keep of its answer.


async def test_a_request_arrives_as_it_was_built_and_nothing_is_added_but_what_http_needs() -> None:
    async with RecordingReceiver() as receiver, open_sender() as sender:
        await sender.send(make_request(receiver.url_for(NAME, "/hook?token=1")))
        request = receiver.requests[0]
        assert request.head == (
            b"POST /hook?token=1 HTTP/1.1\r\n"
            b"user-agent: Carehook/1.2.3\r\n"
            b"content-type: application/json\r\n"
            b"x-webhook-signature: agreed\r\n"
            b"accept: */*\r\n"
            b"host: receiver.invalid:%d\r\n"
            b"content-length: %d\r\n\r\n" % (receiver.port, len(BODY))
        )
        assert request.body == BODY


async def test_a_request_without_a_user_agent_gets_ours_and_not_the_librarys() -> None:
    async with RecordingReceiver() as receiver, open_sender() as sender:
        await sender.send(Request("GET", receiver.url, {}, b""))
        assert receiver.requests[0].headers["user-agent"] == "Carehook"


async def test_an_answer_is_an_outcome_with_the_headers_that_matter() -> None:
    answer = Answer(429, {"Retry-After": "7", "Content-Type": "text/plain", "Set-Cookie": "a=b"}, b"slow down")
    async with RecordingReceiver(answer) as receiver, open_sender() as sender:
        outcome = await sender.send(make_request(receiver.url))
        assert outcome == Responded(429, {"retry-after": "7", "content-type": "text/plain"}, b"slow down")
        await sender.send(make_request(receiver.url))
        assert "cookie" not in receiver.requests[1].headers


@pytest.mark.parametrize("status", [200, 204, 301, 410, 500, 599])
async def test_every_status_is_an_answer(status: int) -> None:
    async with RecordingReceiver(status) as receiver, open_sender() as sender:
        assert await sender.send(make_request(receiver.url)) == Responded(status)


async def test_a_redirect_is_an_answer_and_not_followed() -> None:
    async with HostileReceiver("redirect") as receiver, open_sender() as sender:
        assert await sender.send(make_request(receiver.url)) == Responded(307)
        assert [request.path for request in receiver.requests] == ["/hook"]


async def test_a_connection_is_used_again_even_after_a_body_that_was_cut() -> None:
    answers = [Answer(200, body=b"ok"), Answer(204), Answer(500, body=b"x" * 4096), Answer(200, body=b"x" * 5000)]
    async with RecordingReceiver(*answers) as receiver, open_sender() as sender:
        bodies = [await sender.send(make_request(receiver.url)) for _ in range(5)]
        assert [len(outcome.body) for outcome in bodies if isinstance(outcome, Responded)] == [2, 0, 4096, 4096, 0]
        assert receiver.connections == 1


async def test_a_compressed_answer_is_not_expanded() -> None:
    async with HostileReceiver("gzip_bomb") as receiver, open_sender() as sender:
        outcome = await sender.send(make_request(receiver.url))
        assert outcome == Responded(200, {}, GZIP_BOMB)
        assert "accept-encoding" not in receiver.requests[0].headers


async def test_an_endless_body_is_cut_and_its_connection_dropped() -> None:
    async with HostileReceiver("endless_body") as receiver, open_sender() as sender:
        outcome = await sender.send(make_request(receiver.url))
        assert outcome == Responded(200, {"content-type": "text/plain"}, b"x" * 4096)
        await receiver.wait_for_disconnections()


async def test_headers_that_are_no_text_are_as_good_as_absent() -> None:
    async with HostileReceiver("garbage_header") as receiver, open_sender() as sender:
        assert await sender.send(make_request(receiver.url)) == Responded(200)


# Receivers that misbehave.


@pytest.mark.parametrize(
    ("hostility", "reason"),
    [
        ("drop_at_once", "the connection was closed before a complete response"),
        ("drop_before_headers", "the connection was closed before a complete response"),
        ("drop_mid_headers", "the connection was closed before a complete response"),
        ("drop_mid_body", "the connection was closed before a complete response"),
        ("garbage", "the response is not valid HTTP"),
        ("garbage_body", "the response is not valid HTTP"),
        ("huge_header", "the response has too many or too large headers"),
        ("many_headers", "the response has too many or too large headers"),
    ],
)
async def test_a_broken_answer_is_unreachable_with_a_plain_reason(hostility: str, reason: str) -> None:
    async with HostileReceiver(hostility) as receiver, open_sender() as sender:
        assert await sender.send(make_request(receiver.url_for(NAME, "/hook?token=1"))) == Unreachable(reason)


@pytest.mark.parametrize("hostility", ["hang_before_headers", "hang_after_headers", "trickle_body"])
async def test_a_slow_answer_is_given_up_and_its_connection_closed(hostility: str) -> None:
    async with HostileReceiver(hostility) as receiver, open_sender(time_limit=0.3) as sender:
        assert await sender.send(make_request(receiver.url)) == Unreachable("no complete response within 0.3 s")
        await receiver.wait_for_disconnections()


async def test_a_handshake_that_hangs_is_no_connection() -> None:
    async with HostileReceiver("hang_in_handshake") as receiver, open_sender(connect_timeout=0.2) as sender:
        outcome = await sender.send(make_request(f"https://127.0.0.1:{receiver.port}/"))
        assert outcome == Unreachable("no connection within 0.2 s")


async def test_nobody_listening_is_a_refused_connection(free_port: int) -> None:
    async with open_sender() as sender:
        outcome = await sender.send(make_request(f"http://127.0.0.1:{free_port}/"))
        assert outcome == Unreachable("the connection was refused")


async def test_a_hanging_receiver_does_not_hold_up_another() -> None:
    async with (
        HostileReceiver("hang_before_headers") as hanging,
        RecordingReceiver() as other,
        open_sender(time_limit=60) as sender,
    ):
        stuck = [asyncio.create_task(sender.send(make_request(hanging.url))) for _ in range(20)]
        await hanging.wait_for_requests(20)
        assert await sender.send(make_request(other.url)) == Responded(200)
        assert not any(task.done() for task in stuck)
        await sender.close()
        stopped = Interrupted("Carehook stopped before the response was complete")
        assert await asyncio.gather(*stuck) == [stopped] * 20


async def test_cancelling_passes_through() -> None:
    async with HostileReceiver("hang_before_headers") as receiver, open_sender() as sender:
        task = asyncio.create_task(sender.send(make_request(receiver.url)))
        await receiver.wait_for_requests()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


# TLS.


async def test_a_good_certificate_is_accepted_under_the_extra_root(certificates: Certificates) -> None:
    async with (
        RecordingReceiver(tls=certificates.for_hosts(NAME)) as receiver,
        open_sender(root_certificates=certificates.root_pem) as sender,
    ):
        assert await sender.send(make_request(receiver.url_for(NAME))) == Responded(200)


@pytest.mark.parametrize(
    ("configure", "reason"),
    [
        (lambda own: own.for_hosts("other.invalid"), "the TLS certificate is for another host name"),
        (lambda own: own.expired("127.0.0.1"), "the TLS certificate has expired"),
        (lambda own: own.self_signed("127.0.0.1"), "the TLS certificate is from an unknown issuer or self-signed"),
        (
            lambda own: Certificates().for_hosts("127.0.0.1"),
            "the TLS certificate is from an unknown issuer or self-signed",
        ),
    ],
    ids=["wrong name", "expired", "self-signed", "unknown issuer"],
)
async def test_a_bad_certificate_is_unreachable_and_the_request_is_not_sent(
    certificates: Certificates, configure: Callable[[Certificates], ssl.SSLContext], reason: str
) -> None:
    async with (
        RecordingReceiver(tls=configure(certificates)) as receiver,
        open_sender(root_certificates=certificates.root_pem) as sender,
    ):
        assert await sender.send(make_request(receiver.url)) == Unreachable(reason)
        assert receiver.requests == []


async def test_plain_http_behind_an_https_url_is_said_so() -> None:
    async with HostileReceiver("garbage_at_once") as receiver, open_sender() as sender:
        outcome = await sender.send(make_request(f"https://127.0.0.1:{receiver.port}/"))
        assert outcome == Unreachable("no TLS is spoken on this port")


@pytest.mark.parametrize(
    "pem", [b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"]
)
def test_root_certificates_that_cannot_be_read_are_refused(pem: bytes) -> None:
    with pytest.raises(ValueError, match="PEM"):
        GuardedSender(AddressRules(), root_certificates=pem)


# Addresses.


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "2130706433", "0x7f.1", "0177.0.0.1", "127.1", "１２７.0.0.1", "[::ffff:127.0.0.1]", "%6cocalhost"],
)
async def test_a_forbidden_target_is_blocked_and_not_contacted(host: str) -> None:
    async with RecordingReceiver() as receiver, open_sender(allowed="") as sender:
        outcome = await sender.send(make_request(receiver.url_for(host, "/hook?token=1")))
        assert isinstance(outcome, Blocked)
        assert "token" not in outcome.reason
        assert receiver.connections == 0


async def test_a_name_is_contacted_on_the_judged_address_and_no_other() -> None:
    async with RecordingReceiver(host="127.0.0.2") as receiver, open_sender(["127.0.0.2"]) as sender:
        for name in ("localhost", "localhost.", NAME, "under_score.invalid", "bücher.invalid"):
            assert await sender.send(make_request(receiver.url_for(name))) == Responded(200)


async def test_a_name_that_is_rebound_to_a_forbidden_address_is_blocked() -> None:
    async with (
        RecordingReceiver() as receiver,
        open_sender(["127.0.0.1"], ["127.0.0.2"], allowed="127.0.0.1/32") as sender,
    ):
        assert await sender.send(make_request(receiver.url_for(NAME))) == Responded(200)
        assert isinstance(await sender.send(make_request(receiver.url_for(NAME))), Blocked)
        assert len(receiver.requests) == 1


async def test_a_name_that_moves_is_followed_to_its_new_address() -> None:
    async with RecordingReceiver() as receiver, open_sender(["127.0.0.1"], ["127.0.0.2"]) as sender:
        assert await sender.send(make_request(receiver.url_for(NAME))) == Responded(200)
        moved = await sender.send(make_request(receiver.url_for(NAME)))
        assert moved == Unreachable("the connection was refused")


async def test_a_literal_is_contacted_itself() -> None:
    async with RecordingReceiver() as receiver, open_sender(["127.0.0.2"]) as sender:
        for host in ("127.0.0.1", "2130706433", "[::ffff:127.0.0.1]"):
            assert await sender.send(make_request(receiver.url_for(host))) == Responded(200)


async def test_the_next_address_is_tried_where_nobody_listens_on_the_first() -> None:
    async with RecordingReceiver() as receiver, open_sender(["127.0.0.2", "127.0.0.1"]) as sender:
        outcomes = [await sender.send(make_request(receiver.url_for(NAME))) for _ in range(2)]
        assert outcomes == [Responded(200)] * 2
        assert receiver.connections == 1


async def test_a_name_with_very_many_addresses_is_not_tried_on_all() -> None:
    unused = [f"127.0.0.{number}" for number in range(2, 5)]
    async with RecordingReceiver() as receiver, open_sender([*unused, "127.0.0.1"]) as sender:
        outcome = await sender.send(make_request(receiver.url_for(NAME)))
        assert outcome == Unreachable("the connection was refused")
        assert receiver.connections == 0


async def test_an_address_in_use_is_kept_to_when_the_name_resolves_in_another_order() -> None:
    async with (
        RecordingReceiver() as first,
        RecordingReceiver(host="127.0.0.2", port=first.port) as second,
        open_sender(["127.0.0.1", "127.0.0.2"], ["127.0.0.2", "127.0.0.1"]) as sender,
    ):
        for _ in range(3):
            assert await sender.send(make_request(first.url_for(NAME))) == Responded(200)
        assert (first.connections, second.connections) == (1, 0)


async def test_an_address_that_failed_is_not_kept_to() -> None:
    async with (
        RecordingReceiver(host="127.0.0.2") as second,
        open_sender(["127.0.0.1", "127.0.0.2"]) as sender,
    ):
        url = second.url_for(NAME)
        async with RecordingReceiver(port=second.port) as first:
            assert await sender.send(make_request(url)) == Responded(200)
            assert first.connections == 1
        assert await sender.send(make_request(url)) == Responded(200)
        async with RecordingReceiver(port=second.port) as first:
            assert await sender.send(make_request(url)) == Responded(200)
            assert (first.connections, second.connections) == (0, 1)


async def test_the_next_address_is_not_tried_once_the_request_was_sent() -> None:
    async with HostileReceiver("drop_before_headers") as receiver, open_sender(["127.0.0.1"] * 2) as sender:
        assert isinstance(await sender.send(make_request(receiver.url_for(NAME))), Unreachable)
        assert len(receiver.requests) == 1


async def test_a_name_that_does_not_resolve_is_unreachable_and_not_blocked() -> None:
    async with open_sender([]) as sender:
        outcome = await sender.send(make_request(f"https://{NAME}/"))
        assert outcome == Unreachable("the URL has a host name that does not resolve to an address")


async def test_a_resolution_that_hangs_is_a_name_that_does_not_resolve() -> None:
    async def hang(host: str, port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    sender = GuardedSender(AddressRules(resolve=hang, resolution_timeout=0.1))
    outcome = await sender.send(make_request(f"https://{NAME}/"))
    assert outcome == Unreachable("the URL has a host name that does not resolve to an address")


async def test_the_time_that_a_resolution_took_is_not_given_again() -> None:
    async def dawdle(host: str, port: int) -> Sequence[str]:
        await asyncio.sleep(0.3)
        return ["127.0.0.1"]

    rules = AddressRules([ip_network(LOOPBACK)], True, dawdle, resolution_lifetime=0)
    async with RecordingReceiver() as receiver:
        sender = GuardedSender(rules, timeout=0.2)
        for _ in range(2):
            outcome = await sender.send(make_request(receiver.url_for(NAME)))
            assert outcome == Unreachable("no complete response within 0.2 s")
        assert receiver.requests == []
        await sender.close()


async def test_an_exchange_that_is_cancelled_ends_at_its_deadline_at_the_latest() -> None:
    async with HostileReceiver("hang_before_headers") as receiver, open_sender(time_limit=0.5) as sender:
        task = asyncio.create_task(sender.send(make_request(receiver.url)))
        await receiver.wait_for_requests()
        task.cancel()
        await receiver.wait_for_disconnections()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_proxy_in_the_environment_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    async with RecordingReceiver() as proxy, RecordingReceiver() as receiver:
        for variable in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(variable, proxy.url)
        async with open_sender() as sender:
            assert await sender.send(make_request(receiver.url_for(NAME))) == Responded(200)
        assert proxy.connections == 0


# Our own life.


async def test_a_client_that_is_put_out_finishes_what_it_has_begun() -> None:
    async with (
        HostileReceiver("hang_before_headers") as hanging,
        RecordingReceiver() as receiver,
        open_sender(client_limit=1) as sender,
    ):
        begun = asyncio.create_task(sender.send(make_request(hanging.url)))
        await hanging.wait_for_requests()
        for host in ("127.0.0.1", NAME, "127.0.0.1"):
            assert await sender.send(make_request(receiver.url_for(host))) == Responded(200)
        assert receiver.connections == 3
        hanging.stop()
        assert await begun == Unreachable("the connection was closed before a complete response")


async def test_the_client_unused_for_longest_is_put_out() -> None:
    async with RecordingReceiver() as receiver, open_sender(client_limit=2) as sender:
        for host in ("a.invalid", "b.invalid", "a.invalid", "c.invalid", "a.invalid"):
            assert await sender.send(make_request(receiver.url_for(host))) == Responded(200)
        assert receiver.connections == 3


async def test_many_at_once_share_one_client() -> None:
    async with RecordingReceiver() as receiver, open_sender(client_limit=1) as sender:
        outcomes = await asyncio.gather(*(sender.send(make_request(receiver.url)) for _ in range(50)))
        assert outcomes == [Responded(200)] * 50
        for _ in range(50):
            await sender.send(make_request(receiver.url))
        assert receiver.connections <= 50


async def test_a_closed_sender_sends_nothing() -> None:
    async with RecordingReceiver() as receiver, open_sender() as sender:
        await sender.close()
        assert await sender.send(make_request(receiver.url)) == Interrupted("Carehook was stopping")
        assert receiver.connections == 0


async def test_a_mistake_of_ours_is_interrupted_and_names_its_class_alone() -> None:
    async with RecordingReceiver() as receiver, open_sender() as sender:
        outcome: Outcome = await sender.send(Request("POST", receiver.url, {"x-secret": "line\nbreak"}, b""))
        assert outcome == Interrupted("Carehook failed before the outcome was known (ValueError)")
        assert receiver.connections == 0
