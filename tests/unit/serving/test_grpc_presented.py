"""The certificate of the gRPC server: presented at a real handshake, and renewed while it serves."""

from __future__ import annotations

import asyncio
import socket

import grpc
from certificates import Authority

from sundog.security.tls import client_context
from sundog.serving.grpc_server import Presented


def seen(port, authority):
    """The serial number that a client sees."""
    context = client_context({"SUNDOG_TLS_CA": str(authority.file)})
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), 30) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as peer,
    ):
        return peer.getpeercert()["serialNumber"]


def test_a_renewed_certificate_is_presented_at_the_next_handshake(tmp_path):
    authority = Authority(tmp_path)
    certificate = authority.issue("gate")

    async def main():
        presented = Presented(certificate)
        server = grpc.aio.server()
        port = server.add_secure_port("127.0.0.1:0", presented.credentials)
        await server.start()
        try:
            first = await asyncio.to_thread(seen, port, authority)
            assert await asyncio.to_thread(seen, port, authority) == first
            authority.issue("gate")
            assert await asyncio.to_thread(seen, port, authority) == first
            presented.renew(certificate)
            assert await asyncio.to_thread(seen, port, authority) != first
        finally:
            await server.stop(0)

    asyncio.run(main())
