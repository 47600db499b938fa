"""GCP prices put together from the catalogue's parts; a machine with a part missing has none."""

from __future__ import annotations

from datetime import date
from typing import Any

import httpx
import pytest

from sundog.clock import ManualClock
from sundog.clouds import gcp_prices
from sundog.clouds.base import AuthRefused, Transient

NOW = ManualClock(1_800_000_000.0)


def sku(description: str, group: str, usage: str, usd: float, **change: Any) -> dict[str, Any]:
    """A row in the shape of the Cloud Billing catalogue."""
    nanos = round((usd % 1) * 1e9)
    row = {
        "description": description,
        "category": {"resourceFamily": "Compute", "resourceGroup": group, "usageType": usage},
        "serviceRegions": ["us-central1"],
        "pricingInfo": [{"pricingExpression": {
            "usageUnit": "GiBy.h" if group == "RAM" else "h",
            "tieredRates": [{"startUsageAmount": 0,
                             "unitPrice": {"currencyCode": "USD", "units": str(int(usd)), "nanos": nanos}}],
        }}],
    }  # fmt: skip
    return row | change


G2 = [
    sku("G2 Instance Core running in Americas", "CPU", "OnDemand", 0.025),
    sku("G2 Instance Ram running in Americas", "RAM", "OnDemand", 0.003),
    sku("Nvidia L4 GPU running in Americas", "GPU", "OnDemand", 0.56),
    sku("Spot Preemptible G2 Instance Core running in Americas", "CPU", "Preemptible", 0.01),
    sku("Spot Preemptible G2 Instance Ram running in Americas", "RAM", "Preemptible", 0.001),
    sku("Nvidia L4 GPU attached to Spot Preemptible VMs running in Americas", "GPU", "Preemptible", 0.22),
    # None of these is the machine that we would get.
    sku("G2 Custom Instance Core running in Americas", "CPU", "OnDemand", 9.0),
    sku("G2 Sole Tenancy Instance Core running in Americas", "CPU", "OnDemand", 9.0),
    sku("Commitment v1: G2 Cpu in Americas for 1 Year", "CPU", "Commit1Yr", 0.001),
    sku("G2 Instance Core running in Zurich", "CPU", "OnDemand", 7.0, serviceRegions=["europe-west6"]),
]  # fmt: skip


def pages(*rows: list[dict[str, Any]]) -> Any:
    def get(params: dict[str, str]) -> dict[str, Any]:
        number = int(params["pageToken"] or 0)
        more = {"nextPageToken": str(number + 1)} if number + 1 < len(rows) else {}
        return {"skus": rows[number], **more}

    return get


def prices(*rows: list[dict[str, Any]], shapes: tuple[str, ...] = ("g2-standard-4",)) -> Any:
    found = gcp_prices.refresh_prices("us-central1", shapes, clock=NOW, get=pages(*rows))
    return {p.market: p for p in found}


def test_a_machine_is_its_cores_memory_and_gpus_over_all_pages() -> None:
    found = prices(G2[:4], G2[4:])
    # g2-standard-4: 4 vCPUs, 16 GiB, one L4.
    assert found["on-demand"].usd_hour == pytest.approx(4 * 0.025 + 16 * 0.003 + 0.56)
    assert found["spot"].usd_hour == pytest.approx(4 * 0.01 + 16 * 0.001 + 0.22)
    assert found["spot"].day == date(2027, 1, 15)


def test_a_part_without_a_price_or_with_two_means_no_price() -> None:
    assert set(prices([r for r in G2 if "L4 GPU running" not in r["description"]])) == {"spot"}
    twice = [*G2, sku("G2 Instance Core running in Iowa", "CPU", "OnDemand", 0.5)]
    assert set(prices(twice)) == {"spot"}
    assert prices(G2, shapes=("no-such-shape",)) == {}


@pytest.mark.parametrize(("code", "kind"), [(403, AuthRefused), (500, Transient)])
def test_a_catalogue_that_refuses_is_said_and_the_key_is_not(
    code: int, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_API_KEY", "very-secret")
    request = httpx.Request("GET", gcp_prices.SKUS)
    monkeypatch.setattr(httpx, "get", lambda *a, **k: httpx.Response(code, request=request))
    with pytest.raises(kind) as caught:
        gcp_prices.refresh_prices("us-central1", ["g2-standard-4"], clock=NOW)
    assert "very-secret" not in str(caught.value)
