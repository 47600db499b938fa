"""What every call over gRPC begins with: its headers, its id, whether it may come in, how it is refused."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc

from sundog.serving.calls import Calls, request_id_of
from sundog.serving.contract import BadRequest
from sundog.serving.grpc_messages import STATUS
from sundog.serving.lane import NotServed
from sundog.serving.tensors import BadTensor

log = logging.getLogger("sundog.gateway")


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Who needs a key and has none is turned away before a message is received, and holds no stream."""

    _OPEN = frozenset(
        (
            "/inference.GRPCInferenceService/ServerLive",
            "/inference.GRPCInferenceService/ServerReady",
            "/inference.GRPCInferenceService/ServerMetadata",
            "/grpc.health.v1.Health/Check",
        )
    )

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        if details.method not in self._OPEN:
            try:
                self._calls.look(pairs(details.invocation_metadata))
            except NotServed as error:
                return _refusing(error)
        return await continuation(details)


def _refusing(error: NotServed) -> Any:
    """A handler that only refuses. For streams, since of those no message is awaited before it."""

    async def answer(requests: Any, context: Any) -> None:
        _, request_id = named(context)
        await refuse(context, request_id, error)

    return grpc.stream_stream_rpc_method_handler(answer)


def pairs(metadata: Any) -> list[tuple[bytes, bytes]]:
    return [
        (key.encode(), value if isinstance(value, bytes) else value.encode())
        for key, value in metadata or ()
    ]


@contextlib.asynccontextmanager
async def refusals(context: Any) -> AsyncIterator[tuple[dict[bytes, bytes], bytes]]:
    """The headers and the id of a call; our refusals as gRPC statuses."""
    headers, request_id = named(context)
    try:
        yield headers, request_id
    except (BadRequest, NotServed) as error:
        await refuse(context, request_id, error)
    except BadTensor as error:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
    except Exception:  # noqa: BLE001 - logged
        await context.abort(grpc.StatusCode.INTERNAL, failed(request_id))


def named(context: Any) -> tuple[dict[bytes, bytes], bytes]:
    """The headers of a call, and the id that it has from here on."""
    headers = dict(pairs(context.invocation_metadata()))
    request_id = request_id_of(headers)
    context.set_trailing_metadata((("x-request-id", request_id.decode()),))
    return headers, request_id


async def refuse(context: Any, request_id: bytes, error: BadRequest | NotServed) -> None:
    retry_after_s = getattr(error, "retry_after_s", None)
    if retry_after_s is not None:
        # It replaces what was set before.
        context.set_trailing_metadata(
            (("x-request-id", request_id.decode()),
             ("retry-after", str(max(1, round(retry_after_s)))))
        )  # fmt: skip
    await context.abort(STATUS.get(error.status, grpc.StatusCode.UNKNOWN), error.message)


def failed(request_id: bytes) -> str:
    """What nobody expected, while it is handled: logged, and what the caller is told of it."""
    log.exception("request %s failed", request_id.decode())
    return f"the gateway failed; its log says why, at request {request_id.decode()}"
