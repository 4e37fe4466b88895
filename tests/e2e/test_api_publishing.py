"""Idempotency, concurrency and lists that stay stable, on a running API."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from tests.e2e.conftest import REPORT, Client
from tests.e2e.test_api_bad_input import assert_problem


def list_all(client: Client, path: str, limit: int) -> list[Any]:
    rows: list[Any] = []
    cursor = ""
    while True:
        page = client.take("GET", f"{path}?limit={limit}{cursor}")
        assert len(page["data"]) <= limit
        rows += page["data"]
        if page["next_cursor"] is None:
            return rows
        cursor = f"&cursor={page['next_cursor']}"


def test_a_repeated_key_gets_the_first_answer(publisher: Client, organization: str, endpoint: Any) -> None:
    first = publisher.publish(organization, **{"idempotency-key": "k1"})
    assert publisher.publish(organization, **{"idempotency-key": "k1"}) == first
    assert publisher.publish(organization, **{"idempotency-key": "k2"}) != first
    assert len(list_all(publisher, f"/v1/organizations/{organization}/events", 50)) == 2
    assert first["deliveries"] == 1


def test_a_repeated_batch_gets_the_first_answer(publisher: Client, organization: str) -> None:
    path, body = f"/v1/organizations/{organization}/events/batch", {"events": [REPORT, REPORT]}
    first = publisher.take("POST", path, body, headers={"idempotency-key": "b1"})
    assert publisher.take("POST", path, body, headers={"idempotency-key": "b1"}) == first
    assert len(list_all(publisher, f"/v1/organizations/{organization}/events", 50)) == 2


def test_a_key_is_for_one_request(publisher: Client, organization: str) -> None:
    publisher.publish(organization, **{"idempotency-key": "k1"})
    path = f"/v1/organizations/{organization}/events"
    other = publisher.call("POST", path, {**REPORT, "occurred_on": 1}, headers={"idempotency-key": "k1"})
    assert_problem(other, 422, "Idempotency-Key", "another request")
    assert len(list_all(publisher, path, 50)) == 1


def test_a_key_is_an_organizations_own(
    publisher: Client, stranger: Client, operator: Client, organization: str
) -> None:
    other = operator.take("POST", "/v1/organizations", {"name": "Other"})["id"]
    first = operator.publish(organization, **{"idempotency-key": "same"})
    assert operator.publish(other, **{"idempotency-key": "same"})["id"] != first["id"]


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "\xe9"])
def test_a_key_that_is_none_is_refused(publisher: Client, organization: str, key: str) -> None:
    path = f"/v1/organizations/{organization}/events"
    response = publisher.call("POST", path, REPORT, headers={"idempotency-key": key.encode("latin-1")})
    assert_problem(response, 422, "Idempotency-Key", "visible ASCII")
    assert list_all(publisher, path, 50) == []


def test_twenty_at_once_with_one_key_are_one_event(publisher: Client, organization: str) -> None:
    def publish(_: int) -> Any:
        with requests.Session() as session:
            return Client(publisher.url, publisher.token, session).publish(organization, **{"idempotency-key": "k"})

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(publish, range(20)))
    assert len({answer["id"] for answer in answers}) == 1
    assert len(list_all(publisher, f"/v1/organizations/{organization}/events", 50)) == 1


def test_a_list_stays_stable_while_rows_arrive(publisher: Client, organization: str) -> None:
    path = f"/v1/organizations/{organization}/events"
    published = [publisher.publish(organization)["id"] for _ in range(7)]
    shown: list[str] = []
    cursor = ""
    while True:
        page = publisher.take("GET", f"{path}?limit=2{cursor}")
        shown += [row["id"] for row in page["data"]]
        publisher.publish(organization)
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert shown == published[::-1]


def test_a_list_stays_stable_while_others_publish(publisher: Client, organization: str) -> None:
    path = f"/v1/organizations/{organization}/events"
    before = [publisher.publish(organization)["id"] for _ in range(30)]

    def publish(_: int) -> None:
        with requests.Session() as session:
            client = Client(publisher.url, publisher.token, session)
            for _ in range(10):
                client.publish(organization)

    with ThreadPoolExecutor(4) as pool:
        publishing = [pool.submit(publish, each) for each in range(4)]
        walks = [[row["id"] for row in list_all(publisher, path, 3)] for _ in range(3)]
        assert [each.result() for each in publishing] == [None] * 4
    for shown in walks:
        assert len(shown) == len(set(shown))
        assert [each for each in shown if each in before] == before[::-1]


@pytest.mark.parametrize("kind", ["organizations", "endpoints", "deliveries"])
def test_every_list_comes_in_parts(operator: Client, organization: str, kind: str, endpoint: Any) -> None:
    path = f"/v1/organizations/{organization}/{kind}" if kind != "organizations" else "/v1/organizations"
    for number in range(3):
        operator.take("POST", "/v1/organizations", {"name": f"Organization {number}"})
        new = {"url": endpoint["url"], "description": str(number)}
        operator.take("POST", f"/v1/organizations/{organization}/endpoints", new)
        operator.publish(organization)
    parts, whole = list_all(operator, path, 2), operator.take("GET", f"{path}?limit=200")["data"]
    assert [row["id"] for row in parts] == [row["id"] for row in whole]
    assert len(whole) > 2


def test_a_cursor_tells_no_id(publisher: Client, organization: str) -> None:
    for _ in range(2):
        publisher.publish(organization)
    page = publisher.take("GET", f"/v1/organizations/{organization}/events?limit=1")
    assert page["data"][0]["id"].removeprefix("evt_") not in page["next_cursor"]
