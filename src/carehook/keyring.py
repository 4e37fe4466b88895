"""Secrets are sealed before they reach the store, each bound to the place it belongs to.

A sealed value is a version byte, the id of the key (8 bytes), a random nonce (12 bytes) and AES-256-GCM
ciphertext (NIST SP 800-38D) with its tag. The header and the `context` are authenticated with it, so a value
that was altered, or copied to another row, does not open.
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets
import stat
from hashlib import sha256
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import SecretStr

KEY_FILE: Final = "encryption.key"

_KEY_BYTES: Final = 32
_VERSION: Final = b"\x01"
_KEY_ID_BYTES: Final = 8
_NONCE_BYTES: Final = 12
_HEADER_BYTES: Final = len(_VERSION) + _KEY_ID_BYTES
_TAG_BYTES: Final = 16


class KeyringError(Exception):
    """A key that cannot be used, or a sealed value that does not open: a plain sentence without a secret."""


class InvalidKeyError(KeyringError):
    """The key is missing, malformed, or kept where others can read it."""


class WrongKeyError(KeyringError):
    """The value was sealed under another key."""


class DamagedError(KeyringError):
    """The value is not one that `seal` made for this context: cut off, altered, or moved from elsewhere."""


class Keyring:
    """Seals and opens secrets under one key. Raises `InvalidKeyError` for a key that has not 32 bytes."""

    def __init__(self, key: bytes) -> None:
        if len(key) != _KEY_BYTES:
            raise InvalidKeyError(f"An encryption key has {_KEY_BYTES} bytes; this one has {len(key)}.")
        self._cipher = AESGCM(key)
        self._key_id = sha256(b"carehook key id\0" + key).digest()[:_KEY_ID_BYTES]
        self._header = _VERSION + self._key_id

    def __repr__(self) -> str:
        return f"Keyring(key_id={self.key_id!r})"

    @property
    def key_id(self) -> str:
        """A fingerprint of the key, 16 hexadecimal digits, that tells keys apart and gives nothing away."""
        return self._key_id.hex()

    def seal(self, plaintext: bytes, *, context: str) -> bytes:
        """`plaintext`, encrypted: only this key and the same `context` (as `endpoint:ep_…`) open it."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return self._header + nonce + self._cipher.encrypt(nonce, plaintext, self._bind(context))

    def open(self, sealed: bytes, *, context: str) -> bytes:
        """The plaintext of what `seal` made for `context`. Raises `WrongKeyError` or `DamagedError`."""
        if len(sealed) < _HEADER_BYTES + _NONCE_BYTES + _TAG_BYTES or sealed[:1] != _VERSION:
            raise DamagedError("A stored secret is damaged: it does not have the form of a sealed value.")
        if sealed[:_HEADER_BYTES] != self._header:
            raise WrongKeyError(
                f"A stored secret was sealed under the key {sealed[1:_HEADER_BYTES].hex()}, but the key in "
                f"use is {self.key_id}. Start Carehook with the key that this store was made with."
            )
        nonce, ciphertext = sealed[_HEADER_BYTES:][:_NONCE_BYTES], sealed[_HEADER_BYTES + _NONCE_BYTES :]
        try:
            return self._cipher.decrypt(nonce, ciphertext, self._bind(context))
        except InvalidTag:
            raise DamagedError(
                "A stored secret does not open: it was altered, or moved here from another place."
            ) from None

    def _bind(self, context: str) -> bytes:
        return self._header + context.encode()


def load_keyring(home: Path, encoded_key: SecretStr | None) -> Keyring:
    """The keyring of this installation: from `encoded_key` (base64 of 32 bytes) or else the file in `home`.

    The file is made if it is not there, readable by its owner only. Processes that start at once get the same
    key. Raises `InvalidKeyError` if the key is malformed or its file is open to others.
    """
    if encoded_key is not None:
        return Keyring(_decode_key(encoded_key.get_secret_value(), "CAREHOOK_ENCRYPTION_KEY"))
    path = home / KEY_FILE
    if not path.exists():
        _create_key_file(path)
    return Keyring(_read_key_file(path))


def _decode_key(text: str, source: str) -> bytes:
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != _KEY_BYTES:
        raise InvalidKeyError(
            f"{source} must be the base64 of {_KEY_BYTES} random bytes, as `openssl rand -base64 {_KEY_BYTES}` prints."
        )
    return key


def _create_key_file(path: Path) -> None:
    """Make the file with a new key, complete or not at all; if another process was first, its file stays."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(base64.b64encode(secrets.token_bytes(_KEY_BYTES)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        # A link, unlike a rename, never replaces the key that another process has just begun to use.
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_key_file(path: Path) -> bytes:
    with path.open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise InvalidKeyError(
                f"{path} can be opened by others (mode {mode:04o}). Run `chmod 600 {path}`, and consider "
                "whether somebody may have read the key already."
            )
        text = file.read(1024)
    return _decode_key(text.decode("ascii", "replace"), str(path))
