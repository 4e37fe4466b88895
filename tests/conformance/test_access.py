"""Tokens, and the facts that tie a store to its settings."""

from dataclasses import replace

from carehook.ledger.records import PageRequest, Role, Token
from tests.conformance.store import NOW, ORGANIZATION, SECOND, Store

OPERATOR = Token("tok_1", Role.OPERATOR, None, NOW, None)


async def test_a_token_is_found_by_its_digest(store: Store) -> None:
    await store.add_organization()
    publisher = Token("tok_2", Role.PUBLISHER, ORGANIZATION, NOW, None)
    async with store.ledger.transaction() as tx:
        await tx.tokens.add(publisher, "digest")
        assert await tx.tokens.find("digest") == publisher
        assert await tx.tokens.find("other") is None


async def test_a_token_is_revoked_once(store: Store) -> None:
    async with store.ledger.transaction() as tx:
        await tx.tokens.add(OPERATOR, "digest")
        assert await tx.tokens.revoke("tok_1", NOW)
        assert not await tx.tokens.revoke("tok_1", NOW + SECOND)
        assert not await tx.tokens.revoke("tok_unknown", NOW)
        assert await tx.tokens.find("digest") == replace(OPERATOR, revoked_at=NOW)


async def test_there_is_an_operator_until_its_token_is_revoked(store: Store) -> None:
    await store.add_organization()
    async with store.ledger.transaction() as tx:
        await tx.tokens.add(Token("tok_2", Role.PUBLISHER, ORGANIZATION, NOW, None), "publisher")
        assert not await tx.tokens.any_operator()
        await tx.tokens.add(OPERATOR, "operator")
        assert await tx.tokens.any_operator()
        await tx.tokens.revoke(OPERATOR.id, NOW)
        assert not await tx.tokens.any_operator()


async def test_tokens_are_listed_newest_first(store: Store) -> None:
    async with store.ledger.transaction() as tx:
        for number in range(3):
            await tx.tokens.add(replace(OPERATOR, id=f"tok_{number}"), f"digest {number}")
        first = await tx.tokens.page(PageRequest(limit=2))
        rest = await tx.tokens.page(PageRequest(limit=2, cursor=first.next_cursor))
    assert [token.id for page in (first, rest) for token in page.rows] == ["tok_2", "tok_1", "tok_0"]


async def test_the_first_fact_stays(store: Store) -> None:
    async with store.ledger.transaction() as tx:
        assert await tx.installation.get("key_check") is None
        assert await tx.installation.put_first("key_check", b"first") == b"first"
        assert await tx.installation.put_first("key_check", b"second") == b"first"
        assert await tx.installation.get("key_check") == b"first"
