"""TLS at the gateway's address: what listeners present, its renewal, and whom our own clients trust.

The address says whether: `https://…` needs SUNDOG_TLS_CERT and SUNDOG_TLS_KEY, two PEM files. Clients
trust what Python does, or SUNDOG_TLS_CA. Makes no certificate.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from sundog.errors import ServiceError

LOOK_S = 30.0
"""How often the files are looked at: a renewed certificate needs no restart."""

log = logging.getLogger("sundog.tls")


@dataclass(frozen=True)
class Certificate:
    """`chain`: the certificate, then those that vouch for it; `key`: its private key, unencrypted."""

    chain: Path
    key: Path

    def written(self) -> tuple[int, ...]:
        """Changes when a file is replaced. OSError when one is not there."""
        found = (self.chain.stat(), self.key.stat())
        return tuple(v for f in found for v in (f.st_mtime_ns, f.st_ino, f.st_size))

    def load_into(self, context: ssl.SSLContext) -> None:
        """For connections from now on. Raises ServiceError, and then nothing has changed."""
        try:
            context.load_cert_chain(self.chain, self.key, password=_no_password)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            said = getattr(error, "strerror", None) or error
            raise ServiceError(
                f"the certificate {self.chain} with the key {self.key} cannot be used: {said}",
                "SUNDOG_TLS_CERT is a PEM file with the certificate and its chain, SUNDOG_TLS_KEY its "
                "unencrypted key; this user must be able to read both",
            ) from None

    def pem(self) -> bytes:
        """Chain and key in one, as HAProxy wants them."""
        return self.chain.read_bytes().rstrip() + b"\n" + self.key.read_bytes()


def _no_password() -> str:
    raise ValueError("the key is encrypted")


def certificate_of(address: str, environ: Mapping[str, str] = os.environ) -> Certificate | None:
    """What a gateway at `address` presents, tried out; None for `http://`. Raises ServiceError."""
    chain, key = environ.get("SUNDOG_TLS_CERT", ""), environ.get("SUNDOG_TLS_KEY", "")
    if not address.startswith("https://"):
        if chain or key:
            raise ServiceError(
                f"there is a certificate ({chain or key}) but the gateway's address is {address}",
                "write SUNDOG_GATEWAY=https://host:port, or unset SUNDOG_TLS_CERT and SUNDOG_TLS_KEY",
            )
        return None
    if not chain or not key:
        raise ServiceError(
            f"{address} needs a certificate",
            "set SUNDOG_TLS_CERT and SUNDOG_TLS_KEY to its PEM files (mkcert makes some to try with)",
        )
    found = Certificate(Path(chain), Path(key))
    server_context(found)
    return found


def server_context(certificate: Certificate) -> ssl.SSLContext:
    """TLS 1.2 or newer, HTTP/1.1. Raises ServiceError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    certificate.load_into(context)
    return context


class Renewal:
    """Notices that the files were replaced, and says so once they can be used."""

    def __init__(
        self, certificate: Certificate, acts: Iterable[Callable[[Certificate], None]]
    ) -> None:
        self._certificate, self._acts = certificate, tuple(acts)
        self._seen = certificate.written()

    def look(self) -> None:
        """Call `acts` if there is a new certificate; one that cannot be used (yet) is left alone."""
        try:
            written = self._certificate.written()
            if written == self._seen:
                return
            server_context(self._certificate)
            for act in self._acts:
                act(self._certificate)
        except (OSError, ServiceError) as error:
            log.warning("going on with the certificate from before: %s", error)
            return
        self._seen = written
        log.warning("a new certificate is presented: %s", self._certificate.chain)

    async def look_forever(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            self.look()


def way_out(error: Exception, otherwise: str) -> str:
    """What a client may do about a gateway that it does not reach."""
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return "name the authority that signed its certificate: SUNDOG_TLS_CA=/path/of/ca.pem"
    return otherwise


def client_context(environ: Mapping[str, str] = os.environ) -> ssl.SSLContext:
    """Whom clients of a gateway trust. Raises ServiceError."""
    path = environ.get("SUNDOG_TLS_CA", "")
    try:
        if path:
            return ssl.create_default_context(cafile=path)
        return httpx.create_ssl_context(trust_env=False)
    except OSError as error:
        raise ServiceError(
            f"SUNDOG_TLS_CA names {path}: {error.strerror or error}",
            "it is a PEM file with the authority that signed the gateway's certificate",
        ) from None
