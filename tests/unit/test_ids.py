"""Ids are sortable, unmistakable and told apart by their prefix."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from carehook import ids


def test_an_id_is_its_prefix_and_a_uuid7_in_hex() -> None:
    prefix, _, digits = ids.new_id(ids.EVENT).partition("_")
    assert prefix == "evt"
    assert digits == uuid.UUID(digits).hex
    assert uuid.UUID(digits).version == 7


def test_the_prefixes_are_those_that_the_api_documents() -> None:
    assert sorted(ids.PREFIXES) == ["att", "dlv", "ep", "evt", "org", "tok"]


def test_ids_of_one_process_sort_as_they_were_made() -> None:
    made = [ids.new_id(ids.DELIVERY) for _ in range(20_000)]
    assert made == sorted(set(made))


def test_threads_never_share_an_id() -> None:
    with ThreadPoolExecutor(4) as pool:
        batches = list(pool.map(lambda _: [ids.new_id("evt") for _ in range(2_000)], range(8)))
    assert len({one for batch in batches for one in batch}) == 16_000


@pytest.mark.parametrize("prefix", sorted(ids.PREFIXES))
def test_a_new_id_is_an_id_of_its_own_prefix_only(prefix: str) -> None:
    made = ids.new_id(prefix)
    assert [other for other in sorted(ids.PREFIXES) if ids.is_id(other, made)] == [prefix]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "evt",
        "evt_",
        "evt_1",
        "_01a201f7bc3d745abb6dd8303b54adda",
        "01a201f7bc3d745abb6dd8303b54adda",
        "evt_01A201F7BC3D745ABB6DD8303B54ADDA",
        "evt_01a201f7-bc3d-745a-bb6d-d8303b54adda",
        "evt_01a201f7bc3d745abb6dd8303b54adda\n",
        "evt_01a201f7bc3d745abb6dd8303b54adda0",
        "evt_01a201f7bc3d445abb6dd8303b54adda",
        "evt_01a201f7bc3d745afb6dd8303b54adda",
        "evt__01a201f7bc3d745abb6dd8303b54add",
        "evt_٠1a201f7bc3d745abb6dd8303b54adda",
    ],
)
def test_what_new_id_cannot_have_made_is_no_id(text: str) -> None:
    assert not ids.is_id("evt", text)
