"""What the gateway answers besides inference: the list of services, API docs, a front page.

FastAPI, since nothing here is on the path of a request that must be fast.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from sundog import __version__
from sundog.serving.routes import Routes


def build_pages(routes: Routes) -> FastAPI:
    app = FastAPI(
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

    @app.get("/", summary="What this is")
    def front() -> dict[str, Any]:
        return {
            "name": "sundog",
            "version": __version__,
            "docs": "/docs",
            "services": sorted(routes.services),
        }

    @app.get("/sundog/services", summary="Every service: its state, versions and weights")
    def services() -> list[dict[str, Any]]:
        return [describe(routes, name) for name in sorted(routes.services)]

    return app


def describe(routes: Routes, name: str) -> dict[str, Any]:
    """One service as people ask for it."""
    route = routes.services[name]
    document = route.document
    return {
        "service": name,
        "model": document["model"],
        "state": document["state"],
        "message": document["message"],
        "version": next(iter(document["weights"]), None),
        "replicas": sum(len(r.lane.connections) for r in route.versions.values()),
        "weights": document["weights"],
        "versions": [
            {
                "version": v,
                "ready": r.ready,
                "replicas": len(r.lane.connections),
                "queued": len(r.lane.queue),
            }
            for v, r in sorted(route.versions.items())
        ],
    }
