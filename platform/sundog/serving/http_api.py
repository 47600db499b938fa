"""The Open Inference Protocol over HTTP: raw ASGI, since every microsecond here is paid per request.

Parses no bytes of HTTP (the server does) and knows no replica (routes do); pages and metrics are
handed to another ASGI app.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import orjson

from sundog import __version__
from sundog.clock import WALL
from sundog.security.authoriser import ANONYMOUS, Authoriser, Identity, Refusal
from sundog.serving import compression, sse
from sundog.serving.access_log import AccessLog
from sundog.serving.contract import BadRequest, Parsed
from sundog.serving.generate import parts_of
from sundog.serving.lane import HOLD_S, NotServed, Outputs
from sundog.serving.routes import Routes, VersionRoute
from sundog.serving.stats import Metrics
from sundog.serving.tensors import BadTensor

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

BODY_TIMEOUT_S = 30.0
CLIENT_GONE = 499
"""What the log says of a client that left before its answer was whole."""
_PACK_INLINE = 256 * 1024
_JSON = (b"content-type", b"application/json")
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_MODEL = re.compile(
    r"/v2/models/([^/]+)(?:/versions/([^/]+))?"
    r"(?:/(infer|generate|generate_stream|ready|stats|config))?"
)
_REPOSITORY = re.compile(r"/v2/repository/(index|models/[^/]+/(?:load|unload))")
_OCTETS = (b"content-type", b"application/octet-stream")
EXTENSIONS = [
    "binary_tensor_data", "generate", "model_configuration", "model_repository", "parameters", "statistics",
]  # fmt: skip


class Gone(Exception):
    """The client went away before its request was whole."""


class MethodNotAllowed(BadRequest):
    def __init__(self, allowed: str) -> None:
        super().__init__(f"only {allowed} is answered here", 405)
        self.allowed = allowed


@dataclass(slots=True)
class Exchange:
    """One request on its way: what the log and the metrics are told at its end."""

    scope: Scope
    receive: Receive
    headers: dict[bytes, bytes]
    service: str = ""
    version: str = ""
    identity: Identity = ANONYMOUS
    extra: list[tuple[bytes, bytes]] = field(default_factory=list)
    content_type: tuple[bytes, bytes] = _JSON
    request_id: bytes = b""
    send: Send | None = None


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


class GatewayApp:
    """The ASGI app of a gateway."""

    def __init__(
        self,
        routes: Routes,
        authoriser: Authoriser,
        pages: ASGIApp,
        metrics: Metrics | None = None,
        log: AccessLog | None = None,
    ) -> None:
        self.routes = routes
        self.authoriser = authoriser
        self.pages = pages
        self.metrics = metrics or Metrics()
        self.log = log or AccessLog(None)
        self.in_flight = 0
        self.closing = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.pages(scope, receive, send)
            return
        path: str = scope["path"]
        if not path.startswith(("/v2/", "/predict/")) and path != "/v2":
            await self._page(scope, receive, send)
            return
        began_s = WALL.monotonic_s()
        exchange = Exchange(scope, receive, dict(scope["headers"]), send=send)
        request_id = exchange.request_id = _request_id(exchange.headers)
        self.in_flight += 1
        try:
            status, answer = 200, await self._answer(exchange, path)
            if isinstance(answer, Streamed):
                seconds = WALL.monotonic_s() - began_s
                self._note(exchange, answer.status, request_id, answer.size, seconds)
                return
            body = answer
        except BadRequest as error:
            status, body = error.status, _error(error.message)
            if isinstance(error, MethodNotAllowed):
                exchange.extra.append((b"allow", error.allowed.encode()))
        except NotServed as error:
            status, body = error.status, _error(error.message)
            exchange.extra += _retry(error.retry_after_s)
        except Gone:
            return
        finally:
            self.in_flight -= 1
        if status != 200:
            exchange.content_type = _JSON
        encoding = compression.choose(exchange.headers.get(b"accept-encoding", b""), len(body))
        if encoding is not None:
            body = await _packed(body, encoding)
            exchange.extra.append((b"content-encoding", encoding))
        headers = [
            exchange.content_type,
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", request_id),
            *exchange.extra,
        ]
        if self.closing or status == 413:
            # The rest of an oversized body is not worth reading; a draining gateway lets go.
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        if exchange.service:
            self._note(exchange, status, request_id, len(body), WALL.monotonic_s() - began_s)

    def _note(
        self, exchange: Exchange, status: int, request_id: bytes, size: int, seconds: float
    ) -> None:
        key = exchange.identity.key_id
        self.metrics.count(exchange.service, exchange.version, key, status, seconds)
        self.log.add(
            {
                "at": WALL.now_s(), "id": request_id.decode(), "service": exchange.service,
                "version": exchange.version, "key": key, "status": status, "bytes": size,
                "ms": round(seconds * 1000, 3),
            }
        )  # fmt: skip

    async def _page(self, scope: Scope, receive: Receive, send: Send) -> None:
        verdict = self.authoriser.authorise(scope["headers"], "")
        if isinstance(verdict, Refusal) and scope["path"].startswith(_GUARDED):
            body = _error(verdict.message)
            headers = [_JSON, (b"content-length", b"%d" % len(body))]
            await send(
                {"type": "http.response.start", "status": verdict.status, "headers": headers}
            )
            await send({"type": "http.response.body", "body": body})
            return
        await self.pages(scope, receive, send)

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
        self._authorise(exchange, name, counted=False)
        route, chosen = self.routes.find_version(name, version)
        if verb == "ready":
            if chosen is None or not chosen.ready:
                raise NotServed(503, route.document["message"] or f"{name!r} is not ready", 1.0)
            return orjson.dumps({"name": name, "ready": True})
        if verb == "stats":
            chosen_only = [version] if version else sorted(route.versions)
            return orjson.dumps(
                {"model_stats": [_stats(name, route.versions[v]) for v in chosen_only]}
            )
        if chosen is None:
            chosen = await self._hold(name)
        if verb == "config":
            return orjson.dumps(_config(name, chosen))
        platform = "pytorch_export" if chosen.kind == "torch-export" else chosen.kind
        return orjson.dumps(chosen.contract.describe(sorted(route.versions), platform))

    # -- inference

    async def _infer(self, exchange: Exchange, name: str, version: str | None) -> bytes:
        body, chosen = await self._request(exchange, name, version)
        size = exchange.headers.get(b"inference-header-content-length")
        if size is not None and not size.isdigit():
            raise BadRequest("inference-header-content-length is not a number")
        parsed = chosen.contract.read(body, int(size) if size is not None else None)
        outputs = await chosen.lane.call(parsed)
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
        parsed, single = chosen.contract.parse_rows(_load(body))
        accept = exchange.headers.get(b"accept", b"*/*")
        if b"text/event-stream" in accept or (chosen.lane.streams and b"*/*" in accept):
            return await self._events(
                exchange, chosen, parsed, lambda part: chosen.contract.write_rows(single, part)
            )
        outputs = await chosen.lane.call(parsed)
        try:
            return chosen.contract.write_rows(single, outputs)
        except BadTensor as error:
            raise BadRequest(str(error)) from None

    async def _generate_stream(
        self, exchange: Exchange, name: str, version: str | None
    ) -> Streamed:
        """The protocol's generate extension: an event for each part of the answer."""
        body, chosen = await self._request(exchange, name, version)
        asked = chosen.contract.parse_generate(_load(body))
        return await self._events(
            exchange, chosen, asked[0], lambda part: chosen.contract.write_generate(*asked, part)
        )

    async def _generate(self, exchange: Exchange, name: str, version: str | None) -> bytes:
        body, chosen = await self._request(exchange, name, version)
        contract = chosen.contract
        parsed, single = contract.parse_generate(_load(body))
        parts = [part async for part in parts_of(chosen.lane, parsed)]
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
        assert exchange.send is not None
        body = streamed.events(parts_of(chosen.lane, parsed), write)
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
            raise MethodNotAllowed("POST")
        self._authorise(exchange, name)
        route = self.routes.find(name)
        if version is not None:
            self.routes.find_version(name, version)
        exchange.service = name
        body = await read_body(exchange, route.max_body)
        encoding = exchange.headers.get(b"content-encoding")
        if encoding is not None:
            body = compression.unpack(body, encoding, route.max_body)
        # Routes may have moved while the body came; from here to the queue nothing waits.
        _, chosen = self.routes.find_version(name, version)
        if chosen is None:
            chosen = await self._hold(name)
        exchange.version = chosen.version
        return body, chosen

    def _authorise(self, exchange: Exchange, service: str, counted: bool = True) -> None:
        verdict = self.authoriser.authorise(exchange.scope["headers"], service if counted else "")
        if isinstance(verdict, Refusal):
            raise NotServed(verdict.status, verdict.message, verdict.retry_after_s)
        exchange.identity = verdict

    async def _hold(self, name: str) -> VersionRoute:
        """A service without any version yet: its first one may be starting."""
        for _ in range(int(HOLD_S / 0.05)):
            await asyncio.sleep(0.05)
            route = self.routes.find(name)
            chosen = route.choose()
            if chosen is not None:
                return chosen
            if route.document["state"] == "failed":
                break
        message = route.document.get("message") or f"service {route.name!r} is starting"
        raise NotServed(503, message, 2.0)

    # -- everything else

    async def _server(self, exchange: Exchange, path: str) -> bytes:
        scope = exchange.scope
        if path == "/v2/health/live":
            _only(scope, "GET")
            return b'{"live":true}'
        if path == "/v2/health/ready":
            _only(scope, "GET")
            if not self.routes.loaded.is_set() or self.closing:
                raise NotServed(503, "the gateway has no routes yet", 1.0)
            return b'{"ready":true}'
        if path in ("/v2", "/v2/"):
            _only(scope, "GET")
            return orjson.dumps(
                {"name": "sundog", "version": __version__, "extensions": EXTENSIONS}
            )
        self._authorise(exchange, "", counted=False)
        if path == "/v2/models/stats":
            _only(scope, "GET")
            return orjson.dumps({"model_stats": [_stats(n, v) for n, _, v in self._served()]})
        match = _REPOSITORY.fullmatch(path)
        if match is not None:
            if scope["method"] != "POST":
                raise MethodNotAllowed("POST")
            if match[1] != "index":
                raise BadRequest("services come and go with `serve deploy` or `sundog deploy`")
            body = await read_body(exchange, 65536)
            return orjson.dumps(self._index(_only_ready(body)))
        raise BadRequest(f"there is nothing at {path[:200]!r}", 404)

    def _served(self) -> list[tuple[str, str, VersionRoute]]:
        return [
            (name, version, found)
            for name, route in sorted(self.routes.services.items())
            for version, found in sorted(route.versions.items())
        ]

    def _index(self, only_ready: bool) -> list[dict[str, str]]:
        """The protocol's repository index: every version, READY or UNAVAILABLE with its reason."""
        rows = [
            {
                "name": name, "version": version,
                "state": "READY" if found.ready else "UNAVAILABLE",
                "reason": "" if found.ready else self.routes.services[name].document["message"],
            }
            for name, version, found in self._served()
        ]  # fmt: skip
        return [r for r in rows if r["state"] == "READY"] if only_ready else rows


_GUARDED = ("/sundog", "/metrics")


def _stats(name: str, version: VersionRoute) -> dict[str, Any]:
    return version.lane.stats.document(name, version.version)


def _config(name: str, version: VersionRoute) -> dict[str, Any]:
    """The protocol's model configuration, as far as it says something here."""
    stacked = version.contract.batchable

    def tensor(t: Any) -> dict[str, Any]:
        datatype = "STRING" if t.datatype == "BYTES" else t.datatype
        return {
            "name": t.name, "data_type": f"TYPE_{datatype}",
            "dims": list(t.shape[1:] if stacked else t.shape),
        }  # fmt: skip

    return {
        "name": name,
        "platform": version.kind,
        "backend": "sundog",
        "version_policy": {"specific": {"versions": [int(version.version)]}},
        "max_batch_size": version.lane.limits.batch if stacked else 0,
        "input": [tensor(t) for t in version.contract.inputs],
        "output": [tensor(t) for t in version.contract.outputs],
    }


def _only_ready(body: bytes) -> bool:
    document = _load(body) if body else {}
    return isinstance(document, dict) and document.get("ready") is True


def _load(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}") from None


def _only(scope: Scope, method: str) -> None:
    if scope["method"] != method and not (method == "GET" and scope["method"] == "HEAD"):
        raise MethodNotAllowed(method)


def _retry(after_s: float | None) -> list[tuple[bytes, bytes]]:
    return [(b"retry-after", b"%d" % max(1, round(after_s)))] if after_s is not None else []


def _error(message: str) -> bytes:
    return orjson.dumps({"error": message})


def _request_id(headers: dict[bytes, bytes]) -> bytes:
    given = headers.get(b"x-request-id")
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given
    return secrets.token_hex(8).encode()


async def _packed(body: bytes, encoding: bytes) -> bytes:
    if len(body) < _PACK_INLINE:
        return compression.pack(body, encoding)
    return await asyncio.to_thread(compression.pack, body, encoding)


async def read_body(exchange: Exchange, limit: int) -> bytes:
    """The whole body. Raises BadRequest 413 over `limit` bytes and 408 when it does not come."""
    size = exchange.headers.get(b"content-length")
    if size is not None and int(size) > limit:
        raise _too_large(limit)
    receive = exchange.receive
    message = await _first_part(receive)
    if not message.get("more_body"):
        body: bytes = message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        return body
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await _rest(message.get("body", b""), receive, limit)
    except TimeoutError:
        raise BadRequest(f"the body did not come within {BODY_TIMEOUT_S:g} s", 408) from None


async def _first_part(receive: Receive) -> MutableMapping[str, Any]:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise Gone
    return message


async def _rest(first: bytes, receive: Receive, limit: int) -> bytes:
    parts, size = [first], len(first)
    while True:
        message = await _first_part(receive)
        part = message.get("body", b"")
        parts.append(part)
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        if not message.get("more_body"):
            return b"".join(parts)


def _too_large(limit: int) -> BadRequest:
    return BadRequest(f"the body is over {limit} bytes, the service's max_body", 413)
