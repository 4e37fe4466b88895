"""Endpoints' secrets, opened once and kept ready for as long as they are the ones that the store has."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from carehook.directory.secrets import open_secrets
from carehook.dispatch.request import Credentials, build_credentials
from carehook.keyring import Keyring
from carehook.ledger.records import Endpoint

CAPACITY: Final = 10_000
"""Endpoints whose credentials are kept; beyond it, the one unused for longest goes."""


class CredentialsCache:
    """Credentials by endpoint, valid only for the very bytes that they were opened from."""

    def __init__(self, keyring: Keyring, capacity: int = CAPACITY) -> None:
        self._keyring = keyring
        self._capacity = capacity
        self._kept: OrderedDict[str, tuple[bytes, Credentials]] = OrderedDict()

    def get(self, endpoint: Endpoint) -> Credentials:
        """The credentials of an endpoint. Raises `KeyringError` where its secrets do not open."""
        kept = self._kept.get(endpoint.id)
        if kept is not None and kept[0] == endpoint.sealed_secrets:
            self._kept.move_to_end(endpoint.id)
            return kept[1]
        credentials = build_credentials(open_secrets(endpoint.sealed_secrets, self._keyring, endpoint.id))
        self._kept[endpoint.id] = (endpoint.sealed_secrets, credentials)
        if len(self._kept) > self._capacity:
            self._kept.popitem(last=False)
        return credentials
