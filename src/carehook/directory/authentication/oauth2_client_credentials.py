"""OAuth 2.0 client credentials: a token from the organization's authorization server (RFC 6749 §4.4).

The token is used until it expires. A receiver that answers 401 may have revoked it, so it is fetched anew,
once.
"""

from __future__ import annotations

import base64
import re
from hashlib import sha256
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote, urlencode, urlsplit

from pydantic import AfterValidator, ConfigDict, Field, SecretStr
from pydantic_core import PydanticCustomError, from_json

from carehook import __version__
from carehook.directory.authentication.fields import (
    BEARER_TOKEN,
    BEARER_TOKEN_LIMIT,
    REVEAL_SECRETS,
    Matching,
    RevealableSecret,
    build_bearer_header,
)
from carehook.directory.authentication.flow import (
    AccessToken,
    AuthenticationFlow,
    AuthenticationMethod,
    TokenRefused,
    ask_receiver,
    ask_token,
)
from carehook.exchange import Request, Responded

DEFAULT_LIFETIME: Final = 300.0
"""How long a token is taken to live, in seconds, when the answer does not say (RFC 6749 §5.1 leaves it to us)."""

EXPIRY_MARGIN: Final = 30.0
"""A token is used no more this many seconds before it expires, or a tenth of its lifetime if that is less."""

LONGEST_LIFETIME: Final = 86_400.0
"""A token is fetched anew after a day, however long it would live."""

# RFC 6749 appendix A.1, A.2 and A.4.
_VISIBLE: Final = Matching("^[ -~]+$", "must be printable ASCII, without line breaks (RFC 6749)")
_SCOPE: Final = Matching(
    r"^[!#-\[\]-~]+( [!#-\[\]-~]+)*$",
    "must be one or more words of visible ASCII, without quotes or backslashes, one space between two (RFC 6749)",
)

# What a URL may be written with (RFC 3986 appendix A), without '#'.
_URL_CHARACTERS: Final = "[!$%&'()*+,./:;=?@_~0-9A-Za-z[\\]-]+"

_ADVICE: Final = {
    "invalid_client": "check client_id, client_secret and client_auth",
    "unauthorized_client": "the client must be allowed the grant type client_credentials there",
    "invalid_scope": "check scope",
    "invalid_target": "check audience",
}


def _check_token_url(url: str) -> str:
    """`url` itself. Raises `PydanticCustomError` unless it can be asked for tokens (RFC 6749 §3.2: no fragment)."""
    try:
        parts = urlsplit(url)
        has_target = parts.scheme in ("https", "http") and bool(parts.hostname) and parts.port != 0
        has_credentials = "@" in parts.netloc
    except ValueError:
        has_target = has_credentials = False
    if not has_target or has_credentials or re.fullmatch(_URL_CHARACTERS, url) is None:
        raise PydanticCustomError("token_url", "must be an absolute https URL, without credentials and without '#'")
    return url


class OAuth2ClientCredentials(AuthenticationMethod):
    """`authorization: Bearer …`, with a token that is asked for at `token_url`.

    `client_auth` is how we authenticate there: `basic` in the header (RFC 6749 §2.3.1, what servers must
    support) or `post` in the body. `audience` is no part of RFC 6749, but some servers tell by it what the
    token is for.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "oauth2_client_credentials",
                    "token_url": "https://login.hospital.example/oauth2/token",
                    "client_id": "carehook",
                    "client_secret": "7Fjfp0ZBr1KtDRbnfVdmIw",
                    "scope": "webhooks:write",
                    "client_auth": "basic",
                }
            ]
        }
    )

    type: Literal["oauth2_client_credentials"]
    token_url: Annotated[
        str,
        Field(max_length=2048, json_schema_extra={"format": "uri", "pattern": "^https?://[^#]+$"}),
        AfterValidator(_check_token_url),
    ]
    client_id: Annotated[str, Field(max_length=255), _VISIBLE]
    client_secret: Annotated[RevealableSecret, Field(max_length=1024), _VISIBLE]
    scope: Annotated[str, Field(max_length=1024), _SCOPE] | None = None
    audience: Annotated[str, Field(max_length=1024), _VISIBLE] | None = None
    client_auth: Literal["basic", "post"] = "basic"

    @property
    def contacted_urls(self) -> tuple[tuple[str, str], ...]:
        """The token URL."""
        return (("token_url", self.token_url),)

    def authenticate(self, request: Request) -> AuthenticationFlow:
        """Send the request with a token; if it is answered with 401, once more with another token."""
        token = yield from ask_token(self)
        response = yield from ask_receiver(request.with_headers(build_bearer_header(token)))
        if response.status == 401:
            token = yield from ask_token(self, rejected=token)
            yield from ask_receiver(request.with_headers(build_bearer_header(token)))

    def compute_fingerprint(self) -> bytes:
        """A digest of every field, secrets too: other credentials or another scope never share a token."""
        return sha256(self.model_dump_json(context=REVEAL_SECRETS).encode()).digest()

    def build_token_request(self) -> Request:
        """The access token request (RFC 6749 §4.4.2)."""
        form = {"grant_type": "client_credentials", "scope": self.scope, "audience": self.audience}
        headers = {
            "content-type": "application/x-www-form-urlencoded",
            "accept": "application/json",
            "user-agent": f"Carehook/{__version__}",
        }
        secret = self.client_secret.get_secret_value()
        if self.client_auth == "basic":
            # RFC 6749 §2.3.1: each part is form-encoded first. A space as %20, for some servers leave a '+' as it is.
            credentials = f"{quote(self.client_id, safe='')}:{quote(secret, safe='')}".encode()
            headers["authorization"] = "Basic " + base64.b64encode(credentials).decode()
        else:
            form |= {"client_id": self.client_id, "client_secret": secret}
        body = urlencode({name: value for name, value in form.items() if value is not None})
        return Request("POST", self.token_url, headers, body.encode())

    def read_token(self, response: Responded, now: float) -> AccessToken | TokenRefused:
        """The token in the answer to the token request (RFC 6749 §5.1), or why there is none (§5.2).

        `now` is when the request was sent, in seconds; the token's `expires_at` is of the same clock. An
        answer that was cut off by the response limit of 4 KiB is no JSON any more, and therefore a refusal.
        """
        answer = _parse_object(response.body)
        if not response.is_success:
            return TokenRefused(_describe_error(response.status, answer))
        if answer is None:
            return TokenRefused("the authorization server's answer is not a JSON object of at most 4 KiB")
        token_type = answer.get("token_type")
        if not isinstance(token_type, str) or token_type.lower() != "bearer":
            return TokenRefused("the authorization server's answer does not say that its token_type is Bearer")
        token = answer.get("access_token")
        if not isinstance(token, str) or not _is_usable(token):
            return TokenRefused("the authorization server's answer has no access_token that fits in a header")
        lifetime = _read_lifetime(answer.get("expires_in"))
        return AccessToken(SecretStr(token), now + lifetime - min(EXPIRY_MARGIN, lifetime / 10))


def _parse_object(body: bytes) -> dict[str, Any] | None:
    try:
        parsed = from_json(body, allow_inf_nan=False)
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None


def _is_usable(token: str) -> bool:
    return len(token) <= BEARER_TOKEN_LIMIT and BEARER_TOKEN.matches(token)


def _read_lifetime(expires_in: object) -> float:
    """Seconds. Some servers write the number as a string; what cannot be read counts as not said."""
    if isinstance(expires_in, str) and re.fullmatch("[0-9]{1,12}", expires_in):
        expires_in = int(expires_in)
    if isinstance(expires_in, bool) or not isinstance(expires_in, int | float):
        return DEFAULT_LIFETIME
    return float(min(max(expires_in, 0), LONGEST_LIFETIME))


def _describe_error(status: int, answer: dict[str, Any] | None) -> str:
    """A sentence with the error code alone: the server's description of the error may repeat what we sent."""
    code = (answer or {}).get("error")
    if not isinstance(code, str) or re.fullmatch("[a-z_]{1,40}", code) is None:
        return f"the authorization server answered {status}"
    advice = f": {_ADVICE[code]}" if code in _ADVICE else ""
    return f"the authorization server answered {status} {code}{advice}"
