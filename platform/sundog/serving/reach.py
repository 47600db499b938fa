"""Which ways lead from a lane to its replicas, kept in step with what Serve says of them.

On this node their sockets; from other nodes they call; whom neither reaches is asked over Serve's
handle, where that may be (`data_path`). Goes on with the last known replicas while Serve is away.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol

from sundog.errors import ServiceError
from sundog.security.peers import fingerprint
from sundog.serving.inbound import CERTIFICATE_KEY
from sundog.serving.lane import Lane
from sundog.serving.links import IN_FLIGHT, Handle, HandleLink, SocketLink

RECONNECT_S = 0.1
WATCH_AGAIN_S = 1.0

log = logging.getLogger("sundog.gateway")

Watch = Callable[[str, str, Callable[[list[Any]], None]], Awaitable[None]]
"""(app, deployment, on_change): calls back with ready replicas until cancelled."""

HandleCall = Callable[[str, str], Handle]
"""(app, deployment) -> its replicas over Serve's handle."""


class Door(Protocol):
    """Where replicas of other nodes call: `Inbound`."""

    def expect(self, certificate: str, make: Callable[[], asyncio.Protocol]) -> str: ...

    def forget(self, name: str) -> None: ...


class Reach:
    """`node`: this one's id; `door`: None where nobody can call."""

    def __init__(
        self,
        lane: Lane,
        app: str,
        deployment: str,
        watch: Watch,
        handle: HandleCall | None,
        node: str = "",
        door: Door | None = None,
    ) -> None:
        self.lane = lane
        self._address = (app, deployment)
        self._path = data_path()
        self._handle = handle if self._path != "direct" else None
        self._node = node
        self._door = door
        self._links: dict[str, SocketLink] = {}
        """By the path of a socket here, by the fingerprint of a caller from elsewhere."""
        self.sockets: set[str] = set()
        self._callers: set[str] = set()
        self._others = 0
        """Replicas that neither have a socket here nor can call."""
        self._unreached = 0
        self._fallback: HandleLink | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._spawn(self._follow(watch))

    async def _follow(self, watch: Watch) -> None:
        while True:
            try:
                await watch(*self._address, self._on_replicas)
            except Exception:
                log.exception("the replicas of %s are looked up again", self._address[0])
            await asyncio.sleep(WATCH_AGAIN_S)

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("the links to %s: %r", self._address[0], task.exception())

    def _on_replicas(self, replicas: list[Any]) -> None:
        sockets, certificates, others = set(), set(), 0
        for replica in replicas:
            path = str(replica.metadata.get("sundog_socket", ""))
            certificate = str(replica.metadata.get(CERTIFICATE_KEY, ""))
            if not path or self._path == "handle":
                others += 1
            elif replica.node_id == self._node:
                sockets.add(path)
            elif certificate and self._door is not None:
                certificates.add(certificate)
            else:
                others += 1
        self._others = others
        for path in sockets - self.sockets:
            self._spawn(self._connect(path))
        gone, self.sockets = self.sockets - sockets, sockets
        gone |= self._expect(certificates)
        for name in gone:
            if name in self._links:
                self._links[name].leave()
        self._set_fallback()

    def _expect(self, certificates: Iterable[str]) -> set[str]:
        """Let these callers in, and those before them no more, whose names are returned."""
        before, self._callers = self._callers, set()
        if self._door is not None:
            for certificate in certificates:
                self._callers.add(self._door.expect(certificate, self._answering(certificate)))
            for name in before - self._callers:
                self._door.forget(name)
        return before - self._callers

    # -- over a socket here

    async def _connect(self, path: str) -> None:
        loop = asyncio.get_running_loop()
        while path in self.sockets:
            try:
                _, link = await loop.create_unix_connection(lambda: self._link(path), path)
            except OSError:
                await asyncio.sleep(RECONNECT_S)
                continue
            self._links[path] = link
            if path not in self.sockets:
                link.leave()
            return

    def _link(self, name: str) -> SocketLink:
        return SocketLink(self.lane, lambda link: self._on_closed(name, link))

    def _on_closed(self, name: str, link: SocketLink) -> None:
        if self._links.get(name) is link:
            del self._links[name]
        # Serve notices a dead replica only after seconds; a living one may have dropped us.
        if name in self.sockets:
            self._spawn(self._reconnect(name))
        elif name in self._callers:
            self._set_fallback()

    async def _reconnect(self, path: str) -> None:
        await asyncio.sleep(RECONNECT_S)
        if path in self.sockets:
            await self._connect(path)

    # -- from other nodes

    def _answering(self, certificate: str) -> Callable[[], asyncio.Protocol]:
        name = fingerprint(certificate)

        def make() -> SocketLink:
            before = self._links.get(name)
            link = self._links[name] = self._link(name)
            if before is not None:
                before.drop()  # it calls again: the first call is dead, though nobody said so yet
            self._set_fallback()
            return link

        return make

    def _set_fallback(self) -> None:
        """Ask over Serve's handle whom nothing else reaches (yet)."""
        unreached = self._others + len(self._callers - set(self._links))
        if unreached == self._unreached:
            return
        self._unreached = unreached
        self.lane.waiting_message = "no replica is ready"
        if unreached and self._path == "direct":
            self.lane.waiting_message = (
                f"{unreached} replica(s) are ready that do not call this gateway (yet), and "
                "SUNDOG_DATA_PATH=direct allows no other way: is the network between nodes open?"
            )
            log.warning("%s: %s", self._address[0], self.lane.waiting_message)
        if self._fallback in self.lane.connections:
            self.lane.connections.remove(self._fallback)
        self._fallback = None
        if unreached and self._handle is not None:
            slots = IN_FLIGHT * unreached
            self._fallback = HandleLink(self.lane, self._handle(*self._address), slots)
            self.lane.connections.append(self._fallback)
            self.lane.wake()

    def expire(self, now: float) -> None:
        for link in list(self._links.values()):
            link.expire(now)

    def close(self) -> None:
        """Let go of all replicas."""
        self.sockets = set()
        self._expect(())
        for task in list(self._tasks):
            task.cancel()
        for link in list(self._links.values()):
            link.leave()
        self._others = 0
        self._set_fallback()


def data_path() -> str:
    """`SUNDOG_DATA_PATH`. `socket`: as above; `direct`: never Serve's handle, so that nothing leaves a
    node unencrypted; `handle`: nothing but Serve's handle, replicas counted by Serve's public status."""
    value = os.environ.get("SUNDOG_DATA_PATH") or "socket"
    if value not in ("socket", "direct", "handle"):
        raise ServiceError(
            f"SUNDOG_DATA_PATH={value} is no way to replicas", "write socket, direct or handle"
        )
    return value
