"""A replica of one model version: loads it, then answers frames on a Unix socket of its own.

The socket (mode 0600, in a folder of mode 0700) is the fast way in; `infer` over Serve's handle is
the other. It refuses nothing but what the model cannot take: limits are the gateway's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sundog.errors import ServiceError, SundogError
from sundog.rayapi import serve_ports
from sundog.serving import frames
from sundog.serving.tensors import BadTensor, from_numpy, to_numpy

DRAIN_S = 20.0
_START_TIMEOUT_S = 30.0
_SUN_PATH_MAX = 100


class Runner:
    """The model and how a frame becomes its call: bytes in, buffers out. Runs one call at a time."""

    def __init__(self, model: Any, signature: dict[str, Any]) -> None:
        self._model = model
        self._inputs = signature["inputs"]
        self._outputs = signature["outputs"]
        self._lock = threading.Lock()

    def warm_up(self) -> None:
        """One call with zeros, so that the first request does not pay for lazy start-up."""
        inputs = {}
        for tensor in self._inputs:
            shape = [1 if d < 0 else d for d in tensor["shape"]]
            if tensor["datatype"] == "BYTES":
                inputs[tensor["name"]] = np.full(shape, b"", dtype=object)
            else:
                size = int(np.prod(shape, dtype=np.int64))
                zeros = from_numpy(np.zeros(size), tensor["datatype"])
                inputs[tensor["name"]] = to_numpy(zeros, tensor["datatype"], shape)
        # A model of someone's own may dislike zeros; real requests will tell.
        with contextlib.suppress(Exception):
            self._model.predict(inputs)

    def run(self, meta: Any, body: memoryview, number: int = 0) -> list[bytes | memoryview]:
        """The answer frame. Never raises for what a request or the model did wrong."""
        if body.readonly:  # models may write into their inputs
            body = memoryview(bytearray(body))
        try:
            inputs = {
                spec["name"]: to_numpy(raw, datatype, shape)
                for spec, (datatype, shape, raw) in zip(
                    self._inputs, frames.cut(meta, body), strict=True
                )
            }
        except (frames.BadFrame, BadTensor, ValueError, KeyError) as error:
            return _fault(number, "input", str(error))
        try:
            with self._lock:
                answer = self._model.predict(inputs)
            return self._answer(number, answer)
        except Exception as error:  # noqa: BLE001 - the model is the user's code
            return _fault(number, "model", f"the model failed: {type(error).__name__}: {error}")

    def _answer(self, number: int, answer: Any) -> list[bytes | memoryview]:
        if not isinstance(answer, Mapping):
            return _fault(
                number, "model",
                f"the model answered with a {type(answer).__name__}: /infer answers whole tensors, so "
                "predict() must return a mapping of its outputs; answers in parts are not served yet",
            )  # fmt: skip
        tensors, body = [], []
        for spec in self._outputs:
            values = np.asarray(answer[spec["name"]])
            raw = from_numpy(values, spec["datatype"])
            tensors.append((spec["datatype"], values.shape, len(raw)))
            body.append(raw)
        return frames.pack(frames.ANSWER, number, frames.tensor_meta(tensors), body)


def _fault(number: int, kind: str, message: str) -> list[bytes | memoryview]:
    return frames.pack(frames.FAULT, number, {"kind": kind, "message": message[:2000]})


class _Peer(asyncio.Protocol):
    """One gateway's connection."""

    def __init__(self, server: SocketServer) -> None:
        self._server = server
        self._reader = frames.Reader()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self._server.peers.add(self)
        self._write(frames.pack(frames.HELLO, 0, {"pid": os.getpid()}))

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._reader.feed(data):
                if frame.kind != frames.INFER:
                    raise frames.BadFrame("a gateway sends calls only")
                self._write(self._server.runner.run(frame.meta, frame.body, frame.number))
        except frames.BadFrame:
            assert self.transport is not None
            self.transport.abort()

    def _write(self, buffers: list[bytes | memoryview]) -> None:
        assert self.transport is not None
        self.transport.writelines(buffers)

    def close_soon(self) -> None:
        self._write(frames.pack(frames.CLOSING, 0))

    def connection_lost(self, error: Exception | None) -> None:
        self._server.peers.discard(self)


class SocketServer:
    """Frames on a Unix socket, in a thread and event loop of its own, so that a long call of the
    model stops neither Serve's health checks nor its control messages."""

    def __init__(self, runner: Runner, prepare: Callable[[], None] = lambda: None) -> None:
        self.runner = runner
        self.peers: set[_Peer] = set()
        self.folder = Path(tempfile.mkdtemp(prefix="sundog-", dir=_socket_parent()))
        self.path = str(self.folder / "s")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._prepare = prepare
        self.thread = threading.Thread(target=self._run, name="sundog-frames", daemon=True)

    def start(self) -> None:
        self.thread.start()
        if not self._ready.wait(_START_TIMEOUT_S) or self._failure is not None:
            raise ServiceError(f"the replica's socket does not open: {self._failure}")

    def _run(self) -> None:
        import uvloop

        try:
            self._prepare()
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - reported by start() and check_health()
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        server = await self._loop.create_unix_server(lambda: _Peer(self), self.path)
        Path(self.path).chmod(0o600)
        self._ready.set()
        await self._stop.wait()
        server.close()

    def _close_peers(self) -> None:
        for peer in list(self.peers):
            peer.close_soon()

    async def drain(self) -> None:
        """Tell every gateway to send no more, and wait until they have had their answers."""
        if self._loop is None or not self.thread.is_alive():
            return
        self._loop.call_soon_threadsafe(self._close_peers)
        for _ in range(int(DRAIN_S / 0.05)):
            await asyncio.sleep(0.05)
            if not self.peers:
                break
        self._loop.call_soon_threadsafe(self._stop.set)
        shutil.rmtree(self.folder, ignore_errors=True)


def _socket_parent() -> str | None:
    """Ray's session folder, which goes when the session does; a socket's path must stay short."""
    import ray

    try:
        parent = ray._private.worker._global_node.get_sockets_dir_path()
    except AttributeError:
        return None
    return parent if len(parent) + len("/sundog-12345678/s") < _SUN_PATH_MAX else None


class Model:
    """The Serve deployment of one model version.

    `place` is {root, name, version, allow_code}: where the registry is and what to load from it.
    """

    def __init__(self, place: dict[str, Any]) -> None:
        import torch

        serve_ports.bind_to_node()
        torch.set_num_threads(1)
        from sundog.storage.models import Registry
        from sundog.storage.programs import load_model
        from sundog.storage.root import open_root

        try:
            root = open_root(place["root"])
            version = Registry(root).get(f"{place['name']}@{place['version']}")
            model = load_model(root, version, allow_code=place["allow_code"])
        except SundogError as error:
            raise ServiceError(
                f"{place['name']}@{place['version']} does not load: {error}"
            ) from None
        signature = describe_signature(version.signature)
        self._runner = Runner(model, signature)
        self._runner.warm_up()
        # Each thread has its own setting; without it, small operations wait for helper threads.
        self._server = SocketServer(self._runner, lambda: torch.set_num_threads(1))
        self._server.start()
        self._token = secrets.token_hex(4)

    def record_replica_metadata(self) -> dict[str, Any]:
        """What gateways learn of this replica through Serve."""
        return {"sundog_socket": self._server.path}

    def reconfigure(self, config: dict[str, Any]) -> None:
        """The deployment's digest rides in `user_config`; there is nothing to change in place."""

    async def infer(self, frame: bytes) -> bytes:
        """One frame in, one out: the way over Serve's handle."""
        [call] = frames.Reader().feed(frame)
        return b"".join(await asyncio.to_thread(self._run_alone, call.meta, call.body))

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


def describe_signature(signature: Any) -> dict[str, Any]:
    """A registry signature as plain data, for snapshots."""

    def tensors(specs: Any) -> list[dict[str, Any]]:
        return [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in specs]

    return {"inputs": tensors(signature.inputs), "outputs": tensors(signature.outputs)}
