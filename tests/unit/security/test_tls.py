from __future__ import annotations

import contextlib
import socket
import ssl
import threading

import pytest
from certificates import Authority

from sundog.errors import ServiceError
from sundog.security.tls import Renewal, certificate_of, client_context, server_context


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


def told(certificate):
    return {"SUNDOG_TLS_CERT": str(certificate.chain), "SUNDOG_TLS_KEY": str(certificate.key)}


def presented(context, authority):
    """The serial number that a client sees."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        client = client_context({"SUNDOG_TLS_CA": str(authority.file)})

        def serve():
            with (
                contextlib.suppress(OSError),
                context.wrap_socket(theirs, server_side=True) as peer,
            ):
                peer.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with client.wrap_socket(ours, server_hostname="127.0.0.1") as peer:
                found = peer.getpeercert()
                peer.sendall(b"x")
        finally:
            ours.close()
            thread.join()
        return found["serialNumber"]


def test_an_address_says_whether_there_is_a_certificate(authority):
    certificate = authority.issue("gate")
    assert certificate_of("https://127.0.0.1:1", told(certificate)) == certificate
    assert certificate_of("http://127.0.0.1:1", {}) is None
    with pytest.raises(ServiceError, match="needs a certificate"):
        certificate_of("https://127.0.0.1:1", {})
    with pytest.raises(ServiceError, match="needs a certificate"):
        certificate_of("https://127.0.0.1:1", {"SUNDOG_TLS_CERT": str(certificate.chain)})
    with pytest.raises(ServiceError, match="the gateway's address is http://"):
        certificate_of("http://127.0.0.1:1", told(certificate))


def test_files_that_cannot_be_used_are_named(authority, tmp_path):
    from cryptography.hazmat.primitives import serialization

    good, other = authority.issue("good"), authority.issue("other")
    environ = told(good)
    with pytest.raises(ServiceError, match=r"good\.pem.*No such file"):
        certificate_of("https://h:1", environ | {"SUNDOG_TLS_KEY": str(tmp_path / "none")})
    with pytest.raises(ServiceError, match=r"other\.key.*cannot be used"):
        certificate_of("https://h:1", environ | {"SUNDOG_TLS_KEY": str(other.key)})
    key = serialization.load_pem_private_key(good.key.read_bytes(), None)
    secret = serialization.BestAvailableEncryption(b"secret")
    form = serialization.PrivateFormat.PKCS8
    good.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, secret))
    with pytest.raises(ServiceError, match="the key is encrypted"):
        certificate_of("https://h:1", environ)


def test_a_renewed_certificate_is_presented_and_a_broken_one_is_not(authority):
    certificate = authority.issue("gate")
    context = server_context(certificate)
    renewal = Renewal(certificate, [lambda c: c.load_into(context)])
    first = presented(context, authority)
    renewal.look()
    assert presented(context, authority) == first
    authority.issue("gate")
    renewal.look()
    second = presented(context, authority)
    assert second != first
    certificate.key.write_text("half a fi")  # as while it is being replaced
    renewal.look()
    assert presented(context, authority) == second
    authority.issue("gate")
    renewal.look()
    assert presented(context, authority) not in (first, second)


def test_clients_trust_the_authority_they_are_told_of(authority, tmp_path):
    context = server_context(authority.issue("gate"))
    elsewhere = tmp_path / "stranger"
    elsewhere.mkdir()
    with pytest.raises(ssl.SSLCertVerificationError):
        presented(context, Authority(elsewhere))
    with pytest.raises(ServiceError, match="SUNDOG_TLS_CA names /none: No such file"):
        client_context({"SUNDOG_TLS_CA": "/none"})
