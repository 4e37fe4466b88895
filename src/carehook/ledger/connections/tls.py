"""PostgreSQL over TLS, as its URL asks for it in libpq's words, and what is said where a server's TLS is not as asked.

`sslmode` (or `ssl`), `sslrootcert`, `sslcert` and `sslkey` mean what they mean to libpq (PostgreSQL documentation,
"SSL Support" in the chapter on libpq). The driver knows the last three in no URL but its own, so they are read here.
What is asked for is kept: a server that cannot do it is not used in clear.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Final

from sqlalchemy.engine import URL

TLS_OPTIONS: Final = ("ssl", "sslmode", "sslrootcert", "sslcert", "sslkey")

_SYSTEM: Final = "system"
"""The `sslrootcert` that names the authorities which this machine trusts."""

_CHECKING: Final = ("verify-ca", "verify-full")
_ENCRYPTING: Final = ("require", *_CHECKING)
_MODES: Final = ("disable", "allow", "prefer", *_ENCRYPTING)


def build_tls(url: URL) -> ssl.SSLContext | str | None:
    """What the driver takes as its `ssl`: nothing where nothing is asked for, a mode, or what to check and show.

    Without files in the URL the driver looks for them where libpq does: `PGSSLROOTCERT`, `~/.postgresql/root.crt`.
    Raises ValueError, with a sentence for people, for what cannot be done and for files that cannot be read.
    """
    options = {name: str(url.query[name]) for name in TLS_OPTIONS if name in url.query}
    mode = _decide_mode(options)
    if mode is not None and mode not in _MODES:
        raise ValueError(f"sslmode is one of {', '.join(_MODES)}")
    if not any(name in options for name in ("sslrootcert", "sslcert", "sslkey")):
        return mode
    if mode not in _ENCRYPTING:
        raise ValueError(f"certificates need an sslmode of {', '.join(_ENCRYPTING)}")
    return _build_context(mode, options)


def describe_tls_error(error: BaseException) -> str | None:
    """What a server does whose TLS is not what is asked for, as the end of a sentence; None for any other error."""
    match error:
        case ssl.SSLCertVerificationError():
            return f"has a certificate that is not trusted: {error.verify_message.rstrip('.')}"
        case ssl.SSLError():
            return f"does not speak TLS as expected: {error.reason or error}"
        case ConnectionError() if "rejected SSL upgrade" in str(error):
            # PostgreSQL's driver has no error of its own for it.
            return "does not offer TLS"
    return None


def _decide_mode(options: Mapping[str, str]) -> str | None:
    is_system = options.get("sslrootcert") == _SYSTEM
    mode = options.get("sslmode") or options.get("ssl") or ("verify-full" if is_system else None)
    if is_system and mode != "verify-full":
        # Anybody may have a certificate of a public authority.
        raise ValueError("sslrootcert=system needs sslmode=verify-full")
    return mode


def _build_context(mode: str, options: Mapping[str, str]) -> ssl.SSLContext:
    authorities = options.get("sslrootcert")
    if authorities is None and mode in _CHECKING:
        raise ValueError(f"sslmode={mode} with a certificate of one's own needs sslrootcert, or sslrootcert=system")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = mode == "verify-full"
    # As libpq does it, `require` checks by an authority where one is named.
    context.verify_mode = ssl.CERT_NONE if authorities is None else ssl.CERT_REQUIRED
    if authorities == _SYSTEM:
        context.load_default_certs()
    elif authorities is not None:
        _load_authorities(context, authorities)
    if "sslcert" in options:
        _load_certificate(context, options["sslcert"], options.get("sslkey"))
    return context


def _load_authorities(context: ssl.SSLContext, file: str) -> None:
    try:
        context.load_verify_locations(cafile=file)
    except ssl.SSLError:
        raise ValueError(f"sslrootcert: {file} holds no certificates in PEM form") from None
    except OSError as error:
        raise ValueError(f"sslrootcert: {file} cannot be read: {_describe(error)}") from None


def _load_certificate(context: ssl.SSLContext, file: str, key_file: str | None) -> None:
    try:
        # A password would be asked for at the terminal.
        context.load_cert_chain(file, key_file, password="")
    except ssl.SSLError:
        raise ValueError(f"sslcert: {file} and its key are no pair in PEM form, or the key has a password") from None
    except OSError as error:
        raise ValueError(f"sslcert: {file} or its key cannot be read: {_describe(error)}") from None


def _describe(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
