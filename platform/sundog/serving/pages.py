"""What the gateway answers besides inference: the list of services, API docs, a front page.

FastAPI, since nothing here is on the path of a request that must be fast.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from sundog import __version__, telemetry
from sundog.security.authoriser import Authoriser, Identity, Refusal
from sundog.serving import openapi
from sundog.serving.routes import Routes
from sundog.serving.stats import Histogram, Metrics

_PLAYGROUND = Path(__file__).with_name("playground.html")
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data: blob:"
)


def build_pages(
    routes: Routes,
    metrics: Metrics,
    authoriser: Authoriser,
    *more: APIRouter,
    passes_openai: bool = False,
) -> FastAPI:
    # Its pages load nothing from elsewhere: a cluster may have no way out.
    app = FastAPIOffline(
        redoc_url=None,
        title="Sundog",
        version=__version__,
        description="Models behind one address. Inference follows the Open Inference Protocol v2.",
    )

    @app.exception_handler(HTTPException)
    async def plain_error(request: Any, error: HTTPException) -> JSONResponse:
        message = (
            f"there is nothing at {request.url.path!r}"
            if error.status_code == 404
            else str(error.detail)
        )
        return JSONResponse({"error": message}, error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def failed(request: Any, error: Exception) -> JSONResponse:
        return JSONResponse({"error": "the gateway failed; its log says why"}, 500)

    def seen_by(request: Request) -> Identity:
        """Who asks, who has to have a key where keys are. Limits do not count here."""
        verdict = authoriser.authorise(request.headers.raw, "")
        if isinstance(verdict, Refusal):
            raise HTTPException(verdict.status, verdict.message)
        return verdict

    for router in more:
        app.include_router(router)

    @app.get("/", summary="What this is")
    def front(request: Request) -> dict[str, Any]:
        verdict = authoriser.authorise(request.headers.raw, "")
        seen = [] if isinstance(verdict, Refusal) else filter(verdict.may, routes.services)
        return {
            "name": "sundog",
            "version": __version__,
            "docs": "/docs",
            "playground": "/playground",
            "services": sorted(seen),
        }

    @app.get("/playground", include_in_schema=False)
    def playground() -> HTMLResponse:
        return HTMLResponse(_PLAYGROUND.read_text(), headers={"content-security-policy": _POLICY})

    @app.get(
        "/sundog/services", summary="Services: their state, versions and weights",
        responses=openapi.faults("401"),
    )  # fmt: skip
    def services(request: Request) -> list[dict[str, Any]]:
        seen = filter(seen_by(request).may, routes.services)
        return [describe(routes, name) for name in sorted(seen)]

    @app.get(
        "/metrics", summary="Prometheus metrics of this gateway", response_class=PlainTextResponse,
        responses=openapi.faults("401 403"),
    )  # fmt: skip
    def prometheus(request: Request) -> PlainTextResponse:
        if not seen_by(request).sees_all:
            raise HTTPException(
                403, "/metrics tells of all services and callers: it asks for a key of all services"
            )
        return PlainTextResponse(metrics.text(gauges(routes), first_parts(routes)))

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes
            )
            made["paths"] = openapi.paths(passes_openai) | made["paths"]
            components = made.setdefault("components", {})
            components["schemas"] = openapi.SCHEMAS | components.get("schemas", {})
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            made["security"] = [{}, {"key": []}]
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
    return app


def first_parts(routes: Routes) -> list[tuple[str, str, Histogram]]:
    return [
        (name, version, found.lane.stats.first)
        for name, route in sorted(routes.services.items())
        for version, found in sorted(route.versions.items())
        if found.lane.stats.first is not None
    ]


def gauges(routes: Routes) -> list[tuple[str, str, dict[str, float]]]:
    return [
        (
            name,
            version,
            {
                telemetry.GATEWAY_QUEUED: found.lane.waiting,
                telemetry.GATEWAY_IN_FLIGHT: found.lane.under_way,
                telemetry.GATEWAY_REPLICAS: len(found.lane.connections),
                telemetry.GATEWAY_BATCH: found.lane.size.now,
                telemetry.GATEWAY_ROWS: found.lane.stats.rows,
                telemetry.GATEWAY_CALLS: found.lane.stats.executions,
            },
        )
        for name, route in sorted(routes.services.items())
        for version, found in sorted(route.versions.items())
    ]


def describe(routes: Routes, name: str) -> dict[str, Any]:
    """One service as people ask for it."""
    route = routes.services[name]
    document = route.document
    return {
        "service": name,
        "model": document["model"],
        "state": document["state"],
        "message": document["message"],
        "version": document.get("version"),
        "replicas": sum(len(r.lane.connections) for r in route.versions.values()),
        "weights": document["weights"],
        "versions": [
            {
                "version": v,
                "ready": r.ready,
                "replicas": len(r.lane.connections),
                "queued": r.lane.waiting,
            }
            for v, r in sorted(route.versions.items())
        ],
    }
