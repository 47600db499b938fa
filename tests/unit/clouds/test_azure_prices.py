"""Azure's retail price list: recorded pages in, Linux spot and on-demand prices out."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

from sundog.clock import ManualClock
from sundog.clouds.azure_prices import LIST, refresh_prices
from sundog.market.prices import PriceBook

SHAPE = "Standard_NC4as_T4_v3"
CLOCK = ManualClock(datetime(2026, 11, 20, tzinfo=UTC).timestamp())


def item(meter: str, usd: float, product: str = "Virtual Machines NCasT4 v3", **more: Any) -> Any:
    return {"armSkuName": SHAPE, "meterName": meter, "productName": product, "retailPrice": usd,
            "unitOfMeasure": "1 Hour", **more}  # fmt: skip


PAGES = {
    LIST: {
        "Items": [
            item("NC4as T4 v3", 0.526),
            item("NC4as T4 v3", 0.71, "Virtual Machines NCasT4 v3 Series Windows"),
            item("NC4as T4 v3 Low Priority", 0.11),
            item("NC4as T4 v3", 300.0, unitOfMeasure="1 Month"),
        ],
        "NextPageLink": LIST + "?page=2",
    },
    LIST + "?page=2": {
        "Items": [item("NC4as T4 v3 Spot", 0.0789), item("x", 9.0, armSkuName="Standard_Other")],
        "NextPageLink": "https://elsewhere.example/",
    },
}


def test_linux_spot_and_on_demand_over_all_pages_and_nowhere_else() -> None:
    asked: list[str] = []

    def get(url: str, params: dict[str, str]) -> dict[str, Any]:
        asked.append(url)
        if url == LIST:
            assert f"armSkuName eq '{SHAPE}'" in params["$filter"]
        return PAGES[url]

    prices = refresh_prices("eastus", [SHAPE], clock=CLOCK, get=get)
    assert [(p.market, p.usd_hour, p.day) for p in prices] == [
        ("on-demand", 0.526, date(2026, 11, 20)), ("spot", 0.0789, date(2026, 11, 20))
    ]  # fmt: skip
    assert asked == list(PAGES)
    book = PriceBook(prices)
    assert book.rejected == []
    assert book.find("azure", "spot", "eastus", "2", SHAPE) is not None
