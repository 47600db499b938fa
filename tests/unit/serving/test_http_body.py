"""Bodies: bounded, and refused in a way that the client gets to read."""

import asyncio

import pytest

from sundog.serving import http_body
from sundog.serving.contract import BadRequest
from sundog.serving.http_body import Oversized, read_body, send_last


def part(body, more=True):
    return {"type": "http.request", "body": body, "more_body": more}


class Wire:
    """One request as its server hands it on; it blocks when nothing more comes."""

    def __init__(self, *messages):
        self.messages = list(messages)
        self.sent = []

    async def receive(self):
        if not self.messages:
            await asyncio.Event().wait()
        return self.messages.pop(0)

    async def send(self, message):
        # What was sent, and how much of the request was still on the wire then.
        self.sent.append((message["body"], message.get("more_body", False), len(self.messages)))


def test_a_body_in_parts_is_whole():
    wire = Wire(part(b"ab"), part(b"cd"), part(b"", more=False))
    assert asyncio.run(read_body({}, wire.receive, 4)) == b"abcd"


@pytest.mark.parametrize("headers", [{b"content-length": b"5"}, {}])
def test_a_body_over_the_limit_is_refused_unread(headers):
    wire = Wire(part(b"abc"), part(b"de"), part(b"fg", more=False))
    with pytest.raises(Oversized) as caught:
        asyncio.run(read_body(headers, wire.receive, 4))
    assert caught.value.status == 413
    assert wire.messages


def test_the_rest_is_read_between_the_answer_and_the_end():
    wire = Wire(part(b"a"), part(b"b"), part(b"c", more=False))
    asyncio.run(send_last(wire.send, wire.receive, b"no"))
    assert wire.sent == [(b"no", True, 3), (b"", False, 0)]


def test_a_client_that_leaves_or_never_ends_is_let_go(monkeypatch):
    monkeypatch.setattr(http_body, "_LINGER_S", 0.05)
    for wire in (Wire({"type": "http.disconnect"}), Wire(part(b"a"))):
        asyncio.run(send_last(wire.send, wire.receive, b"no"))
        assert [sent[:2] for sent in wire.sent] == [(b"no", True), (b"", False)]


def test_a_body_that_does_not_come_is_408(monkeypatch):
    monkeypatch.setattr(http_body, "BODY_TIMEOUT_S", 0.05)
    with pytest.raises(BadRequest) as caught:
        asyncio.run(read_body({}, Wire(part(b"a")).receive, 10))
    assert caught.value.status == 408
