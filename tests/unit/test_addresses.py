"""The address rules: what a URL means is what the HTTP client will do with it, and only public addresses pass."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carehook.dispatch.address_ranges import match_embedded_ipv4, match_forbidden_range
from carehook.dispatch.addresses import (
    AddressNotAllowed,
    AddressRules,
    NameNotResolved,
    SystemResolver,
)

PUBLIC = "93.184.215.14"
PUBLIC_IPV6 = "2606:2800:21f:cb07:6820:80da:af6b:8b2c"


class Names:
    """A resolver whose answers the test sets; it counts what it is asked."""

    def __init__(self, *addresses: str) -> None:
        self.addresses: Sequence[str] = addresses
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append((host, port))
        await asyncio.sleep(0)
        if not self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return self.addresses


def make_rules(*addresses: str, allowed: str = "", allow_http: bool = False, lifetime: float = 0) -> AddressRules:
    return AddressRules(
        [ip_network(part) for part in allowed.split(",") if part],
        allow_http,
        Names(*addresses),
        resolution_lifetime=lifetime,
    )


# Every way to write an internal address, as in the URL, that the WHATWG rules or IPv6 know.
INTERNAL_HOSTS = [
    ("127.0.0.1", "loopback"),
    ("2130706433", "loopback"),
    ("0x7f000001", "loopback"),
    ("0x7f.1", "loopback"),
    ("0177.0.0.1", "loopback"),
    ("017700000001", "loopback"),
    ("127.1", "loopback"),
    ("127.0.0.1.", "loopback"),
    ("127.0.0.1..", "loopback"),
    ("127.255.255.254", "loopback"),
    ("１２７.０.０.１", "loopback"),
    ("①②⑦.⓪.⓪.①", "loopback"),
    ("127。0。0。1", "loopback"),
    ("%31%32%37.0.0.1", "loopback"),
    ("127.0.0.1%2e", "loopback"),
    ("[::1]", "loopback"),
    ("[0:0:0:0:0:0:0:1]", "loopback"),
    ("0", "unspecified"),
    ("0x0", "unspecified"),
    ("0.0.0.0", "unspecified"),
    ("[::]", "unspecified"),
    ("0.1.2.3", "reserved"),
    ("10.0.0.1", "private"),
    ("167772161", "private"),
    ("172.16.0.1", "private"),
    ("172.31.255.255", "private"),
    ("192.168.1", "private"),
    ("100.64.0.1", "carrier-grade NAT"),
    ("169.254.0.1", "link-local"),
    ("169.254.169.254", "cloud metadata"),
    ("0xa9fea9fe", "cloud metadata"),
    ("168.63.129.16", "cloud metadata"),
    ("100.100.100.200", "cloud metadata"),
    ("192.0.0.192", "cloud metadata"),
    ("[fd00:ec2::254]", "cloud metadata"),
    ("192.0.0.1", "reserved"),
    ("192.0.2.1", "documentation"),
    ("198.51.100.1", "documentation"),
    ("203.0.113.1", "documentation"),
    ("198.18.0.1", "benchmarking"),
    ("224.0.0.1", "multicast"),
    ("239.255.255.255", "multicast"),
    ("240.0.0.1", "reserved"),
    ("255.255.255.255", "broadcast"),
    ("[fe80::1]", "link-local"),
    ("[fc00::1]", "unique local"),
    ("[fdff::1]", "unique local"),
    ("[fec0::1]", "reserved"),
    ("[ff02::1]", "multicast"),
    ("[100::1]", "reserved"),
    ("[5f00::1]", "reserved"),
    ("[4000::1]", "reserved"),
    ("[2001:db8::1]", "documentation"),
    ("[3fff::1]", "documentation"),
    ("[2001:2::1]", "benchmarking"),
    ("[2001:20::1]", "reserved"),
    ("[::ffff:127.0.0.1]", "IPv4-mapped"),
    ("[::ffff:7f00:1]", "IPv4-mapped"),
    ("[::ffff:93.184.215.14]", "IPv4-mapped"),
    ("[::127.0.0.1]", "IPv4-compatible"),
    ("[2002:7f00:1::]", "6to4"),
    ("[2001:0:7f00:1::]", "Teredo"),
    ("[64:ff9b::127.0.0.1]", "loopback"),
    ("[64:ff9b::169.254.169.254]", "cloud metadata"),
    ("[64:ff9b:1::7f00:1]", "local-use NAT64"),
]


@pytest.mark.parametrize(("host", "forbidden_range"), INTERNAL_HOSTS)
async def test_an_internal_literal_is_refused_however_it_is_written(host: str, forbidden_range: str) -> None:
    rules = make_rules()
    with pytest.raises(AddressNotAllowed, match=rf"forbidden range \({forbidden_range}\)"):
        rules.check_url(f"https://{host}/hook")
    with pytest.raises(AddressNotAllowed):
        await rules.resolve(f"https://{host}:8443/hook")


@pytest.mark.parametrize(
    ("host", "address"),
    [
        (PUBLIC, PUBLIC),
        (f"[{PUBLIC_IPV6}]", PUBLIC_IPV6),
        ("[64:ff9b::5db8:d70e]", "64:ff9b::5db8:d70e"),
        ("126.255.255.255", "126.255.255.255"),
        ("128.0.0.0", "128.0.0.0"),
        ("172.15.255.255", "172.15.255.255"),
        ("172.32.0.0", "172.32.0.0"),
        ("100.63.255.255", "100.63.255.255"),
        ("100.128.0.0", "100.128.0.0"),
        ("223.255.255.255", "223.255.255.255"),
        ("0x5db8d70e", PUBLIC),
    ],
)
async def test_a_public_literal_is_its_own_address_and_no_name_is_resolved(host: str, address: str) -> None:
    names = Names()
    target = await AddressRules(resolve=names).resolve(f"https://{host}/hook")
    assert target.addresses == (address,)
    assert names.asked == []


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("http://example.com/", "must begin with https://"),
        ("ftp://example.com/", "must begin with https://"),
        ("file:///etc/passwd", "must begin with https://"),
        ("javascript:alert(1)", "must begin with https://"),
        ("example.com/hook", "not valid"),
        ("https://", "not valid: empty host"),
        ("https://user@example.com/", "user name or password"),
        ("https://:secret@example.com/", "user name or password"),
        ("https://example.com/#top", "fragment"),
        ("https://example.com/#", "fragment"),
        ("https://example.com:0/", "between 1 and 65535"),
        ("https://example.com:65536/", "not valid: invalid port number"),
        ("https://exa mple.com/", "white space"),
        (" https://example.com/", "white space"),
        ("https://exam\tple.com/", "white space or control"),
        ("https://example.com/\r\nx: y", "white space or control"),
        ("https://example..com/", "empty part"),
        ("https://.example.com/", "empty part"),
        ("https://example.com../", "empty part"),
        ("https://./", "not valid"),
        ("https://example.4/", "not valid: invalid IPv4 address"),
        ("https://[::1/", "not valid"),
        ("https://[fe80::1%25eth0]/", "not valid: invalid IPv6 address"),
        ("https://example.com/" + "x" * 2029, "longer than 2048"),
        ("https://example.com/" + "é" * 400, "longer than 2048 characters once encoded"),
    ],
)
async def test_a_url_that_breaks_a_rule_is_refused_with_the_rule(url: str, rule: str) -> None:
    names = Names(PUBLIC)
    with pytest.raises(AddressNotAllowed, match=rule) as refused:
        await AddressRules(resolve=names).resolve(url)
    assert "example" not in str(refused.value)
    assert str(refused.value).startswith("the URL ")
    assert names.asked == []


@pytest.mark.parametrize(
    ("url", "canonical", "host", "port"),
    [
        ("https://Example.COM", "https://example.com/", "example.com", 443),
        ("https://example.com:443/", "https://example.com/", "example.com", 443),
        ("https://example.com.:8443/a?b=c", "https://example.com:8443/a?b=c", "example.com", 8443),
        ("https://bücher.example/", "https://xn--bcher-kva.example/", "xn--bcher-kva.example", 443),
        ("https://%65xample.com/", "https://example.com/", "example.com", 443),
        ("https://example.com\\@internal/", "https://example.com/@internal/", "example.com", 443),
        ("https:example.com", "https://example.com/", "example.com", 443),
        ("https://example.com/" + "x" * 2028, "https://example.com/" + "x" * 2028, "example.com", 443),
    ],
)
def test_the_canonical_url_is_what_the_client_will_send_to(url: str, canonical: str, host: str, port: int) -> None:
    checked = make_rules().check_url(url)
    assert (checked.url, checked.host, checked.port) == (canonical, host, port)
    assert str(checked.parsed) == canonical


def test_plain_http_needs_to_be_allowed() -> None:
    checked = make_rules(allow_http=True).check_url("http://example.com/hook")
    assert (checked.scheme, checked.port) == ("http", 80)


@pytest.mark.parametrize(
    "addresses",
    [
        ("10.0.0.1",),
        (PUBLIC, "10.0.0.1"),
        ("10.0.0.1", PUBLIC),
        (PUBLIC, PUBLIC_IPV6, "fd00::1"),
        (PUBLIC, "::ffff:10.0.0.1"),
        ("fe80::1%lo",),
    ],
)
async def test_one_internal_address_forbids_the_whole_name(addresses: Sequence[str]) -> None:
    with pytest.raises(AddressNotAllowed, match="forbidden range") as refused:
        await make_rules(*addresses).resolve("https://example.com/")
    assert "10.0.0.1" not in str(refused.value)


async def test_all_addresses_of_a_public_name_are_kept_in_order() -> None:
    target = await make_rules(PUBLIC_IPV6, PUBLIC).resolve("https://example.com/")
    assert target.addresses == (PUBLIC_IPV6, PUBLIC)


async def test_a_name_without_an_address_is_not_resolved_rather_than_not_allowed() -> None:
    with pytest.raises(NameNotResolved):
        await make_rules().resolve("https://example.com/")


@pytest.mark.parametrize("error", [TimeoutError(), UnicodeError("label too long")])
async def test_a_resolver_that_fails_otherwise_is_a_name_not_resolved_too(error: Exception) -> None:
    async def fail(host: str, port: int) -> Sequence[str]:
        raise error

    with pytest.raises(NameNotResolved):
        await AddressRules(resolve=fail).resolve("https://example.com/")


# What an operator allows.


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "[::ffff:127.0.0.1]", "127.9.9.9"])
async def test_an_allowed_network_allows_its_addresses_and_their_mapped_form(host: str) -> None:
    target = await make_rules(allowed="127.0.0.0/8").resolve(f"https://{host}/")
    assert len(target.addresses) == 1


@pytest.mark.parametrize("host", ["[::1]", "10.0.0.1", "[::ffff:10.0.0.1]", "[64:ff9b::7f00:1]", "[::7f00:1]"])
async def test_an_allowed_network_allows_nothing_else(host: str) -> None:
    with pytest.raises(AddressNotAllowed):
        await make_rules(allowed="127.0.0.0/8").resolve(f"https://{host}/")


async def test_an_allowed_form_that_embeds_a_forbidden_address_is_refused() -> None:
    rules = make_rules(allowed="2002::/16")
    assert (await rules.resolve("https://[2002:5db8:d70e::]/")).addresses == ("2002:5db8:d70e::",)
    with pytest.raises(AddressNotAllowed, match="private"):
        await rules.resolve("https://[2002:a00:1::]/")


async def test_a_zone_of_this_machine_cannot_be_allowed() -> None:
    rules = make_rules("fe80::1%eth0", allowed="fe80::/10")
    with pytest.raises(AddressNotAllowed, match="link-local"):
        await rules.resolve("https://example.com/")


async def test_localhost_is_served_on_the_address_that_is_allowed() -> None:
    target = await make_rules("::1", "127.0.0.1", allowed="127.0.0.0/8").resolve("https://localhost/")
    assert target.addresses == ("127.0.0.1",)


@pytest.mark.parametrize("addresses", [("::1", "127.0.0.1", PUBLIC), ("::1",), (PUBLIC, "10.0.0.1")])
async def test_forbidden_addresses_are_left_out_only_beside_allowed_ones_alone(addresses: Sequence[str]) -> None:
    with pytest.raises(AddressNotAllowed):
        await make_rules(*addresses, allowed="127.0.0.0/8").resolve("https://localhost/")


# Against an independent reading of the same registries.


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_what_the_standard_library_calls_internal_is_never_public(address: IPv4Address | IPv6Address) -> None:
    if not address.is_global or address.is_multicast:
        assert match_forbidden_range(address) is not None


@given(st.ip_addresses(v=4))
def test_every_form_that_embeds_an_address_is_unwrapped(address: IPv4Address) -> None:
    number = int(address)
    forms = [
        IPv6Address(0xFFFF << 32 | number),
        IPv6Address(int(IPv6Address("64:ff9b::")) | number),
        IPv6Address(int(IPv6Address("64:ff9b:1::")) | number),
        IPv6Address(0x2002 << 112 | number << 80),
        IPv6Address(0x20010000 << 96 | (number ^ 0xFFFFFFFF)),
        *([IPv6Address(number)] if number > 1 else []),
    ]
    assert {match_embedded_ipv4(form) for form in forms} == {address}


# Asking for a name.


async def test_those_who_ask_at_the_same_time_share_one_resolution() -> None:
    names = Names(PUBLIC)
    rules = AddressRules(resolve=names, resolution_lifetime=0)
    await asyncio.gather(*(rules.resolve(f"https://example.com/{number}") for number in range(10)))
    assert names.asked == [("example.com", 443)]
    await rules.resolve("https://example.com/")
    assert len(names.asked) == 2


async def test_a_resolution_is_used_again_for_its_lifetime_even_a_failed_one() -> None:
    names = Names()
    rules = AddressRules(resolve=names, resolution_lifetime=60)
    for _ in range(3):
        with pytest.raises(NameNotResolved):
            await rules.resolve("https://example.com/")
    assert len(names.asked) == 1


async def test_one_who_gives_up_does_not_take_the_answer_from_the_others() -> None:
    answered = asyncio.Event()

    async def wait(host: str, port: int) -> Sequence[str]:
        await answered.wait()
        return [PUBLIC]

    rules = AddressRules(resolve=wait)
    first, second = (asyncio.create_task(rules.resolve("https://example.com/")) for _ in range(2))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    first.cancel()
    answered.set()
    assert (await second).addresses == (PUBLIC,)
    assert first.cancelled()


async def test_a_name_that_changes_its_address_is_judged_again() -> None:
    names = Names(PUBLIC)
    rules = AddressRules(resolve=names, resolution_lifetime=0)
    assert (await rules.resolve("https://example.com/")).addresses == (PUBLIC,)
    names.addresses = ["127.0.0.1"]
    with pytest.raises(AddressNotAllowed, match="loopback"):
        await rules.resolve("https://example.com/")


async def test_the_system_resolver_knows_localhost() -> None:
    found = await SystemResolver()("localhost", 80)
    assert {"127.0.0.1", "::1"} & set(found)
    assert len(found) == len(set(found))


async def test_a_name_that_the_system_cannot_even_ask_for_is_not_resolved() -> None:
    with pytest.raises(NameNotResolved):
        await AddressRules().resolve(f"https://{'x' * 64}.invalid/")


def test_a_url_which_may_hold_a_token_is_not_in_the_repr() -> None:
    assert "s3cret" not in repr(make_rules().check_url("https://example.com/?token=s3cret"))
