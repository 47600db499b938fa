"""The Open Inference Protocol over HTTP: raw ASGI, since every microsecond here is paid per request.

Parses no bytes of HTTP (the server does) and knows no replica (routes do); pages and metrics are
handed to another ASGI app.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote

import orjson

from sundog import __version__
from sundog.security.authoriser import Authoriser, Identity, Refusal
from sundog.serving.contract import BadRequest
from sundog.serving.lane import HOLD_S, NotServed
from sundog.serving.routes import Routes, ServiceRoute, VersionRoute

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

BODY_TIMEOUT_S = 30.0
_JSON = (b"content-type", b"application/json")
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_MODEL = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(?:/(infer|ready))?")


class Gone(Exception):
    """The client went away before its request was whole."""


class GatewayApp:
    """The ASGI app of a gateway."""

    def __init__(self, routes: Routes, authoriser: Authoriser, pages: ASGIApp) -> None:
        self.routes = routes
        self.authoriser = authoriser
        self.pages = pages
        self.in_flight = 0
        self.closing = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.pages(scope, receive, send)
            return
        path: str = scope["path"]
        if not (path.startswith("/v2/") or path == "/v2"):
            await self.pages(scope, receive, send)
            return
        request_id = _request_id(scope["headers"])
        self.in_flight += 1
        try:
            status, body, extra = await self._answer(scope, path, receive, request_id)
        except BadRequest as error:
            status, body, extra = error.status, _error(error.message), _allow(error)
        except NotServed as error:
            status, body, extra = error.status, _error(error.message), _retry(error.retry_after_s)
        except Gone:
            return
        finally:
            self.in_flight -= 1
        headers = [
            _JSON,
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", request_id),
            *extra,
        ]
        if self.closing or status == 413:
            # The rest of an oversized body is not worth reading; a draining gateway lets go.
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(
        self, scope: Scope, path: str, receive: Receive, request_id: bytes
    ) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
        match = _MODEL.fullmatch(path)
        if match is None:
            return 200, self._server(scope, path), []
        name, version, verb = match.groups()
        if "%" in path:
            name, version = unquote(name), unquote(version) if version else version
        if verb == "infer":
            return 200, await self._infer(scope, name, version, receive), []
        _only(scope, "GET")
        self._authorise(scope, name)
        route, chosen = self.routes.find_version(name, version)
        if verb == "ready":
            ready = chosen is not None and chosen.ready
            return (200 if ready else 503), orjson.dumps({"name": name, "ready": ready}), []
        return 200, await self._metadata(route, chosen), []

    # -- inference

    async def _infer(self, scope: Scope, name: str, version: str | None, receive: Receive) -> bytes:
        if scope["method"] != "POST":
            raise MethodNotAllowed("POST")
        self._authorise(scope, name)
        route, chosen = self.routes.find_version(name, version)
        body = await read_body(scope, receive, route.max_body)
        # Routes may have moved while the body came; from here to the queue nothing waits.
        route, chosen = self.routes.find_version(name, version)
        if chosen is None:
            chosen = await self._hold(name)
        parsed = chosen.contract.read(body)
        outputs = await chosen.lane.call(parsed)
        return chosen.contract.write(parsed, outputs)

    def _authorise(self, scope: Scope, service: str) -> Identity:
        verdict = self.authoriser.authorise(scope["headers"], service)
        if isinstance(verdict, Refusal):
            raise NotServed(verdict.status, verdict.message, verdict.retry_after_s)
        return verdict

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

    def _server(self, scope: Scope, path: str) -> bytes:
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
        raise BadRequest(f"there is nothing at {path[:200]!r}", 404)

    async def _metadata(self, route: ServiceRoute, chosen: VersionRoute | None) -> bytes:
        if chosen is None:
            chosen = await self._hold(route.name)
        platform = "pytorch_export" if chosen.kind == "torch-export" else chosen.kind
        return orjson.dumps(chosen.contract.describe(sorted(route.versions), platform))


EXTENSIONS: list[str] = []


class MethodNotAllowed(BadRequest):
    def __init__(self, allowed: str) -> None:
        super().__init__(f"only {allowed} is answered here", 405)
        self.allowed = allowed


def _only(scope: Scope, method: str) -> None:
    if scope["method"] != method and not (method == "GET" and scope["method"] == "HEAD"):
        raise MethodNotAllowed(method)


def _allow(error: BadRequest) -> list[tuple[bytes, bytes]]:
    return [(b"allow", error.allowed.encode())] if isinstance(error, MethodNotAllowed) else []


def _retry(after_s: float | None) -> list[tuple[bytes, bytes]]:
    return [(b"retry-after", b"%d" % max(1, round(after_s)))] if after_s is not None else []


def _error(message: str) -> bytes:
    return orjson.dumps({"error": message})


def _request_id(headers: Any) -> bytes:
    for name, value in headers:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return bytes(value)
    return secrets.token_hex(8).encode()


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body. Raises BadRequest 413 over `limit` bytes and 408 when it does not come."""
    for name, value in scope["headers"]:
        if name == b"content-length" and int(value) > limit:
            raise _too_large(limit)
    message = await receive()
    if message["type"] == "http.disconnect":
        raise Gone
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


async def _rest(first: bytes, receive: Receive, limit: int) -> bytes:
    parts, size = [first], len(first)
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        part = message.get("body", b"")
        parts.append(part)
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        if not message.get("more_body"):
            return b"".join(parts)


def _too_large(limit: int) -> BadRequest:
    return BadRequest(f"the body is over {limit} bytes, the service's max_body", 413)
