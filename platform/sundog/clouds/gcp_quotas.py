"""GCP: what a project may run in a region, read with the user's own credentials. Changes nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx

from sundog.clouds.base import AuthRefused, Transient
from sundog.clouds.gcp_prices import token
from sundog.errors import CapacityError

API = "https://compute.googleapis.com/compute/v1/projects"
SCOPE = "https://www.googleapis.com/auth/compute.readonly"
QUICK_S = 5.0  # a plan waits for this
ALL_GPUS = ("GPUS_ALL_REGIONS", "any market")
"""The project's own limit, beside those of a region."""
_SPOT = "PREEMPTIBLE_"

Get = Callable[[str], dict[str, Any]]


def has_credentials() -> bool:
    """Whether this machine has credentials for GCP. Asks nobody whether they are good."""
    if os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
        return True
    folder = os.environ.get("CLOUDSDK_CONFIG") or Path.home() / ".config" / "gcloud"
    return Path(folder, "application_default_credentials.json").exists()


def allowed(project: str, region: str, *, get: Get | None = None) -> dict[tuple[str, str], int]:
    """(metric, market) -> GPUs or vCPUs. Spot counts against its own quota where the project has one, else
    against the ordinary (Compute Engine's "preemptible quotas"). AuthRefused, Transient."""
    get = get or _asker()
    limits = _limits(get(f"{project}/regions/{region}"))
    found: dict[tuple[str, str], int] = {}
    for metric, limit in limits.items():
        if not metric.startswith(_SPOT):
            found[metric, "on-demand"] = limit
            # All CPUs of spot share one quota, whatever their kind.
            own = "PREEMPTIBLE_CPUS" if metric.endswith("CPUS") else _SPOT + metric
            found[metric, "spot"] = limits.get(own, 0) or limit
    name, market = ALL_GPUS
    if name in (of_all := _limits(get(project))):
        found[name, market] = of_all[name]
    return found


def _limits(about: Mapping[str, Any]) -> dict[str, int]:
    return {str(q["metric"]): int(q["limit"]) for q in about.get("quotas") or ()}


def _asker() -> Get:
    headers = {"Authorization": f"Bearer {token(SCOPE)}"}

    def get(path: str) -> dict[str, Any]:
        try:
            answer = httpx.get(
                f"{API}/{path}", params={"fields": "quotas"}, headers=headers, timeout=QUICK_S
            )
            answer.raise_for_status()
            data: dict[str, Any] = answer.json()
            return data
        except httpx.HTTPStatusError as error:
            raise _refused(error.response.status_code, path) from None
        except (httpx.HTTPError, ValueError) as error:
            raise Transient(f"Compute Engine does not answer: {type(error).__name__}") from None

    return get


def _refused(status: int, path: str) -> CapacityError:
    if status in (401, 403):
        return AuthRefused(
            f"Compute Engine answers {status} for the quotas of {path}",
            "the role needs compute.regions.get and compute.projects.get (roles/compute.viewer)",
        )
    return Transient(f"Compute Engine answers {status} for the quotas of {path}")
