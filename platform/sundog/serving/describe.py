"""The protocol's documents about what is served: metadata, configuration, statistics, index."""

from __future__ import annotations

from typing import Any

from sundog import __version__
from sundog.security.authoriser import Identity
from sundog.serving.routes import Routes, ServiceRoute, VersionRoute

EXTENSIONS = [
    "binary_tensor_data", "generate", "model_configuration", "model_repository", "parameters",
    "statistics",
]  # fmt: skip


def server() -> dict[str, Any]:
    return {"name": "sundog", "version": __version__, "extensions": EXTENSIONS}


def metadata(route: ServiceRoute, version: VersionRoute) -> dict[str, Any]:
    platform = "pytorch_export" if version.kind == "torch-export" else version.kind
    return version.contract.describe(sorted(route.versions), platform)


def config(name: str, version: VersionRoute) -> dict[str, Any]:
    """The protocol's model configuration, as far as it says something here."""
    stacked = version.contract.batchable

    def tensor(t: Any) -> dict[str, Any]:
        datatype = "STRING" if t.datatype == "BYTES" else t.datatype
        return {
            "name": t.name, "data_type": f"TYPE_{datatype}",
            "dims": list(t.shape[1:] if stacked else t.shape),
        }  # fmt: skip

    return {
        "name": name,
        "platform": version.kind,
        "backend": "sundog",
        "version_policy": {"specific": {"versions": [int(version.version)]}},
        "max_batch_size": version.lane.limits.batch if stacked else 0,
        "input": [tensor(t) for t in version.contract.inputs],
        "output": [tensor(t) for t in version.contract.outputs],
        "model_transaction_policy": {"decoupled": version.lane.streams},
    }


def statistics(
    routes: Routes, seen_by: Identity, name: str | None = None, version: str | None = None
) -> dict[str, Any]:
    """Of everything that they may see, of one service, or of one of its versions. Raises BadRequest."""
    if name is None:
        chosen = [(n, found) for n, _, found in _served(routes, seen_by)]
    else:
        route, _ = routes.find_version(name, version)
        versions = [version] if version else sorted(route.versions)
        chosen = [(name, route.versions[v]) for v in versions]
    return {"model_stats": [v.lane.stats.document(n, v.version) for n, v in chosen]}


def index(routes: Routes, seen_by: Identity, only_ready: bool) -> list[dict[str, str]]:
    """The protocol's repository index: every version, READY or UNAVAILABLE with its reason."""
    rows = [
        {
            "name": name, "version": version,
            "state": "READY" if found.ready else "UNAVAILABLE",
            "reason": "" if found.ready else routes.services[name].document["message"],
        }
        for name, version, found in _served(routes, seen_by)
    ]  # fmt: skip
    return [r for r in rows if r["state"] == "READY"] if only_ready else rows


def _served(routes: Routes, seen_by: Identity) -> list[tuple[str, str, VersionRoute]]:
    return [
        (name, version, found)
        for name, route in sorted(routes.services.items())
        if seen_by.may(name)
        for version, found in sorted(route.versions.items())
    ]
