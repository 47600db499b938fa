"""The protocol's gRPC messages to requests and back: tensors raw or typed, faults as gRPC statuses.

The messages are those of Triton's client package, which extend the Open Inference Protocol's.
"""

from __future__ import annotations

from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb

from sundog.serving.contract import BadRequest, Contract, Parsed
from sundog.serving.lane import Outputs
from sundog.serving.tensors import DATATYPES, BadTensor, count, from_json, join_bytes

# datatype -> the field of InferTensorContents that carries it; 16-bit floats travel raw only
_TYPED = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents",
    "INT32": "int_contents", "INT64": "int64_contents", "UINT8": "uint_contents",
    "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip

STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT, 401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED, 404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED, 429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL, 503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}  # fmt: skip


def read_infer(contract: Contract, request: Any) -> Parsed:
    """A ModelInferRequest. Raises BadRequest."""
    raw_count = len(request.raw_input_contents)
    if raw_count not in (0, len(request.inputs)):
        raise BadRequest(
            f"raw_input_contents has {raw_count} entries for {len(request.inputs)} inputs"
        )
    given, raws = [], []
    for i, tensor in enumerate(request.inputs):
        shape = list(tensor.shape)
        given.append({"name": tensor.name, "datatype": tensor.datatype, "shape": shape})
        raws.append(request.raw_input_contents[i] if raw_count else _typed(tensor, shape))
    document: dict[str, Any] = {"id": request.id} if request.id else {}
    if request.outputs:
        document["outputs"] = [{"name": o.name} for o in request.outputs]
    return contract.take(given, raws, document)


def _typed(tensor: Any, shape: list[int]) -> bytes:
    if tensor.datatype not in DATATYPES:
        raise BadRequest(
            f"input {tensor.name!r}: {tensor.datatype!r} is not a datatype of the protocol"
        )
    field = _TYPED.get(tensor.datatype)
    if field is None:
        raise BadRequest(
            f"input {tensor.name!r}: {tensor.datatype} travels in raw_input_contents only"
        )
    values = list(getattr(tensor.contents, field))
    if tensor.datatype == "BYTES":
        return join_bytes(values)
    if any(d < 0 for d in shape):
        raise BadRequest(f"input {tensor.name!r} has a negative dimension: {shape}")
    try:
        return from_json(values, tensor.datatype, count(shape))
    except BadTensor as error:
        raise BadRequest(f"input {tensor.name!r}: {error}") from None


def write_infer(contract: Contract, parsed: Parsed, outputs: Outputs) -> Any:
    """A ModelInferResponse, its tensors raw."""
    response = pb.ModelInferResponse(
        model_name=contract.service, model_version=contract.version, id=parsed.id or ""
    )
    for i in contract.chosen(parsed):
        datatype, shape, raw = outputs[i]
        response.outputs.add(name=contract.outputs[i].name, datatype=datatype, shape=shape)
        response.raw_output_contents.append(bytes(raw))
    return response


def wants_empty_final(request: Any) -> bool:
    """Whether the client asks for a last, empty response after the parts of an answer."""
    name = "triton_enable_empty_final_response"
    return name in request.parameters and bool(request.parameters[name].bool_param)


def final(contract: Contract, parsed: Parsed) -> Any:
    response = pb.ModelInferResponse(
        model_name=contract.service, model_version=contract.version, id=parsed.id or ""
    )
    response.parameters["triton_final_response"].bool_param = True
    return response
