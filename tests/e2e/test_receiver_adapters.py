"""FastAPI, Flask and Django: one suite, each in a real application on a real server, over real HTTP."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.client import HTTPConnection
from socketserver import TCPServer, ThreadingMixIn
from typing import Annotated, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import django
import fastapi
import flask
import pytest
import uvicorn
import werkzeug.serving
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path

from carehook import AnyEvent, Webhook
from carehook.events import CATALOGUE
from carehook.receiver.django import webhook_event as django_webhook_event
from carehook.receiver.fastapi import WebhookEvent
from carehook.receiver.flask import webhook_event as flask_webhook_event
from carehook.signature import SigningSecret, generate_signing_secret, sign

VALUE = "agreed-with-support"
SECRET = generate_signing_secret()
WEBHOOK = Webhook(signature_value=VALUE, signing_secret=SECRET)
EXAMPLES = {name: json.dumps(entry.example).encode() for name, entry in CATALOGUE.items()}
LIMIT = 2 * 1024 * 1024


def describe(event: AnyEvent, tenant: str) -> dict[str, str]:
    return {"type": event.type, "patient": event.payload.patient.code, "tenant": tenant}


# -- the applications, as an integrator writes them


def build_fastapi_application() -> fastapi.FastAPI:
    application = fastapi.FastAPI()
    verified = WebhookEvent(WEBHOOK)

    @application.post("/webhooks/{tenant}")
    async def receive(tenant: str, event: Annotated[AnyEvent, fastapi.Depends(verified)]) -> dict[str, str]:
        return describe(event, tenant)

    return application


def build_flask_application() -> flask.Flask:
    application = flask.Flask("receiver")

    @application.post("/webhooks/<tenant>")
    @flask_webhook_event(WEBHOOK)
    def receive(event: AnyEvent, tenant: str) -> flask.Response:
        return flask.jsonify(describe(event, tenant))

    return application


@django_webhook_event(WEBHOOK)
def receive_in_django(request: HttpRequest, event: AnyEvent, tenant: str) -> JsonResponse:
    assert request.method == "POST"
    return JsonResponse(describe(event, tenant))


@django_webhook_event(WEBHOOK)
async def receive_in_async_django(request: HttpRequest, event: AnyEvent, tenant: str) -> JsonResponse:
    assert request.method == "POST"
    return JsonResponse(describe(event, tenant))


urlpatterns = [path("webhooks/<tenant>", receive_in_django), path("async-webhooks/<tenant>", receive_in_async_django)]


# -- the servers, each on a free port of the loopback interface


@contextmanager
def serve_in_thread(server: TCPServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def serve_fastapi() -> Iterator[int]:
    config = uvicorn.Config(build_fastapi_application(), port=0, ws="none", log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def serve_flask() -> AbstractContextManager[int]:
    return serve_in_thread(werkzeug.serving.make_server("127.0.0.1", 0, build_flask_application(), threaded=True))


class ThreadingWSGIServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def serve_django() -> AbstractContextManager[int]:
    if not settings.configured:
        settings.configure(
            SECRET_KEY="for this test only",
            ALLOWED_HOSTS=["127.0.0.1"],
            ROOT_URLCONF=__name__,
            MIDDLEWARE=["django.middleware.csrf.CsrfViewMiddleware"],
        )
        django.setup()
    return serve_in_thread(
        make_server("127.0.0.1", 0, get_wsgi_application(), ThreadingWSGIServer, handler_class=QuietHandler)
    )


SERVERS: dict[str, tuple[Callable[[], AbstractContextManager[int]], str]] = {
    "fastapi": (serve_fastapi, "/webhooks/clinic"),
    "flask": (serve_flask, "/webhooks/clinic"),
    "django": (serve_django, "/webhooks/clinic"),
    "django, asynchronous": (serve_django, "/async-webhooks/clinic"),
}


@pytest.fixture(params=SERVERS, scope="module")
def address(request: pytest.FixtureRequest) -> Iterator[tuple[int, str]]:
    serve, route = SERVERS[request.param]
    with serve() as port:
        yield port, route


# -- the sender


def build_headers(body: bytes, **changes: str) -> dict[str, str]:
    now = int(time.time())
    headers = {
        "content-type": "application/json",
        "x-webhook-signature": VALUE,
        "webhook-id": "evt_1",
        "webhook-timestamp": str(now),
        "webhook-signature": sign("evt_1", now, body, [SigningSecret.parse(SECRET)]),
    }
    return headers | {name.replace("_", "-"): value for name, value in changes.items()}


Answer = tuple[int, str | None, dict[str, str]]


@contextmanager
def connect(port: int) -> Iterator[HTTPConnection]:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        yield connection
    finally:
        connection.close()


def read_answer(connection: HTTPConnection) -> Answer:
    response = connection.getresponse()
    return response.status, response.headers.get("content-type"), json.loads(response.read())


def post(address: tuple[int, str], body: bytes, headers: dict[str, str]) -> Answer:
    port, route = address
    with connect(port) as connection:
        connection.request("POST", route, body, headers)
        return read_answer(connection)


def post_beginning(address: tuple[int, str], beginning: bytes, headers: dict[str, str]) -> Answer:
    """Send the headers and the beginning of a body, and read the answer that does not wait for the rest."""
    port, route = address
    with connect(port) as connection:
        connection.putrequest("POST", route)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders(beginning)
        return read_answer(connection)


def refuse(address: tuple[int, str], body: bytes, headers: dict[str, str]) -> tuple[int, str]:
    status, content_type, problem = post(address, body, headers)
    assert content_type == "application/problem+json"
    assert list(problem) == ["detail"]
    return status, problem["detail"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_signed_request_reaches_the_view_as_a_typed_event(address: tuple[int, str], name: str) -> None:
    status, _, answer = post(address, EXAMPLES[name], build_headers(EXAMPLES[name]))
    assert (status, answer) == (200, {"type": name, "patient": "patient_code", "tenant": "clinic"})


def test_a_body_changed_on_the_way_is_answered_with_401(address: tuple[int, str]) -> None:
    body = EXAMPLES["patient_report_sent"]
    status, detail = refuse(address, body.replace(b"patient_code", b"patient_evil"), build_headers(body))
    assert (status, "webhook-signature" in detail) == (401, True)


def test_another_signature_value_is_answered_with_401(address: tuple[int, str]) -> None:
    body = EXAMPLES["patient_report_sent"]
    status, detail = refuse(address, body, build_headers(body, x_webhook_signature="guessed"))
    assert (status, detail) == (401, "x-webhook-signature is not the agreed value")


def test_a_request_without_any_proof_is_answered_with_401(address: tuple[int, str]) -> None:
    status, detail = refuse(address, EXAMPLES["patient_report_sent"], {"content-type": "application/json"})
    assert (status, detail) == (401, "the header x-webhook-signature is missing")


def test_an_old_request_is_answered_with_401(address: tuple[int, str]) -> None:
    body = EXAMPLES["patient_report_sent"]
    status, detail = refuse(address, body, build_headers(body, webhook_timestamp="1704063600"))
    assert (status, "too old" in detail) == (401, True)


@pytest.mark.parametrize("body", [b"", b"{}", b"\xff\x00", b'{"type": "patient_moved"}'])
def test_a_signed_body_that_is_no_event_is_answered_with_400(address: tuple[int, str], body: bytes) -> None:
    status, detail = refuse(address, body, build_headers(body))
    assert (status, detail.startswith("the event is")) == (400, True)


def build_padded(size: int) -> bytes:
    return EXAMPLES["patient_report_sent"].rjust(size)


def test_a_body_of_2_mib_is_read(address: tuple[int, str]) -> None:
    body = build_padded(LIMIT)
    assert post(address, body, build_headers(body))[0] == 200


def test_a_body_over_2_mib_is_answered_with_413_before_it_is_read(address: tuple[int, str]) -> None:
    headers = build_headers(build_padded(LIMIT + 1), content_length=str(LIMIT + 1))
    status, content_type, problem = post_beginning(address, b"", headers)
    assert (status, content_type) == (413, "application/problem+json")
    assert problem == {"detail": "the body is larger than this receiver takes"}


def test_a_body_of_unknown_length_is_answered_with_413_as_soon_as_it_is_over_2_mib() -> None:
    chunk = f"{LIMIT + 1:x}\r\n".encode() + build_padded(LIMIT + 1)
    with serve_fastapi() as port:
        headers = build_headers(build_padded(LIMIT + 1), transfer_encoding="chunked")
        status, _, _ = post_beginning((port, "/webhooks/clinic"), chunk, headers)
    assert status == 413
