"""Clients that hold a connection without asking: closed; those that ask: served."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket

import pytest

from sundog.serving.http_server import MAX_HEAD, GuardedProtocol, build_server

LARGE = 32 * 2**20


class Impatient(GuardedProtocol):
    head_timeout_s = 0.2
    body_start_s = 0.2
    stuck_s = 0.5  # a busy machine may stand still for a moment

    def connection_made(self, transport):
        super().connection_made(transport)
        self.timeout_keep_alive = 2


async def app(scope, receive, send):
    body = b""
    if scope["path"] == "/refused":
        await send(
            {"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"2")]}
        )
        await send({"type": "http.response.body", "body": b"no"})
        return
    while True:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] == "http.disconnect":
            return
        if not message.get("more_body"):
            break
    if scope["path"] == "/slow":
        await asyncio.sleep(0.6)
    said = b"x" * LARGE if scope["path"].startswith("/large") else b"ok"
    headers = [(b"content-length", str(len(said)).encode())]
    if scope["path"] == "/large-last":
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": said})


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


class Recorder:
    """A transport that notes each write."""

    def __init__(self, transport):
        self.transport, self.writes = transport, []

    def __getattr__(self, name):
        return getattr(self.transport, name)

    def write(self, data):
        self.writes.append(bytes(data))
        self.transport.write(data)

    def writelines(self, parts):
        self.writes.append(b"".join(parts))
        self.transport.writelines(parts)


async def answers(scope, receive, send):
    """The path says what: so many bytes, in parts, nothing, or a fault after the head."""
    what = scope["path"][1:]
    headers = [(b"content-length", what.encode())] if what.isdigit() else []
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if what == "breaks":
        raise RuntimeError("after the head")
    for _ in range(3 if what == "parts" else 0):
        await send({"type": "http.response.body", "body": b"part", "more_body": True})
    body = b"x" * int(what) if what.isdigit() else b""
    await send({"type": "http.response.body", "body": body})


@pytest.mark.parametrize(
    ("method", "path", "writes", "ends"),
    [("GET", "/5", 1, b"\r\n\r\nxxxxx"), ("GET", "/200000", 1, b"\r\n\r\n" + b"x" * 200_000),
     ("GET", "/0", 1, b"content-length: 0\r\n\r\n"), ("HEAD", "/5", 1, b"content-length: 5\r\n\r\n"),
     ("GET", "/parts", 4, b"4\r\npart\r\n" * 3 + b"0\r\n\r\n"),
     ("GET", "/breaks", 1, b"transfer-encoding: chunked\r\n\r\n")],
)  # fmt: skip
def test_an_answers_head_leaves_with_its_body(method, path, writes, ends):
    made = []

    class Recorded(GuardedProtocol):
        def connection_made(self, transport):
            made.append(Recorder(transport))
            super().connection_made(made[0])

    async def main():
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            server = build_server(answers, protocol=Recorded)
            task = asyncio.create_task(server.serve(sockets=[listener]))
            port = listener.getsockname()[1]
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(1 if path == "/breaks" else 2):
                writer.write(f"{method} {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
                async with asyncio.timeout(60):
                    said = await reader.readuntil(ends)
                assert said.startswith(b"HTTP/1.1 200")
                assert len(made[0].writes) == writes
                del made[0].writes[:]
            writer.close()
            server.should_exit = True
            await task

    asyncio.run(main())


async def asks_whether_to_send(reader, writer):
    writer.write(b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
    writer.write(b"abcd")
    assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")


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


REFUSED = b"POST /refused HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n"


async def says_nothing_more_once_it_is_refused(reader, writer):
    writer.write(REFUSED)
    assert (await reader.readuntil(b"no")).startswith(b"HTTP/1.1 401")
    writer.write(b"a")
    assert await reader.read() == b""


async def drips_on_once_it_is_refused(reader, writer):
    writer.write(REFUSED)
    await reader.readuntil(b"no")

    async def drip():
        while True:
            writer.write(b"a")
            await writer.drain()
            await asyncio.sleep(0.02)

    with pytest.raises(ConnectionError):
        await drip()


async def ends_what_was_refused_and_asks_again(reader, writer):
    """Its body has its time; then the connection is as good as any other, and idles no longer."""
    for _ in range(2):
        writer.write(REFUSED + b"a" * 10)
        await reader.readuntil(b"no")
        await asyncio.sleep(0.1)
        writer.write(b"a" * 990)
        await asyncio.sleep(0.4)
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
    writer.write(REFUSED + b"a" * 10)
    await reader.readuntil(b"no")
    writer.write(b"a" * 990)
    assert await reader.read() == b""


async def takes_no_answer(reader, writer, path=b"/large"):
    writer.write(b"GET " + path + b" HTTP/1.1\r\nhost: x\r\n\r\n")
    await asyncio.sleep(1.5)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(LARGE)


async def takes_no_last_answer(reader, writer):
    await takes_no_answer(reader, writer, b"/large-last")


async def takes_an_answer_slowly(reader, writer):
    writer.write(b"GET /large-last HTTP/1.1\r\nhost: x\r\n\r\n")
    taken = 0
    while part := await reader.read(2**20):
        taken += len(part)
        await asyncio.sleep(0.03)
    assert taken > LARGE


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
        says_nothing_more_once_it_is_refused,
        drips_on_once_it_is_refused,
        ends_what_was_refused_and_asks_again,
        takes_no_answer,
        takes_no_last_answer,
        takes_an_answer_slowly,
        has_a_body_behind_a_slow_request,
        asks_whether_to_send,
        silent,
        drips,
        drips_a_second_request,
        endless_head,
        asks_twice_after_a_pause,
    ],
)
def test_clients(scenario):
    asyncio.run(talk(scenario))
