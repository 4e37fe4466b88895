"""Clients are few, however many names there are, and none is used for a name that it has no pin for."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import ExitStack
from ipaddress import ip_network

import pytest
from pyreqwest.client import Client, ClientBuilder

from carehook.dispatch import clients as clients_module
from carehook.dispatch.addresses import AddressRules
from carehook.dispatch.clients import Clients, Pin, choose_pins
from carehook.dispatch.sender import GuardedSender
from carehook.exchange import Request, Responded, Unreachable
from tests.receivers import RecordingReceiver


class Builder:
    """Builds real clients and remembers what for; it fails when it is told to."""

    def __init__(self) -> None:
        self.built: list[list[Pin]] = []
        self.pins_of: dict[Client, list[Pin]] = {}
        self.fails = False

    def __call__(self, pins: Collection[Pin]) -> Client:
        self.built.append(list(pins))
        if self.fails:
            raise ValueError("no client today")
        client = ClientBuilder().no_proxy().build()
        self.pins_of[client] = self.built[-1]
        return client


def make_pins(count: int, first: int = 0) -> list[Pin]:
    return [Pin("https", f"host-{number}.example", 443, "192.0.2.1") for number in range(first, first + count)]


@pytest.fixture
def builder() -> Builder:
    return Builder()


async def make_all(clients: Clients, pins: Collection[Pin]) -> list[Client]:
    return await asyncio.gather(*(clients.make(pin) for pin in pins))


async def test_names_that_are_asked_for_at_once_share_a_client(builder: Builder) -> None:
    clients = Clients(builder, limit=10)
    pins = make_pins(300)
    made = await make_all(clients, pins)
    assert len(builder.built) <= 2
    assert [clients.find(pin) for pin in pins] == made
    await clients.close()


async def test_nobody_gets_a_client_without_its_pin_however_many_ask(
    builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients_module, "NAMES_AT_MOST", 10)
    clients = Clients(builder, limit=10)
    pins = make_pins(35)
    made = dict(zip(pins, await make_all(clients, pins), strict=True))
    assert all(len(built) <= 10 for built in builder.built)
    assert all(pin in builder.pins_of[made[pin]] for pin in pins)
    await clients.close()


async def test_one_pin_asked_for_by_many_is_made_once(builder: Builder) -> None:
    clients = Clients(builder, limit=10)
    (pin,) = make_pins(1)
    made = await asyncio.gather(*(clients.make(pin) for _ in range(50)))
    assert builder.built == [[pin]]
    assert set(made) == {clients.find(pin)}
    await clients.close()


async def test_names_asked_for_one_by_one_move_together_and_none_is_made_anew(builder: Builder) -> None:
    clients = Clients(builder, limit=4)
    pins = make_pins(100)
    for pin in pins:
        await clients.make(pin)
    assert len(builder.built) == 100
    found = [clients.find(pin) for pin in pins]
    assert None not in found
    assert len(set(found)) <= 4
    await clients.close()


async def test_those_in_use_stay_where_they_are(builder: Builder) -> None:
    clients = Clients(builder, limit=4)
    busy, *others = make_pins(40)
    client = await clients.make(busy)
    for pin in others:
        await clients.make(pin)
        assert clients.find(busy) is client
    await clients.close()


async def test_a_name_with_two_addresses_is_in_two_clients(builder: Builder) -> None:
    clients = Clients(builder, limit=10)
    one, other = Pin("https", "a.example", 443, "192.0.2.1"), Pin("https", "a.example", 443, "192.0.2.2")
    first, second = await make_all(clients, [one, other])
    assert first is not second
    assert not any({one, other} <= set(pins) for pins in builder.built)
    await clients.close()


def test_one_client_holds_one_address_of_a_name_for_all_its_ports() -> None:
    pins = [
        Pin("https", "a.example", 443, "192.0.2.1"),
        Pin("http", "a.example", 8080, "192.0.2.1"),
        Pin("https", "a.example", 443, "192.0.2.2"),
        Pin("https", "b.example", 443, "192.0.2.2"),
    ]
    assert choose_pins(pins) == [pins[0], pins[1], pins[3]]


async def test_a_client_that_cannot_be_made_fails_those_who_wait_and_nobody_after(builder: Builder) -> None:
    clients = Clients(builder, limit=10)
    builder.fails = True
    pins = make_pins(3)
    outcomes = await asyncio.gather(*(clients.make(pin) for pin in pins), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ValueError] * 3
    builder.fails = False
    assert await clients.make(pins[0]) is clients.find(pins[0])
    await clients.close()


async def test_what_is_forgotten_is_made_anew(builder: Builder) -> None:
    clients = Clients(builder, limit=10)
    (pin,) = make_pins(1)
    first = await clients.make(pin)
    clients.forget(pin)
    assert pin not in clients
    assert await clients.make(pin) is not first
    await clients.close()


async def test_one_who_gives_up_waiting_does_not_harm_the_others(builder: Builder) -> None:
    clients = Clients(builder, limit=10)
    (pin,) = make_pins(1)
    waiting = [asyncio.create_task(clients.make(pin)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1] is results[2] is clients.find(pin)
    await clients.close()


# On the wire.


async def test_names_in_one_client_are_contacted_each_on_its_own_port() -> None:
    async def resolve(_host: str, _port: int) -> list[str]:
        return ["127.0.0.1"]

    rules = AddressRules([ip_network("127.0.0.0/8")], allow_http=True, resolve=resolve)
    with ExitStack() as stack:
        receivers = [stack.enter_context(RecordingReceiver()) for _ in range(5)]
        sender = GuardedSender(rules)
        urls = [receiver.url_for("hospital.example", "/") for receiver in receivers]
        # Without a port in the URL it is the scheme's, where nobody listens, whatever ports others have.
        urls.insert(1, "https://hospital.example/")
        outcomes = await asyncio.gather(*(sender.send(Request("POST", url, {}, b"")) for url in urls))
        await sender.close()
    assert isinstance(outcomes.pop(1), Unreachable)
    assert outcomes == [Responded(200)] * 5
    assert [receiver.connections for receiver in receivers] == [1] * 5
