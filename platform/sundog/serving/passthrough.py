"""`/v1/*` to OpenAI-compatible servers behind the gateway, with our keys, limits, log and counts.

The `model` of a request names the service. JSON is read and written anew, so that what is asked of a
server is what was checked; answers pass as they come. Tokens are counted where the server says how many
there were; who leaves before pays for the parts that came.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import AsyncIterator, MutableMapping
from typing import Any
from urllib.parse import parse_qsl, urlencode

import httpx
import orjson

from sundog.clock import WALL
from sundog.security.authoriser import Identity
from sundog.serving import compression, sse
from sundog.serving.calls import Call, Calls, request_id_of
from sundog.serving.contract import BadRequest, load_object
from sundog.serving.http_body import (
    CLIENT_GONE,
    Gone,
    Oversized,
    Receive,
    Scope,
    Send,
    read_body,
    send_last,
)
from sundog.serving.lane import NotServed
from sundog.serving.upstreams import Upstream
from sundog.serving.usage import Usage

MAX_BODY = 32 * 2**20
MAX_UNDER_WAY = 256
"""Requests with one upstream at a time; one more is refused at once instead of waiting unseen."""
TIMEOUT = httpx.Timeout(600.0, connect=5.0, pool=5.0)
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
# Nothing that means another path, or a query, to a server behind: no dots alone, no escapes.
_PATH = re.compile(r"/v1(?:/(?!\.+(?:/|$))[A-Za-z0-9_.:-]+)+/?")
_KEPT = frozenset((b"accept", b"content-type", b"openai-organization", b"openai-project"))
_NOT_PASSED = frozenset(
    ("connection", "content-length", "content-encoding", "keep-alive", "server", "date",
     "transfer-encoding", "x-request-id")
)  # fmt: skip

log = logging.getLogger("sundog.gateway")


class MethodNotAllowed(BadRequest):
    def __init__(self, *allowed: str) -> None:
        self.allowed = ", ".join(allowed)
        super().__init__(f"only {self.allowed} is answered here", 405)


class Passthrough:
    """The ASGI app of `/v1`."""

    def __init__(
        self, calls: Calls, upstreams: dict[str, Upstream], client: httpx.AsyncClient | None = None
    ) -> None:
        self._calls = calls
        self.upstreams = upstreams
        self._under_way = dict.fromkeys(upstreams, 0)
        # How many there may be is counted here: httpx would let the next ones wait.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=MAX_UNDER_WAY)
        self._client = client or httpx.AsyncClient(timeout=TIMEOUT, limits=limits, trust_env=False)

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
            # One that has begun is cut off, which its client sees.
            if not answer.started:
                await answer.refuse(error)
        except (Gone, sse.ClientGone):
            answer.status = CLIENT_GONE
            answer.usage.left()
        except Exception:
            request_id = call.request_id.decode()
            log.exception("request %s failed", request_id)
            answer.status = 500
            if not answer.started:
                await answer.refuse(
                    NotServed(500, f"the gateway failed; its log says why, at request {request_id}")
                )
        self._calls.note(call, answer.status, answer.size, WALL.monotonic_s() - began_s)
        if call.service:
            for kind, count in answer.usage.tokens.items():
                self._calls.tokens(call, kind, count)

    async def _serve(self, answer: _Answer) -> None:
        scope, call = answer.scope, answer.call
        method, path = scope["method"], scope["path"]
        if not _PATH.fullmatch(path):
            raise BadRequest("a path below /v1 has letters, digits and _ . : - between its slashes")
        # Nobody without a key makes us read a body.
        seen_by = self._calls.look(scope["headers"])
        if path == "/v1/models" or path.startswith("/v1/models/"):
            if method not in ("GET", "HEAD"):
                raise MethodNotAllowed("GET")
            await answer.send_json(self._models(path[len("/v1/models/") :], seen_by))
            return
        if method not in _METHODS:
            raise MethodNotAllowed(*_METHODS)
        query = parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        document = await self._document(answer)
        asked = (document or {}).get("model") or dict(query).get("model")
        name, upstream = self._find(asked, seen_by)
        call.service = name
        self._calls.authorise(call, scope["headers"], name)
        rest = urlencode([pair for pair in query if pair[0] != "model"])
        url = upstream.url.rstrip("/") + path.removeprefix("/v1") + (f"?{rest}" if rest else "")
        if self._under_way[name] >= MAX_UNDER_WAY:
            raise NotServed(
                503, f"{MAX_UNDER_WAY} requests are with the server of {name!r} already", 1.0
            )
        self._under_way[name] += 1
        try:
            await self._forward(answer, upstream, url, document)
        finally:
            self._under_way[name] -= 1

    async def _document(self, answer: _Answer) -> dict[str, Any] | None:
        """What the body says; None without one."""
        headers = answer.call.headers
        if headers.get(b"content-type", b"").startswith(b"multipart/"):
            raise BadRequest(
                "files do not pass through the gateway, only JSON does: send them to their server",
                415,
            )
        body = await read_body(headers, answer.receive, MAX_BODY)
        encoding = headers.get(b"content-encoding")
        if encoding is not None:
            body = await compression.unpacked(body, encoding, MAX_BODY)
        return load_object(body) if body else None

    def _find(self, model: Any, seen_by: Identity) -> tuple[str, Upstream]:
        if model is None and len(self.upstreams) == 1:
            [model] = self.upstreams
        found = self.upstreams.get(model) if isinstance(model, str) else None
        if found is None:
            names = ", ".join(sorted(filter(seen_by.may, self.upstreams)))
            if model is None:
                raise BadRequest(f"name the model, in the body or as ?model=; models: {names}")
            raise BadRequest(f"there is no model {str(model)[:100]!r} here; models: {names}", 404)
        return model, found

    def _models(self, name: str, seen_by: Identity) -> dict[str, Any]:
        """All that they may see, or the one of that name."""
        rows = {
            each: {"id": each, "object": "model", "created": 0, "owned_by": "sundog"}
            for each in sorted(filter(seen_by.may, self.upstreams))
        }
        if not name:
            return {"object": "list", "data": list(rows.values())}
        if name not in rows:
            raise BadRequest(
                f"there is no model {name[:100]!r} here; models: {', '.join(rows)}", 404
            )
        return rows[name]

    async def _forward(
        self, answer: _Answer, upstream: Upstream, url: str, document: dict[str, Any] | None
    ) -> None:
        call, method = answer.call, answer.scope["method"]
        hide_usage = False
        content = b""
        if document is not None:
            if "model" in document:
                document["model"] = upstream.model or call.service
            if answer.scope["path"].endswith("/completions"):
                hide_usage = _ask_usage(document)
            content = orjson.dumps(document)
        headers = [(k, v) for k, v in call.headers.items() if k in _KEPT]
        headers += [(b"x-request-id", call.request_id), *_trace_of(call)]
        if upstream.key_env:
            key = os.environ.get(upstream.key_env, "")
            headers.append((b"authorization", b"Bearer " + key.encode()))
        try:
            request = self._client.build_request(method, url, content=content, headers=headers)
            sending = self._client.send(request, stream=True)
            response = await sse.unless_gone(answer.receive, sending)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise NotServed(
                503, f"the server of {call.service!r} does not answer: {type(error).__name__}", 1.0
            ) from None
        try:
            await answer.pass_on(response, hide_usage)
        finally:
            await response.aclose()


def _ask_usage(document: dict[str, Any]) -> bool:
    """Tokens are counted for every stream: whether its caller did not ask how many there were, and
    does not see the event that says it."""
    asked = document.get("stream_options")
    if asked is not None and not isinstance(asked, dict):
        raise BadRequest("'stream_options' is not an object")
    if document.get("stream") is not True or (asked or {}).get("include_usage"):
        return False
    document["stream_options"] = {**(asked or {}), "include_usage": True}
    return True


def _trace_of(call: Call) -> list[tuple[bytes, bytes]]:
    """The trace that goes on in the upstream, with what others have noted in it."""
    if call.trace is None:
        names = (b"traceparent", b"tracestate")
        return [(name, call.headers[name]) for name in names if name in call.headers]
    state = call.span.get_span_context().trace_state.to_header()
    return [(b"traceparent", call.trace.encode())] + (
        [(b"tracestate", state.encode())] if state else []
    )


class _Answer:
    """One request's way back."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, call: Call) -> None:
        self.scope, self.receive, self.call = scope, receive, call
        self._send = send
        self.status = 200
        self.size = 0
        self.started = False
        self.usage = Usage()

    async def send(self, message: MutableMapping[str, Any]) -> None:
        self.started = True
        await self._send(message)

    async def pass_on(self, response: httpx.Response, hide_usage: bool) -> None:
        self.status = response.status_code
        headers = [
            (k.encode(), v.encode())
            for k, v in response.headers.items()
            if k.lower() not in _NOT_PASSED
        ]
        start = self._start(headers)
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "text/event-stream":
            await sse.send_body(self.receive, self.send, start, self._events(response, hide_usage))
        elif kind == "application/json":
            try:
                body = await sse.unless_gone(self.receive, response.aread())
            except httpx.HTTPError as error:
                raise self._broken(error) from None
            if response.is_success:
                self.usage.whole(body)
            await self._send_whole(body, start)
        else:
            await sse.send_body(self.receive, self.send, start, self._parts(response))

    def _broken(self, error: httpx.HTTPError) -> NotServed:
        return NotServed(502, f"the answer of {self.call.service!r} broke off: {error}")

    async def _parts(self, response: httpx.Response) -> AsyncIterator[bytes]:
        try:
            async for part in response.aiter_bytes():
                self.size += len(part)
                yield part
        except httpx.HTTPError as error:
            raise self._broken(error) from None

    async def _events(self, response: httpx.Response, hide_usage: bool) -> AsyncIterator[bytes]:
        """Whole events, as they come."""
        pending = b""
        try:
            async for part in response.aiter_bytes():
                # A line's end may be cut between two parts.
                pending = (pending + part).replace(b"\r\n", b"\n")
                *events, pending = pending.split(b"\n\n")
                out = b"".join(
                    event + b"\n\n"
                    for event in events
                    if not (self.usage.event(event) and hide_usage)
                )
                if out:
                    self.size += len(out)
                    yield out
            if pending and not (self.usage.event(pending) and hide_usage):
                self.size += len(pending)
                yield pending
        except httpx.HTTPError as error:
            self.status = 502
            yield sse.event(_error(f"the answer broke off: {error}", 502))

    async def send_json(self, document: dict[str, Any]) -> None:
        await self._send_whole(
            orjson.dumps(document), self._start([(b"content-type", b"application/json")])
        )

    async def refuse(self, error: BadRequest | NotServed) -> None:
        headers = [(b"content-type", b"application/json")]
        retry_after_s = getattr(error, "retry_after_s", None)
        if retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % max(1, round(retry_after_s))))
        if isinstance(error, MethodNotAllowed):
            headers.append((b"allow", error.allowed.encode()))
        oversized = isinstance(error, Oversized)
        if oversized:
            headers.append((b"connection", b"close"))
        body = _error(error.message, self.status)
        await self._send_whole(body, self._start(headers), oversized)

    def _start(self, headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
        return {
            "type": "http.response.start",
            "status": self.status,
            "headers": [*headers, (b"x-request-id", self.call.request_id)],
        }

    async def _send_whole(
        self, body: bytes, start: dict[str, Any], oversized: bool = False
    ) -> None:
        start["headers"].append((b"content-length", b"%d" % len(body)))
        self.size = len(body)
        await self.send(start)
        if oversized:
            await send_last(self.send, self.receive, body)
        else:
            await self.send({"type": "http.response.body", "body": body})


_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def _error(message: str, status: int) -> bytes:
    """An error as OpenAI's clients read it."""
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return orjson.dumps(
        {"error": {"message": message, "type": kind, "param": None, "code": status}}
    )
