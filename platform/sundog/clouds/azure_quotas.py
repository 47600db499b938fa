"""Azure: what a subscription may run in a location, read with the user's own credentials. Changes nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from sundog.clouds.base import AuthRefused, Transient
from sundog.market.shapes import catalogue

API = "https://management.azure.com"
SCOPE = f"{API}/.default"
USAGES, SIZES = "2024-07-01", "2021-07-01"  # versions of the two interfaces
QUICK_S = 20.0  # the list of sizes has some megabytes
_FIX = "az login, or set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET"

Get = Callable[[str, dict[str, str]], dict[str, Any]]


def has_credentials() -> bool:
    """Whether this machine has credentials for Azure. Asks nobody whether they are good."""
    folder = os.environ.get("AZURE_CONFIG_DIR") or Path.home() / ".azure"
    return bool(os.environ.get("AZURE_CLIENT_ID")) or Path(folder, "azureProfile.json").exists()


def allowed(
    subscription: str, location: str, *, get: Get | None = None
) -> dict[tuple[str, str], int]:
    """(quota, market) -> vCPUs. Which family a size counts in only Azure knows: it is asked for that too.
    AuthRefused, Transient."""
    get = get or _asker()
    compute = f"{API}/subscriptions/{subscription}/providers/Microsoft.Compute"
    limits = {
        str(row["name"]["value"]).lower(): int(row["limit"])
        for row in _rows(get, f"{compute}/locations/{location}/usages", {"api-version": USAGES})
    }
    found: dict[tuple[str, str], int] = {}
    if "lowprioritycores" in limits:
        found["all families", "spot"] = limits["lowprioritycores"]
    asked = {"api-version": SIZES, "$filter": f"location eq '{location}'"}
    for row in _rows(get, f"{compute}/skus", asked):
        shape = catalogue().shape("azure", str(row.get("name")))
        limit = limits.get(str(row.get("family")).lower())
        if shape is not None and limit is not None:
            found[shape.quota("on-demand"), "on-demand"] = limit
    return found


def _rows(get: Get, url: str, params: dict[str, str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while url.startswith(API):  # never follow a link with the token to anywhere else
        page = get(url, params)
        found += page.get("value") or ()
        url, params = str(page.get("nextLink") or ""), {}
    return found


def _asker() -> Get:
    headers = {"Authorization": f"Bearer {_token()}"}

    def get(url: str, params: dict[str, str]) -> dict[str, Any]:
        try:
            answer = httpx.get(url, params=params or None, headers=headers, timeout=QUICK_S)
            answer.raise_for_status()
            data: dict[str, Any] = answer.json()
            return data
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            if status in (401, 403):
                raise AuthRefused(
                    f"Azure answers {status} for the quotas", "the role needs Reader"
                ) from None
            raise Transient(f"Azure answers {status} for the quotas") from None
        except (httpx.HTTPError, ValueError) as error:
            raise Transient(f"Azure does not answer: {type(error).__name__}") from None

    return get


def _token() -> str:
    try:
        from azure.core.exceptions import ClientAuthenticationError
        from azure.identity import DefaultAzureCredential
    except ImportError:
        raise AuthRefused("azure-identity is not installed", "pip install azure-identity") from None
    try:
        found = DefaultAzureCredential(exclude_managed_identity_credential=True).get_token(SCOPE)
    except ClientAuthenticationError as error:
        raise AuthRefused(f"no credentials for Azure: {error.message}", _FIX) from None
    return str(found.token)
