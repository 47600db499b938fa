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

POLL_S = 0.02


async def parts_of(lane: Lane, parsed: Parsed, later: bool = False) -> AsyncGenerator[Outputs]:
    """The parts of one answer. Raises NotServed. The service's deadline holds for each part.

    `later`: it begins when nobody else waits."""
    lane.stats.arrivals += 1
    began_s, attempts, sent, under_way = WALL.monotonic_s(), 0, 0, False
    stream: PartStream | None = None
    try:
        _admit(lane, later)
        if later:
            await _turn(lane)
        under_way = True
        lane.under_way += 1
        lane.firsts.waiting += 1
        while True:
            stream = (await _connection(lane)).stream(parsed)
            try:
                while (part := await _next(stream, lane.limits.deadline_s)) is not None:
                    if not sent:
                        _first(lane, WALL.monotonic_s() - began_s)
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
        if under_way:
            lane.under_way -= 1
            lane.firsts.waiting -= not sent
        if stream is not None:
            stream.close()


def _admit(lane: Lane, later: bool) -> None:
    """Raises NotServed where there are too many, or first parts come too late already."""
    limits = lane.limits
    if lane.under_way + (lane.later_streams if later else 0) >= limits.queue:
        raise NotServed(503, f"{limits.queue} requests are under way already", 1.0)
    bound_s = limits.first_s or limits.deadline_s / 2
    after_s = lane.firsts.refuse_after_s(len(lane.connections), bound_s)
    if after_s is not None and not later:
        raise NotServed(503, "more requests than can be begun in time", after_s)


async def _turn(lane: Lane) -> None:
    """Until no request is queued and fewer answers than replicas are before their first part."""
    lane.later_streams += 1
    try:
        async with asyncio.timeout(lane.limits.deadline_s), lane.turns:
            while lane.calls.first or lane.firsts.waiting >= max(1, len(lane.connections)):
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        message = f"not begun within the service's deadline of {lane.limits.deadline_s:g} s"
        raise NotServed(504, message) from None
    finally:
        lane.later_streams -= 1


def _first(lane: Lane, seconds: float) -> None:
    lane.stats.first_part(seconds)
    lane.firsts.began(seconds)
    lane.firsts.waiting -= 1


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
        await asyncio.sleep(POLL_S)
    return lane.choose(lane.good())
