"""Sign and verify, by Standard Webhooks (https://github.com/standard-webhooks/standard-webhooks, "Signature scheme").

What is signed is `<message id>.<timestamp>.<body>`, by HMAC-SHA256 (`v1`) or Ed25519 (`v1a`). While a secret is rotated
the header holds a signature by each. Pure and of the standard library, but for Ed25519, which needs
`carehook[ed25519]`, and for the two functions that generate secrets.

    secret = SigningSecret.parse("whsec_...")
    header = sign("evt_1", 1704063600, body, [secret])
    verify("evt_1", "1704063600", body, header, [secret], now=time.time())
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ed25519

MESSAGE_ID_HEADER = "webhook-id"
TIMESTAMP_HEADER = "webhook-timestamp"
SIGNATURE_HEADER = "webhook-signature"

TOLERANCE_SECONDS = 300
"""How far the sender's clock and the receiver's may be apart."""

_MOST_SIGNATURES = 16  # an Ed25519 check costs 100 us, and the header is a stranger's
_MESSAGE_ID = re.compile(r"[!-\-/-~]+")  # visible ASCII without the full stop, which parts what is signed
_UNIX_SECONDS = re.compile(r"[0-9]{1,12}")


class SignatureFailure(StrEnum):
    """Why a signature was not accepted."""

    MALFORMED_MESSAGE_ID = "malformed_message_id"
    MALFORMED_TIMESTAMP = "malformed_timestamp"
    MALFORMED_SIGNATURE = "malformed_signature"
    TIMESTAMP_TOO_OLD = "timestamp_too_old"
    TIMESTAMP_TOO_NEW = "timestamp_too_new"
    SIGNATURE_MISMATCH = "signature_mismatch"


_MESSAGES = {
    SignatureFailure.MALFORMED_MESSAGE_ID: f"{MESSAGE_ID_HEADER} must be visible ASCII without a full stop",
    SignatureFailure.MALFORMED_TIMESTAMP: f"{TIMESTAMP_HEADER} must be a Unix time in whole seconds",
    SignatureFailure.MALFORMED_SIGNATURE: f"{SIGNATURE_HEADER} holds more than {_MOST_SIGNATURES} signatures",
    SignatureFailure.TIMESTAMP_TOO_OLD: f"{TIMESTAMP_HEADER} is too old; is this machine's clock right?",
    SignatureFailure.TIMESTAMP_TOO_NEW: f"{TIMESTAMP_HEADER} lies in the future; is this machine's clock right?",
    SignatureFailure.SIGNATURE_MISMATCH: f"no signature in {SIGNATURE_HEADER} was made with a secret of this receiver",
}


class InvalidSignature(ValueError):
    """A message that does not prove where it comes from. The text holds neither secret nor payload."""

    def __init__(self, failure: SignatureFailure) -> None:
        self.failure = failure
        super().__init__(_MESSAGES[failure])


class SigningSecret(ABC):
    """A secret or key, decoded once. Its `repr` is masked.

    Three kinds, told apart by the prefix of their text: `whsec_` (24 to 64 bytes in base64, shared by sender and
    receiver), `whsk_` (an Ed25519 private key, for the sender) and `whpk_` (its public key, for the receiver).
    """

    __slots__ = ()

    @staticmethod
    def parse(text: str) -> SigningSecret:
        """Decode a secret's text.

        Raises:
            ValueError: it has none of the three forms.
            ImportError: it is an Ed25519 key, and `carehook[ed25519]` is not installed.
        """
        for prefix, kind in _KINDS.items():
            if text.startswith(prefix):
                return kind(_decode(text.removeprefix(prefix)))
        raise ValueError(f"a signing secret begins with one of {', '.join(_KINDS)}")

    @abstractmethod
    def sign(self, content: bytes) -> str:
        """Sign `content`, as `<version>,<base64>`."""

    @abstractmethod
    def matches(self, content: bytes, signature: str) -> bool:
        """Whether `signature`, as `sign` writes it, was made of `content` with this secret."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(**********)"


class SymmetricSecret(SigningSecret):
    """A `whsec_` secret: HMAC-SHA256, version `v1`."""

    __slots__ = ("_begun",)

    def __init__(self, key: bytes) -> None:
        if not 24 <= len(key) <= 64:
            raise ValueError("a whsec_ secret holds 24 to 64 bytes")
        # What a key does to the hash is the same for each message, so it is done once.
        self._begun = hmac.new(key, digestmod="sha256")

    def sign(self, content: bytes) -> str:
        """Sign `content`, as `v1,<base64>`."""
        code = self._begun.copy()
        code.update(content)
        return "v1," + binascii.b2a_base64(code.digest(), newline=False).decode("ascii")

    def matches(self, content: bytes, signature: str) -> bool:
        """Compare in constant time."""
        return hmac.compare_digest(self.sign(content).encode("ascii"), encode_text(signature))


class PublicKey(SigningSecret):
    """A `whpk_` key: Ed25519, version `v1a`. It verifies and cannot sign."""

    __slots__ = ("_public",)

    def __init__(self, key: bytes) -> None:
        if len(key) != 32:
            raise ValueError("a whpk_ key holds 32 bytes")
        self._public: ed25519.Ed25519PublicKey = _import_ed25519().Ed25519PublicKey.from_public_bytes(key)

    def sign(self, content: bytes) -> str:
        """Refuse: only the private key signs."""
        raise ValueError("a whpk_ key verifies only; sign with the whsk_ key")

    def matches(self, content: bytes, signature: str) -> bool:
        """Verify a `v1a,<base64>` signature; any other form does not match."""
        from cryptography.exceptions import InvalidSignature as Mismatch

        version, _, encoded = signature.partition(",")
        try:
            self._public.verify(_decode(encoded), content)
        except (Mismatch, ValueError):
            return False
        return version == "v1a"

    def __str__(self) -> str:
        return "whpk_" + base64.b64encode(self._public.public_bytes_raw()).decode("ascii")


class PrivateKey(SigningSecret):
    """A `whsk_` key: Ed25519, version `v1a`. The seed alone (32 bytes), or followed by the public key (64)."""

    __slots__ = ("_private", "public_key")

    def __init__(self, key: bytes) -> None:
        if len(key) not in (32, 64):
            raise ValueError("a whsk_ key holds 32 or 64 bytes")
        self._private: ed25519.Ed25519PrivateKey = _import_ed25519().Ed25519PrivateKey.from_private_bytes(key[:32])
        public = self._private.public_key().public_bytes_raw()
        if key[32:] not in (b"", public):
            raise ValueError("the two halves of the whsk_ key do not belong together")
        self.public_key = PublicKey(public)

    def sign(self, content: bytes) -> str:
        """Sign `content`, as `v1a,<base64>`."""
        return "v1a," + base64.b64encode(self._private.sign(content)).decode("ascii")

    def matches(self, content: bytes, signature: str) -> bool:
        """Verify with the public key that belongs to this one."""
        return self.public_key.matches(content, signature)


_KINDS: Mapping[str, Callable[[bytes], SigningSecret]] = {
    "whsec_": SymmetricSecret,
    "whsk_": PrivateKey,
    "whpk_": PublicKey,
}


def sign(message_id: str, timestamp: int, body: bytes, secrets: Sequence[SigningSecret]) -> str:
    """Sign a message with each of `secrets`: the value of `webhook-signature`, separated by spaces.

    `timestamp` is the Unix time of this attempt, in seconds, and goes into `webhook-timestamp`.

    Raises:
        ValueError: there is no secret, one of them cannot sign, or `message_id` is not visible ASCII without a full
            stop.
    """
    if not secrets:
        raise ValueError("signing needs a secret at least")
    content = _build_content(message_id, str(timestamp), body)
    return " ".join([secret.sign(content) for secret in secrets])


def verify(
    message_id: str,
    timestamp: str,
    body: bytes,
    signatures: str,
    secrets: Sequence[SigningSecret],
    *,
    now: float,
    tolerance: float = TOLERANCE_SECONDS,
) -> None:
    """Verify a message: one of `signatures` by one of `secrets` is enough, and versions not known are passed over.

    `message_id`, `timestamp` and `signatures` are the headers' values as they came; `now` is a Unix time and, as
    `tolerance`, in seconds.

    Raises:
        InvalidSignature: the message is not from a holder of one of the secrets, or not from about `now`.
    """
    content = _build_content(message_id, timestamp, body)
    _check_timestamp(timestamp, now, tolerance)
    candidates = signatures.split()
    if len(candidates) > _MOST_SIGNATURES:
        raise InvalidSignature(SignatureFailure.MALFORMED_SIGNATURE)
    if not any(secret.matches(content, candidate) for secret in secrets for candidate in candidates):
        raise InvalidSignature(SignatureFailure.SIGNATURE_MISMATCH)


def generate_signing_secret() -> str:
    """Generate a `whsec_` secret of 32 random bytes."""
    return "whsec_" + base64.b64encode(os.urandom(32)).decode("ascii")


def generate_signing_key() -> str:
    """Generate a `whsk_` key: 64 bytes, the seed and the public key.

    Raises:
        ImportError: `carehook[ed25519]` is not installed.
    """
    private = _import_ed25519().Ed25519PrivateKey.generate()
    key = private.private_bytes_raw() + private.public_key().public_bytes_raw()
    return "whsk_" + base64.b64encode(key).decode("ascii")


def derive_public_key(signing_key: str) -> str:
    """Derive the `whpk_` key, which receivers get, from a `whsk_` key.

    Raises:
        ValueError: it is no `whsk_` key.
    """
    key = SigningSecret.parse(signing_key)
    if not isinstance(key, PrivateKey):
        raise ValueError("only a whsk_ key has a public key")
    return str(key.public_key)


def encode_text(text: str) -> bytes:
    """Encode any `str`, also one with lone surrogates, so that different texts stay different."""
    return text.encode("utf-8", "surrogatepass")


def _build_content(message_id: str, timestamp: str, body: bytes) -> bytes:
    if not _MESSAGE_ID.fullmatch(message_id):
        raise InvalidSignature(SignatureFailure.MALFORMED_MESSAGE_ID)
    if not _UNIX_SECONDS.fullmatch(timestamp):
        raise InvalidSignature(SignatureFailure.MALFORMED_TIMESTAMP)
    return f"{message_id}.{timestamp}.".encode("ascii") + body


def _check_timestamp(timestamp: str, now: float, tolerance: float) -> None:
    age = now - int(timestamp)
    if age > tolerance:
        raise InvalidSignature(SignatureFailure.TIMESTAMP_TOO_OLD)
    if age < -tolerance:
        raise InvalidSignature(SignatureFailure.TIMESTAMP_TOO_NEW)


def _decode(encoded: str) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError:
        raise ValueError("not base64") from None


def _import_ed25519() -> ModuleType:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise ImportError("Ed25519 signatures need `pip install carehook[ed25519]`") from None
    return ed25519
