"""Building the request of an attempt: the frozen body and the headers that the contract promises. Pure.

`webhook-id`, `webhook-timestamp` and `webhook-signature` are those of Standard Webhooks. The id is the event's and
stays the same on every attempt, so that a receiver can tell a repetition; the timestamp is the attempt's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pydantic import SecretStr

from carehook import __version__
from carehook.directory.authentication import AuthenticationMethod
from carehook.directory.secrets import EndpointSecrets
from carehook.exchange import Request
from carehook.ledger.records import ClaimedDelivery
from carehook.signature import MESSAGE_ID_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER, SigningSecret, sign

SIGNATURE_VALUE_HEADER: Final = "x-webhook-signature"
USER_AGENT: Final = f"Carehook/{__version__}"


@dataclass(frozen=True, slots=True)
class Credentials:
    """An endpoint's secrets, ready to use: the signing secrets decoded, with the instant each ends."""

    signature_value: SecretStr
    signing_secrets: Sequence[tuple[SigningSecret, datetime | None]]
    authentication: AuthenticationMethod


def build_credentials(secrets: EndpointSecrets) -> Credentials:
    """Decode an endpoint's secrets."""
    return Credentials(
        signature_value=secrets.signature_value,
        signing_secrets=[
            (SigningSecret.parse(each.secret.get_secret_value()), each.expires_at) for each in secrets.signing_secrets
        ],
        authentication=secrets.authentication,
    )


def build_request(delivery: ClaimedDelivery, credentials: Credentials, now: datetime) -> Request:
    """Build the request of an attempt at `now`, before its authentication."""
    timestamp = int(now.timestamp())
    signing = [secret for secret, expires_at in credentials.signing_secrets if expires_at is None or expires_at > now]
    headers = {
        "content-type": "application/json",
        "user-agent": USER_AGENT,
        SIGNATURE_VALUE_HEADER: credentials.signature_value.get_secret_value(),
        MESSAGE_ID_HEADER: delivery.event_id,
        TIMESTAMP_HEADER: str(timestamp),
        SIGNATURE_HEADER: sign(delivery.event_id, timestamp, delivery.body, signing),
    }
    return Request("POST", delivery.endpoint.url, headers, delivery.body)
