"""`/v1` with OpenAI's own client, to an upstream over real sockets: passed, counted, limited, refused."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from contextlib import contextmanager

import httpx
import openai
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from sundog.errors import SpecError
from sundog.security.keys import KeyRing, new_key
from sundog.serving.calls import Call, Calls
from sundog.serving.http_api import GatewayApp
from sundog.serving.http_server import build_server
from sundog.serving.passthrough import Passthrough, _Answer
from sundog.serving.routes import Routes
from sundog.serving.upstreams import Upstream, upstreams_of

WORDS = ["to", " be", " or", " not"]


class Log:
    def __init__(self):
        self.lines = []

    def add(self, entry):
        self.lines.append(entry)


def upstream_app(seen):
    """Speaks as OpenAI-compatible servers do; notes what it was asked and that a stream was ended."""
    app = FastAPI()

    def chunk(**more):
        head = {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "real/name"}
        return f"data: {json.dumps(head | more)}\n\n"

    @app.post("/v1/chat/completions")
    async def chat(request: Request):
        asked = await request.json()
        seen.append((dict(request.headers), asked))
        usage = {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
        if asked["messages"][-1]["content"] == "fail":
            return JSONResponse({"error": {"message": "too long", "type": "bad", "code": 1}}, 400)
        if not asked.get("stream"):
            message = {"role": "assistant", "content": "".join(WORDS)}
            return {
                "id": "c-1", "object": "chat.completion", "created": 1, "model": "real/name",
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": usage,
            }  # fmt: skip

        async def parts():
            try:
                endless = asked["messages"][-1]["content"] == "forever"
                while True:
                    for word in WORDS:
                        delta = {"index": 0, "delta": {"content": word}, "finish_reason": None}
                        yield chunk(choices=[delta])
                        await asyncio.sleep(0.01)
                    if not endless:
                        break
                if asked.get("stream_options", {}).get("include_usage"):
                    yield chunk(choices=[], usage=usage)
                yield "data: [DONE]\n\n"
            finally:
                seen.append("ended")

        return StreamingResponse(parts(), media_type="text/event-stream")

    @app.post("/v1/embeddings")
    async def embeddings(request: Request):
        usage = {"prompt_tokens": 3, "total_tokens": 3}
        row = {"object": "embedding", "index": 0, "embedding": [0.5, 1.0]}
        return {"object": "list", "data": [row], "model": "real/name", "usage": usage}

    return app


@contextmanager
def served(build):
    """`build()` -> an ASGI app, called in the server's own loop; the address it is served at."""
    ready, box = threading.Event(), {}

    def run():
        async def main():
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                listener.listen()
                box["url"] = f"http://127.0.0.1:{listener.getsockname()[1]}"
                box["server"] = build_server(build())
                ready.set()
                await box["server"].serve(sockets=[listener])

        asyncio.run(main())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(20)
    yield box["url"]
    box["server"].should_exit = True
    thread.join(20)


@pytest.fixture(scope="module")
def world():
    """(address, key, what the upstream saw, the access log, metrics)"""
    seen, log, keys, made = [], Log(), KeyRing(), {}
    key, record = new_key("me", 0.0, scopes=["chat", "gone"])
    slow_key, slow = new_key("slow", 0.0, scopes=["*"], rate=0.01, burst=1)

    def gateway():
        keys.update([record.document(), slow.document()])
        calls = made["calls"] = Calls(Routes(None), keys, log=log)
        up = Upstream(url=f"{upstream}/v1", model="real/name", key_env="UPSTREAM_TEST_KEY")
        dead = Upstream(url="http://127.0.0.1:9/v1")
        through = Passthrough(calls, {"chat": up, "gone": dead, "other": up})
        return GatewayApp(calls, FastAPI(), through)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UPSTREAM_TEST_KEY", "upstream-secret")
        with served(lambda: upstream_app(seen)) as upstream, served(gateway) as address:
            yield address, (key, slow_key), seen, log, made["calls"].metrics


@pytest.fixture
def client(world):
    address, (key, _), *_ = world
    with openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0) as made:
        yield made


ASK = [{"role": "user", "content": "hello"}]


def test_a_whole_answer(client, world):
    _, (key, _), seen, log, metrics = world
    raw = client.chat.completions.with_raw_response.create(model="chat", messages=ASK)
    answer = raw.parse()
    assert answer.choices[0].message.content == "to be or not"
    assert answer.usage.completion_tokens == 4
    headers, asked = seen[-1]
    assert asked["model"] == "real/name"
    assert headers["authorization"] == "Bearer upstream-secret"
    assert key not in str(seen[-1])
    line = log.lines[-1]
    assert (line["service"], line["status"], line["key"]) == ("chat", 200, key.split("_")[1])
    assert raw.headers["x-request-id"] == line["id"] == headers["x-request-id"]
    key_id = line["key"]
    text = metrics.text([])
    assert f'sundog_gateway_tokens_total{{service="chat",key="{key_id}",kind="output"}} 4' in text


def inputs(metrics):
    return sum(n for label, n in metrics._tokens.items() if label[2] == "input")


def until(check):
    for _ in range(1000):
        if check():
            return
        threading.Event().wait(0.02)
    raise AssertionError("it did not come about")


@pytest.mark.parametrize("with_usage", [False, True])
def test_a_stream_shows_its_usage_to_who_asks_and_is_counted_anyway(client, world, with_usage):
    metrics = world[4]
    before = inputs(metrics)
    more = {"stream_options": {"include_usage": True}} if with_usage else {}
    chunks = list(client.chat.completions.create(model="chat", messages=ASK, stream=True, **more))
    texts = [c.choices[0].delta.content for c in chunks if c.choices]
    assert texts == WORDS
    assert [c.usage.total_tokens for c in chunks if c.usage] == ([9] if with_usage else [])
    until(lambda: inputs(metrics) == before + 5)


def test_a_client_that_leaves_ends_the_upstreams_stream(client, world):
    seen = world[2]
    del seen[:]
    asked = [{"role": "user", "content": "forever"}]
    with client.chat.completions.create(model="chat", messages=asked, stream=True) as stream:
        assert next(iter(stream)).choices[0].delta.content == "to"
    until(lambda: "ended" in seen)


def test_models_and_embeddings(client):
    assert [m.id for m in client.models.list()] == ["chat", "gone"]
    assert client.models.retrieve("chat").id == "chat"
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        client.models.retrieve("other")
    answer = client.embeddings.create(model="chat", input="x", encoding_format="float")
    assert answer.data[0].embedding == [0.5, 1.0]


def test_refusals_are_errors_of_the_client(client, world):
    address, (_, slow_key), *_ = world
    ask = client.chat.completions.create
    with pytest.raises(openai.NotFoundError, match="no model 'nobody'"):
        ask(model="nobody", messages=ASK)
    with pytest.raises(openai.PermissionDeniedError, match="not for service 'other'"):
        ask(model="other", messages=ASK)
    with pytest.raises(openai.BadRequestError, match="too long"):
        ask(model="chat", messages=[{"role": "user", "content": "fail"}])
    with pytest.raises(openai.InternalServerError, match="does not answer") as caught:
        ask(model="gone", messages=ASK)
    assert caught.value.response.headers["retry-after"]
    wrong = openai.OpenAI(base_url=f"{address}/v1", api_key="sd_wrong", max_retries=0)
    with wrong, pytest.raises(openai.AuthenticationError, match="not known"):
        wrong.chat.completions.create(model="chat", messages=ASK)
    with openai.OpenAI(base_url=f"{address}/v1", api_key=slow_key, max_retries=0) as slow:
        slow.chat.completions.create(model="chat", messages=ASK)
        with pytest.raises(openai.RateLimitError):
            slow.chat.completions.create(model="chat", messages=ASK)


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [("GET", "/v1/chat/completions", b"", 400), ("TRACE", "/v1/files", b"", 405),
     ("POST", "/v1/chat/completions", b"{", 400),
     ("POST", "/v1/chat/completions", b"[]", 400),
     ("POST", "/v1/chat/completions",
      b'{"model": "chat", "messages": [], "stream": true, "stream_options": "x"}', 400),
     ("POST", "/v1/chat/completions",
      b'{"model": "chat", "messages": [], "stream": true, "stream_options": [1]}', 400),
     ("POST", "/v1/chat/completions", b" " * (33 * 2**20), 413)],
)  # fmt: skip
def test_what_is_no_request(world, method, path, content, status):
    headers = {"authorization": f"Bearer {world[1][0]}"}
    answer = httpx.request(
        method, world[0] + path, content=content, headers=headers, trust_env=False
    )
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
@pytest.mark.parametrize("whole", [True, False])
def test_usage_is_found_however_the_stream_is_cut(size, end, whole):
    lines = [b'data: {"choices":[1]}', b'data: {"choices":[],"usage":{"prompt_tokens":5}}']
    raw = (end * 2).join(lines) + (end * 2 if whole else b"")

    async def upstream():
        for at in range(0, len(raw), size):
            yield raw[at : at + size]

    async def main():
        answer = _Answer({}, None, None, Call({}))
        events = answer._events(httpx.Response(200, content=upstream()), hide_usage=True)
        return b"".join([event async for event in events]), answer

    said, answer = asyncio.run(main())
    assert said == lines[0] + b"\n\n"
    assert answer.usage.tokens == {"input": 5}
    assert answer.size == len(said)


@pytest.mark.parametrize(
    "text", ["nonsense", '{"a": {}}', '{"a": {"url": "x"}}', '{"a": {"url": "http://x", "k": 1}}']
)
def test_upstreams_that_are_not_understood_say_how_to_write_them(text):
    with pytest.raises(SpecError, match="SUNDOG_UPSTREAMS") as caught:
        upstreams_of(text)
    assert "http://127.0.0.1:8000/v1" in caught.value.fix


def test_no_upstreams():
    assert upstreams_of(" ") == {}
