"""A replica's calls to the gateways of other nodes: one connection each, kept as long as Serve names them.

Gateways of its own node come by its socket. Nothing here answers: a call ends in the same protocol as
a connection to that socket.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

from sundog.security.peers import Identity, fingerprint
from sundog.serving.inbound import CERTIFICATE_KEY, HANDSHAKE_S, PORT_KEY, watch_over

AGAIN_S = 0.2
AGAIN_MOST_S = 5.0

log = logging.getLogger("sundog.replica")


class Outbound:
    """Belongs to the loop that serves frames. `make`: a protocol for a new connection, which has
    `closed`, an event."""

    def __init__(self, identity: Identity, node: str, make: Callable[[], Any]) -> None:
        self._identity = identity
        self._node = node
        self._make = make
        self._calls: dict[str, asyncio.Task[None]] = {}

    def on_gateways(self, replicas: Iterable[Any]) -> None:
        """Serve's news of which gateways there are."""
        wanted = {}
        for replica in replicas:
            known = replica.metadata
            if replica.node_id != self._node and known.get(PORT_KEY):
                wanted[fingerprint(known[CERTIFICATE_KEY])] = known
        for name in set(self._calls) - set(wanted):
            # It is going, with what it still has under way: only call it no more.
            self._calls.pop(name).cancel()
        for name, known in wanted.items():
            if name not in self._calls:
                self._calls[name] = asyncio.get_running_loop().create_task(self._keep(known))

    def stop(self) -> None:
        """Call nobody any more."""
        for task in self._calls.values():
            task.cancel()
        self._calls.clear()

    async def _keep(self, known: dict[str, str]) -> None:
        host, _, port = known[PORT_KEY].rpartition(":")
        context = self._identity.client(known[CERTIFICATE_KEY])
        loop = asyncio.get_running_loop()
        pause_s = AGAIN_S
        while True:
            try:
                transport, protocol = await loop.create_connection(
                    self._make, host.strip("[]"), int(port), ssl=context,
                    ssl_handshake_timeout=HANDSHAKE_S,
                )  # fmt: skip
            except OSError as error:
                log.info("the gateway at %s is not reached: %s", known[PORT_KEY], error)
            else:
                watch_over(transport.get_extra_info("socket"))
                began_s = loop.time()
                await protocol.closed.wait()
                if loop.time() - began_s > AGAIN_MOST_S:
                    pause_s = AGAIN_S
            # The gateway may not have heard of this replica yet.
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, AGAIN_MOST_S)
