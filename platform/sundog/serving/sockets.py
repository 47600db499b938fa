"""A replica's private socket: frames from gateways to the model and back, for whole answers and parts.

A connection that sends anything but calls is closed. Gateways of other nodes are called (`Outbound`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sundog.errors import ServiceError
from sundog.rayapi import session
from sundog.security.peers import Identity
from sundog.serving import frames
from sundog.serving.outbound import Outbound
from sundog.serving.runner import Runner, fault
from sundog.serving.streams import WINDOW

DRAIN_S = 20.0
WATCH_AGAIN_S = 1.0
MAX_STREAMS = 1000
"""Streams under way of one gateway; who comes then is told that this replica is busy."""
_START_TIMEOUT_S = 30.0
_SUN_PATH_MAX = 96
"""Of 107: HAProxy, where it is in front of gateways, reads 97."""

log = logging.getLogger("sundog.replica")


class _Peer(asyncio.Protocol):
    """One gateway's connection, whoever called."""

    def __init__(self, server: SocketServer) -> None:
        self._server = server
        self._reader = frames.Reader()
        self._streams: dict[int, tuple[asyncio.Task[None], asyncio.Semaphore]] = {}
        self.transport: asyncio.Transport | None = None
        self.closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self._server.peers.add(self)
        hello = {"pid": os.getpid(), "streams": self._server.runner.streams}
        self._write(frames.pack(frames.HELLO, 0, hello))

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._reader.feed(data):
                if frame.kind == frames.INFER:
                    self._write(self._server.runner.run(frame.meta, frame.body, frame.number))
                else:
                    self._steer(frame)
        except frames.BadFrame:
            assert self.transport is not None
            self.transport.abort()

    def _steer(self, frame: frames.Frame) -> None:
        """What begins, feeds and ends an answer in parts."""
        known = self._streams.get(frame.number)
        if frame.kind == frames.STREAM and known is None:
            if len(self._streams) >= MAX_STREAMS:
                message = f"{MAX_STREAMS} answers in parts are under way with this replica"
                self._write(fault(frame.number, "busy", message))
                return
            room = asyncio.Semaphore(WINDOW)
            # Its bytes outlive this call: the reader hands out views of what it was fed.
            task = asyncio.ensure_future(self._stream(frame, room))
            self._streams[frame.number] = task, room
        elif frame.kind == frames.CANCEL:
            if known is not None:  # else it ended on its own just now
                known[0].cancel()
        elif frame.kind == frames.MORE and type(frame.meta) is int and 0 < frame.meta <= WINDOW:
            for _ in range(frame.meta if known is not None else 0):
                known[1].release()  # type: ignore[index]
        else:
            raise frames.BadFrame("a gateway sends calls only")

    async def _stream(self, frame: frames.Frame, room: asyncio.Semaphore) -> None:
        number = frame.number
        parts = self._server.runner.parts(frame.meta, frame.body, number)
        faulty = False
        try:
            async for buffers in parts:
                await room.acquire()
                self._write(buffers)
                faulty = buffers[0][3] == frames.FAULT
            if not faulty:
                self._write(frames.pack(frames.END, number))
        finally:
            self._streams.pop(number, None)
            await parts.aclose()  # type: ignore[attr-defined]

    def _write(self, buffers: list[bytes | memoryview]) -> None:
        assert self.transport is not None
        self.transport.writelines(buffers)

    def close_soon(self) -> None:
        self._write(frames.pack(frames.CLOSING, 0))

    def connection_lost(self, error: Exception | None) -> None:
        self.closed.set()
        self._server.peers.discard(self)
        for task, _ in self._streams.values():
            task.cancel()


@dataclass(frozen=True)
class Elsewhere:
    """How a replica finds gateways of other nodes. `watch`: calls back with all gateways, now and
    whenever they change."""

    identity: Identity
    node: str
    watch: Callable[[Callable[[list[Any]], None]], Awaitable[None]]


class SocketServer:
    """Frames on a Unix socket, in a thread and event loop of its own, so that a long call of the
    model stops neither Serve's health checks nor its control messages."""

    def __init__(
        self,
        runner: Runner,
        prepare: Callable[[], None] = lambda: None,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self.runner = runner
        self._elsewhere = elsewhere
        self._outbound: Outbound | None = None
        self.peers: set[_Peer] = set()
        self.folder = private_folder()
        self.path = str(self.folder / "s")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._prepare = prepare
        self.thread = threading.Thread(target=self._run, name="sundog-frames", daemon=True)

    def start(self) -> None:
        self.thread.start()
        if not self._ready.wait(_START_TIMEOUT_S) or self._failure is not None:
            raise ServiceError(f"the replica's socket does not open: {self._failure}")

    def warm_up(self) -> None:
        """Where requests will be answered, and before anybody knows of this replica."""
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(self.runner.warm_up(), self._loop).result()

    def _run(self) -> None:
        import uvloop

        try:
            self._prepare()
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - reported by start() and check_health()
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        server = await self._loop.create_unix_server(lambda: _Peer(self), self.path)
        Path(self.path).chmod(0o600)
        following = None
        if self._elsewhere is not None:
            following = self._loop.create_task(self._follow(self._elsewhere))
        self._ready.set()
        await self._stop.wait()
        if following is not None:
            following.cancel()
        server.close()

    async def _follow(self, elsewhere: Elsewhere) -> None:
        self._outbound = Outbound(elsewhere.identity, elsewhere.node, lambda: _Peer(self))
        while True:
            try:
                await elsewhere.watch(self._outbound.on_gateways)
            except Exception:
                log.exception("the gateways of other nodes are looked up again")
            await asyncio.sleep(WATCH_AGAIN_S)

    def _close_peers(self) -> None:
        if self._outbound is not None:
            self._outbound.stop()
        for peer in list(self.peers):
            peer.close_soon()

    async def drain(self) -> None:
        """Tell every gateway to send no more, and wait until they have had their answers."""
        if self._loop is None or not self.thread.is_alive():
            return
        self._loop.call_soon_threadsafe(self._close_peers)
        for _ in range(int(DRAIN_S / 0.05)):
            await asyncio.sleep(0.05)
            if not self.peers:
                break
        self._loop.call_soon_threadsafe(self._stop.set)
        shutil.rmtree(self.folder, ignore_errors=True)


def private_folder() -> Path:
    """A new folder of mode 0700 for sockets, in Ray's session where that is."""
    return Path(tempfile.mkdtemp(prefix="sundog-", dir=_socket_parent()))


def _socket_parent() -> str | None:
    """Ray's session folder, which goes when the session does; a socket's path must stay short."""
    parent = session.sockets_dir()
    return parent if parent and len(parent) + len("/sundog-12345678/s") < _SUN_PATH_MAX else None
