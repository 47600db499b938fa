"""The bounded framing between a gateway and a replica: one frame, one call of the model.

Parses bytes and nothing else. Whatever is out of bounds raises BadFrame, and the connection that
sent it is closed; a frame never makes the reader hold more than its limits.

    0  2s  magic "SD"        2  B  protocol version      3  B  kind
    4  I   number            8  I  bytes of meta (JSON)  12 Q  bytes of body (raw tensors)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import orjson

_HEAD = struct.Struct("!2sBBIIQ")
_MAGIC = b"SD"
VERSION = 1

INFER, ANSWER, FAULT, HELLO, CLOSING = 1, 2, 3, 4, 5
# An answer in parts: STREAM asks, PARTs come until END or FAULT; CANCEL stops it, MORE grants parts.
STREAM, PART, END, CANCEL, MORE = 6, 7, 8, 9, 10
_KINDS = frozenset(range(INFER, MORE + 1))

MAX_META = 1 << 18
MAX_BODY = 1 << 31


class BadFrame(ValueError):
    """Not a frame of this protocol, or one beyond its bounds."""


class Frame(NamedTuple):
    kind: int
    number: int
    meta: Any
    body: memoryview


def pack(
    kind: int, number: int, meta: Any = None, body: Sequence[bytes | memoryview] = ()
) -> list[bytes | memoryview]:
    """The buffers of one frame, to be written in this order without joining large ones."""
    head = orjson.dumps(meta) if meta is not None else b""
    size = sum(map(len, body))
    if len(head) > MAX_META or size > MAX_BODY:
        raise BadFrame(f"a frame of {len(head)} + {size} bytes is over the limit")
    return [_HEAD.pack(_MAGIC, VERSION, kind, number, len(head), size) + head, *body]


class Reader:
    """Cuts a stream of bytes into frames."""

    def __init__(self, max_body: int = MAX_BODY) -> None:
        self._max_body = max_body
        self._pending = bytearray()
        self._needed = _HEAD.size

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Frames completed by `data`. Raises BadFrame; the reader is of no use afterwards."""
        if self._pending:
            self._pending += data
            if len(self._pending) < self._needed:
                return
            # The buffer is handed out as views, so the next feed starts a new one.
            data, self._pending = self._pending, bytearray()  # type: ignore[assignment]
        view, at = memoryview(data), 0
        while True:
            left = len(view) - at
            if left < _HEAD.size:
                # What is no frame is refused at its first bytes, not waited for.
                first = bytes(view[at : at + 2])
                if first != _MAGIC[: len(first)]:
                    raise BadFrame("not a frame")
                self._needed = _HEAD.size
                break
            magic, version, kind, number, meta_size, body_size = _HEAD.unpack_from(view, at)
            if magic != _MAGIC or version != VERSION or kind not in _KINDS:
                raise BadFrame("not a frame of this protocol version")
            if meta_size > MAX_META or body_size > self._max_body:
                raise BadFrame(f"a frame of {meta_size} + {body_size} bytes is over the limit")
            total = _HEAD.size + meta_size + body_size
            if left < total:
                self._needed = total
                break
            start = at + _HEAD.size
            meta = _load(view[start : start + meta_size]) if meta_size else None
            yield Frame(kind, number, meta, view[start + meta_size : at + total])
            at += total
        if at < len(view):
            self._pending = bytearray(view[at:])


def _load(raw: memoryview) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise BadFrame("the meta part of a frame is not JSON") from None


def tensor_meta(tensors: Sequence[tuple[str, Sequence[int], int]]) -> list[Any]:
    """`[datatype, shape, bytes]` for each tensor of a body, in signature order."""
    return [[datatype, list(shape), size] for datatype, shape, size in tensors]


def with_traces(tensors: Any, traces: Sequence[str]) -> Any:
    """The meta of a call, with the traces that its requests belong to, where there are any."""
    return {"tensors": tensors, "traces": list(traces)} if traces else tensors


def without_traces(meta: Any) -> tuple[Any, list[str]]:
    """(meta of tensors, traces) of a call. Raises BadFrame."""
    if not isinstance(meta, dict):
        return meta, []
    traces = meta.get("traces")
    if not isinstance(traces, list) or not all(isinstance(t, str) for t in traces):
        raise BadFrame("traces of a frame are not words")
    return meta.get("tensors"), traces


def cut(meta: Any, body: memoryview) -> list[tuple[str, list[int], memoryview]]:
    """(datatype, shape, raw) of each tensor in a body. Raises BadFrame where meta lies."""
    out, at = [], 0
    try:
        for datatype, shape, size in meta:
            if type(size) is not int or size < 0 or at + size > len(body):
                raise BadFrame("a tensor runs past the end of its frame")
            if not (isinstance(datatype, str) and isinstance(shape, list)):
                raise BadFrame("a tensor has no datatype or shape")
            if any(type(d) is not int or d < 0 for d in shape):
                raise BadFrame("a tensor's shape is not of whole numbers")
            out.append((datatype, shape, body[at : at + size]))
            at += size
    except (TypeError, ValueError) as error:
        raise BadFrame(f"tensors of a frame are not described: {error}") from None
    if at != len(body):
        raise BadFrame("a frame has bytes that belong to no tensor")
    return out
