"""Answers in parts for any protocol: which replica gives them, what is retried, what is counted.

Before its first part a lost answer is asked for again; after that the client is told. Ends the
model's work when nobody reads on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from sundog.clock import WALL
from sundog.serving.contract import Parsed
from sundog.serving.lane import MAX_ATTEMPTS, RETRY_S, Connection, Lane, NotServed
from sundog.serving.streams import Outputs, PartStream, StreamFault, StreamLost


async def parts_of(lane: Lane, parsed: Parsed) -> AsyncGenerator[Outputs]:
    """The parts of one answer. Raises NotServed. The service's deadline holds for each part."""
    lane.stats.arrivals += 1
    if lane.under_way >= lane.limits.queue:
        lane.stats.fail_count += 1
        raise NotServed(503, f"{lane.limits.queue} requests are under way already", 1.0)
    lane.under_way += 1
    began_s, attempts, sent = WALL.monotonic_s(), 0, 0
    stream: PartStream | None = None
    try:
        while True:
            stream = (await _connection(lane)).stream(parsed)
            try:
                while (part := await _next(stream, lane.limits.deadline_s)) is not None:
                    if not sent:
                        lane.stats.first_part(WALL.monotonic_s() - began_s)
                    sent += 1
                    yield part
                break
            except StreamLost:
                if sent or not lane.limits.idempotent or attempts >= MAX_ATTEMPTS:
                    raise NotServed(503, "the replica was lost while it answered", 1.0) from None
                attempts += 1
    except NotServed:
        lane.stats.fail_count += 1
        lane.stats.fail_s += WALL.monotonic_s() - began_s
        raise
    else:
        seconds = WALL.monotonic_s() - began_s
        lane.stats.executed(parsed.rows, seconds)
        lane.stats.rows += parsed.rows
        lane.stats.success_count += 1
        lane.stats.success_s += seconds
    finally:
        lane.under_way -= 1
        if stream is not None:
            stream.close()


async def _next(stream: PartStream, deadline_s: float) -> Outputs | None:
    try:
        async with asyncio.timeout(deadline_s):
            return await anext(stream, None)
    except StreamFault as fault:
        if fault.kind == "busy":
            raise NotServed(503, fault.message, 1.0) from None
        raise NotServed(400 if fault.kind == "input" else 500, fault.message) from None
    except TimeoutError:
        raise NotServed(504, f"no part within the service's deadline of {deadline_s:g} s") from None


async def _connection(lane: Lane) -> Connection:
    """The replica with the least to do; waits for a first one as requests do."""
    end_s = WALL.monotonic_s() + min(lane.limits.hold_s, lane.limits.deadline_s)
    while not lane.connections:
        if WALL.monotonic_s() >= end_s:
            raise NotServed(503, lane.waiting_message, RETRY_S)
        await asyncio.sleep(0.02)
    return lane.choose(lane.good())
