"""An OAuth 2.0 authorization server in a process of its own, made with Authlib, and a receiver that takes its tokens.

Besides `/token` it has `/hook`, which wants a token, and `/closed-hook`, which answers 401 whatever it is
given. Tests look at what came in (`GET /seen`), withdraw every token (`POST /revoke-all`) and make it fail
(`POST /break`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection
from json import loads
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from authlib.integrations.flask_oauth2 import AuthorizationServer as AuthlibServer
from authlib.integrations.flask_oauth2 import ResourceProtector
from authlib.oauth2.rfc6749 import ClientMixin, TokenMixin
from authlib.oauth2.rfc6749.grants import ClientCredentialsGrant
from authlib.oauth2.rfc6750 import BearerTokenValidator
from flask import Flask, Response, jsonify, request
from werkzeug.serving import make_server

REPOSITORY = Path(__file__).parents[2]
SECRET = "s+cret /=&%:"
"""The secret of both clients, with every character that an encoding can get wrong."""

BASIC_CLIENT = "basic:client id"
POST_CLIENT = "post:client id"
SCOPES = ("webhooks:read", "webhooks:write")


@dataclass(frozen=True)
class Client(ClientMixin):  # type: ignore[misc]
    """A client that may authenticate in one way only."""

    client_id: str
    auth_method: str

    def get_client_id(self) -> str:
        return self.client_id

    def check_client_secret(self, client_secret: str) -> bool:
        return client_secret == SECRET

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method == self.auth_method

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type == "client_credentials"

    def get_allowed_scope(self, scope: str | None) -> str:
        return scope or ""


@dataclass(frozen=True)
class Token(TokenMixin):  # type: ignore[misc]
    """A token that is valid until it is revoked: tests bring a clock of their own."""

    scope: str

    def get_scope(self) -> str:
        return self.scope

    def is_expired(self) -> bool:
        return False

    def is_revoked(self) -> bool:
        return False


class Grant(ClientCredentialsGrant):  # type: ignore[misc]
    """Client credentials, by header or by form."""

    TOKEN_ENDPOINT_AUTH_METHODS = ("client_secret_basic", "client_secret_post")


class Validator(BearerTokenValidator):  # type: ignore[misc]
    """Knows the tokens that were issued and not revoked."""

    def __init__(self, tokens: dict[str, Token]) -> None:
        super().__init__()
        self._tokens = tokens

    def authenticate_token(self, token_string: str) -> Token | None:
        return self._tokens.get(token_string)


@dataclass
class State:
    """What the server knows and what it has seen."""

    tokens: dict[str, Token] = field(default_factory=dict)
    token_requests: list[dict[str, str | None]] = field(default_factory=list)
    hooks: list[str] = field(default_factory=list)
    is_broken: bool = False

    def reset(self) -> None:
        for kept in (self.tokens, self.token_requests, self.hooks):
            kept.clear()
        self.is_broken = False


def build_application() -> Flask:
    """The server and the receiver as one application."""
    application = Flask(__name__)
    application.config["OAUTH2_SCOPES_SUPPORTED"] = SCOPES
    state = State()
    _add_authorization_server(application, state)
    _add_receiver(application, state)
    _add_controls(application, state)
    return application


def _add_authorization_server(application: Flask, state: State) -> None:
    clients = {
        BASIC_CLIENT: Client(BASIC_CLIENT, "client_secret_basic"),
        POST_CLIENT: Client(POST_CLIENT, "client_secret_post"),
    }

    def save_token(token: dict[str, str], _: object) -> None:
        state.tokens[token["access_token"]] = Token(token.get("scope", ""))

    server = AuthlibServer(application, clients.get, save_token)
    server.register_grant(Grant)

    @application.post("/token")
    def issue_token() -> Any:
        state.token_requests.append({name: request.form.get(name) for name in ("scope", "audience")})
        return Response("<html>", 503) if state.is_broken else server.create_token_response()


def _add_receiver(application: Flask, state: State) -> None:
    protect = ResourceProtector()
    protect.register_token_validator(Validator(state.tokens))

    @application.before_request
    def note_hook() -> None:
        if request.path.endswith("hook"):
            state.hooks.append(request.get_data(as_text=True))

    @application.post("/hook")
    @protect()  # type: ignore[untyped-decorator]
    def receive() -> str:
        return "received"

    @application.post("/closed-hook")
    def refuse() -> tuple[str, int]:
        return "no", 401


def _add_controls(application: Flask, state: State) -> None:
    @application.get("/seen")
    def show_seen() -> Response:
        return jsonify(token_requests=state.token_requests, hooks=state.hooks)

    @application.post("/revoke-all")
    def revoke_all() -> str:
        state.tokens.clear()
        return ""

    @application.post("/reset")
    def reset() -> str:
        state.reset()
        return ""

    @application.post("/break")
    def break_down() -> str:
        state.is_broken = True
        return ""


class AuthorizationServer:
    """The server as a process; `with` starts it on a port that the kernel chose, and ends it."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=REPOSITORY,
            env={"AUTHLIB_INSECURE_TRANSPORT": "1", "PATH": os.defpath},
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}"
        self.token_url = f"{self.url}/token"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def get_token_requests(self) -> Sequence[dict[str, str | None]]:
        """The scope and audience of every token request so far."""
        requests: Sequence[dict[str, str | None]] = self._ask("GET", "/seen")["token_requests"]
        return requests

    def get_hooks(self) -> Sequence[str]:
        """The body of every request to the receiver so far, taken or not."""
        hooks: Sequence[str] = self._ask("GET", "/seen")["hooks"]
        return hooks

    def revoke_all(self) -> None:
        """Take back every token that was issued."""
        self._ask("POST", "/revoke-all")

    def break_down(self) -> None:
        """Answer token requests with 503 from now on."""
        self._ask("POST", "/break")

    def reset(self) -> None:
        """Forget all that happened: as new."""
        self._ask("POST", "/reset")

    def _ask(self, method: str, path: str) -> Any:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path)
            body = connection.getresponse().read()
        finally:
            connection.close()
        return loads(body) if body else None


def main() -> None:
    """Serve until standard input ends, as it does however the tests' process ends."""
    server = make_server("127.0.0.1", 0, build_application(), threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()
    server.shutdown()


if __name__ == "__main__":
    main()
