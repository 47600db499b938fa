"""Server-sent events over ASGI: parts as they come, and an end to the work when the client goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, TypeVar

import orjson

T = TypeVar("T")
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

SEND_TIMEOUT_S = 30.0
"""A client that takes nothing for so long is let go."""
HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


class ClientGone(Exception):
    """Nobody reads on."""


def event(data: bytes) -> bytes:
    """One event; `data` is JSON of one line."""
    return b"data: " + data + b"\n\n"


def error_event(message: str) -> bytes:
    return event(orjson.dumps({"error": message}))


async def send_body(
    receive: Receive, send: Send, start: MutableMapping[str, Any], body: AsyncIterator[bytes]
) -> int:
    """Send `start` with the first of what `body` yields, the rest as it comes; the bytes sent.

    Raises ClientGone; whatever `body` raises passes, before `start` is sent when nothing came yet.
    `body` is closed in any case.
    """
    return await unless_gone(receive, _pump(send, start, body))


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives. It is ended, and ClientGone raised, when the client leaves before."""
    watch = asyncio.ensure_future(gone(receive))
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        watch.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))


async def gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _pump(send: Send, start: MutableMapping[str, Any], body: AsyncIterator[bytes]) -> int:
    size, started = 0, False
    try:
        async for data in body:
            if not started:
                started = True
                await send(start)
            size += len(data)
            try:
                async with asyncio.timeout(SEND_TIMEOUT_S):
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            except TimeoutError:
                raise ClientGone from None
        if not started:
            await send(start)
        await send({"type": "http.response.body", "body": b""})
    finally:
        close = getattr(body, "aclose", None)
        if close is not None:
            await close()
    return size
