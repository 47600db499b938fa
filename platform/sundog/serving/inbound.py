"""Where processes of other nodes call a gateway: replicas with frames, sibling gateways with HTTP.

Replicas open no port; they call. Only certificates that Serve's controller names get in, and the port
refuses every connection until the first of them is known.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable

from sundog.security.peers import Identity, fingerprint

HANDSHAKE_S = 5.0
MAX_HANDSHAKES = 64
"""Of those who have not shown who they are; others wait for their turn."""
SILENT_S = 10
"""So long a peer's machine may answer nothing, not even to its system."""
PORT_KEY, CERTIFICATE_KEY = "sundog_inbound", "sundog_certificate"
"""Of what gateways and replicas say of themselves through Serve."""

log = logging.getLogger("sundog.gateway")

Make = Callable[[], asyncio.Protocol]


class Inbound:
    """`expect` and `forget` belong to the loop that serves; the port is taken before."""

    def __init__(self, identity: Identity, host: str) -> None:
        self._identity = identity
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        self._listener.bind((host, 0))
        self._listener.setblocking(False)
        port = self._listener.getsockname()[1]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._expected: dict[str, tuple[str, Make]] = {}
        self._context: ssl.SSLContext | None = None
        self._someone = asyncio.Event()
        self._places = asyncio.Semaphore(MAX_HANDSHAKES)
        self._greeting: set[asyncio.Task[None]] = set()

    def metadata(self) -> dict[str, str]:
        """What callers need to know."""
        return {PORT_KEY: self.address, CERTIFICATE_KEY: self._identity.certificate}

    def expect(self, certificate: str, make: Make) -> str:
        """Let whoever has this certificate in, to a protocol of `make`'s. Its fingerprint."""
        name = fingerprint(certificate)
        if name not in self._expected:
            self._context = None
        self._expected[name] = certificate, make
        self._someone.set()
        return name

    def forget(self, name: str) -> None:
        """Let that certificate in no more; a connection that is there stays."""
        if self._expected.pop(name, None) is not None:
            self._context = None

    async def serve_forever(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await self._someone.wait()
            self._listener.listen(128)
            while True:
                await self._places.acquire()
                try:
                    peer, _ = await loop.sock_accept(self._listener)
                except OSError as error:  # such as too many open files
                    self._places.release()
                    log.warning("a caller from another node was not accepted: %s", error)
                    await asyncio.sleep(0.1)
                    continue
                task = loop.create_task(self._greet(peer))
                self._greeting.add(task)
                task.add_done_callback(self._greeting.discard)
        finally:
            self._listener.close()

    async def _greet(self, peer: socket.socket) -> None:
        try:
            if self._context is None:
                self._context = self._identity.server(c for c, _ in self._expected.values())
            watch_over(peer)
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: _Arrival(self), peer, ssl=self._context, ssl_handshake_timeout=HANDSHAKE_S
            )
        except (OSError, EOFError) as error:  # ssl.SSLError and TimeoutError are OSErrors
            # Mostly a replica that Serve named to itself first: it calls again.
            log.info("a caller from another node is not known: %s", error)
            peer.close()
        finally:
            self._places.release()

    def take(self, name: str, transport: asyncio.Transport) -> None:
        """A caller who has shown this certificate."""
        found = self._expected.get(name)
        if found is None:
            transport.abort()
            return
        protocol = found[1]()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)


class _Arrival(asyncio.Protocol):
    """A connection whose handshake is done, until it is known whose it is."""

    def __init__(self, inbound: Inbound) -> None:
        self._inbound = inbound

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        shown = transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
        self._inbound.take(fingerprint(shown), transport)  # type: ignore[arg-type]


def watch_over(peer: socket.socket) -> None:
    """Let the system notice a machine that is gone, also while nothing is under way."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in (
        ("TCP_KEEPIDLE", SILENT_S // 2),
        ("TCP_KEEPINTVL", 1),
        ("TCP_KEEPCNT", SILENT_S // 2),
        ("TCP_USER_TIMEOUT", 1000 * SILENT_S),
    ):
        if hasattr(socket, name):  # Linux has all of them
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
