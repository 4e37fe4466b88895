"""The one error a receiver meets, whatever is wrong with a request. Its text holds neither payload nor secret."""

from __future__ import annotations

from enum import StrEnum

from carehook.signature import SignatureFailure


class Reason(StrEnum):
    """Why a request was not accepted; stable codes for your own log and metrics."""

    MISSING_HEADER = "missing_header"
    DUPLICATE_HEADER = "duplicate_header"
    MALFORMED_HEADERS = "malformed_headers"
    SIGNATURE_VALUE_MISMATCH = "signature_value_mismatch"
    MALFORMED_MESSAGE_ID = SignatureFailure.MALFORMED_MESSAGE_ID
    MALFORMED_TIMESTAMP = SignatureFailure.MALFORMED_TIMESTAMP
    MALFORMED_SIGNATURE = SignatureFailure.MALFORMED_SIGNATURE
    TIMESTAMP_TOO_OLD = SignatureFailure.TIMESTAMP_TOO_OLD
    TIMESTAMP_TOO_NEW = SignatureFailure.TIMESTAMP_TOO_NEW
    SIGNATURE_MISMATCH = SignatureFailure.SIGNATURE_MISMATCH
    MALFORMED_BODY = "malformed_body"
    INVALID_EVENT = "invalid_event"
    UNKNOWN_EVENT_TYPE = "unknown_event_type"


_ABOUT_THE_BODY = frozenset({Reason.MALFORMED_BODY, Reason.INVALID_EVENT, Reason.UNKNOWN_EVENT_TYPE})


class WebhookVerificationError(ValueError):
    """A request that is not to be acted on. `reason` is a code, the text a sentence for people."""

    def __init__(self, reason: Reason, message: str) -> None:
        self.reason = reason
        super().__init__(message)

    @property
    def status(self) -> int:
        """The HTTP status to answer with: 400 if it was signed rightly and cannot be read as an event, else 401."""
        return 400 if self.reason in _ABOUT_THE_BODY else 401
