"""Links from a gateway to replicas: a private Unix socket each, or a Serve handle as the fallback.

A link carries frames and reports what became of them. Which replicas exist it learns from outside.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from sundog.serving import frames
from sundog.serving.lane import Batch, Lane

IN_FLIGHT = 2
"""Frames under way a replica: one that it works on and one that is ready for it."""


class SocketLink(asyncio.Protocol):
    """One connection to one replica's Unix socket."""

    def __init__(self, lane: Lane, on_closed: Callable[[SocketLink], None]) -> None:
        self.load = 0
        self.free = 0
        self._lane = lane
        self._on_closed = on_closed
        self._reader = frames.Reader()
        self._under_way: dict[int, Batch] = {}
        self._number = 0
        self._transport: asyncio.Transport | None = None
        self._leaving = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._reader.feed(data):
                self._take(frame)
        except frames.BadFrame:
            self._abort()

    def _take(self, frame: frames.Frame) -> None:
        if frame.kind == frames.HELLO:
            self.free = IN_FLIGHT
            self._lane.connections.append(self)
            self._lane.wake()
            return
        if frame.kind == frames.CLOSING:
            self.leave()
            return
        batch = self._under_way.pop(frame.number, None)
        if batch is None:
            return
        self.load -= batch.rows
        if not self._leaving:
            self.free += 1
        if frame.kind == frames.ANSWER:
            batch.answered(frame.meta, frame.body)
        else:
            meta = frame.meta if isinstance(frame.meta, dict) else {}
            batch.failed(str(meta.get("kind", "model")), str(meta.get("message", "failed")))
        self._close_when_idle()

    def send(self, batch: Batch) -> None:
        self._number = (self._number + 1) & 0xFFFFFFFF
        try:
            buffers = frames.pack(frames.INFER, self._number, batch.meta, batch.body)
        except frames.BadFrame as error:
            batch.failed("input", str(error))
            return
        self.free -= 1
        self.load += batch.rows
        self._under_way[self._number] = batch
        assert self._transport is not None
        self._transport.writelines(buffers)

    def leave(self) -> None:
        """Send nothing more; close when the last answer is here."""
        self._leaving = True
        self.free = 0
        if self in self._lane.connections:
            self._lane.connections.remove(self)
        self._close_when_idle()

    def _close_when_idle(self) -> None:
        if self._leaving and not self._under_way and self._transport is not None:
            self._transport.close()

    def expire(self, now: float) -> None:
        """Drop a replica that holds a frame past the deadline of every call in it."""
        if any(all(c.deadline_s + 1 < now for c in b.calls) for b in self._under_way.values()):
            self._abort()

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self.free = 0
        if self in self._lane.connections:
            self._lane.connections.remove(self)
        batches = list(self._under_way.values())
        self._under_way.clear()
        # Newest first, since each goes back to the front of the queue.
        for batch in reversed(batches):
            batch.lost()
        self._on_closed(self)


class HandleLink:
    """All replicas of a version behind Serve's public handle: slower, and works across nodes."""

    def __init__(self, lane: Lane, infer: Callable[[bytes], Awaitable[Any]], slots: int) -> None:
        self.load = 0
        self.free = slots
        self._lane = lane
        self._infer = infer
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, batch: Batch) -> None:
        self.free -= 1
        self.load += batch.rows
        task = asyncio.get_running_loop().create_task(self._carry(batch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, batch: Batch) -> None:
        try:
            request = b"".join(frames.pack(frames.INFER, 0, batch.meta, batch.body))
            raw = await self._infer(request)
            [frame] = frames.Reader().feed(raw)
        except frames.BadFrame as error:
            self._back(batch)
            batch.failed("input", str(error))
        except Exception:  # noqa: BLE001 - whatever Ray raises, the replica gave no answer
            self._back(batch)
            await asyncio.sleep(0.1)
            batch.lost()
        else:
            self._back(batch)
            if frame.kind == frames.ANSWER:
                batch.answered(frame.meta, frame.body)
            else:
                batch.failed(str(frame.meta.get("kind")), str(frame.meta.get("message")))

    def _back(self, batch: Batch) -> None:
        self.free += 1
        self.load -= batch.rows
        self._lane.wake()
