"""The gateway as a Serve deployment: owns its listening socket, runs the HTTP server in a thread.

Serve places, heals and updates it; requests never pass through Serve. It asks control for routes
and goes on with the last ones while control is away.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

from sundog.clock import WALL
from sundog.errors import ServiceError
from sundog.rayapi import serve_counts, serve_ports, serve_targets, session
from sundog.security.authoriser import Authoriser
from sundog.security.exposure import beyond_this_machine, warning
from sundog.security.keys import KeyRing
from sundog.security.limits import Limiter
from sundog.security.peers import Identity
from sundog.security.tls import Renewal, certificate_of, server_context
from sundog.security.tokens import TokenRing, oidc_of
from sundog.serving import feedback
from sundog.serving.access_log import FLUSH_S, AccessLog
from sundog.serving.calls import Calls
from sundog.serving.capture import Capturer, hook_of
from sundog.serving.feedback import Remembered
from sundog.serving.http_api import GatewayApp
from sundog.serving.http_server import build_server, http_protocols
from sundog.serving.inbound import Inbound
from sundog.serving.lane import Lane
from sundog.serving.observe import Observer
from sundog.serving.pages import build_pages
from sundog.serving.passthrough import Passthrough
from sundog.serving.places import HEAD, here, parse_address
from sundog.serving.reach import Reach, data_path
from sundog.serving.routes import Routes
from sundog.serving.siblings import Siblings
from sundog.serving.sockets import private_folder
from sundog.serving.stats import Metrics
from sundog.serving.upstreams import upstreams_of

BIND_TIMEOUT_S = 5.0
DRAIN_S = 15.0
GRPC_DRAIN_S = 3.0
"""After HTTP has drained, while gRPC went on."""
_START_TIMEOUT_S = 30.0
_CONTROL = ("sundog-control", "sundog")

log = logging.getLogger("sundog.gateway")


def bind(address: str, timeout_s: float = BIND_TIMEOUT_S) -> socket.socket:
    """The listening socket. A port that stays in use is a ServiceError that names it."""
    host, port = parse_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    end = WALL.monotonic_s() + timeout_s
    while True:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(1024)
        except OSError as error:
            listener.close()
            # A gateway that is just leaving may hold the port for a moment.
            if error.errno == errno.EADDRINUSE and WALL.monotonic_s() < end:
                WALL.sleep(0.2)
                continue
            reason = (
                "is in use"
                if error.errno == errno.EADDRINUSE
                else f"cannot be taken: {error.strerror}"
            )
            raise ServiceError(
                f"the gateway cannot listen: port {port} on {host} {reason}",
                f"stop what listens there (ss -ltnp 'sport = :{port}'), or set "
                f"SUNDOG_GATEWAY=http://{host}:<free port> and start again",
            ) from None
        listener.setblocking(False)
        return listener


def bind_privately(path: Path) -> socket.socket:
    """A listening Unix socket that only this user reaches."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(1024)
    listener.setblocking(False)
    return listener


class Gateway:
    """The Serve deployment. `config`: {address, gateways, nodes, count, app}: where it listens, how many
    there are on a node, on which nodes and how many of these; one of several of a node listens on a
    private socket, and the edge has the address."""

    def __init__(self, config: dict[str, Any]) -> None:
        serve_ports.bind_to_node()
        self._node, ip = session.node()
        self._address = here(config["address"], ip)
        self._app: str = config.get("app", "")
        self._gateways: int = config.get("gateways", 1)
        self._in_all = in_all(config)
        self._several = self._gateways > 1 or config.get("nodes", HEAD) != HEAD
        identity = Identity.make(f"gateway {gateway_name()}")
        self._identity, self._inbound = identity, Inbound(identity, ip)
        self._grpc_address = here(os.environ.get("SUNDOG_GATEWAY_GRPC", ""), ip)
        self._private: dict[str, str] = {}
        # Behind an edge that is where TLS ends.
        self._certificate = certificate_of(self._address) if self._gateways == 1 else None
        self._listener = self._bind_one_of_several() if self._gateways > 1 else bind(self._address)
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="sundog-gateway", daemon=True)
        self._thread.start()
        if not self._ready.wait(_START_TIMEOUT_S) or self._failure is not None:
            raise ServiceError(f"the gateway does not start: {self._failure}")

    def _bind_one_of_several(self) -> socket.socket:
        folder = private_folder()
        self._private = {"sundog_gateway": str(folder / "s")}
        if self._grpc_address:
            self._private["sundog_gateway_grpc"] = str(folder / "g")
            self._grpc_address = f"unix:{folder / 'g'}"
        return bind_privately(folder / "s")

    def record_replica_metadata(self) -> dict[str, Any]:
        """Where the edge, and replicas and gateways of other nodes, find this gateway."""
        return {**self._private, **self._inbound.metadata()}

    def _run(self) -> None:
        import uvloop

        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - reported by __init__ and check_health()
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        inbound, node = self._inbound, self._node

        watch = serve_counts.watch if data_path() == "handle" else serve_targets.watch

        def reach(lane: Lane, app: str, deployment: str) -> Reach:
            return Reach(lane, app, deployment, watch, _Handle, node, inbound)

        routes = Routes(reach)
        keys, metrics = KeyRing(gateways=self._in_all), Metrics()
        access = AccessLog(access_log_path())
        observer, remembered = Observer(), Remembered()
        oidc = oidc_of(os.environ.get("SUNDOG_OIDC", ""))
        tokens = TokenRing(oidc, keys) if oidc is not None else None
        authoriser: Authoriser = tokens or keys
        upstreams = upstreams_of(os.environ.get("SUNDOG_UPSTREAMS", ""))
        pages = build_pages(
            routes, metrics, authoriser, feedback.router(remembered, observer, authoriser),
            passes_openai=bool(upstreams),
        )  # fmt: skip
        captures = Capturer(hook_of(os.environ.get("SUNDOG_CAPTURE_HOOK", "")))
        metrics.more = lambda: [*captures.text(), *access.text()]
        calls = self.calls = Calls(
            routes, authoriser, metrics, access, observer, remembered, keys.limiter, captures
        )
        if os.environ.get("SUNDOG_TRACES"):
            from sundog.serving.tracing import traces_of

            calls.traces = traces_of("sundog-gateway")
        openai = Passthrough(calls, upstreams) if upstreams else None
        shared = None
        if self._several:
            shared = Siblings(pages, gateway_name(), self._identity, node, inbound)
        self.app = GatewayApp(calls, shared or pages, openai)
        context = server_context(self._certificate) if self._certificate is not None else None
        self._server = build_server(self.app, context)
        if shared is not None:
            shared.answer_with(http_protocols(self._server))
        # Where nobody needs a key, who listens to others is said; tokens are asked of everybody.
        heard_at = (self._address, os.environ.get("SUNDOG_GATEWAY_GRPC", ""))
        addresses = [a for a in heard_at if a and tokens is None]
        background = [
            self._always(follow_control(routes, keys, addresses)),
            self._always(report_forever(routes, observer, keys.limiter)),
            self._always(routes.sweep_forever()),
            self._always(flush_forever(access)),
            self._always(captures.flush_forever()),
            self._always(inbound.serve_forever()),
        ]
        if shared is not None:
            watching = serve_targets.watch(self._app, "Gateway", shared.on_gateways)
            background.append(self._always(watching))
        if tokens is not None:
            background.append(self._always(tokens.refresh_forever()))
        grpc = None
        renewing = [lambda c: c.load_into(context)] if context is not None else []
        if self._grpc_address:
            from sundog.serving import grpc_server

            presented = grpc_server.Presented(self._certificate) if self._certificate else None
            grpc = await grpc_server.start(calls, self._grpc_address, presented)
            renewing += [presented.renew] if presented else []
        if self._certificate is not None:
            renewal = Renewal(self._certificate, renewing)
            background.append(self._always(renewal.look_forever()))
        self._ready.set()
        await self._server.serve(sockets=[self._listener])
        if grpc is not None:
            await grpc.stop(GRPC_DRAIN_S)
        for task in background:
            task.cancel()
        access.flush()
        await captures.flush()
        if calls.traces is not None:
            await asyncio.to_thread(calls.traces.close)

    def _always(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task that goes on as long as the gateway: one that ends has to be seen."""
        task = asyncio.create_task(work, name=getattr(work, "__qualname__", "a task"))
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        reason = task.exception()
        log.error(
            "%s has ended; the gateway serves on until Serve replaces it", task.get_name(),
            exc_info=reason,
        )  # fmt: skip
        if self._failure is None:
            self._failure = reason or ServiceError(f"{task.get_name()} came to an end")

    def reconfigure(self, config: dict[str, Any]) -> None:
        """Nodes came or went: limits are shared among more or fewer gateways."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self.calls.limiter.among, in_all(config))

    def check_health(self) -> None:
        if self._failure is not None or not self._thread.is_alive():
            raise ServiceError(f"the gateway has to be replaced: {self._failure!r}")

    async def __del__(self) -> None:
        # Serve does not see our requests: stop accepting, answer what is here, then go.
        loop = getattr(self, "_loop", None)
        if loop is None or not self._thread.is_alive():
            return
        self.calls.closing = True
        loop.call_soon_threadsafe(setattr, self._server, "should_exit", True)
        await asyncio.to_thread(self._thread.join, DRAIN_S)


class _Handle:
    """A version's replicas over Serve's public handle."""

    def __init__(self, app: str, deployment: str) -> None:
        from ray import serve

        handle = serve.get_deployment_handle(deployment, app)
        self.infer = handle.infer.remote
        self.stream = handle.options(stream=True).stream.remote


def in_all(config: dict[str, Any]) -> int:
    """How many gateways there are on all nodes."""
    return int(config.get("gateways", 1)) * int(config.get("count", 1))


def access_log_path() -> Path | None:
    """`SUNDOG_ACCESS_LOG` (empty: none), else beside Ray's own logs."""
    given = os.environ.get("SUNDOG_ACCESS_LOG")
    if given is not None:
        return Path(given) if given else None
    logs = session.logs_dir()
    return Path(logs) / f"sundog-access-{os.getpid()}.jsonl" if logs else None


async def flush_forever(access: AccessLog) -> None:
    while True:
        await asyncio.sleep(FLUSH_S)
        access.flush()


def warn_when_open(addresses: list[str], has_keys: bool) -> None:
    for address in addresses:
        if not has_keys and beyond_this_machine(address):
            log.warning(warning(address))


async def follow_control(routes: Routes, keys: KeyRing, addresses: list[str]) -> None:
    """Keep routes and keys at control's newest snapshot, for ever."""
    async for snapshot in control_snapshots(gateway_name(), lambda: routes.version):
        if routes.apply(snapshot):
            keys.update(snapshot["keys"])
            warn_when_open(addresses, bool(snapshot["keys"]))


async def control_snapshots(
    name: str, seen: Callable[[], tuple[int, int]]
) -> AsyncIterator[dict[str, Any]]:
    """Control's snapshots that are newer than `seen`, as they come, for ever."""
    import ray

    control: Any = None
    while True:
        try:
            if control is None:
                control = await asyncio.to_thread(ray.get_actor, *_CONTROL)
            snapshot = await control.snapshot.remote(name, *seen())
        except (ray.exceptions.RayError, ValueError) as error:
            log.warning("control is away, serving on with the last routes: %s", error)
            control = None
            await asyncio.sleep(0.3)
            continue
        if snapshot is not None:
            yield snapshot


REPORT_S = 0.5
LOW_S = 0.02


async def report_forever(routes: Routes, observer: Observer, limiter: Limiter) -> None:
    """Tell control what was served, for ever; what it does not get is told later."""
    import ray

    name = gateway_name()
    control: Any = None
    low = asyncio.Event()
    limiter.on_low = low.set
    while True:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(low.wait(), REPORT_S)
            await asyncio.sleep(LOW_S)  # one question for all that run low
        low.clear()
        counts = observer.take()
        try:
            if control is None:
                control = await asyncio.to_thread(ray.get_actor, *_CONTROL)
            await control.report.remote(name, counts, lanes_of(routes))
            counts = {}
            if limiter.active:
                limiter.apply(await control.limits.remote(name, limiter.usage()))
        except (ray.exceptions.RayError, ValueError):
            observer.put_back(counts)
            control = None


def lanes_of(routes: Routes) -> dict[str, dict[str, dict[str, float]]]:
    """service -> version -> what has come and gone in all, and what is there now."""
    return {
        name: {v: lane_totals(found.lane) for v, found in route.versions.items()}
        for name, route in routes.services.items()
    }


def lane_totals(lane: Lane) -> dict[str, float]:
    stats = lane.stats
    return {
        "arrivals": stats.arrivals, "completions": stats.success_count,
        "busy_s": stats.infer_s, "queued": lane.waiting + lane.later_streams, "running": lane.under_way,
        "replicas": len(lane.connections),
    }  # fmt: skip


def gateway_name() -> str:
    return f"{os.uname().nodename}/{os.getpid()}"
