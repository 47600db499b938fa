"""The HTTP server's limits on what comes before a request: slow, endless or silent clients.

uvicorn takes the bytes; this only closes connections that hold a place without asking anything.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

HEAD_TIMEOUT_S = 10.0
"""How long the head of a request may take, from its first byte or from connecting."""
BODY_START_S = 30.0
"""How long the first byte of an announced body may take; what follows is the reader's to bound."""
MAX_HEAD = 64 * 1024
KEEP_ALIVE_S = 75
MAX_JOINED = 64 * 1024
"""Bytes of a body that are copied behind its head; larger ones are not copied."""
_NO_BODY = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b'content-length: 33\r\n\r\n{"error":"the body did not come"}'
)


class _Joined:
    """What uvicorn writes an answer to: its head leaves with the first of its body, since each write is
    a system call, and wakes the client."""

    __slots__ = ("_cycle", "_head", "_transport")

    def __init__(self, cycle: RequestResponseCycle, transport: Any) -> None:
        self._cycle = cycle
        self._transport = transport
        self._head: bytes | None = None
        """None: not written yet; empty: it has left"""

    def write(self, data: bytes) -> None:
        if self._head:
            head, self._head = self._head, b""
            if len(data) > MAX_JOINED:
                self._transport.writelines((head, data))
            else:
                self._transport.write(head + data)
        elif self._head is None and self._cycle.response_started:
            self._head = data
        else:
            self._transport.write(data)

    def flush(self) -> None:
        """An answer that has no body, or breaks off before it, is its head."""
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return bool(self._transport.is_closing())


class GuardedProtocol(HttpToolsProtocol):
    head_timeout_s = HEAD_TIMEOUT_S
    body_start_s = BODY_START_S

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._head_bytes = 0
        self._in_head = True
        self._awaits_body = False
        self._slow: asyncio.TimerHandle | None = self.loop.call_later(
            self.head_timeout_s, self._end
        )

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._in_head:
            self._head_bytes = 0
            # Almost always the body has come with the head, and this costs nothing more.
            cycle = self.cycle
            awaits = cycle.more_body and not cycle.body and not cycle.response_complete
            if awaits and self._awaits_body:
                return  # such as the size of a chunk: the time goes on
            self._awaits_body = awaits
            if self._slow is not None:
                self._slow.cancel()
                self._slow = None
            if awaits:
                self._wait_for_body(self.flow.read_paused)
            return
        self._awaits_body = False
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD:
            self._end()
        elif self._slow is None:
            self._slow = self.loop.call_later(self.head_timeout_s, self._end)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._slow is not None:
            self._slow.cancel()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        # One at a time: those of a pipeline begin when the answer before them is complete.
        self._answer = _Joined(cycle, self.transport)
        cycle.transport = self._answer  # type: ignore[assignment]
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        self._answer.flush()
        super().on_response_complete()

    def _wait_for_body(self, unread: bool) -> None:
        self._slow = self.loop.call_later(self.body_start_s, self._end_without_body, unread)

    def _end_without_body(self, unread: bool) -> None:
        """`unread`: it may have been here, behind a request that was still worked on."""
        if unread or self.flow.read_paused:
            self._wait_for_body(self.flow.read_paused)
        elif not self.transport.is_closing():
            if not self.cycle.response_started:
                self.transport.write(_NO_BODY)
            self.transport.close()

    def _end(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()


def build_server(
    app: Any,
    context: ssl.SSLContext | None = None,
    protocol: type[GuardedProtocol] = GuardedProtocol,
) -> uvicorn.Server:
    """uvicorn with httptools and nothing on the request's path that we do not use."""
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        backlog=1024,
    )
    config.load()
    config.ssl = context  # as built here: uvicorn's own is read from files once, and never renewed
    return uvicorn.Server(config)


def http_protocols(server: uvicorn.Server) -> Callable[[], asyncio.Protocol]:
    """Makes what speaks HTTP on a connection that somebody else accepted, for the server's app."""
    config = server.config

    def make() -> asyncio.Protocol:
        return config.http_protocol_class(  # type: ignore[call-arg, return-value]
            config=config, server_state=server.server_state, app_state={}
        )

    return make
