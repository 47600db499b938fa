"""What one model version takes and gives, and reading requests and writing answers accordingly.

Pure: bytes in, bytes out. Every fault of the client is a BadRequest with the HTTP status it gets.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from sundog.serving.tensors import (
    DATATYPES,
    BadTensor,
    count,
    from_json,
    nesting,
    raw_of,
    to_json,
)

MAX_ELEMENTS = 2**31
_SHOWN = 100


class BadRequest(Exception):
    """The request cannot be answered as it is; `status` is an HTTP status of the 4xx family."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


def load_json(body: bytes | bytearray) -> Any:
    """Raises BadRequest."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}") from None


def load_object(body: bytes | bytearray) -> dict[str, Any]:
    """Raises BadRequest."""
    document = load_json(body)
    if not isinstance(document, dict):
        raise BadRequest("the body is not a JSON object")
    return document


class Tensor:
    """One input or output of a signature. A dimension of -1 may be any size."""

    __slots__ = ("datatype", "name", "shape")

    def __init__(self, name: str, datatype: str, shape: Sequence[int]) -> None:
        if datatype not in DATATYPES:
            raise ValueError(f"{name}: {datatype!r} is not a datatype of the protocol")
        self.name = name
        self.datatype = datatype
        self.shape = tuple(shape)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


class Parsed:
    """A request that fits the contract: raw input bytes in the order of the signature."""

    __slots__ = ("binary", "id", "key", "outputs", "raw", "rows", "shapes", "trace")

    def __init__(
        self,
        raw: list[bytes | memoryview],
        shapes: list[tuple[int, ...]],
        rows: int,
        id: str | None,
        outputs: list[str] | None,
        binary: frozenset[str] = frozenset(),
    ) -> None:
        self.raw = raw
        self.shapes = shapes
        self.rows = rows
        self.id = id
        self.outputs = outputs
        self.binary = binary
        self.trace: str | None = None
        """The `traceparent` of the request that it came with, where it is followed."""
        # Calls with the same key may share one call of the model; 0 rows never share.
        self.key = tuple(s[1:] for s in shapes) if rows else None


class Contract:
    """The signature of a model version, compiled for the request path.

    `batchable`: every input and output has a free first dimension, so that rows of several
    requests can be stacked; the service spec may forbid it with `batch: 1`.
    """

    def __init__(self, service: str, version: str, signature: Mapping[str, Any]) -> None:
        self.service = service
        self.version = version
        self.inputs = [Tensor(t["name"], t["datatype"], t["shape"]) for t in signature["inputs"]]
        self.outputs = [Tensor(t["name"], t["datatype"], t["shape"]) for t in signature["outputs"]]
        self._index = {t.name: i for i, t in enumerate(self.inputs)}
        self._out_index = {t.name: i for i, t in enumerate(self.outputs)}
        tensors = self.inputs + self.outputs
        self.batchable = bool(self.inputs) and all(
            t.shape[:1] == (-1,) and t.datatype != "BYTES" for t in tensors
        )
        self._head = (
            b'{"model_name":' + orjson.dumps(service)
            + b',"model_version":' + orjson.dumps(version)
        )  # fmt: skip

    # -- requests

    def read(self, body: bytes | bytearray, json_size: int | None = None) -> Parsed:
        """A request body of `/infer`. Raises BadRequest.

        `json_size`: with the binary extension, how much of the body is JSON; the raw tensors
        follow in the order in which the JSON names them.
        """
        tail = memoryview(b"")
        if json_size is not None:
            if json_size > len(body):
                raise BadRequest("inference-header-content-length is more than the body has")
            tail, body = memoryview(body)[json_size:], bytes(memoryview(body)[:json_size])
        document = load_object(body)
        bools = b"true" in body or b"false" in body
        given = document.get("inputs")
        if not isinstance(given, list):
            raise BadRequest(f"'inputs' is missing; it lists the tensors {self._names()}")
        raw: list[bytes | memoryview | None] = [None] * len(self.inputs)
        shapes: list[Any] = [None] * len(self.inputs)
        for item in given:
            i = self._place(item, raw)
            tensor = self.inputs[i]
            shape = shapes[i] = self._shape(tensor, item)
            size = _parameter(item, "binary_data_size")
            try:
                if size is not None:
                    raw[i], tail = raw_of(tensor.datatype, shape, size, tail), tail[size:]
                elif "data" in item:
                    raw[i] = from_json(item["data"], tensor.datatype, count(shape), bools)
                else:
                    raise BadRequest(f"input {tensor.name!r} has no 'data'")
            except BadTensor as error:
                raise BadRequest(f"input {tensor.name!r}: {error}") from None
        if len(tail):
            raise BadRequest(f"{len(tail)} bytes after the last binary tensor belong to none")
        return self._finish(document, raw, shapes)

    def take(
        self, given: Sequence[dict[str, Any]], raws: Sequence[bytes], document: dict[str, Any]
    ) -> Parsed:
        """Tensors whose raw bytes come beside their descriptions. Raises BadRequest.

        `given`: name, datatype and shape of each; `document`: `id` and `outputs`, as in JSON.
        """
        raw: list[bytes | memoryview | None] = [None] * len(self.inputs)
        shapes: list[Any] = [None] * len(self.inputs)
        for item, data in zip(given, raws, strict=True):
            i = self._place(item, raw)
            shape = shapes[i] = self._shape(self.inputs[i], item)
            try:
                raw[i] = raw_of(self.inputs[i].datatype, shape, len(data), memoryview(data))
            except BadTensor as error:
                raise BadRequest(f"input {self.inputs[i].name!r}: {error}") from None
        return self._finish(document, raw, shapes)

    def _place(self, item: Any, raw: Sequence[Any]) -> int:
        if not isinstance(item, dict):
            raise BadRequest("an input is not an object with name, shape, datatype and data")
        name = item.get("name")
        i = self._index.get(name) if isinstance(name, str) else None
        if i is None:
            raise BadRequest(f"there is no input {_short(name)}; {self._near(name)}")
        if raw[i] is not None:
            raise BadRequest(f"input {name!r} is given twice")
        datatype = item.get("datatype")
        if datatype != self.inputs[i].datatype:
            raise BadRequest(
                f"input {name!r} is {self.inputs[i].datatype}, the request says {_short(datatype)}"
            )
        return i

    def _near(self, name: Any) -> str:
        near = difflib.get_close_matches(str(name)[:100], self._index, n=1)
        return f"did you mean {near[0]!r}?" if near else f"the model takes {self._names()}"

    def _names(self) -> str:
        return ", ".join(
            f"{t.name!r} {t.datatype} {list(t.shape)}" for t in self.inputs
        )  # fmt: skip

    def _shape(self, tensor: Tensor, item: dict[str, Any]) -> tuple[int, ...]:
        shape = item.get("shape")
        if not isinstance(shape, list) or any(type(d) is not int or d < 0 for d in shape):
            raise BadRequest(f"input {tensor.name!r} needs a 'shape', a list of whole numbers")
        if len(shape) != len(tensor.shape) or any(
            want not in (-1, got) for want, got in zip(tensor.shape, shape, strict=True)
        ):
            raise BadRequest(
                f"input {tensor.name!r} has shape {_short(shape)}, "
                f"the model takes {list(tensor.shape)}"
            )
        if count(shape) > MAX_ELEMENTS:
            raise BadRequest(
                f"input {tensor.name!r}: over {MAX_ELEMENTS} elements are too many", 413
            )
        return tuple(shape)

    def _finish(self, document: dict[str, Any], raw: list[Any], shapes: list[Any]) -> Parsed:
        for i, part in enumerate(raw):
            if part is None:
                raise BadRequest(
                    f"input {self.inputs[i].name!r} is missing; the model takes {self._names()}"
                )
        rows = 1
        if self.batchable:
            rows = shapes[0][0]
            for shape, tensor in zip(shapes, self.inputs, strict=True):
                if shape[0] != rows:
                    raise BadRequest(
                        f"inputs differ in rows: {self.inputs[0].name!r} has {rows}, "
                        f"{tensor.name!r} has {shape[0]}"
                    )
        identifier = document.get("id")
        if identifier is not None and not isinstance(identifier, str):
            raise BadRequest("'id' is not a string")
        outputs: Any = document.get("outputs")
        names = self._wanted(outputs)
        binary: frozenset[str] = frozenset()
        everything = _parameter(document, "binary_data_output")
        if everything or names is not None:
            chosen: Any = outputs if names is not None else [{"name": n} for n in self._out_index]
            binary = frozenset(
                o["name"] for o in chosen if _first(_parameter(o, "binary_data"), everything)
            )
        return Parsed(raw, shapes, rows, identifier, names, binary)

    def parse_rows(self, fields: Any) -> tuple[Parsed, bool]:
        """Plain JSON, `{field: value}`, and whether it was one row without the row dimension."""
        if not isinstance(fields, dict):
            raise BadRequest(f"the body is not a JSON object with the fields {self._names()}")
        raw: list[bytes | memoryview | None] = [None] * len(self.inputs)
        shapes: list[Any] = [None] * len(self.inputs)
        single = False
        for name, value in fields.items():
            i = self._index.get(name)
            if i is None:
                raise BadRequest(f"there is no field {name[:100]!r}; {self._near(name)}")
            tensor = self.inputs[i]
            shape = nesting(value)
            while len(shape) < len(tensor.shape) and _free(tensor.shape[: -len(shape) or None]):
                shape, value, single = [1, *shape], [value], True
            shapes[i] = self._shape(tensor, {"shape": shape})
            try:
                raw[i] = from_json(value, tensor.datatype, count(shape))
            except BadTensor as error:
                raise BadRequest(f"field {name!r}: {error}") from None
        return self._finish({}, raw, shapes), single

    def parse_generate(self, fields: Any) -> tuple[Parsed, bool]:
        """The generate extension: fields, `id`, and more fields under `parameters`."""
        if not isinstance(fields, dict):
            raise BadRequest(f"the body is not a JSON object with the fields {self._names()}")
        fields = dict(fields)
        identifier = fields.pop("id", None) if "id" not in self._index else None
        parameters = fields.pop("parameters", None) if "parameters" not in self._index else None
        if not isinstance(parameters, dict | None):
            raise BadRequest("'parameters' is not an object")
        if not isinstance(identifier, str | None):
            raise BadRequest("'id' is not a string")
        parsed, single = self.parse_rows((parameters or {}) | fields)
        parsed.id = identifier
        return parsed, single

    def _wanted(self, outputs: Any) -> list[str] | None:
        if outputs is None:
            return None
        if not isinstance(outputs, list):
            raise BadRequest("'outputs' is not a list")
        names = [o.get("name") if isinstance(o, dict) else None for o in outputs]
        for name in names:
            if not isinstance(name, str) or name not in self._out_index:
                raise BadRequest(
                    f"there is no output {_short(name)}; the model gives "
                    + ", ".join(repr(n) for n in self._out_index)
                )
        return names or None  # type: ignore[return-value]  # None is refused just above

    # -- answers

    def chosen(self, parsed: Parsed) -> Sequence[int]:
        """Which outputs the request asks for, as places in the signature."""
        if parsed.outputs is None:
            return range(len(self.outputs))
        return [self._out_index[name] for name in parsed.outputs]

    def write(
        self,
        parsed: Parsed,
        outputs: Sequence[tuple[str, Sequence[int], bytes | memoryview]],
    ) -> tuple[bytes, int | None]:
        """The body of an answer, and how much of it is JSON where binary tensors follow.

        `outputs`: (datatype, shape, raw), in the order of the signature.
        """
        parts = [self._head]
        if parsed.id is not None:
            parts += (b',"id":', orjson.dumps(parsed.id))
        parts.append(b',"outputs":[')
        tail: list[bytes | memoryview] = []
        for n, i in enumerate(self.chosen(parsed)):
            datatype, shape, raw = outputs[i]
            name = self.outputs[i].name
            parts += (
                b',{"name":' if n else b'{"name":', orjson.dumps(name),
                b',"datatype":"', datatype.encode(), b'","shape":', orjson.dumps(list(shape)),
            )  # fmt: skip
            if name in parsed.binary:
                parts.append(b',"parameters":{"binary_data_size":%d}}' % len(raw))
                tail.append(raw)
            else:
                parts += (b',"data":', to_json(raw, datatype), b"}")
        parts.append(b"]}")
        head = b"".join(parts)
        return (b"".join((head, *tail)), len(head)) if tail else (head, None)

    def write_rows(
        self,
        single: bool,
        outputs: Sequence[tuple[str, Sequence[int], bytes | memoryview]],
    ) -> bytes:
        """Plain JSON, `{field: value}`, nested as the shapes say; one row without its dimension."""
        return orjson.dumps(self._fields(single, outputs))

    def write_generate(
        self,
        parsed: Parsed,
        single: bool,
        outputs: Sequence[tuple[str, Sequence[int], bytes | memoryview]],
    ) -> bytes:
        """One answer, or part, of the generate extension."""
        head = {"model_name": self.service, "model_version": self.version}
        if parsed.id is not None:
            head["id"] = parsed.id
        fields = self._fields(single, outputs)
        for name, value in fields.items():  # the extension writes one element as a scalar
            while single and isinstance(value, list) and len(value) == 1:
                fields[name] = value = value[0]
        return orjson.dumps(head | fields)

    def _fields(
        self,
        single: bool,
        outputs: Sequence[tuple[str, Sequence[int], bytes | memoryview]],
    ) -> dict[str, Any]:
        answer = {}
        for tensor, (datatype, shape, raw) in zip(self.outputs, outputs, strict=True):
            value = orjson.loads(to_json(raw, datatype))
            for dim in reversed(shape[1:]):
                value = [value[k : k + dim] for k in range(0, len(value), dim)] if dim else []
            answer[tensor.name] = value[0] if single and len(value) == 1 else value
        return answer

    def describe(self, versions: list[str], platform: str) -> dict[str, Any]:
        """The protocol's model metadata."""
        return {
            "name": self.service,
            "versions": versions,
            "platform": platform,
            "inputs": [t.describe() for t in self.inputs],
            "outputs": [t.describe() for t in self.outputs],
        }


def _parameter(item: Any, name: str) -> Any:
    parameters = item.get("parameters") if isinstance(item, dict) else None
    return parameters.get(name) if isinstance(parameters, dict) else None


def _short(value: Any) -> str:
    """What a client sent, in an error: it may be of any size."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _first(*values: Any) -> Any:
    return next((v for v in values if v is not None), None)


def _free(dims: tuple[int, ...]) -> bool:
    """Whether a value may do without these dimensions."""
    return all(d in (-1, 1) for d in dims)
