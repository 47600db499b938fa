"""Scores that callers post back for answers they got: `POST /feedback`, by request id.

Remembers which version answered a request, for a while, and only where a rollout's guards name
feedback. A score for a request that nobody remembers is refused, never guessed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from sundog.clock import WALL, Clock
from sundog.security.authoriser import Authoriser, Refusal
from sundog.serving import openapi
from sundog.serving.contract import BadRequest
from sundog.serving.http_body import BODY_TIMEOUT_S
from sundog.serving.observe import Observer

KEEP_S = 3600.0
MAX_REQUESTS = 100_000
_EXAMPLE = '{"request_id": "…", "score": 0.0 … 1.0}'


class Remembered:
    """Request id -> who answered it. The oldest go first, after an hour or 100,000 requests."""

    def __init__(self, clock: Clock = WALL, most: int = MAX_REQUESTS) -> None:
        self._clock = clock
        self._most = most
        self._requests: dict[str, tuple[str, str, float]] = {}
        self._scored: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, request_id: str, service: str, version: str) -> None:
        requests = self._requests
        requests.pop(request_id, None)
        requests[request_id] = (service, version, self._clock.monotonic_s())
        while len(requests) > self._most:
            del requests[next(iter(requests))]

    def find(self, request_id: str) -> tuple[str, str, float]:
        """(service, version, age in seconds). BadRequest 404, or 409 for a second score."""
        if request_id in self._scored:
            raise BadRequest(f"request {request_id[:128]!r} has its score already", 409)
        found = self._requests.get(request_id)
        age_s = self._clock.monotonic_s() - found[2] if found else 0.0
        if found is None or age_s > KEEP_S:
            raise BadRequest(
                f"no answer to a request {request_id[:128]!r} is remembered here; it is the "
                "x-request-id of an answer, kept for an hour where the service's rollout guards "
                "name 'feedback'",
                404,
            )
        return found[0], found[1], age_s

    def done(self, request_id: str) -> None:
        """It has been scored: a second score is another's."""
        del self._requests[request_id]
        self._scored[request_id] = self._clock.monotonic_s()
        while len(self._scored) > self._most:
            del self._scored[next(iter(self._scored))]


def read(body: bytes) -> tuple[str, float]:
    """(request id, score in 0..1). BadRequest 400."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}; write {_EXAMPLE}") from None
    if not isinstance(document, dict) or not isinstance(document.get("request_id"), str):
        raise BadRequest(f"'request_id' is missing; write {_EXAMPLE}")
    score = document.get("score", document.get("correct"))
    if not isinstance(score, (bool, int, float)) or not 0.0 <= score <= 1.0:
        raise BadRequest(f"'score' is a number from 0 (bad) to 1 (good); write {_EXAMPLE}")
    return document["request_id"], float(score)


def router(remembered: Remembered, observer: Observer, authoriser: Authoriser) -> APIRouter:
    """`POST /feedback`, for whoever may call the service that answered."""
    routes = APIRouter()

    def take(body: bytes, headers: Any) -> dict[str, Any]:
        request_id, score = read(body)
        service, version, age_s = remembered.find(request_id)
        verdict = authoriser.authorise(headers, service)
        if isinstance(verdict, Refusal):
            raise BadRequest(verdict.message, verdict.status)
        remembered.done(request_id)
        observer.scored(service, version, age_s, score)
        return {"service": service, "version": version, "score": score}

    @routes.post(
        "/feedback", summary="How good an answer was, by its x-request-id: 0 to 1",
        openapi_extra=openapi.SCORE, responses=openapi.faults("400 401 403 404 408 409 413 429"),
    )  # fmt: skip
    async def feedback(request: Request) -> Response:
        verdict = authoriser.authorise(request.headers.raw, "")
        if isinstance(verdict, Refusal):
            return _json({"error": verdict.message}, verdict.status)
        body = b""
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                async for part in request.stream():
                    body += part
                    if len(body) > 65536:
                        return _json({"error": "a score is at most 64 KiB"}, 413)
        except TimeoutError:
            return _json({"error": f"the score did not come within {BODY_TIMEOUT_S:g} s"}, 408)
        return answer(lambda: take(body, request.headers.raw))

    return routes


def answer(take: Callable[[], dict[str, Any]]) -> Response:
    try:
        return _json(take(), 200)
    except BadRequest as error:
        return _json({"error": error.message}, error.status)


def _json(document: dict[str, Any], status: int) -> Response:
    return Response(orjson.dumps(document), status, media_type="application/json")
