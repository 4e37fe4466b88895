"""What the HTTP client's errors mean, in words for the support team. Pure.

The law of this module: a reason never repeats what came from outside (the URL, a header, a certificate's names), only
what happened. And an error that a receiver can cause is `Unreachable`, whatever the client calls it: were it
`Interrupted`, a receiver could be asked again for ever, as interruptions cost no retry.
"""

from __future__ import annotations

from pyreqwest.exceptions import (
    BodyDecodeError,
    BuilderError,
    ClientClosedError,
    DecodeError,
    DetailedPyreqwestError,
    RequestError,
    RequestPanicError,
    RequestTimeoutError,
)

from carehook.exchange import Interrupted, Unreachable

# Beginnings of the client's causes. The first row that matches a cause counts, so particular ones come first.
_REASONS = (
    ("invalid peer certificate: certificate expired", "the TLS certificate has expired"),
    ("invalid peer certificate: Expired", "the TLS certificate has expired"),
    ("invalid peer certificate: certificate not valid yet", "the TLS certificate is not valid yet"),
    ("invalid peer certificate: NotValidYet", "the TLS certificate is not valid yet"),
    ("invalid peer certificate: certificate not valid for name", "the TLS certificate is for another host name"),
    ("invalid peer certificate: NotValidForName", "the TLS certificate is for another host name"),
    ("invalid peer certificate: UnknownIssuer", "the TLS certificate is from an unknown issuer or self-signed"),
    ("invalid peer certificate: Revoked", "the TLS certificate was revoked"),
    ("invalid peer certificate", "the TLS certificate is not valid"),
    ("received corrupt message", "no TLS is spoken on this port"),
    ("received fatal alert", "the TLS handshake was refused"),
    ("peer is incompatible", "TLS 1.2 or later is not supported"),
    ("tls handshake eof", "the connection was closed during the TLS handshake"),
    ("Connection refused", "the connection was refused"),
    ("No route to host", "there is no route to the host"),
    ("Network is unreachable", "there is no route to the host"),
    ("message head is too large", "the response has too many or too large headers"),
    ("connection closed before message completed", "the connection was closed before a complete response"),
    ("end of file before message length reached", "the connection was closed before a complete response"),
    ("unexpected EOF", "the connection was closed before a complete response"),
    ("peer closed connection", "the connection was closed before a complete response"),
    ("Connection reset", "the connection was closed before a complete response"),
    ("Broken pipe", "the connection was closed before a complete response"),
)


def describe_failure(error: Exception, *, timeout: float, connect_timeout: float) -> Unreachable | Interrupted:
    """The outcome of an exchange that ended with `error`; `timeout` and `connect_timeout` (s) were its limits."""
    if isinstance(error, ClientClosedError):
        return Interrupted("Carehook stopped before the response was complete")
    if isinstance(error, RequestTimeoutError) and _is_connecting(error):
        return Unreachable(f"no connection within {connect_timeout:g} s")
    if isinstance(error, TimeoutError):
        return Unreachable(f"no complete response within {timeout:g} s")
    if isinstance(error, RequestError) and _is_out_of_files(error):
        return Interrupted("Carehook has too many files open: raise its limit (ulimit -n)")
    if isinstance(error, RequestError) and not isinstance(error, RequestPanicError | BuilderError):
        return Unreachable(_find_reason(error))
    return Interrupted(f"Carehook failed before the outcome was known ({type(error).__name__})")


def _is_out_of_files(error: RequestError) -> bool:
    """Whether a socket could not be opened for lack of descriptors (EMFILE, ENFILE): not the receiver's doing."""
    return any(cause.startswith("Too many open files") for cause in _list_causes(error))


def match_unsent(error: DetailedPyreqwestError) -> bool:
    """Whether `error` came before there was a TCP connection, so that another address may be tried without harm."""
    return "tcp connect error" in _list_causes(error) or (
        isinstance(error, RequestTimeoutError) and _is_connecting(error)
    )


def _is_connecting(error: DetailedPyreqwestError) -> bool:
    # The class `ConnectTimeoutError` alone does not tell: a receiver that hangs after it got the request has it too.
    return "client error (Connect)" in _list_causes(error)


def _find_reason(error: RequestError) -> str:
    causes = _list_causes(error)
    for beginning, reason in _REASONS:
        if any(cause.startswith(beginning) for cause in causes):
            return reason
    if isinstance(error, DecodeError | BodyDecodeError):
        return "the response is not valid HTTP"
    return "no connection could be made" if _is_connecting(error) else "the connection failed"


def _list_causes(error: DetailedPyreqwestError) -> list[str]:
    return [cause["message"] for cause in error.details["causes"] or ()]
