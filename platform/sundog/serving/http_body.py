"""Reading a request's body over ASGI: bounded in size and in time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from sundog.serving.contract import BadRequest

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

CLIENT_GONE = 499
"""What the log says of a client that left before its answer was whole."""
BODY_TIMEOUT_S = 30.0
_LINGER_S = 5.0


class Oversized(BadRequest):
    """Refused with 413 before its body was read to the end."""


class Gone(Exception):
    """The client went away before it had its answer."""


async def read_body(headers: Mapping[bytes, bytes], receive: Receive, limit: int) -> bytes:
    """The whole body. Raises Oversized over `limit` bytes and BadRequest 408 when it does not end.

    One that does not even begin is the server's to end: every request would pay for a timer here.
    """
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


async def send_last(send: Send, receive: Receive, body: bytes) -> None:
    """Send the answer to an oversized request and take the rest of the request off the wire.

    Closing a connection with unread bytes resets it, and a reset throws away an answer that the
    client has not read yet. Who is still sending after 5 s is cut off.
    """
    await send({"type": "http.response.body", "body": body, "more_body": True})
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            while (await receive()).get("more_body"):
                pass
    await send({"type": "http.response.body", "body": b""})


def _too_large(limit: int) -> Oversized:
    return Oversized(f"the body is over {limit} bytes, the service's max_body", 413)
