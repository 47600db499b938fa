"""A whole gateway before replicas on real sockets, in this process and without Ray or Serve."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sundog.security.keys import KeyRing
from sundog.serving import feedback
from sundog.serving import sockets as sockets_module
from sundog.serving.calls import Calls
from sundog.serving.gateway import bind_privately
from sundog.serving.http_api import GatewayApp
from sundog.serving.http_server import build_server
from sundog.serving.pages import build_pages
from sundog.serving.passthrough import Passthrough
from sundog.serving.reach import Reach
from sundog.serving.routes import Routes
from sundog.serving.runner import Runner
from sundog.serving.sockets import SocketServer
from sundog.serving.stats import Metrics


@dataclass
class Served:
    """A service: its model, what it takes and gives, and what its route says otherwise than usual."""

    model: Any
    signature: Mapping[str, Any]
    route: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Ready:
    metadata: dict[str, Any]
    node_id: str = ""


def reaching(watch: Any, node: str = "", door: Any = None, handle: Any = None) -> Any:
    """As a gateway reaches replicas, of which `watch` tells."""
    return lambda lane, app, deployment: Reach(lane, app, deployment, watch, handle, node, door)


@dataclass
class Running:
    url: str
    keys: KeyRing
    routes: Routes
    call: Callable[..., Any]
    """Runs a function in the gateway's loop, and waits for it."""


def tensors(*described: tuple[str, str, Sequence[int]]) -> list[dict[str, Any]]:
    return [{"name": n, "datatype": d, "shape": list(s)} for n, d, s in described]


def route_of(name: str, served: Served) -> dict[str, Any]:
    entry = {"app": name, "deployment": "Model", "kind": "python", "signature": served.signature}
    return {
        "service": name, "model": name, "state": "ready", "message": "", "versions": {"1": entry},
        "weights": {"1": 1.0}, "deadline_s": 10, "queue": 1000, "batch": 64, "max_body": 150 * 2**20,
        "idempotent": True, "hold_s": 1.0, **served.route,
    }  # fmt: skip


@contextmanager
def gateway_of(
    services: Mapping[str, Served],
    path: Path | None = None,
    openai: Callable[[Calls], Passthrough] | None = None,
) -> Iterator[Running]:
    """On a free port, or on the Unix socket `path` as one of several gateways. `openai`: makes what
    answers below `/v1`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sockets_module, "_socket_parent", lambda: None)
        servers = {n: SocketServer(Runner(s.model, s.signature)) for n, s in services.items()}
    for server in servers.values():
        server.start()
    ready, box = threading.Event(), {}

    async def watch(app, deployment, on_change):
        on_change([Ready({"sundog_socket": servers[app].path})])
        await asyncio.Event().wait()

    async def main():
        routes, metrics, keys = Routes(reaching(watch)), Metrics(), KeyRing()
        documents = {n: route_of(n, s) for n, s in services.items()}
        routes.apply({"epoch": 1, "version": 1, "services": documents, "keys": []})
        calls = Calls(routes, keys, metrics, limiter=keys.limiter)
        scores = feedback.router(calls.remembered, calls.observer, keys)
        pages = build_pages(routes, metrics, keys, scores, passes_openai=openai is not None)
        app = GatewayApp(calls, pages, openai(calls) if openai is not None else None)
        while not all(r.versions["1"].ready for r in routes.services.values()):
            await asyncio.sleep(0.01)
        sweeping = asyncio.create_task(routes.sweep_forever())
        loop = asyncio.get_running_loop()

        def call(work, *arguments):
            async def run():
                return work(*arguments)

            return asyncio.run_coroutine_threadsafe(run(), loop).result(30)

        with bind_privately(path) if path is not None else socket.socket() as listener:
            url = ""
            if path is None:
                listener.bind(("127.0.0.1", 0))
                listener.listen(1024)
                url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            box["running"] = Running(url, keys, routes, call)
            box["server"] = build_server(app)
            ready.set()
            await box["server"].serve(sockets=[listener])
        sweeping.cancel()

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert ready.wait(30)
    yield box["running"]
    box["server"].should_exit = True
    thread.join(20)
    for server in servers.values():
        server._loop.call_soon_threadsafe(server._stop.set)
        server.thread.join(5)
