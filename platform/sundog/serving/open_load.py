"""Open-loop load on a gateway: requests leave at their time, whether or not earlier ones came back.

Latency counts from when a request should have left, so a service that stalls cannot hide it
(coordinated omission). Speaks HTTP/1.1 on connections of its own; judges nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import orjson

from sundog.clock import WALL
from sundog.errors import ServiceError
from sundog.security.tls import client_context

MAX_CONNECTIONS = 256
TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Sent:
    """One request: when it should have left (seconds from the start), how long until its answer,
    its HTTP status (0: no answer)."""

    at_s: float
    latency_s: float
    status: int


@dataclass
class Load:
    """What a load saw."""

    rate: float
    seconds: float
    sent: list[Sent] = field(default_factory=list)

    @property
    def failed(self) -> int:
        return sum(s.status != 200 for s in self.sent)

    @property
    def answered_rate(self) -> float:
        """Good answers a second, until the last one came."""
        good = [s for s in self.sent if s.status == 200]
        last_s = max((s.at_s + s.latency_s for s in good), default=0.0)
        return len(good) / max(last_s, self.seconds) if good else 0.0

    def quantile_s(self, q: float) -> float:
        """Of good answers' latency; infinite without any."""
        ordered = sorted(s.latency_s for s in self.sent if s.status == 200)
        return (
            ordered[min(len(ordered) - 1, math.ceil(q * len(ordered)) - 1)] if ordered else math.inf
        )

    def longest_gap_s(self) -> float:
        """The longest time without a good answer."""
        ends = sorted(s.at_s + s.latency_s for s in self.sent if s.status == 200)
        edges = [0.0, *ends]
        return max((b - a for a, b in itertools.pairwise(edges)), default=self.seconds)


def zeros(inputs: Sequence[dict[str, Any]], rows: int = 1) -> bytes:
    """A request body of zeros (or empty strings) for a model's inputs, as its metadata says."""
    tensors = []
    for tensor in inputs:
        shape = [rows if d < 0 else d for d in tensor["shape"]]
        empty: Any = "" if tensor["datatype"] == "BYTES" else 0
        size = math.prod(shape)
        tensors.append({**tensor, "shape": shape, "data": [empty] * size})
    return orjson.dumps({"inputs": tensors})


class OpenLoad:
    """`run` sends at a rate for so long; connections are kept between runs."""

    def __init__(self, gateway: str, path: str, body: bytes, key: str | None = None) -> None:
        parts = urlsplit(gateway)
        if not parts.hostname:
            raise ServiceError(f"{gateway!r} is not an address", "write http://host:port")
        secure = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port or (443 if secure else 80)
        self._tls = client_context() if secure else None
        auth = f"authorization: Bearer {key}\r\n" if key else ""
        self._request = (
            f"POST {path} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
            f"{auth}content-length: {len(body)}\r\n\r\n"
        ).encode() + body
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._open = 0
        self._freed = asyncio.Condition()

    async def run(self, rate: float, seconds: float, stop: asyncio.Event | None = None) -> Load:
        load, tasks = Load(rate, seconds), []
        began_s = WALL.monotonic_s()
        for i in range(int(rate * seconds)):
            ahead_s = began_s + i / rate - WALL.monotonic_s()
            if ahead_s > 0:
                await asyncio.sleep(ahead_s)
            if stop is not None and stop.is_set():
                load.seconds = WALL.monotonic_s() - began_s
                break
            tasks.append(asyncio.create_task(self._one(load, began_s, i / rate)))
        await asyncio.gather(*tasks)
        return load

    async def _one(self, load: Load, began_s: float, at_s: float) -> None:
        status = 0
        try:
            async with asyncio.timeout(TIMEOUT_S):
                status = await self._exchange()
        except (OSError, asyncio.IncompleteReadError, TimeoutError, ValueError, IndexError):
            status = 0
        load.sent.append(Sent(at_s, WALL.monotonic_s() - began_s - at_s, status))

    async def _exchange(self) -> int:
        reader, writer = await self._connection()
        whole = False
        try:
            writer.write(self._request)
            head = await reader.readuntil(b"\r\n\r\n")
            words = head.lower()
            size = int(words.split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(size)
            whole = b"connection: close" not in words
            return int(head[9:12])
        finally:
            if whole:
                self._idle.append((reader, writer))
            else:
                writer.close()
                self._open -= 1
            async with self._freed:
                self._freed.notify()

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        async with self._freed:
            await self._freed.wait_for(lambda: self._idle or self._open < MAX_CONNECTIONS)
            if self._idle:
                return self._idle.pop()
            self._open += 1
        try:
            return await asyncio.open_connection(self._host, self._port, ssl=self._tls)
        except BaseException:
            self._open -= 1
            raise

    def close(self) -> None:
        for _, writer in self._idle:
            writer.close()
        self._idle.clear()
