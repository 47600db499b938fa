"""What of `/v1` reaches a server behind, and what its answers cost: paths, queries, bodies, tokens."""

from __future__ import annotations

import asyncio
import gzip
import json
import traceback

import httpx
import pytest
from fastapi import FastAPI

from sundog.errors import SpecError
from sundog.security.keys import KeyRing, new_key
from sundog.serving import passthrough
from sundog.serving.calls import Calls
from sundog.serving.http_api import GatewayApp
from sundog.serving.passthrough import Passthrough
from sundog.serving.routes import Routes
from sundog.serving.upstreams import Upstream, upstreams_of
from sundog.serving.usage import Usage


class World:
    """A gateway before servers that answer as `answer` says; what they were asked is in `asked`."""

    def __init__(self, answer=None, names=("chat",), scopes=("*",), url="http://up/v1"):
        self.asked = []
        self._answer = answer or (lambda request: httpx.Response(200, json={"object": "list"}))
        keys = KeyRing()
        key, record = new_key("me", 0.0, scopes=scopes, quota_tokens=10_000)
        keys.update([record.document()])
        self.key_id, self.headers = record.key_id, {"authorization": f"Bearer {key}"}
        self.calls = Calls(Routes(None), keys, limiter=keys.limiter)
        client = httpx.AsyncClient(transport=httpx.MockTransport(self._note))
        upstreams = {name: Upstream(url=url, model=f"real/{name}") for name in names}
        self.app = GatewayApp(self.calls, FastAPI(), Passthrough(self.calls, upstreams, client))

    def _note(self, request):
        self.asked.append(request)
        return self._answer(request)

    async def _ask(self, method, path, more):
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            headers = self.headers | more.pop("headers", {})
            return await client.request(method, path, headers=headers, **more)

    def ask(self, method, path, **more):
        return asyncio.run(self._ask(method, path, more))

    async def raw(self, path, send, receive=None, body=b'{"model": "chat"}', method="POST"):
        """As a server hands it on: with a path that no client would send."""
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def first():
            if messages:
                return messages.pop()
            if receive is not None:
                return await receive()
            return await asyncio.Event().wait()

        headers = [(k.encode(), v.encode()) for k, v in self.headers.items()]
        scope = {"type": "http", "method": method, "path": path, "query_string": b""}
        await self.app({**scope, "headers": headers}, first, send)

    def tokens(self):
        return self.calls.limiter.usage()["keys"][self.key_id]["tokens"][0]


@pytest.mark.parametrize(
    "path",
    ["/v1/../collective_rpc", "/v1/chat/../../collective_rpc", "/v1/.", "/v1/..", "/v1/a?b=c",
     "/v1/a\n", "/v1//a", "/v1/a%2e", "/v1/\xe9", "/v1/a#b", "/v1/a\\..\\b", "/v1/.../x"],
)  # fmt: skip
def test_no_path_leads_out_of_a_servers_v1(path):
    world, sent = World(), []

    async def send(message):
        sent.append(message)

    asyncio.run(world.raw(path, send))
    assert sent[0]["status"] == 400
    assert not world.asked


@pytest.mark.parametrize("path", ["/v1/responses/r-1_2/cancel", "/v1/files/ft:a.b", "/v1/a/"])
def test_what_is_below_v1_is_passed_with_its_query(path):
    world = World()
    answer = world.ask("POST", f"{path}?limit=2&x=%2F+y&model=chat", json={"model": "chat"})
    assert answer.status_code == 200
    [asked] = world.asked
    assert asked.url.path == path
    assert dict(asked.url.params) == {"limit": "2", "x": "/ y"}
    assert json.loads(asked.content) == {"model": "real/chat"}


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_what_has_no_body_goes_to_the_only_server_or_to_the_one_that_is_named(method):
    assert World().ask(method, "/v1/files/f-1").status_code == 200
    world = World(names=("chat", "draw", "secret"), scopes=("chat", "draw"))
    nameless = world.ask(method, "/v1/files/f-1")
    assert nameless.status_code == 400
    assert "?model=; models: chat, draw" in nameless.json()["error"]["message"]
    assert not world.asked
    assert world.ask(method, "/v1/files/f-1?model=draw").status_code == 200
    [asked] = world.asked
    assert (asked.method, asked.url.path, asked.url.query) == (method, "/v1/files/f-1", b"")
    assert world.ask(method, "/v1/files/f-1?model=secret").status_code == 403
    assert world.ask(method, "/v1/files/f-1?model=none").status_code == 404
    assert len(world.asked) == 1


def test_models_are_ours_and_only_looked_at():
    world = World(names=("chat", "secret"), scopes=("chat",))
    assert world.ask("GET", "/v1/models/chat").json()["id"] == "chat"
    assert world.ask("GET", "/v1/models/secret").status_code == 404
    deleted = world.ask("DELETE", "/v1/models/chat")
    assert (deleted.status_code, deleted.headers["allow"]) == (405, "GET")
    assert world.ask("TRACE", "/v1/files").status_code == 405
    assert not world.asked


def test_files_are_refused_with_words_and_packed_json_is_read():
    world = World()
    answer = world.ask("POST", "/v1/audio/transcriptions", files={"file": b"x"})
    assert (answer.status_code, "only JSON" in answer.text) == (415, True)
    packed = gzip.compress(b'{"model": "chat", "input": "x"}')
    headers = {"content-encoding": "gzip"}
    assert world.ask("POST", "/v1/embeddings", content=packed, headers=headers).status_code == 200
    [asked] = world.asked
    assert "content-encoding" not in asked.headers
    assert json.loads(asked.content)["input"] == "x"


def test_of_two_models_in_a_body_the_one_that_was_checked_is_asked_for():
    world = World(names=("chat", "secret"), scopes=("chat",))
    world.ask("POST", "/v1/completions", content=b'{"model": "secret", "model": "chat"}')
    assert world.asked[0].content == b'{"model":"real/chat"}'


@pytest.mark.parametrize(
    ("path", "added"), [("/v1/chat/completions", True), ("/v1/responses", False)]
)
def test_only_completions_are_asked_for_their_usage(path, added):
    world = World()
    world.ask("POST", path, json={"model": "chat", "stream": True})
    assert ("stream_options" in json.loads(world.asked[0].content)) is added


def test_other_answers_come_through_part_by_part():
    async def main():
        more, first, sent = asyncio.Event(), asyncio.Event(), []

        async def sound():
            yield b"one"
            await more.wait()
            yield b"two"

        kind = {"content-type": "audio/mpeg"}
        world = World(lambda _: httpx.Response(200, content=sound(), headers=kind))

        async def send(message):
            sent.append(message.get("body"))
            if message.get("body"):
                first.set()

        asked = asyncio.create_task(world.raw("/v1/audio/speech", send))
        await asyncio.wait_for(first.wait(), 20)
        assert sent == [None, b"one"]
        more.set()
        await asked
        assert sent == [None, b"one", b"two", b""]

    asyncio.run(main())


def test_one_that_breaks_off_is_cut_off_and_not_ended_as_if_it_were_whole():
    async def sound():
        yield b"one"
        raise httpx.ReadError("gone")

    async def main():
        sent = []

        async def send(message):
            sent.append(message)

        kind = {"content-type": "audio/mpeg"}
        await World(lambda _: httpx.Response(200, content=sound(), headers=kind)).raw(
            "/v1/audio/speech", send
        )
        assert [m.get("more_body") for m in sent[1:]] == [True]

    asyncio.run(main())


def test_a_server_that_has_enough_gets_no_more_and_nobody_waits(monkeypatch):
    monkeypatch.setattr(passthrough, "MAX_UNDER_WAY", 1)

    async def main():
        here, go_on = asyncio.Event(), asyncio.Event()

        async def words():
            here.set()
            await go_on.wait()
            yield b"{}"

        kind = {"content-type": "application/json"}
        world = World(
            lambda _: httpx.Response(200, content=words(), headers=kind), names=("chat", "draw")
        )
        first = asyncio.create_task(world._ask("POST", "/v1/x", {"json": {"model": "chat"}}))
        await asyncio.wait_for(here.wait(), 20)
        second = await world._ask("POST", "/v1/x", {"json": {"model": "chat"}})
        assert (second.status_code, second.headers["retry-after"]) == (503, "1")
        go_on.set()
        assert (await world._ask("POST", "/v1/x", {"json": {"model": "draw"}})).is_success
        assert (await first).is_success
        assert (await world._ask("POST", "/v1/x", {"json": {"model": "chat"}})).is_success

    asyncio.run(main())


def events(*documents, kind="", space=" "):
    return [f"{kind}data:{space}{json.dumps(d)}".encode() for d in documents]


@pytest.mark.parametrize(
    "said",
    [
        events({"choices": [1]}, {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7}},
               space=""),
        events({"type": "response.output_text.delta", "delta": "a"},
               {"type": "response.completed",
                "response": {"usage": {"input_tokens": 5, "output_tokens": 7}}}, kind="event: x\n"),
        events({"type": "message_start", "message": {"usage": {"input_tokens": 5, "output_tokens": 1}}},
               {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 7}},
               kind="event: y\nid: 3\n"),
    ],
    ids=["no space", "responses", "messages"],
)  # fmt: skip
def test_tokens_are_found_in_every_dialect(said):
    usage = Usage()
    for event in said:
        usage.event(event)
    assert usage.tokens == {"input": 5, "output": 7}


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'{"usage": 3}', b'{"usage": {"prompt_tokens": -1}}']
)
def test_what_is_no_usage_counts_nothing(body):
    usage = Usage()
    usage.whole(body)
    usage.event(b"data: " + body)
    usage.left()
    assert usage.tokens == {}


def test_who_leaves_before_the_end_pays_for_what_came():
    async def main():
        left = asyncio.Event()
        seen = []

        async def words():
            for word in ("a", "b", "c"):
                yield (
                    b"data: %s\n\n"
                    % json.dumps({"choices": [{"delta": {"content": word}}]}).encode()
                )
            await asyncio.Event().wait()

        kind = {"content-type": "text/event-stream"}
        world = World(lambda _: httpx.Response(200, content=words(), headers=kind))

        async def receive():
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            seen.append(message.get("body", b""))
            if b'"c"' in seen[-1]:
                left.set()

        body = b'{"model": "chat", "stream": true}'
        await world.raw("/v1/chat/completions", send, receive, body)
        assert world.tokens() == 3

    asyncio.run(main())


def test_a_trace_goes_on_with_what_others_have_noted_in_it():
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from sundog.serving.tracing import Traces

    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    given = {"traceparent": parent, "tracestate": "vendor=1"}
    world = World()
    for traces in (None, Traces(InMemorySpanExporter(), "test")):
        world.calls.traces = traces
        world.ask("POST", "/v1/embeddings", json={}, headers=given)
    plain, ours = (r.headers for r in world.asked)
    assert (plain["traceparent"], plain["tracestate"]) == (parent, "vendor=1")
    assert ours["traceparent"].split("-")[1] == parent.split("-")[1]
    assert ours["traceparent"] != parent
    assert ours["tracestate"] == "vendor=1"
    world.ask("POST", "/v1/embeddings", json={}, headers={"tracestate": "vendor=1"})
    assert "tracestate" not in world.asked[-1].headers, "of no trace"
    traces.close()


@pytest.mark.parametrize(
    "text",
    ['{"a": {"url": "http://x", "key": "sk-1234"}}', '{"a": {"url": "ftp://u:sk-1234@x"}}',
     '{"a": {"url": ["sk-1234"]}}', '{"a": "sk-1234"}', '["sk-1234"]', '"sk-1234"'],
)  # fmt: skip
def test_a_wrong_configuration_is_said_without_its_secrets(text):
    with pytest.raises(SpecError, match="SUNDOG_UPSTREAMS") as caught:
        upstreams_of(text)
    assert "sk-1234" not in str(caught.value) + caught.value.fix
    assert "sk-1234" not in "".join(traceback.format_exception(caught.value))
