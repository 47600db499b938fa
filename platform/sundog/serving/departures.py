"""Clients that leave while their request waits: it is given up, so that no replica works on it.

Only who has waited for a moment is watched: a request that is answered at once pays for nothing here
but its place in a dictionary.
"""

from __future__ import annotations

import asyncio
from typing import Any

from sundog.serving.http_body import Gone, Receive
from sundog.serving.sse import gone

LOOK_S = 0.25


class Departures:
    """What waits for an answer, and how its server tells that the client has left."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[Any], Receive] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, answer: asyncio.Future[Any], receive: Receive) -> None:
        """`answer` fails with Gone if the client leaves. The whole body has been received."""
        self._waiting[answer] = receive
        if self._timer is None:
            self._timer = answer.get_loop().call_later(LOOK_S, self._look)

    def remove(self, answer: asyncio.Future[Any]) -> None:
        self._waiting.pop(answer, None)

    def _look(self) -> None:
        self._timer = None
        waiting, self._waiting = self._waiting, {}
        for answer, receive in waiting.items():
            _Watch(answer, receive)


class _Watch:
    def __init__(self, answer: asyncio.Future[Any], receive: Receive) -> None:
        self._answer = answer
        self._task = asyncio.ensure_future(self._wait(receive))
        answer.add_done_callback(self._end)

    async def _wait(self, receive: Receive) -> None:
        await gone(receive)
        if not self._answer.done():
            self._answer.set_exception(Gone())

    def _end(self, _: asyncio.Future[Any]) -> None:
        self._task.cancel()
