"""Where NATS is, as CAREHOOK_QUEUE_URL says it; and which streams can be used."""

from typing import Any

import pytest
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamSource

from carehook.ledger.jetstream.servers import Server, describe_error, parse_queue_url
from carehook.ledger.jetstream.stream import Stream, find_objections


def describe(server: Server) -> tuple[str, str | None, str | None]:
    """What is shown of a server, its user and its password."""
    return str(server), server.user, server.password.get_secret_value() if server.password else None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nats://host", [("nats://host:4222", None, None)]),
        ("nats://host:4223/", [("nats://host:4223", None, None)]),
        ("tls://user:password@host", [("tls://host:4222", "user", "password")]),
        ("nats://token@host:1", [("nats://host:1", None, "token")]),
        ("nats://us%40er:p%40ss%2F%2Cword@host", [("nats://host:4222", "us@er", "p@ss/,word")]),
        ("nats://[::1]:4222", [("nats://[::1]:4222", None, None)]),
        (
            "nats://a:b@one, nats://a:b@two:5 ,tls://three",
            [("nats://one:4222", "a", "b"), ("nats://two:5", "a", "b"), ("tls://three:4222", None, None)],
        ),
    ],
)
def test_servers_are_read(text: str, expected: list[tuple[str, str | None, str | None]]) -> None:
    assert [describe(server) for server in parse_queue_url(text)] == expected


@pytest.mark.parametrize(
    "text",
    [
        "hunter2",
        "http://hunter2",
        "ws://u:hunter2@host",
        "nats://",
        "nats://u:hunter2@",
        "nats://u:hunter2@host:port",
        "nats://u:hunter2@host:99999",
        "nats://u:pass@hunter2@host",
        "nats://u:50/hunter2@host",
        "nats://u:50?hunter2@host",
        "nats://u:50#hunter2@host",
        "nats://host/hunter2",
        "nats://[hunter2",
        "nats://host,hunter2",
        "nats://u:hunter2@host,",
        "nats://u:hun,ter2@host",
    ],
)
def test_what_is_no_url_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(ValueError, match="nats://user:password@host:4222") as raised:
        parse_queue_url(text)
    assert "ter2" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_a_server_shows_no_password() -> None:
    [server] = parse_queue_url("nats://user:hunter2@host")
    assert "hunter2" not in f"{server} {server!r}"


def test_an_error_that_nobody_expected_tells_nothing_of_its_words() -> None:
    assert describe_error(ValueError("hunter2")) == "answers as no NATS server does"


# ------------------------------------------------------------------------------------ the stream

WANTED = Stream("test").build_config(3)


@pytest.mark.parametrize(
    ("changed", "objection"),
    [
        ({"subjects": ["orders.>"]}, "its subjects are orders.>, not carehook.test.>"),
        ({"subjects": None}, "its subjects are none, not carehook.test.>"),
        ({"retention": RetentionPolicy.LIMITS}, "its retention is limits, not workqueue"),
        ({"storage": StorageType.MEMORY}, "its storage is memory, not file"),
        ({"discard": DiscardPolicy.NEW}, "its discard is new, not old"),
        ({"max_msgs_per_subject": -1}, "its max_msgs_per_subject is -1, not 1"),
        ({"allow_msg_schedules": None}, "it does not allow message schedules"),
        ({"max_age": 60.0}, "it forgets messages after 60 s"),
        ({"sealed": True}, "it is sealed, or copies other streams"),
        ({"mirror": StreamSource("orders")}, "it is sealed, or copies other streams"),
        ({"num_replicas": 1}, "it has 1 replicas, not 3"),
        ({"num_replicas": None}, "it has 1 replicas, not 3"),
    ],
)
def test_a_stream_with_other_settings_is_objected_to(changed: dict[str, Any], objection: str) -> None:
    assert list(find_objections(WANTED.evolve(**changed), WANTED)) == [objection]


@pytest.mark.parametrize("changed", [{}, {"num_replicas": 5}, {"max_bytes": 1_000_000}, {"description": "ours"}])
def test_a_stream_may_be_safer_or_bounded(changed: dict[str, Any]) -> None:
    assert list(find_objections(WANTED.evolve(**changed), WANTED)) == []
