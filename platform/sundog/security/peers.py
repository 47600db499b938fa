"""Mutual TLS between processes of one cluster: each makes its own certificate, and trusts those it is told.

Nobody signs for anybody and no key leaves its process. Whom to trust, others say: Serve's controller
tells each side which processes are the other's, with their certificates.
"""

from __future__ import annotations

import datetime
import hashlib
import secrets
import ssl
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

VALID_DAYS = 3650
"""A certificate ends with its process, and is trusted no longer than Serve names that process."""


@dataclass(frozen=True)
class Identity:
    """`certificate`: PEM, to be told to peers."""

    certificate: str
    _key: bytes = field(repr=False)

    @classmethod
    def make(cls, name: str) -> Identity:
        """A new one. `name` is for people who look at a connection; nobody is trusted for it."""
        key = ec.generate_private_key(ec.SECP256R1())
        # Of several that are trusted, OpenSSL looks for the one with the subject: each has its own.
        mine = x509.NameAttribute(NameOID.SERIAL_NUMBER, secrets.token_hex(16))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64]), mine])
        now = datetime.datetime.now(datetime.UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))  # clocks of nodes differ
            .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
            .sign(key, hashes.SHA256())
        )
        return cls(
            made.public_bytes(serialization.Encoding.PEM).decode(),
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
        )

    def server(self, trusted: Iterable[str]) -> ssl.SSLContext:
        """For those who accept: a client without one of the `trusted` certificates is refused."""
        context = self._context(ssl.PROTOCOL_TLS_SERVER, trusted)
        context.num_tickets = 0  # each connection shows its certificate anew
        return context

    def client(self, trusted: str) -> ssl.SSLContext:
        """For a call to the process with this certificate, wherever it is."""
        return self._context(ssl.PROTOCOL_TLS_CLIENT, (trusted,))

    def _context(self, side: int, trusted: Iterable[str]) -> ssl.SSLContext:
        context = ssl.SSLContext(side)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # the certificate itself is what is known, not a name in it
        context.verify_mode = ssl.CERT_REQUIRED
        known = "".join(trusted)
        if known:
            context.load_verify_locations(cadata=known)
        # Python reads keys from files only: one of mode 0600 in a folder of mode 0700, for a moment.
        with tempfile.TemporaryDirectory(prefix="sundog-") as folder:
            file = Path(folder) / "key.pem"
            file.touch(0o600)
            file.write_bytes(self._key + self.certificate.encode())
            context.load_cert_chain(file)
        return context


def fingerprint(certificate: str | bytes) -> str:
    """Of a certificate as PEM text or DER bytes."""
    der = certificate if isinstance(certificate, bytes) else ssl.PEM_cert_to_DER_cert(certificate)
    return hashlib.sha256(der).hexdigest()
