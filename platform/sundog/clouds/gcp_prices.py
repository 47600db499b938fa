"""GCP: today's prices from the Cloud Billing catalogue, put together from cores, memory and GPUs.

Needs credentials (an application default, or GOOGLE_API_KEY), buys nothing. A machine any part of
which has no price in the region has none: nothing is guessed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import httpx

from sundog.clock import WALL, Clock
from sundog.clouds.base import AuthRefused, Transient
from sundog.market.prices import Market, Price
from sundog.market.shapes import Shape, catalogue

# The services of the catalogue are numbered; this one is Compute Engine.
SKUS = "https://cloudbilling.googleapis.com/v1/services/6F81-5844-456A/skus"
SCOPE = "https://www.googleapis.com/auth/cloud-billing.readonly"
TIMEOUT_S = 20.0
MOST_PAGES = 50

# How the catalogue's texts name the GPUs that shapes name.
GPU_TEXT = {
    "T4": r"\bT4\b", "L4": r"\bL4\b", "V100": r"\bV100\b", "P4": r"\bP4\b", "P100": r"\bP100\b",
    "A100": r"\bA100\b(?!.*80)", "A100-80GB": r"\bA100 80GB\b", "H100": r"\bH100 80GB\b(?!.*Plus)",
    "H200": r"\bH200\b", "B200": r"\bB200\b",
}  # fmt: skip
# Never the hourly price of the machine we would get.
_OTHER = re.compile(
    r"custom|sole tenancy|commitment|reserved|dws|calendar|premium|extended|upgrade", re.IGNORECASE
)
_FIX = "gcloud auth application-default login, or set GOOGLE_API_KEY"

Get = Callable[[dict[str, str]], dict[str, Any]]


def refresh_prices(
    region: str, shapes: Iterable[str], *, clock: Clock = WALL, get: Get | None = None
) -> list[Price]:
    """Spot and on-demand in the region, for these shapes, as of now. AuthRefused, Transient."""
    day = datetime.fromtimestamp(clock.now_s(), UTC).date()
    rows = [r for r in _skus(get or _asker()) if region in (r.get("serviceRegions") or ())]
    found: list[Price] = []
    for name in sorted(shapes):
        shape = catalogue().shape("gcp", name)
        if shape is None:
            continue
        for market in ("on-demand", "spot"):
            usd = _machine(shape, market, rows)
            if usd is not None:
                found.append(Price("gcp", market, region, "", name, usd, day, "account"))
    return found


def _machine(shape: Shape, market: Market, rows: list[dict[str, Any]]) -> float | None:
    """Dollars an hour of the whole machine; None if any part of it has no price."""
    family = shape.name.partition("-")[0].upper()
    core = _part(rows, market, "CPU", rf"\b{family} (Predefined )?Instance Core\b")
    memory = _part(rows, market, "RAM", rf"\b{family} (Predefined )?Instance Ram\b")
    if core is None or memory is None:
        return None
    usd = shape.vcpus * core + shape.memory_gib * memory
    if shape.accelerators:
        text = GPU_TEXT.get(shape.accelerator)
        gpu = _part(rows, market, "GPU", text) if text else None
        if gpu is None:
            return None
        usd += shape.accelerators * gpu
    return round(usd, 6)


def _part(rows: list[dict[str, Any]], market: Market, group: str, text: str) -> float | None:
    """The price of one unit. Several rows with different prices say nothing sure: None."""
    usage = "Preemptible" if market == "spot" else "OnDemand"
    found = set()
    for row in rows:
        about, said = row.get("category") or {}, str(row.get("description", ""))
        kind = str(about.get("resourceGroup", ""))
        if about.get("usageType") != usage or _OTHER.search(said):
            continue
        if (kind == "GPU") != (group == "GPU") or not re.search(text, said, re.IGNORECASE):
            continue
        usd = _usd(row)
        if usd:
            found.add(usd)
    return found.pop() if len(found) == 1 else None


def _usd(row: dict[str, Any]) -> float | None:
    """Dollars of one unit an hour, at the rate of the first tier that costs anything."""
    for info in row.get("pricingInfo") or ():
        expression = info.get("pricingExpression") or {}
        if expression.get("usageUnit") not in ("h", "GiBy.h", "GBy.h"):
            return None
        for rate in expression.get("tieredRates") or ():
            price = rate.get("unitPrice") or {}
            usd = int(price.get("units") or 0) + int(price.get("nanos") or 0) / 1e9
            if usd > 0:
                return usd
    return None


def _skus(get: Get) -> Iterator[dict[str, Any]]:
    token = ""
    for _ in range(MOST_PAGES):
        page = get({"currencyCode": "USD", "pageSize": "5000", "pageToken": token})
        yield from page.get("skus") or ()
        token = str(page.get("nextPageToken") or "")
        if not token:
            return


def _asker() -> Get:
    """GET with the credentials of this machine."""
    headers, key = {}, os.environ.get("GOOGLE_API_KEY")
    if not key:
        headers["Authorization"] = f"Bearer {token(SCOPE)}"

    def get(params: dict[str, str]) -> dict[str, Any]:
        asked = {k: v for k, v in params.items() if v} | ({"key": key} if key else {})
        try:
            answer = httpx.get(SKUS, params=asked, headers=headers, timeout=TIMEOUT_S)
            if answer.status_code in (401, 403):
                raise AuthRefused(f"the price catalogue answers {answer.status_code}", _FIX)
            answer.raise_for_status()
            data: dict[str, Any] = answer.json()
            return data
        except (httpx.HTTPError, ValueError) as error:
            # Without the address: it may carry the key.
            raise Transient(
                f"the price catalogue does not answer: {type(error).__name__}"
            ) from None

    return get


def token(scope: str) -> str:
    """An access token of this machine's own credentials. AuthRefused."""
    try:
        import google.auth
        import google.auth.exceptions
        import google.auth.transport.requests
    except ImportError:
        raise AuthRefused("google-auth is not installed", "pip install google-auth") from None
    try:
        found, _ = google.auth.default(scopes=[scope])
        found.refresh(google.auth.transport.requests.Request())
    except google.auth.exceptions.GoogleAuthError as error:
        raise AuthRefused(f"no credentials for GCP: {error}", _FIX) from None
    return str(found.token)
