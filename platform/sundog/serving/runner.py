"""The model in a replica and how a frame becomes its call: bytes in, buffers out, whole or in parts.

Runs one call at a time, and never raises for what a request or the model did wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from sundog.clock import WALL
from sundog.serving import frames
from sundog.serving.process import Process, WrongInput
from sundog.serving.tensors import BadTensor, from_numpy, to_numpy

if TYPE_CHECKING:
    from sundog.serving.tracing import Traces

Buffers = list[bytes | memoryview]
WARM_UP_S = 60.0
"""How long a model's first part may take before it is not waited for."""
LOG_EVERY_S = 10.0
"""How often a failing model's traceback is logged: all of them would fill the disk."""
_NO_MORE = object()
_INPUT_FAULTS = (frames.BadFrame, BadTensor, ValueError, KeyError)

log = logging.getLogger("sundog.replica")


class Runner:
    """`signature`: the model's. `prepare` runs once in the thread that takes the steps of models that
    answer in parts."""

    def __init__(
        self,
        model: Any,
        signature: dict[str, Any],
        prepare: Callable[[], None] = lambda: None,
        process: Process | None = None,
    ) -> None:
        self._model = model
        self._model_inputs = signature["inputs"]
        seen = signature if process is None else process.signature
        self._inputs = seen["inputs"]
        self._outputs = seen["outputs"]
        self._predict = model.predict if process is None else process.around(model)
        self._faults, self._log_again_s = 0, 0.0
        self._lock = threading.Lock()
        # One thread: steps of several streams take turns, since a model runs one call at a time.
        self._steps = ThreadPoolExecutor(1, "sundog-steps", initializer=prepare)
        self.traces: Traces | None = None
        """Where spans of the model's calls go; nowhere by default."""

    @property
    def streams(self) -> bool:
        """Whether the model is known to answer in parts."""
        return bool(getattr(self._model, "streams", False))

    async def warm_up(self) -> None:
        """One call of the model with zeros, up to its first part, so that the first request does not pay
        for lazy start-up. In the loop that requests come to: what a model keeps of it is right."""
        inputs = {}
        for tensor in self._model_inputs:
            shape = [1 if d < 0 else d for d in tensor["shape"]]
            if tensor["datatype"] == "BYTES":
                inputs[tensor["name"]] = np.full(shape, b"", dtype=object)
            else:
                size = int(np.prod(shape, dtype=np.int64))
                zeros = from_numpy(np.zeros(size), tensor["datatype"])
                inputs[tensor["name"]] = to_numpy(zeros, tensor["datatype"], shape)
        predict = self._model.predict
        try:
            async with asyncio.timeout(WARM_UP_S):
                answer = await self._step(predict, inputs) if self.streams else predict(inputs)
                async with contextlib.aclosing(self._parted(answer)) as parts:
                    await anext(parts, None)
        except Exception as error:
            log.warning(
                "the model's first call, with zeros, failed; it may dislike them, requests will tell",
                exc_info=error,
            )

    # -- whole answers

    def run(self, meta: Any, body: memoryview, number: int = 0) -> Buffers:
        """The answer frame, or a fault."""
        try:
            meta, traces = frames.without_traces(meta)
            inputs = self._read(meta, body)
        except _INPUT_FAULTS as error:
            return fault(number, "input", str(error))
        try:
            with self._span(traces), self._lock:
                answer = self._predict(inputs)
            return self._pack(frames.ANSWER, number, answer)
        except WrongInput as error:
            return fault(number, "input", str(error))
        except Exception as error:  # noqa: BLE001 - the model is the user's code
            return self._fault(number, error)

    def _span(self, traces: list[str]) -> contextlib.AbstractContextManager[Any]:
        if self.traces is None or not traces:
            return contextlib.nullcontext()
        return self.traces.model_call(traces)

    def _read(self, meta: Any, body: memoryview) -> dict[str, Any]:
        if body.readonly:  # models may write into their inputs
            body = memoryview(bytearray(body))
        return {
            spec["name"]: to_numpy(raw, datatype, shape)
            for spec, (datatype, shape, raw) in zip(
                self._inputs, frames.cut(meta, body), strict=True
            )
        }

    def _pack(self, kind: int, number: int, answer: Any) -> Buffers:
        if not isinstance(answer, Mapping):
            _discard(answer)
            return fault(
                number, "parts" if kind == frames.ANSWER else "model",
                f"the model answered with a {type(answer).__name__}, not with a mapping of its "
                "outputs; a model that answers in parts is asked at "
                "/v2/models/<service>/generate_stream",
            )  # fmt: skip
        tensors, body = [], []
        for spec in self._outputs:
            if spec["name"] not in answer:
                return fault(number, "model", f"the model's answer lacks output {spec['name']!r}")
            values = np.asarray(answer[spec["name"]])
            raw = from_numpy(values, spec["datatype"])
            tensors.append((spec["datatype"], values.shape, len(raw)))
            body.append(raw)
        return frames.pack(kind, number, frames.tensor_meta(tensors), body)

    # -- answers in parts

    async def parts(self, meta: Any, body: memoryview, number: int = 0) -> AsyncIterator[Buffers]:
        """A PART frame for each part; a FAULT as the last where something went wrong.

        A model that answers whole has one part. Closing this closes the model's iterator.
        """
        try:
            meta, traces = frames.without_traces(meta)
            inputs = self._read(meta, body)
        except _INPUT_FAULTS as error:
            yield fault(number, "input", str(error))
            return
        steps = self._answers(inputs)
        try:
            with self._span(traces):
                async for answer in steps:
                    yield self._pack(frames.PART, number, answer)
        except WrongInput as error:
            yield fault(number, "input", str(error))
        except Exception as error:  # noqa: BLE001 - the model is the user's code
            yield self._fault(number, error)
        finally:
            await steps.aclose()

    async def _answers(self, inputs: dict[str, Any]) -> AsyncGenerator[Any]:
        async with contextlib.aclosing(
            self._parted(await self._step(self._predict, inputs))
        ) as parts:
            async for part in parts:
                yield part

    async def _parted(self, answer: Any) -> AsyncGenerator[Any]:
        if inspect.isawaitable(answer):
            answer = await answer
        if isinstance(answer, AsyncIterator):
            try:
                async for part in answer:
                    yield part
            finally:
                close = getattr(answer, "aclose", None)
                if close is not None:
                    await close()
        elif isinstance(answer, Iterator):
            try:
                while (part := await self._step(next, answer, _NO_MORE)) is not _NO_MORE:
                    yield part
            finally:
                # Behind a step that may still run: a generator cannot be closed while it works.
                await self._step(_discard, answer)
        else:
            yield answer

    async def _step(self, call: Callable[..., Any], *arguments: Any) -> Any:
        def locked() -> Any:
            with self._lock:
                return call(*arguments)

        return await asyncio.get_running_loop().run_in_executor(self._steps, locked)

    def _fault(self, number: int, error: Exception) -> Buffers:
        """What the client is told; where it was is for the log."""
        self._faults += 1
        now_s = WALL.monotonic_s()
        if now_s >= self._log_again_s:
            log.error("the model failed, for the %d. time here", self._faults, exc_info=error)
            self._log_again_s = now_s + LOG_EVERY_S
        return fault(number, "model", f"the model failed: {type(error).__name__}: {error}")


def fault(number: int, kind: str, message: str) -> Buffers:
    return frames.pack(frames.FAULT, number, {"kind": kind, "message": message[:2000]})


def _discard(answer: Any) -> None:
    """Close what was begun; a coroutine that nobody awaits would complain."""
    close = getattr(answer, "close", None)
    if callable(close):
        close()
