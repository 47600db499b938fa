"""Clients that hold a connection without asking: closed; those that ask: served."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket

import pytest

from sundog.serving.http_server import MAX_HEAD, GuardedProtocol, build_server


class Impatient(GuardedProtocol):
    head_timeout_s = 0.2
    body_start_s = 0.2


async def app(scope, receive, send):
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] == "http.disconnect":
            return
        if not message.get("more_body"):
            break
    if scope["path"] == "/slow":
        await asyncio.sleep(0.6)
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
    )
    await send({"type": "http.response.body", "body": b"ok"})


async def talk(scenario):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        server = build_server(app, protocol=Impatient)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            async with asyncio.timeout(20):
                await scenario(reader, writer)
            writer.close()
        finally:
            server.should_exit = True
            await task


async def silent(reader, writer):
    assert await reader.read() == b""


async def drips(reader, writer):
    """A header a time, for ever (slowloris)."""
    writer.write(b"GET / HTTP/1.1\r\n")

    async def drip():
        while True:
            writer.write(b"x-a: b\r\n")
            await writer.drain()
            await asyncio.sleep(0.02)

    with pytest.raises(ConnectionError):
        await drip()


async def drips_a_second_request(reader, writer):
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
    writer.write(b"GET / HT")
    assert await reader.read() == b""


async def endless_head(reader, writer):
    writer.write(b"GET / HTTP/1.1\r\n" + b"x-a: " + b"b" * (2 * MAX_HEAD))
    with contextlib.suppress(ConnectionError):
        assert b"200" not in await reader.read()


async def asks_twice_after_a_pause(reader, writer):
    for _ in range(2):
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nab")
        await asyncio.sleep(0.4)
        writer.write(b"cd")
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        await asyncio.sleep(0.4)


async def announces_a_body(reader, writer):
    writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\n")
    assert_told(await reader.read())


async def announces_chunks(reader, writer):
    writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
    await asyncio.sleep(0.05)
    writer.write(b"4\r\n")
    assert_told(await reader.read())


async def announces_a_second_body(reader, writer):
    whole = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nabcd"
    writer.write(whole)
    assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
    writer.write(whole[:-4])
    assert_told(await reader.read())


def assert_told(answer):
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert f"content-length: {len(body)}".encode() in head
    assert "error" in json.loads(body)


async def has_a_body_behind_a_slow_request(reader, writer):
    """Pipelined: the second is not read while the first is worked on, and that is nobody's fault."""
    head = b" HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\n"
    writer.write(b"POST /slow" + head + b"abcd" + b"POST /" + head)
    await asyncio.sleep(0.1)
    writer.write(b"abcd")
    for _ in range(2):
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "scenario",
    [
        announces_a_body,
        announces_chunks,
        announces_a_second_body,
        has_a_body_behind_a_slow_request,
        silent,
        drips,
        drips_a_second_request,
        endless_head,
        asks_twice_after_a_pause,
    ],
)
def test_clients(scenario):
    asyncio.run(talk(scenario))
