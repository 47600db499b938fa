"""Azure: today's prices from its public retail price list. Needs no account and buys nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

import httpx

from sundog.clock import WALL, Clock
from sundog.clouds.base import Transient
from sundog.market.prices import Market, Price

LIST = "https://prices.azure.com/api/retail/prices"
TIMEOUT_S = 20.0
MOST_PAGES = 50

Get = Callable[[str, dict[str, str]], dict[str, Any]]


def refresh_prices(
    region: str, shapes: Iterable[str], *, clock: Clock = WALL, get: Get | None = None
) -> list[Price]:
    """Spot and on-demand of Linux machines in the region, for these shapes, as of now."""
    day = datetime.fromtimestamp(clock.now_s(), UTC).date()
    fetch, found = get or _get, []
    for shape in sorted(shapes):
        for row in _rows(fetch, region, shape):
            market = _market(row)
            usd = float(row.get("retailPrice") or 0)
            if market is not None and usd > 0 and row.get("armSkuName") == shape:
                found.append(Price("azure", market, region, "", shape, usd, day, "account"))
    return found


def _rows(get: Get, region: str, shape: str) -> Iterable[dict[str, Any]]:
    filters = {
        "serviceName": "Virtual Machines", "armRegionName": region, "armSkuName": shape,
        "priceType": "Consumption",
    }  # fmt: skip
    asked = {"$filter": " and ".join(f"{k} eq '{v}'" for k, v in filters.items())}
    url = LIST
    for _ in range(MOST_PAGES):
        page = get(url, asked)
        yield from page.get("Items") or ()
        url, asked = page.get("NextPageLink") or "", {}
        if not url.startswith(LIST):
            return  # the end, or a link to somewhere that is not the price list


def _market(row: dict[str, Any]) -> Market | None:
    """Spot or on-demand; None for Windows, low priority, and what is not priced by the hour."""
    meter, product = str(row.get("meterName", "")), str(row.get("productName", ""))
    if "Windows" in product or "Low Priority" in meter or row.get("unitOfMeasure") != "1 Hour":
        return None
    return "spot" if meter.endswith("Spot") else "on-demand"


def _get(url: str, params: dict[str, str]) -> dict[str, Any]:
    try:
        answer = httpx.get(url, params=params or None, timeout=TIMEOUT_S)
        answer.raise_for_status()
        data: dict[str, Any] = answer.json()
        return data
    except (httpx.HTTPError, ValueError) as error:
        raise Transient(f"the Azure price list does not answer: {error}") from error
