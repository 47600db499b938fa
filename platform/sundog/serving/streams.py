"""Answers in parts on the gateway's side: one PartStream a call, filled by a link, read by a protocol.

Holds at most WINDOW parts that the client has not taken; the replica waits for more room.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from sundog.serving.contract import Contract, Parsed
from sundog.serving.frames import BadFrame, cut, pack, tensor_meta, with_traces

WINDOW = 32
"""Parts a replica may be ahead of the client."""
GRANT = WINDOW // 2

Outputs = list[tuple[str, list[int], bytes | memoryview]]


class StreamLost(Exception):
    """The replica went away before its answer was whole."""


class StreamFault(Exception):
    """The replica says why there is no answer, or no further part of it."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


class PartStream:
    """An async iterator of parts. `cancel` and `more` tell the replica; links call the rest."""

    def __init__(self, cancel: Callable[[], None], more: Callable[[int], None]) -> None:
        self._cancel = cancel
        self._more = more
        self._parts: deque[Outputs] = deque()
        self._ended = False
        self._failure: Exception | None = None
        self._taken = 0
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    # -- the link's side

    def part(self, meta: Any, body: memoryview) -> None:
        try:
            self._parts.append(cut(meta, body))  # type: ignore[arg-type]
        except BadFrame as error:
            self._close(StreamFault("model", f"the replica's answer is broken: {error}"))
            self._cancel()
            return
        if len(self._parts) >= WINDOW:
            self._room.clear()
        self._changed.set()

    async def room(self) -> None:
        """Until the client has taken enough; for links that cannot hold the replica back."""
        await self._room.wait()

    def end(self) -> None:
        self._close(None)

    def fault(self, meta: Any) -> None:
        said = meta if isinstance(meta, dict) else {}
        self._close(StreamFault(str(said.get("kind", "model")), str(said.get("message", "failed"))))

    def lost(self) -> None:
        self._close(StreamLost())

    def _close(self, failure: Exception | None) -> None:
        if not self._ended:
            self._ended, self._failure = True, failure
            self._changed.set()

    # -- the protocol's side

    def __aiter__(self) -> PartStream:
        return self

    async def __anext__(self) -> Outputs:
        """The next part. Raises StreamFault and StreamLost, after the parts that came before."""
        while not self._parts:
            if self._ended:
                if self._failure is not None:
                    raise self._failure
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        part = self._parts.popleft()
        self._room.set()
        self._taken += 1
        if self._taken == GRANT:
            self._taken = 0
            self._more(GRANT)
        return part

    def close(self) -> None:
        """Nobody reads on: tell the replica to stop."""
        if not self._ended:
            self._close(None)
            self._cancel()


def call_frame(
    contract: Contract, parsed: Parsed, kind: int, number: int
) -> list[bytes | memoryview]:
    """One request alone as a frame. Raises BadFrame."""
    tensors = [
        (tensor.datatype, shape, len(raw))
        for tensor, shape, raw in zip(contract.inputs, parsed.shapes, parsed.raw, strict=True)
    ]
    traces = [parsed.trace] if parsed.trace is not None else []
    return pack(kind, number, with_traces(tensor_meta(tensors), traces), parsed.raw)
