"""Pages that concern all gateways: metrics of each, and scores for what another answered.

A gateway asks the others of its node over their private sockets, those of other nodes where replicas
call them; inference never comes here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import httpx

from sundog.security.peers import Identity, fingerprint
from sundog.serving.contract import BadRequest
from sundog.serving.http_body import Gone, Receive, Scope, Send, read_body
from sundog.serving.inbound import CERTIFICATE_KEY, PORT_KEY, Inbound

ASKED = "x-sundog-asked-by"
"""Header of what one gateway asks another: it is not asked on."""
MAX_BODY = 64 * 1024
TIMEOUT_S = 5.0
_SHARED = frozenset((("GET", "/metrics"), ("POST", "/feedback")))
_PASSED = frozenset(("authorization", "x-api-key", "content-type"))


class Siblings:
    """An ASGI app around a gateway's pages. `name`: its label; `node`: where it is."""

    def __init__(
        self, pages: Any, name: str, identity: Identity, node: str, inbound: Inbound
    ) -> None:
        self._pages = pages
        self._name = name
        self._identity = identity
        self._node = node
        self._inbound = inbound
        self._answering: Callable[[], asyncio.Protocol] | None = None
        self._here = _client(httpx.ASGITransport(pages))
        self._others: dict[str, httpx.AsyncClient] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def answer_with(self, make: Callable[[], asyncio.Protocol]) -> None:
        """What speaks HTTP with gateways of other nodes that call this one."""
        self._answering = make

    def on_gateways(self, replicas: Iterable[Any]) -> None:
        """Serve's news of who is there."""
        there = {}
        for replica in replicas:
            certificate = str(replica.metadata.get(CERTIFICATE_KEY, ""))
            if certificate and certificate != self._identity.certificate:
                there[fingerprint(certificate)] = replica
        before, self._others = self._others, {}
        for name, replica in there.items():
            self._others[name] = before.get(name) or self._to(replica)
        for name in set(before) - set(there):
            self._inbound.forget(name)
            task = asyncio.get_running_loop().create_task(before[name].aclose())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _to(self, replica: Any) -> httpx.AsyncClient:
        known = replica.metadata
        if replica.node_id == self._node and "sundog_gateway" in known:
            return _client(httpx.AsyncHTTPTransport(uds=known["sundog_gateway"]))
        assert self._answering is not None
        self._inbound.expect(known[CERTIFICATE_KEY], self._answering)
        context = self._identity.client(known[CERTIFICATE_KEY])
        return _client(httpx.AsyncHTTPTransport(verify=context), f"https://{known[PORT_KEY]}")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        what = scope.get("method"), scope.get("path")
        if scope["type"] != "http" or what not in _SHARED:
            await self._pages(scope, receive, send)
            return
        try:
            body = await read_body(dict(scope["headers"]), receive, MAX_BODY)
        except Gone:
            return
        except BadRequest as error:
            answer = httpx.Response(
                error.status, json={"error": error.message}, headers={"connection": "close"}
            )
        else:
            answer = await self._answer(scope, body)
        headers = [
            (b"content-type", answer.headers.get("content-type", "text/plain").encode()),
            (b"content-length", b"%d" % len(answer.content)),
        ]
        if "connection" in answer.headers:
            headers.append((b"connection", b"close"))
        await send(
            {"type": "http.response.start", "status": answer.status_code, "headers": headers}
        )
        await send({"type": "http.response.body", "body": answer.content})

    async def _answer(self, scope: Scope, body: bytes) -> httpx.Response:
        given = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        headers = {k: v for k, v in given.items() if k in _PASSED}
        request = (scope["method"], scope["path"], headers, body)
        mine = await _ask(self._here, *request)
        assert mine is not None
        is_metrics = scope["path"] == "/metrics"
        if is_metrics and mine.is_success:
            mine = _text(labelled(mine.text, self._name))
        if ASKED in given or (not is_metrics and mine.status_code != 404):
            return mine
        headers[ASKED] = self._name
        asked = await asyncio.gather(*(_ask(c, *request) for c in self._others.values()))
        theirs = [a for a in asked if a is not None]
        if is_metrics:
            if not mine.is_success:
                return mine
            return _text(merged([mine.text, *(a.text for a in theirs if a.is_success)]))
        return next((a for a in theirs if a.status_code != 404), mine)


def _client(transport: httpx.AsyncBaseTransport, url: str = "http://gateway") -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=transport, base_url=url, timeout=TIMEOUT_S)


async def _ask(
    client: httpx.AsyncClient, method: str, path: str, headers: dict[str, str], body: bytes
) -> httpx.Response | None:
    """None from a gateway that does not answer: it is just going."""
    try:
        return await client.request(method, path, headers=headers, content=body)
    except httpx.HTTPError:
        return None


def _text(text: str) -> httpx.Response:
    return httpx.Response(200, text=text)


def labelled(text: str, gateway: str) -> str:
    """Every sample of Prometheus' text with one more label."""
    out = []
    for line in text.splitlines():
        if line.startswith("#") or not line:
            out.append(line)
            continue
        name, brace, rest = line.partition("{")
        if brace:
            out.append(f'{name}{{gateway="{gateway}",{rest}')
        else:
            name, _, value = line.partition(" ")
            out.append(f'{name}{{gateway="{gateway}"}} {value}')
    return "\n".join(out) + "\n"


def merged(texts: Iterable[str]) -> str:
    """Several texts as one: the samples of a metric stay together below its type."""
    metrics: dict[str, list[str]] = {}
    for text in texts:
        kind = ""
        for line in text.splitlines():
            if line.startswith("# TYPE "):
                kind = line
                metrics.setdefault(kind, [])
            elif line:
                metrics.setdefault(kind, []).append(line)
    out = []
    for kind, lines in metrics.items():
        out += [kind, *lines] if kind else lines
    return "\n".join(out) + "\n"
