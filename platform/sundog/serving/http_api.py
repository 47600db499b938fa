"""The Open Inference Protocol over HTTP: raw ASGI, since every microsecond here is paid per request.

Parses no bytes of HTTP (the server does) and knows no replica (routes do); pages and metrics are
handed to another ASGI app.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import orjson

from sundog.clock import WALL
from sundog.serving import compression, describe, sse
from sundog.serving.calls import Call, Calls, may_wait, request_id_of
from sundog.serving.contract import BadRequest, Parsed, load_json
from sundog.serving.generate import parts_of
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
from sundog.serving.lane import NotServed, Outputs
from sundog.serving.routes import VersionRoute
from sundog.serving.tensors import BadTensor

ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_PACK_INLINE = 256 * 1024
_JSON = (b"content-type", b"application/json")
_MODEL = re.compile(
    r"/v2/models/([^/]+)(?:/versions/([^/]+))?"
    r"(?:/(infer|generate|generate_stream|ready|stats|config))?"
)
_REPOSITORY = re.compile(r"/v2/repository/(index|models/[^/]+/(?:load|unload))")
_OCTETS = (b"content-type", b"application/octet-stream")

log = logging.getLogger("sundog.gateway")


class MethodNotAllowed(BadRequest):
    def __init__(self, allowed: str) -> None:
        super().__init__(f"only {allowed} is answered here", 405)
        self.allowed = allowed


@dataclass(slots=True, kw_only=True)
class Exchange(Call):
    """A request over HTTP, and what its answer needs besides the body."""

    scope: Scope
    receive: Receive
    send: Send
    extra: list[tuple[bytes, bytes]] = field(default_factory=list)
    content_type: tuple[bytes, bytes] = _JSON


class Streamed:
    """An answer in parts that has been sent: what the log is told."""

    def __init__(self) -> None:
        self.status = 200
        self.size = 0

    async def events(
        self, parts: AsyncGenerator[Outputs], write: Callable[[Outputs], bytes]
    ) -> AsyncIterator[bytes]:
        """An event for each part; a failure after the first becomes the last event."""
        try:
            async with contextlib.aclosing(parts):
                async for part in parts:
                    data = sse.event(write(part))
                    self.size += len(data)
                    yield data
        except (NotServed, BadTensor) as error:
            if not self.size and isinstance(error, NotServed):
                raise
            self.status = getattr(error, "status", 500)
            yield sse.error_event(str(error))
        except Exception:
            if not self.size:
                raise
            log.exception("an answer in parts broke off")
            self.status = 500
            yield sse.error_event("the gateway failed in the middle of this answer")


class GatewayApp:
    """The ASGI app of a gateway."""

    def __init__(self, calls: Calls, pages: ASGIApp, openai: ASGIApp | None = None) -> None:
        """`openai` answers what is under `/v1/`; without it there is nothing."""
        self.calls = calls
        self.openai = openai
        self.routes = calls.routes
        self.pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.pages(scope, receive, send)
            return
        path: str = scope["path"]
        if self.openai is not None and path.startswith("/v1/"):
            await self.openai(scope, receive, send)
            return
        if not path.startswith(("/v2/", "/predict/")) and path != "/v2":
            await self._page(scope, receive, send)
            return
        began_s = WALL.monotonic_s()
        headers = dict(scope["headers"])
        request_id = request_id_of(headers)
        exchange = Exchange(
            headers=headers, request_id=request_id, scope=scope, receive=receive, send=send
        )
        self.calls.begin(exchange)
        oversized = False
        try:
            status, answer = 200, await self._answer(exchange, path)
            if isinstance(answer, Streamed):
                self._note(exchange, answer.status, answer.size, began_s)
                return
            body = answer
        except BadRequest as error:
            status, body = error.status, _error(error.message)
            oversized = isinstance(error, Oversized)
            if isinstance(error, MethodNotAllowed):
                exchange.extra.append((b"allow", error.allowed.encode()))
        except NotServed as error:
            status, body = error.status, _error(error.message)
            exchange.extra += _retry(error.retry_after_s)
        except (Gone, sse.ClientGone):
            self._note(exchange, CLIENT_GONE, 0, began_s)
            return
        except Exception:  # noqa: BLE001 - logged
            status, body = 500, _failed(request_id)
        if status != 200:
            exchange.content_type = _JSON
        encoding = compression.choose(exchange.headers.get(b"accept-encoding", b""), len(body))
        if encoding is not None:
            body = await _packed(body, encoding)
            exchange.extra.append((b"content-encoding", encoding))
        answer_headers = [
            exchange.content_type,
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", request_id),
            *exchange.extra,
        ]
        if self.calls.closing or oversized:
            answer_headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": answer_headers})
        if oversized:
            await send_last(send, receive, body)
        else:
            await send({"type": "http.response.body", "body": body})
        self._note(exchange, status, len(body), began_s)

    def _note(self, exchange: Exchange, status: int, size: int, began_s: float) -> None:
        self.calls.note(exchange, status, size, WALL.monotonic_s() - began_s)

    async def _page(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The pages know of no request ids."""
        request_id = request_id_of(dict(scope["headers"]))
        started = False

        async def send_named(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
            await send(message)

        try:
            await self.pages(scope, receive, send_named)
        except Exception:  # noqa: BLE001 - logged
            body = _failed(request_id)
            if started:
                return
            headers = [_JSON, (b"content-length", b"%d" % len(body))]
            await send_named({"type": "http.response.start", "status": 500, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    async def _answer(self, exchange: Exchange, path: str) -> bytes | Streamed:
        scope = exchange.scope
        if path.startswith("/predict/"):
            return await self._predict(exchange, unquote(path[9:]))
        match = _MODEL.fullmatch(path)
        if match is None or path == "/v2/models/stats":
            return await self._server(exchange, path)
        name, version, verb = match.groups()
        if "%" in path:
            name, version = unquote(name), unquote(version) if version else version
        if verb == "infer":
            return await self._infer(exchange, name, version)
        if verb == "generate_stream":
            return await self._generate_stream(exchange, name, version)
        if verb == "generate":
            return await self._generate(exchange, name, version)
        _only(scope, "GET")
        seen_by = self.calls.look(scope["headers"], name)
        route, chosen = self.routes.find_version(name, version)
        if verb == "ready":
            if not route.is_ready(chosen):
                raise NotServed(503, route.document["message"] or f"{name!r} is not ready", 1.0)
            return orjson.dumps({"name": name, "ready": True})
        if verb == "stats":
            return orjson.dumps(describe.statistics(self.routes, seen_by, name, version))
        if chosen is None:
            chosen = await self.calls.hold(name)
        if verb == "config":
            return orjson.dumps(describe.config(name, chosen))
        return orjson.dumps(describe.metadata(route, chosen))

    # -- inference

    async def _infer(self, exchange: Exchange, name: str, version: str | None) -> bytes:
        body, chosen = await self._request(exchange, name, version)
        size = exchange.headers.get(b"inference-header-content-length")
        if size is not None and not (size.isdigit() and len(size) < 20):
            raise BadRequest("inference-header-content-length is not a number")
        parsed = chosen.contract.read(body, int(size) if size is not None else None)
        outputs = await self.calls.ask(exchange, chosen, parsed)
        try:
            answer, json_size = chosen.contract.write(parsed, outputs)
        except BadTensor as error:
            raise BadRequest(str(error)) from None
        if json_size is not None:
            exchange.content_type = _OCTETS
            exchange.extra.append((b"inference-header-content-length", b"%d" % json_size))
        return answer

    async def _predict(self, exchange: Exchange, name: str) -> bytes | Streamed:
        """Plain JSON with field names, for people with curl; events where the answer has parts."""
        body, chosen = await self._request(exchange, name, None)
        parsed, single = chosen.contract.parse_rows(load_json(body))
        accept = exchange.headers.get(b"accept", b"*/*")
        if b"text/event-stream" in accept or (chosen.lane.streams and b"*/*" in accept):
            return await self._events(
                exchange, chosen, parsed, lambda part: chosen.contract.write_rows(single, part)
            )
        outputs = await self.calls.ask(exchange, chosen, parsed)
        try:
            return chosen.contract.write_rows(single, outputs)
        except BadTensor as error:
            raise BadRequest(str(error)) from None

    async def _generate_stream(
        self, exchange: Exchange, name: str, version: str | None
    ) -> Streamed:
        """The protocol's generate extension: an event for each part of the answer."""
        body, chosen = await self._request(exchange, name, version)
        asked = chosen.contract.parse_generate(load_json(body))
        return await self._events(
            exchange, chosen, asked[0], lambda part: chosen.contract.write_generate(*asked, part)
        )

    async def _generate(self, exchange: Exchange, name: str, version: str | None) -> bytes:
        body, chosen = await self._request(exchange, name, version)
        contract = chosen.contract
        parsed, single = contract.parse_generate(load_json(body))
        parsed.trace = exchange.trace
        work = _all(parts_of(chosen.lane, parsed, may_wait(exchange)))
        parts = await sse.unless_gone(exchange.receive, work)
        if len(parts) != 1:
            raise BadRequest(f"the answer has {len(parts)} parts; ask /generate_stream for them")
        try:
            return contract.write_generate(parsed, single, parts[0])
        except BadTensor as error:
            raise BadRequest(str(error)) from None

    async def _events(
        self,
        exchange: Exchange,
        chosen: VersionRoute,
        parsed: Parsed,
        write: Callable[[Outputs], bytes],
    ) -> Streamed:
        """Send the parts as server-sent events. Raises NotServed while nothing has been sent."""
        streamed = Streamed()
        start = {
            "type": "http.response.start",
            "status": 200,
            "headers": [*sse.HEADERS, (b"x-request-id", exchange.request_id)],
        }
        parsed.trace = exchange.trace
        body = streamed.events(parts_of(chosen.lane, parsed, may_wait(exchange)), write)
        try:
            await sse.send_body(exchange.receive, exchange.send, start, body)
        except sse.ClientGone:
            streamed.status = CLIENT_GONE
        return streamed

    async def _request(
        self, exchange: Exchange, name: str, version: str | None
    ) -> tuple[bytes, VersionRoute]:
        """Who may, the whole body in clear, and the version that answers it."""
        if exchange.scope["method"] != "POST":
            if name in self.routes.services:
                exchange.service = name
            raise MethodNotAllowed("POST")
        self.calls.authorise(exchange, exchange.scope["headers"], name)
        route = self.routes.find(name)
        if version is not None:
            self.routes.find_version(name, version)
        body = await read_body(exchange.headers, exchange.receive, route.max_body)
        encoding = exchange.headers.get(b"content-encoding")
        if encoding is not None:
            body = await compression.unpacked(body, encoding, route.max_body)
        # Routes may have moved while the body came; from here to the queue nothing waits.
        return body, await self.calls.choose(exchange, name, version)

    # -- everything else

    async def _server(self, exchange: Exchange, path: str) -> bytes:
        scope = exchange.scope
        if path == "/v2/health/live":
            _only(scope, "GET")
            return b'{"live":true}'
        if path == "/v2/health/ready":
            _only(scope, "GET")
            if not self.calls.ready:
                raise NotServed(503, "the gateway has no routes yet", 1.0)
            return b'{"ready":true}'
        if path in ("/v2", "/v2/"):
            _only(scope, "GET")
            return orjson.dumps(describe.server())
        seen_by = self.calls.look(scope["headers"])
        if path == "/v2/models/stats":
            _only(scope, "GET")
            return orjson.dumps(describe.statistics(self.routes, seen_by))
        match = _REPOSITORY.fullmatch(path)
        if match is not None:
            if scope["method"] != "POST":
                raise MethodNotAllowed("POST")
            if match[1] != "index":
                raise BadRequest("services come and go with `serve deploy` or `sundog deploy`")
            body = await read_body(exchange.headers, exchange.receive, 65536)
            return orjson.dumps(describe.index(self.routes, seen_by, _only_ready(body)))
        raise BadRequest(f"there is nothing at {path[:200]!r}", 404)


def _only_ready(body: bytes) -> bool:
    document = load_json(body) if body else {}
    return isinstance(document, dict) and document.get("ready") is True


def _only(scope: Scope, method: str) -> None:
    if scope["method"] != method and not (method == "GET" and scope["method"] == "HEAD"):
        raise MethodNotAllowed(method)


def _retry(after_s: float | None) -> list[tuple[bytes, bytes]]:
    return [(b"retry-after", b"%d" % max(1, round(after_s)))] if after_s is not None else []


def _error(message: str) -> bytes:
    return orjson.dumps({"error": message})


def _failed(request_id: bytes) -> bytes:
    """What nobody expected, while it is handled: logged, and what the caller is told of it."""
    log.exception("request %s failed", request_id.decode())
    return _error(f"the gateway failed; its log says why, at request {request_id.decode()}")


async def _all(parts: AsyncGenerator[Outputs]) -> list[Outputs]:
    async with contextlib.aclosing(parts):
        return [part async for part in parts]


async def _packed(body: bytes, encoding: bytes) -> bytes:
    if len(body) < _PACK_INLINE:
        return compression.pack(body, encoding)
    return await asyncio.to_thread(compression.pack, body, encoding)
