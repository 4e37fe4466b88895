"""Certificates, good and bad, from an authority that nobody trusts until told to."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID


class Certificates:
    """An authority of its own: `root_pem` is what to trust, the rest are TLS settings for receivers."""

    def __init__(self) -> None:
        self._authority = trustme.CA()
        self.root_pem: bytes = self._authority.cert_pem.bytes()

    def for_hosts(self, *hosts: str) -> ssl.SSLContext:
        """A certificate that is good for `hosts` (names or addresses)."""
        return self._configure(self._authority.issue_cert(*hosts))

    def expired(self, *hosts: str) -> ssl.SSLContext:
        """A certificate that was good for `hosts` until yesterday."""
        yesterday = datetime.now(UTC) - timedelta(days=1)
        return self._configure(
            self._authority.issue_cert(*hosts, not_before=yesterday - timedelta(days=90), not_after=yesterday)
        )

    def self_signed(self, address: str) -> ssl.SSLContext:
        """A certificate for an IP address that nobody but its owner has signed."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, address)])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder(issuer_name=name, subject_name=name, public_key=key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))]), critical=False)
            .sign(key, hashes.SHA256())
        )
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with TemporaryDirectory() as directory:
            chain = Path(directory) / "chain.pem"
            chain.write_bytes(private + certificate.public_bytes(Encoding.PEM))
            context.load_cert_chain(chain)
        return context

    def _configure(self, certificate: trustme.LeafCert) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
        return context
