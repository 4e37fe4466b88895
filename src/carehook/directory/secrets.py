"""What must stay secret of an endpoint, as one value: sealed in the store, masked whenever it is shown."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from pydantic import BaseModel, ConfigDict

from carehook.directory.authentication import REVEAL_SECRETS, Authentication, NoAuthentication, RevealableSecret
from carehook.keyring import Keyring

ROTATION_OVERLAP: Final = timedelta(hours=24)
"""For how long a replaced signing secret still signs beside the new one."""

SIGNING_AT_MOST: Final = 4
"""Signing secrets that sign at once, however often they are rotated: receivers refuse a header with many signatures."""


class SigningSecretPeriod(BaseModel):
    """A signing secret and the instant from which it signs no more; the present one has none."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    secret: RevealableSecret
    expires_at: datetime | None = None


class EndpointSecrets(BaseModel):
    """All that is secret of an endpoint. `signing_secrets` are newest first."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    signature_value: RevealableSecret
    signing_secrets: tuple[SigningSecretPeriod, ...]
    authentication: Authentication = NoAuthentication(type="none")

    def signing_at(self, now: datetime) -> tuple[SigningSecretPeriod, ...]:
        """The signing secrets that sign at `now`, newest first."""
        return tuple(each for each in self.signing_secrets if each.expires_at is None or each.expires_at > now)

    def rotate(self, secret: RevealableSecret, now: datetime, overlap: timedelta) -> EndpointSecrets:
        """The same with a new signing secret; the newest of those that sign now go on for `overlap` at most."""
        ending = (
            SigningSecretPeriod(secret=each.secret, expires_at=min(each.expires_at or now + overlap, now + overlap))
            for each in self.signing_at(now)[: SIGNING_AT_MOST - 1]
        )
        return self.model_copy(update={"signing_secrets": (SigningSecretPeriod(secret=secret), *ending)})


def seal_secrets(secrets: EndpointSecrets, keyring: Keyring, endpoint_id: str) -> bytes:
    """The secrets as they are stored: only this endpoint's row and this keyring's key open them."""
    plaintext = secrets.model_dump_json(context=REVEAL_SECRETS).encode()
    return keyring.seal(plaintext, context=f"endpoint:{endpoint_id}")


def open_secrets(sealed: bytes, keyring: Keyring, endpoint_id: str) -> EndpointSecrets:
    """What `seal_secrets` stored. Raises `KeyringError` where the key is another or the value damaged."""
    return EndpointSecrets.model_validate_json(keyring.open(sealed, context=f"endpoint:{endpoint_id}"))
