"""The HTTP server's limits on clients that are slow, endless or silent, in asking or in taking answers.

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
STUCK_S = 30.0
"""A client that takes nothing of what it asked for, for so long, is let go."""
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

    __slots__ = ("_close", "_cycle", "_head", "_transport")

    def __init__(
        self, cycle: RequestResponseCycle, transport: Any, close: Callable[[], None]
    ) -> None:
        self._cycle = cycle
        self._transport = transport
        self._close = close
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
        self._close()

    def is_closing(self) -> bool:
        return bool(self._transport.is_closing())


class GuardedProtocol(HttpToolsProtocol):
    head_timeout_s = HEAD_TIMEOUT_S
    body_start_s = BODY_START_S
    stuck_s = STUCK_S

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._head_bytes = 0
        self._in_head = True
        self._awaits_body = False
        self._whole = False
        self._throws_away = False
        """Whether `_slow` bounds what comes of a request that has its answer"""
        self._stuck: asyncio.TimerHandle | None = None
        self._slow: asyncio.TimerHandle | None = self.loop.call_later(
            self.head_timeout_s, self._end
        )

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._whole = False
        if self._throws_away:
            self._throws_away = False
            self._in_time()

    def on_message_complete(self) -> None:
        self._whole = True
        super().on_message_complete()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._in_head:
            self._head_bytes = 0
            # Almost always the body has come with the head, and this costs nothing more.
            cycle = self.cycle
            if cycle is not None and cycle.response_complete:
                self._behind_its_answer()
                return
            awaits = cycle.more_body and not cycle.body and not cycle.response_complete
            if awaits and self._awaits_body:
                return  # such as the size of a chunk: the time goes on
            self._awaits_body = awaits
            self._in_time()
            if awaits:
                self._wait_for_body(self.flow.read_paused)
            return
        self._awaits_body = False
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD:
            self._end()
        elif self._slow is None:
            self._slow = self.loop.call_later(self.head_timeout_s, self._end)

    def _in_time(self) -> None:
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None

    def _behind_its_answer(self) -> None:
        """These bytes are a request's that was answered before it was whole: refused, mostly."""
        if not self._whole:
            self._throws_away = True
            if self._slow is None:  # else it is as old as the request
                self._slow = self.loop.call_later(self.body_start_s, self._end)
            return
        self._throws_away = False
        self._in_time()
        if self.timeout_keep_alive_task is None:  # they ended the wait for the next request
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def connection_lost(self, exc: Exception | None) -> None:
        self._in_time()
        if self._stuck is not None:
            self._stuck.cancel()
        super().connection_lost(exc)

    # -- answers that nobody takes

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None
        if self.transport.is_closing():
            self._watch()

    def _watch(self) -> None:
        left = self.transport.get_write_buffer_size()
        if left and self._stuck is None:
            self._stuck = self.loop.call_later(self.stuck_s, self._look, left)

    def _look(self, before: int) -> None:
        """Nothing is written meanwhile: a connection that is paused or closing only sends."""
        self._stuck = None
        if self.transport.get_write_buffer_size() >= before:
            self.transport.abort()
        else:
            self._watch()

    def _close(self) -> None:
        """Closing waits for the client to take what is left: not for ever."""
        self.transport.close()
        self._watch()

    def timeout_keep_alive_handler(self) -> None:
        self._end()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        # One at a time: those of a pipeline begin when the answer before them is complete.
        self._answer = _Joined(cycle, self.transport, self._close)
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
            self._close()

    def _end(self) -> None:
        if not self.transport.is_closing():
            self._close()


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
