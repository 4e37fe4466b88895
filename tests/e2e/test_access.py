"""Who may call: tokens are stored as digests, bound to what they may do, and end when they are revoked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest

from carehook.access import tokens as access
from carehook.access.tokens import REMEMBERED_SECONDS, Tokens
from carehook.application import Application
from carehook.bootstrap import open_carehook
from carehook.ledger.records import Role
from carehook.refusals import Invalid, NotFound
from tests.stores import ALL, SetClock, build_settings, create_organization

UNKNOWN = "org_018cc251f4007000800000000000dead"


@dataclass
class Site:
    """A Carehook with a set clock."""

    carehook: Application
    clock: SetClock
    home: Path

    @property
    def tokens(self) -> Tokens:
        return self.carehook.tokens

    def open_elsewhere(self) -> Tokens:
        """The tokens as another process knows them, which remembers nothing of this one."""
        return Tokens(self.carehook.ledger, self.clock)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    clock = SetClock()
    async with open_carehook(build_settings(tmp_path), clock=clock) as carehook:
        yield Site(carehook, clock, tmp_path)


async def test_a_token_is_found_by_its_secret_alone(site: Site) -> None:
    operator = await site.tokens.create(Role.OPERATOR)
    other = await site.tokens.create(Role.OPERATOR)
    secret = operator.secret.get_secret_value()
    assert secret.startswith("carehook_")
    assert len(secret) >= 9 + 43
    for tokens in (site.tokens, site.open_elsewhere()):
        assert await tokens.find(secret) == operator.token
        assert await tokens.find(other.secret.get_secret_value()) == other.token
        assert await tokens.find(secret[:-1]) is None
        assert await tokens.find(operator.token.id) is None
        assert await tokens.find(sha256(secret.encode()).hexdigest()) is None


async def test_the_store_has_the_digest_and_no_view_the_secret(site: Site) -> None:
    new = await site.tokens.create(Role.OPERATOR)
    secret = new.secret.get_secret_value()
    files = b"".join(path.read_bytes() for path in site.home.iterdir())
    assert sha256(secret.encode()).hexdigest().encode() in files
    assert secret.removeprefix("carehook_").encode() not in files
    listed = await site.carehook.insights.tokens(ALL)
    for shown in (repr(new), listed.model_dump_json(), repr(listed)):
        assert secret not in shown


async def test_a_publisher_is_bound_to_an_organization_that_is_there(site: Site) -> None:
    organization = await create_organization(site.carehook)
    publisher = await site.tokens.create(Role.PUBLISHER, organization)
    found = await site.open_elsewhere().find(publisher.secret.get_secret_value())
    assert found is not None
    assert (found.role, found.organization_id) == (Role.PUBLISHER, organization)
    with pytest.raises(Invalid, match="organization_id is required"):
        await site.tokens.create(Role.PUBLISHER)
    with pytest.raises(Invalid, match="organization_id must be left out"):
        await site.tokens.create(Role.OPERATOR, organization)
    for unknown in (UNKNOWN, "", "platform"):
        with pytest.raises(NotFound, match="There is no organization"):
            await site.tokens.create(Role.PUBLISHER, unknown)
    assert len((await site.carehook.insights.tokens(ALL)).data) == 1


async def test_the_first_operator_is_made_once_and_anew_when_all_are_revoked(site: Site) -> None:
    first = await site.tokens.create_first_operator()
    assert first is not None
    assert await site.tokens.create_first_operator() is None
    await site.tokens.revoke(first.token.id)
    assert await site.tokens.create_first_operator() is not None


async def test_a_revoked_token_is_refused_at_once_here_and_soon_everywhere(site: Site) -> None:
    new = await site.tokens.create(Role.OPERATOR)
    secret = new.secret.get_secret_value()
    elsewhere = site.open_elsewhere()
    assert await elsewhere.find(secret) == new.token
    assert await site.tokens.find(secret) == new.token
    await site.tokens.revoke(new.token.id)
    assert await site.tokens.find(secret) is None
    site.clock.advance(seconds=REMEMBERED_SECONDS - 0.001)
    assert await elsewhere.find(secret) == new.token
    site.clock.advance(seconds=0.001)
    assert await elsewhere.find(secret) is None
    (shown,) = (await site.carehook.insights.tokens(ALL)).data
    assert shown.revoked_at is not None


async def test_a_clock_that_is_set_back_prolongs_nothing(site: Site) -> None:
    new = await site.tokens.create(Role.OPERATOR)
    elsewhere = site.open_elsewhere()
    assert await elsewhere.find(new.secret.get_secret_value()) == new.token
    await site.tokens.revoke(new.token.id)
    site.clock.advance(hours=-1)
    assert await elsewhere.find(new.secret.get_secret_value()) is None


async def test_a_token_can_be_revoked_once(site: Site) -> None:
    new = await site.tokens.create(Role.OPERATOR)
    await site.tokens.revoke(new.token.id)
    for token_id in (new.token.id, "tok_1", ""):
        with pytest.raises(NotFound):
            await site.tokens.revoke(token_id)


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        " ",
        "carehook_",
        "carehook_ñ",
        "☤" * 100,
        "\ud800",
        "carehook_\udcff",
        "carehook_\x00",
        "carehook_" + "x" * 10**6,
    ],
    ids=lambda garbage: ascii(garbage[:16]),
)
async def test_whatever_is_sent_as_a_token_is_no_token(site: Site, garbage: str) -> None:
    await site.tokens.create(Role.OPERATOR)
    assert await site.tokens.find(garbage) is None


async def test_what_is_remembered_is_bounded(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "_REMEMBERED_AT_MOST", 3)
    made = [await site.tokens.create(Role.OPERATOR) for _ in range(10)]
    for new in made * 2:
        assert await site.tokens.find(new.secret.get_secret_value()) == new.token
        assert len(site.tokens._remembered) <= 3
