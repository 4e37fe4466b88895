"""From a request to a typed event: first who sent it, then what it says."""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Sequence

from carehook.events import AnyEvent, InvalidEvent, UnknownEventType, parse_event
from carehook.receiver.errors import Reason, WebhookVerificationError
from carehook.receiver.headers import Headers, SecurityHeaders
from carehook.signature import (
    MESSAGE_ID_HEADER,
    SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
    TOLERANCE_SECONDS,
    InvalidSignature,
    SigningSecret,
    encode_text,
    verify,
)

SIGNATURE_VALUE_HEADER = "x-webhook-signature"
_HEADER_VALUE = re.compile(r"[!-~]([ -~]*[!-~])?")  # what arrives as it was sent: RFC 9110, section 5.5


class Webhook:
    """What an organization knows of its endpoint, and how it checks a request with it.

        webhook = Webhook(signature_value="...", signing_secret="whsec_...")
        event = webhook.verify(body, headers)

    A delivery may come more than once: `webhook-id` is the same each time, so keep those you have dealt with.
    """

    def __init__(
        self,
        signature_value: str | None = None,
        signing_secret: str | Sequence[str] | None = None,
        tolerance: float = TOLERANCE_SECONDS,
    ) -> None:
        """Say what a request must prove; what is left out is not checked.

        Args:
            signature_value: the value agreed with the support team for the header `x-webhook-signature`.
            signing_secret: a `whsec_` secret or a `whpk_` public key, or several while one is being rotated.
            tolerance: how many seconds the sender's clock and this machine's may be apart.

        Raises:
            ValueError: neither is given, or one is not usable.
            ImportError: the secret is a `whpk_` key, and `carehook[ed25519]` is not installed.
        """
        texts = [signing_secret] if isinstance(signing_secret, str) else list(signing_secret or [])
        if signature_value is None and not texts:
            raise ValueError("give signature_value, signing_secret, or both")
        if signing_secret is not None and not texts:
            raise ValueError("signing_secret is an empty list: no signature would be checked")
        if signature_value is not None and not _HEADER_VALUE.fullmatch(signature_value):
            raise ValueError("signature_value must be visible ASCII, without spaces at its ends")
        self._signature_value = None if signature_value is None else signature_value.encode("ascii")
        self._secrets = [SigningSecret.parse(text) for text in texts]
        self._tolerance = tolerance

    def verify(
        self, body: bytes | bytearray | memoryview | str, headers: Headers, *, now: float | None = None
    ) -> AnyEvent:
        """Verify a request and read its event. Fields that this version does not know are passed over.

        Args:
            body: the request's body exactly as it came, before any parsing.
            headers: the request's headers: a mapping or pairs, in any case, text or bytes, or a WSGI environ.
            now: Unix time in seconds; by default this machine's clock.

        Raises:
            WebhookVerificationError: whatever is wrong; nothing else is raised.
        """
        content = _read_body(body)
        security = SecurityHeaders(headers)
        if self._signature_value is not None:
            self._check_signature_value(self._signature_value, security)
        if self._secrets:
            self._check_signature(content, security, time.time() if now is None else now)
        return _parse(content)

    def _check_signature_value(self, expected: bytes, headers: SecurityHeaders) -> None:
        given = encode_text(headers.get(SIGNATURE_VALUE_HEADER))
        if not hmac.compare_digest(expected, given):
            raise WebhookVerificationError(
                Reason.SIGNATURE_VALUE_MISMATCH, f"{SIGNATURE_VALUE_HEADER} is not the agreed value"
            )

    def _check_signature(self, body: bytes, headers: SecurityHeaders, now: float) -> None:
        message_id, timestamp = headers.get(MESSAGE_ID_HEADER), headers.get(TIMESTAMP_HEADER)
        signatures = headers.get(SIGNATURE_HEADER)
        try:
            verify(message_id, timestamp, body, signatures, self._secrets, now=now, tolerance=self._tolerance)
        except InvalidSignature as refusal:
            raise WebhookVerificationError(Reason(refusal.failure), str(refusal)) from None


def _read_body(body: object) -> bytes:
    try:
        if isinstance(body, str):
            return body.encode()
        if isinstance(body, bytes | bytearray | memoryview):
            return bytes(body)
    except ValueError:
        pass
    raise WebhookVerificationError(Reason.MALFORMED_BODY, "the body must be the bytes of the request, as they came")


def _parse(body: bytes) -> AnyEvent:
    try:
        return parse_event(body, ignore_unknown_fields=True)
    except UnknownEventType as refusal:
        reason, message = Reason.UNKNOWN_EVENT_TYPE, f"the event is of a type unknown here: {refusal}"
    except InvalidEvent as refusal:
        reason, message = Reason.INVALID_EVENT, f"the event is not what the contract says: {refusal}"
    raise WebhookVerificationError(reason, message)
