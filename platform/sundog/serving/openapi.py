"""What of the gateway FastAPI does not know, for its OpenAPI document: the protocol, plain JSON, `/v1`.

Written by hand beside the raw ASGI app that serves it; a test asks every path of it.
"""

from __future__ import annotations

from typing import Any

_TENSOR = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"type": "string"},
        "datatype": {"type": "string", "examples": ["FP32"]},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "parameters": {"type": "object"},
        "data": {"description": "nested or flat; absent where the tensor follows as bytes"},
    },
}
SCHEMAS: dict[str, Any] = {
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {"error": {"description": "what is wrong, and how to put it right"}},
    },
    "InferenceRequest": {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "parameters": {"type": "object"},
            "inputs": {"type": "array", "items": _TENSOR},
            "outputs": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {"name": {"type": "string"}, "parameters": {"type": "object"}},
                },
            },
        },
    },
    "InferenceResponse": {
        "type": "object",
        "required": ["model_name", "outputs"],
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "outputs": {"type": "array", "items": _TENSOR},
        },
    },
    "Fields": {
        "type": "object",
        "description": "a value for each input or output, by name; one row may go without its "
        "row dimension",
    },
    "Anything": {"type": "object"},
}
_FAULTS = {
    "400": "not what the model takes", "401": "no key, or none that is known",
    "403": "a key of other services", "404": "no such service or version",
    "408": "the body did not come", "409": "it has been said already",
    "413": "over the service's max_body",
    "415": "an encoding that is not understood", "429": "over the key's rate",
    "500": "the model failed", "502": "the model's server broke off",
    "503": "nothing there that could answer, or too many ask",
    "504": "over the service's deadline",
}  # fmt: skip
_SERVICE = {"name": "service", "in": "path", "required": True, "schema": {"type": "string"}}
_VERSION = {"name": "version", "in": "path", "required": True, "schema": {"type": "string"}}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": _ref(name)}}


def faults(statuses: str) -> dict[int | str, dict[str, Any]]:
    """`401 403`: what these say here."""
    return {s: {"description": _FAULTS[s], "content": _json("Error")} for s in statuses.split()}


def _operation(
    summary: str,
    answers: dict[str, Any],
    refused: str,
    parameters: list[Any] | None = None,
    request: str = "",
    tag: str = "inference",
) -> dict[str, Any]:
    responses: dict[int | str, Any] = {"200": {"description": "the answer", "content": answers}}
    responses |= faults(refused)
    out: dict[str, Any] = {"summary": summary, "tags": [tag], "responses": responses}
    if parameters:
        out["parameters"] = parameters
    if request:
        out["requestBody"] = {"required": True, "content": _json(request)}
    return out


_ASKED = "400 401 403 404 408 413 415 429 500 503 504"
_LOOKED = "401 403 404 503"
_EVENTS = {"text/event-stream": {"schema": {"type": "string"}}}
_WHOLE = {**_json("InferenceResponse"), "application/octet-stream": {"schema": {}}}


def _model_paths(prefix: str, parameters: list[Any]) -> dict[str, Any]:
    def get(summary: str) -> dict[str, Any]:
        return {
            "get": _operation(summary, _json("Anything"), _LOOKED, parameters, tag="what is served")
        }

    def post(summary: str, answers: dict[str, Any], request: str) -> dict[str, Any]:
        return {"post": _operation(summary, answers, _ASKED, parameters, request)}

    return {
        prefix: get("Names, datatypes and shapes of inputs and outputs"),
        f"{prefix}/ready": get("Whether it answers now"),
        f"{prefix}/config": get("Its configuration, as Triton writes it"),
        f"{prefix}/stats": get("What it has done, and how long it took"),
        f"{prefix}/infer": post(
            "Open Inference Protocol v2; tensors as JSON or bytes", _WHOLE, "InferenceRequest"
        ),
        f"{prefix}/generate": post("Fields by name, one answer", _json("Fields"), "Fields"),
        f"{prefix}/generate_stream": post(
            "Fields by name, an event for each part of the answer", _EVENTS, "Fields"
        ),
    }


_LOADS = {
    "post": {
        "summary": "Refused: services come and go with `serve deploy` or `sundog deploy`",
        "tags": ["what is served"],
        "parameters": [_SERVICE],
        "responses": faults("400 401"),
    }
}
SCORE = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["request_id", "score"],
                    "properties": {
                        "request_id": {"type": "string", "description": "an answer's x-request-id"},
                        "score": {"type": "number", "minimum": 0, "maximum": 1},
                    },
                }
            }
        },
    }
}


def paths(openai: bool) -> dict[str, Any]:
    """`openai`: whether `/v1` passes through to anything."""
    about = "what is served"
    out = {
        "/v2": {"get": _operation("What this server is", _json("Anything"), "", tag=about)},
        "/v2/health/live": {"get": _operation("It runs", _json("Anything"), "", tag=about)},
        "/v2/health/ready": {
            "get": _operation("It knows what to serve", _json("Anything"), "503", tag=about)
        },
        "/v2/models/stats": {
            "get": _operation("Statistics of everything", _json("Anything"), "401", tag=about)
        },
        "/v2/repository/index": {
            "post": _operation(
                "Every service and version, and whether it is ready",
                {"application/json": {"schema": {"type": "array", "items": _ref("Anything")}}},
                "400 401 408 413", tag=about,
            )
        },
        **{f"/v2/repository/models/{{service}}/{verb}": _LOADS for verb in ("load", "unload")},
        **_model_paths("/v2/models/{service}", [_SERVICE]),
        **_model_paths("/v2/models/{service}/versions/{version}", [_SERVICE, _VERSION]),
        "/predict/{service}": {
            "post": _operation(
                "Plain JSON: fields by name", {**_json("Fields"), **_EVENTS}, _ASKED, [_SERVICE],
                "Fields",
            )
        },
    }  # fmt: skip
    if openai:
        model = {**_SERVICE, "name": "model"}
        out["/v1/models"] = {
            "get": _operation("OpenAI-compatible models", _json("Anything"), "401", tag="OpenAI")
        }
        out["/v1/models/{model}"] = {
            "get": _operation(
                "One of them", _json("Anything"), "400 401 404", [model], tag="OpenAI"
            )
        }
        for name in ("chat/completions", "completions", "embeddings"):
            out[f"/v1/{name}"] = {
                "post": _operation(
                    "Passed on to the server of the model that the body names, as is every other "
                    "path below /v1", {**_json("Anything"), **_EVENTS},
                    "400 401 403 404 408 413 415 429 502 503", request="Anything", tag="OpenAI",
                )
            }  # fmt: skip
            out[f"/v1/{name}"]["post"]["responses"]["default"] = {
                "description": "as the model's server answers"
            }
    return out
