"""`/v1/*` to OpenAI-compatible servers behind the gateway, with our keys, limits, log and counts.

The `model` of a request names the service. Bodies pass as they are, streamed ones as they come;
tokens are counted where the upstream says how many there were, never guessed.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from sundog.clock import WALL
from sundog.errors import SpecError
from sundog.serving import sse
from sundog.serving.calls import Call, Calls, request_id_of
from sundog.serving.contract import BadRequest, load_object
from sundog.serving.http_body import Gone, Oversized, Receive, Scope, Send, read_body, send_last
from sundog.serving.lane import NotServed

MAX_BODY = 32 * 2**20
TIMEOUT = httpx.Timeout(600.0, connect=5.0)
CLIENT_GONE = 499
_KEPT = frozenset((b"accept", b"content-type", b"openai-organization", b"openai-project"))
_NOT_PASSED = frozenset(
    ("connection", "content-length", "content-encoding", "keep-alive", "server", "date",
     "transfer-encoding", "x-request-id")
)  # fmt: skip


class Upstream(BaseModel):
    """An OpenAI-compatible server. `url` ends in `/v1`; `key_env` names the variable with its key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    model: str | None = None
    """its own name for the model, where that is not the service's"""
    key_env: str | None = None


def upstreams_of(text: str) -> dict[str, Upstream]:
    """`SUNDOG_UPSTREAMS`: `{"service": {"url": …}}`. Raises SpecError."""
    if not text.strip():
        return {}
    example = 'SUNDOG_UPSTREAMS={"chat": {"url": "http://127.0.0.1:8000/v1"}}'
    try:
        found = {
            name: Upstream.model_validate(each) for name, each in dict(orjson.loads(text)).items()
        }
    except (orjson.JSONDecodeError, ValidationError, TypeError, ValueError) as error:
        raise SpecError(
            f"SUNDOG_UPSTREAMS is not understood: {error}", f"write {example}"
        ) from None
    for name, each in found.items():
        if not each.url.startswith(("http://", "https://")):
            raise SpecError(f"SUNDOG_UPSTREAMS: {name}: {each.url!r} is no URL", f"write {example}")
    return found


class Passthrough:
    """The ASGI app of `/v1`."""

    def __init__(
        self, calls: Calls, upstreams: dict[str, Upstream], client: httpx.AsyncClient | None = None
    ) -> None:
        self._calls = calls
        self.upstreams = upstreams
        self._client = client or httpx.AsyncClient(timeout=TIMEOUT, trust_env=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began_s = WALL.monotonic_s()
        headers = dict(scope["headers"])
        call = Call(headers, request_id_of(headers))
        self._calls.begin(call)
        answer = _Answer(scope, receive, send, call)
        try:
            await self._serve(answer)
        except (BadRequest, NotServed) as error:
            answer.status = error.status
            answer.oversized = isinstance(error, Oversized)
            await answer.refuse(error.message, getattr(error, "retry_after_s", None))
        except Gone:
            return
        except sse.ClientGone:
            answer.status = CLIENT_GONE
        if call.service:
            seconds = WALL.monotonic_s() - began_s
            self._calls.note(call, answer.status, answer.size, seconds)
            for kind, count in answer.tokens.items():
                self._calls.tokens(call, kind, count)

    async def _serve(self, answer: _Answer) -> None:
        scope, call = answer.scope, answer.call
        path = scope["path"]
        if scope["method"] == "GET" and path == "/v1/models":
            self._calls.authorise(scope["headers"], "")
            await answer.send_json(self._models())
            return
        if scope["method"] != "POST":
            raise BadRequest("only POST, and GET of /v1/models, is answered here", 405)
        # Nobody without a key makes us read a body.
        self._calls.authorise(scope["headers"], "")
        document = load_object(await read_body(call.headers, answer.receive, MAX_BODY))
        name, upstream = self._find(document.get("model"))
        call.identity = self._calls.authorise(scope["headers"], name)
        call.service = name
        await self._forward(answer, upstream, path.removeprefix("/v1"), document)

    def _find(self, model: Any) -> tuple[str, Upstream]:
        found = self.upstreams.get(model) if isinstance(model, str) else None
        if found is None:
            names = ", ".join(sorted(self.upstreams))
            raise BadRequest(f"there is no model {str(model)[:100]!r} here; models: {names}", 404)
        return model, found

    def _models(self) -> dict[str, Any]:
        rows = [
            {"id": name, "object": "model", "created": 0, "owned_by": "sundog"}
            for name in sorted(self.upstreams)
        ]
        return {"object": "list", "data": rows}

    async def _forward(
        self, answer: _Answer, upstream: Upstream, path: str, document: dict[str, Any]
    ) -> None:
        if upstream.model is not None:
            document["model"] = upstream.model
        asked = document.get("stream_options")
        if asked is not None and not isinstance(asked, dict):
            raise BadRequest("'stream_options' is not an object")
        hide_usage = False
        if document.get("stream") is True and not (asked or {}).get("include_usage"):
            # Tokens are counted for every request; who did not ask does not see the extra event.
            document["stream_options"] = {**(asked or {}), "include_usage": True}
            hide_usage = True
        headers = [(k, v) for k, v in answer.call.headers.items() if k in _KEPT]
        headers.append((b"x-request-id", answer.call.request_id))
        trace = answer.call.trace
        headers += [(b"traceparent", trace.encode())] if trace else _given_trace(answer.call)
        if upstream.key_env:
            key = os.environ.get(upstream.key_env, "")
            headers.append((b"authorization", b"Bearer " + key.encode()))
        request = self._client.build_request(
            "POST", upstream.url.rstrip("/") + path, content=orjson.dumps(document), headers=headers
        )
        try:
            response = await self._client.send(request, stream=True)
        except httpx.HTTPError as error:
            raise NotServed(
                503, f"the server of {answer.call.service!r} does not answer: "
                f"{type(error).__name__}", 1.0,
            ) from None  # fmt: skip
        try:
            await answer.pass_on(response, hide_usage)
        finally:
            await response.aclose()


class _Answer:
    """One request's way back."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, call: Call) -> None:
        self.scope, self.receive, self.send, self.call = scope, receive, send, call
        self.status = 200
        self.size = 0
        self.oversized = False
        self.tokens: dict[str, int] = {}

    async def pass_on(self, response: httpx.Response, hide_usage: bool) -> None:
        self.status = response.status_code
        headers = [
            (k.encode(), v.encode())
            for k, v in response.headers.items()
            if k.lower() not in _NOT_PASSED
        ]
        start = self._start(headers)
        if response.headers.get("content-type", "").startswith("text/event-stream"):
            await sse.send_body(self.receive, self.send, start, self._events(response, hide_usage))
            return
        try:
            body = await response.aread()
        except httpx.HTTPError as error:
            raise NotServed(
                502, f"the answer of {self.call.service!r} broke off: {error}"
            ) from None
        if response.is_success:
            self._count(body)
        await self._send_whole(body, start)

    async def _events(self, response: httpx.Response, hide_usage: bool) -> AsyncIterator[bytes]:
        """Whole events, as they come."""
        pending = b""
        try:
            async for part in response.aiter_bytes():
                # A line's end may be cut between two parts.
                pending = (pending + part).replace(b"\r\n", b"\n")
                *events, pending = pending.split(b"\n\n")
                out = b"".join(
                    event + b"\n\n" for event in events if not (self._usage(event) and hide_usage)
                )
                if out:
                    self.size += len(out)
                    yield out
            if pending and not (self._usage(pending) and hide_usage):
                self.size += len(pending)
                yield pending
        except httpx.HTTPError as error:
            self.status = 502
            yield sse.event(_error(f"the answer broke off: {error}", 502))

    def _usage(self, event: bytes) -> bool:
        """Counts what an event says of tokens; whether it says nothing else."""
        if b'"usage"' not in event or not event.startswith(b"data: {"):
            return False
        document = self._count(event[6:])
        return document is not None and bool(document.get("usage")) and not document.get("choices")

    def _count(self, body: bytes) -> dict[str, Any] | None:
        try:
            document = orjson.loads(body)
        except orjson.JSONDecodeError:
            return None
        usage = document.get("usage") if isinstance(document, dict) else None
        if isinstance(usage, dict):
            for kind, *names in _TOKENS:
                count = next((usage[n] for n in names if type(usage.get(n)) is int), None)
                if count is not None:
                    self.tokens[kind] = count
        return document if isinstance(document, dict) else None

    async def send_json(self, document: dict[str, Any]) -> None:
        await self._send_whole(
            orjson.dumps(document), self._start([(b"content-type", b"application/json")])
        )

    async def refuse(self, message: str, retry_after_s: float | None) -> None:
        headers = [(b"content-type", b"application/json")]
        if retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % max(1, round(retry_after_s))))
        if self.oversized:
            headers.append((b"connection", b"close"))
        await self._send_whole(_error(message, self.status), self._start(headers))

    def _start(self, headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
        return {
            "type": "http.response.start",
            "status": self.status,
            "headers": [*headers, (b"x-request-id", self.call.request_id)],
        }

    async def _send_whole(self, body: bytes, start: dict[str, Any]) -> None:
        start["headers"].append((b"content-length", b"%d" % len(body)))
        self.size = len(body)
        await self.send(start)
        if self.oversized:
            await send_last(self.send, self.receive, body)
        else:
            await self.send({"type": "http.response.body", "body": body})


# what we count -> the names that chat completions and responses give it
_TOKENS = (
    ("input", "prompt_tokens", "input_tokens"),
    ("output", "completion_tokens", "output_tokens"),
)
_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def _given_trace(call: Call) -> list[tuple[bytes, bytes]]:
    names = (b"traceparent", b"tracestate")
    return [(name, call.headers[name]) for name in names if name in call.headers]


def _error(message: str, status: int) -> bytes:
    """An error as OpenAI's clients read it."""
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return orjson.dumps(
        {"error": {"message": message, "type": kind, "param": None, "code": status}}
    )
