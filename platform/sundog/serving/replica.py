"""A replica of one model version as a Serve deployment: loads it, and lets gateways ask it.

Those of its node come by a socket (mode 0600, in a folder of mode 0700), those of other nodes it
calls itself; `infer` and `stream` over Serve's handle are for whom neither reaches. It refuses nothing
but what the model cannot take: limits are the gateway's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from sundog.errors import ServiceError, SundogError
from sundog.rayapi import serve_ports, serve_targets, session
from sundog.security.peers import Identity
from sundog.security.secrets import secret_environment
from sundog.serving import frames
from sundog.serving.inbound import CERTIFICATE_KEY
from sundog.serving.process import Process
from sundog.serving.runner import Runner
from sundog.serving.sockets import Elsewhere, SocketServer
from sundog.spec.environment import Environment

if TYPE_CHECKING:
    from sundog.storage.root import Root

log = logging.getLogger("sundog.replica")


class Model:
    """The Serve deployment of one model version.

    `place` is {root, name, version, allow_code, environment}: where the registry is and what to load
    from it; {process}: the version of what is done before and after it, or none; and {gateway_app}:
    whose gateways ask.
    """

    def __init__(self, place: dict[str, Any]) -> None:
        import torch

        serve_ports.bind_to_node()
        torch.set_num_threads(1)
        from sundog.storage.models import Registry
        from sundog.storage.programs import load_model
        from sundog.storage.root import open_root

        try:
            os.environ.update(secret_environment(Environment(**place["environment"])))
            root = open_root(place["root"])
            version = Registry(root).get(f"{place['name']}@{place['version']}")
            self._device = choose_device(session.gpus(), torch.cuda.is_available())
            model = load_model(
                root, version, allow_code=place["allow_code"], device=self._device,
                scratch=session.folder(),
            )  # fmt: skip
            process = load_process(root, place)
        except SundogError as error:
            raise ServiceError(
                f"{place['name']}@{place['version']} does not load: {error}"
            ) from None
        signature = describe_signature(version.signature)
        self._runner = Runner(model, signature, lambda: torch.set_num_threads(1), process)
        if os.environ.get("SUNDOG_TRACES"):
            from sundog.serving.tracing import traces_of

            self._runner.traces = traces_of("sundog-replica")
        node, _ = session.node()
        self._identity = Identity.make(f"replica of {place['name']}@{place['version']}")
        app = place["gateway_app"]
        # Each thread has its own setting; without it, small operations wait for helper threads.
        self._server = SocketServer(
            self._runner,
            lambda: torch.set_num_threads(1),
            Elsewhere(self._identity, node, lambda told: serve_targets.watch(app, "Gateway", told)),
        )
        self._server.start()
        self._server.warm_up()
        self._token = secrets.token_hex(4)

    def record_replica_metadata(self) -> dict[str, Any]:
        """What gateways learn of this replica through Serve."""
        return {
            "sundog_socket": self._server.path,
            "sundog_device": self._device,
            CERTIFICATE_KEY: self._identity.certificate,
        }

    def reconfigure(self, config: dict[str, Any]) -> None:
        """The deployment's digest rides in `user_config`; there is nothing to change in place."""

    async def infer(self, frame: bytes) -> bytes:
        """One frame in, one out: the way over Serve's handle."""
        [call] = frames.Reader().feed(frame)
        return b"".join(await asyncio.to_thread(self._run_alone, call.meta, call.body))

    async def stream(self, frame: bytes) -> AsyncIterator[bytes]:
        """One frame in, the parts of its answer out: the way over Serve's handle."""
        [call] = frames.Reader().feed(frame)
        async for buffers in self._runner.parts(call.meta, call.body):
            yield b"".join(buffers)

    def _run_alone(self, meta: Any, body: memoryview) -> list[bytes | memoryview]:
        import torch

        torch.set_num_threads(1)
        return self._runner.run(meta, body)

    def check_health(self) -> None:
        if not self._server.thread.is_alive():
            raise ServiceError("the replica's socket thread has ended")

    async def __del__(self) -> None:
        # Serve does not count what travels on the private socket: wait for it here.
        server = getattr(self, "_server", None)
        if server is not None:
            await server.drain()


def load_process(root: Root, place: dict[str, Any]) -> Process | None:
    """What the service does before and after its model, if it does something."""
    from sundog.storage.models import Registry
    from sundog.storage.programs import load_own

    if place.get("process") is None:
        return None
    version = Registry(root).get(place["process"])
    own = load_own(root, version, allow_code=place["allow_code"], scratch=session.folder())
    steps = {step: getattr(own, step, None) for step in ("before", "after")}
    if not any(map(callable, steps.values())):
        raise ServiceError(
            f"{version.entry} of {version.ref} has neither before nor after", "give it one of them"
        )
    return Process(describe_signature(version.signature), **steps)


def choose_device(gpus: list[str], cuda: bool) -> str:
    """Where an exported model runs: on the GPU that Ray gave this replica, if torch can use it."""
    if not gpus:
        return "cpu"
    if not cuda:
        log.warning(
            "this replica has GPU %s, which torch cannot use (no CUDA in this build, or no driver): "
            "the model runs on the CPU", ", ".join(gpus),
        )  # fmt: skip
        return "cpu"
    return "cuda"


def describe_signature(signature: Any) -> dict[str, Any]:
    """A registry signature as plain data, for snapshots."""

    def tensors(specs: Any) -> list[dict[str, Any]]:
        return [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in specs]

    return {"inputs": tensors(signature.inputs), "outputs": tensors(signature.outputs)}
