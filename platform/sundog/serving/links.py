"""Links from a gateway to replicas: a connection each, or a Serve handle as the fallback.

A link carries frames and reports what became of them. Which replicas exist it learns from outside.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

from sundog.serving import frames
from sundog.serving.contract import Parsed
from sundog.serving.health import Health
from sundog.serving.lane import Batch, Lane
from sundog.serving.streams import PartStream, call_frame

IN_FLIGHT = 2
"""Frames under way a replica: one that it works on and one that is ready for it."""


class SocketLink(asyncio.Protocol):
    """One connection to one replica: its Unix socket, or TLS from another node."""

    def __init__(self, lane: Lane, on_closed: Callable[[SocketLink], None]) -> None:
        self.load = 0
        self.free = 0
        self.turn = 0
        self.health: Health | None = Health()
        self._lane = lane
        self._on_closed = on_closed
        self._reader = frames.Reader()
        self._under_way: dict[int, Batch] = {}
        self._streams: dict[int, PartStream] = {}
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
            self.drop()

    def _take(self, frame: frames.Frame) -> None:
        if frame.kind == frames.HELLO:
            self.free = IN_FLIGHT
            self._lane.streams = isinstance(frame.meta, dict) and bool(frame.meta.get("streams"))
            self._lane.connections.append(self)
            self._lane.wake()
            return
        if frame.kind == frames.CLOSING:
            self.leave()
            return
        if frame.number in self._streams:
            self._take_part(frame)
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
            batch.failed(*_fault_of(frame))
        self._close_when_idle()

    def _take_part(self, frame: frames.Frame) -> None:
        stream = self._streams[frame.number]
        if frame.kind == frames.PART:
            stream.part(frame.meta, frame.body)
            return
        self._forget(frame.number)
        if frame.kind == frames.END:
            stream.end()
        else:
            stream.fault(frame.meta)

    def _forget(self, number: int) -> None:
        if self._streams.pop(number, None) is not None:
            self.load -= 1
            self._close_when_idle()

    def stream(self, parsed: Parsed) -> PartStream:
        """Ask for an answer in parts. Streams take no frame's place: `free` is for whole answers."""
        number = self._number = (self._number + 1) & 0xFFFFFFFF
        assert self._transport is not None
        write = self._transport.writelines

        def cancel() -> None:
            if number in self._streams:
                write(frames.pack(frames.CANCEL, number))
                self._forget(number)

        def more(parts: int) -> None:
            if number in self._streams:
                write(frames.pack(frames.MORE, number, parts))

        stream = PartStream(cancel, more)
        try:
            buffers = call_frame(self._lane.contract, parsed, frames.STREAM, number)
        except frames.BadFrame as error:
            stream.fault({"kind": "input", "message": str(error)})
            return stream
        self._streams[number] = stream
        self.load += 1
        write(buffers)
        return stream

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
        idle = not self._under_way and not self._streams
        if self._leaving and idle and self._transport is not None:
            self._transport.close()

    def expire(self, now: float) -> None:
        """Drop a replica that holds a frame past the deadline of every call in it."""
        if any(all(c.deadline_s + 1 < now for c in b.calls) for b in self._under_way.values()):
            self.drop()

    def drop(self) -> None:
        """Close at once; what is under way is lost."""
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
        streams, self._streams = list(self._streams.values()), {}
        for stream in streams:
            stream.lost()
        self._on_closed(self)


def _fault_of(frame: frames.Frame) -> tuple[str, str]:
    """(kind, message) of whatever is no answer."""
    meta = frame.meta if isinstance(frame.meta, dict) else {}
    return str(meta.get("kind", "model")), str(meta.get("message", "failed"))


def _only_frame(raw: Any) -> frames.Frame:
    """What a call over Serve's handle gave. Raises BadFrame for anything but one frame."""
    if not isinstance(raw, bytes):
        raise frames.BadFrame(f"a {type(raw).__name__} is no frame")
    found = list(frames.Reader().feed(raw))
    if len(found) != 1:
        raise frames.BadFrame(f"{len(found)} frames where one is due")
    return found[0]


class Handle(Protocol):
    """A replica's methods over Serve: a frame in, one out; a frame in, several out."""

    def infer(self, frame: bytes) -> Awaitable[Any]: ...

    def stream(self, frame: bytes) -> AsyncIterator[Any]: ...


class HandleLink:
    """All replicas of a version behind Serve's public handle: slower, and works across nodes."""

    def __init__(self, lane: Lane, handle: Handle, slots: int) -> None:
        self.load = 0
        self.free = slots
        self.turn = 0
        self.health: Health | None = None
        self._lane = lane
        self._handle = handle
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
        except frames.BadFrame as error:
            self._back(batch)
            batch.failed("input", str(error))
            return
        answer: Any = None
        try:
            answer = self._handle.infer(request)
            async with asyncio.timeout(self._left_s(batch)):
                frame = _only_frame(await answer)
        except frames.BadFrame as error:
            self._back(batch)
            batch.failed("model", f"the replica's answer is broken: {error}")
        except Exception:  # noqa: BLE001 - whatever Ray raises, the replica gave no answer
            if hasattr(answer, "cancel"):
                answer.cancel()  # where it was only too late: nobody waits for it any more
            self._back(batch)
            await asyncio.sleep(0.1)
            batch.lost()
        else:
            self._back(batch)
            if frame.kind == frames.ANSWER:
                batch.answered(frame.meta, frame.body)
            else:
                batch.failed(*_fault_of(frame))

    def _left_s(self, batch: Batch) -> float:
        """Until nobody waits for this answer any more, and a second, as `SocketLink.expire` has it."""
        latest_s = max(call.deadline_s for call in batch.calls)
        return max(0.0, latest_s + 1 - self._lane.now())

    def _back(self, batch: Batch) -> None:
        self.free += 1
        self.load -= batch.rows
        self._lane.wake()

    def stream(self, parsed: Parsed) -> PartStream:
        task: asyncio.Task[None] | None = None

        def cancel() -> None:
            if task is not None:
                task.cancel()

        stream = PartStream(cancel, lambda parts: None)
        task = asyncio.get_running_loop().create_task(self._carry_parts(parsed, stream))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.load += 1
        return stream

    async def _carry_parts(self, parsed: Parsed, stream: PartStream) -> None:
        answers: Any = None
        try:
            request = b"".join(call_frame(self._lane.contract, parsed, frames.STREAM, 0))
        except frames.BadFrame as error:
            self.load -= 1
            stream.fault({"kind": "input", "message": str(error)})
            return
        try:
            answers = self._handle.stream(request)
            async for raw in answers:
                frame = _only_frame(raw)
                if frame.kind == frames.PART:
                    await stream.room()
                    stream.part(frame.meta, frame.body)
                else:
                    stream.fault(frame.meta)
            stream.end()
        except frames.BadFrame as error:
            stream.fault({"message": f"the replica's answer is broken: {error}"})
        except Exception:  # noqa: BLE001 - whatever Ray raises, the replica is gone
            stream.lost()
        except asyncio.CancelledError:
            # Nobody reads on. Serve goes on with what is only no longer iterated.
            if hasattr(answers, "cancel"):
                answers.cancel()
            elif hasattr(answers, "aclose"):
                await answers.aclose()
            raise
        finally:
            self.load -= 1
