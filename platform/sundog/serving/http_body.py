"""Reading a request's body over ASGI: bounded in size and in time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from sundog.serving.contract import BadRequest

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

BODY_TIMEOUT_S = 30.0


class Gone(Exception):
    """The client went away before its request was whole."""


async def read_body(headers: Mapping[bytes, bytes], receive: Receive, limit: int) -> bytes:
    """The whole body. Raises BadRequest 413 over `limit` bytes and 408 when it does not come."""
    size = headers.get(b"content-length")
    if size is not None and int(size) > limit:
        raise _too_large(limit)
    message = await _first_part(receive)
    if not message.get("more_body"):
        body: bytes = message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        return body
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await _rest(message.get("body", b""), receive, limit)
    except TimeoutError:
        raise BadRequest(f"the body did not come within {BODY_TIMEOUT_S:g} s", 408) from None


async def _first_part(receive: Receive) -> MutableMapping[str, Any]:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise Gone
    return message


async def _rest(first: bytes, receive: Receive, limit: int) -> bytes:
    parts, size = [first], len(first)
    while True:
        message = await _first_part(receive)
        part = message.get("body", b"")
        parts.append(part)
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        if not message.get("more_body"):
            return b"".join(parts)


def _too_large(limit: int) -> BadRequest:
    return BadRequest(f"the body is over {limit} bytes, the service's max_body", 413)
