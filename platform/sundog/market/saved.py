"""Prices that somebody refreshed, in a file of their own, laid over the snapshot."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from sundog.errors import Corrupt, FormatTooNew
from sundog.market.prices import Price, PriceBook, read_prices, snapshot

FORMAT = 1
_FIELDS = ("cloud", "market", "region", "zone", "shape", "usd_hour")


def save_prices(prices: Iterable[Price], path: str | Path) -> None:
    """Replace the file at `path` with these prices."""
    rows = [
        {**{f: getattr(p, f) for f in _FIELDS}, "date": p.day.isoformat() if p.day else ""}
        for p in prices
    ]
    target = Path(path)
    part = target.with_name(target.name + ".part")
    part.write_text(json.dumps({"format": FORMAT, "prices": rows}, indent=0))
    part.replace(target)


def book_with(path: str | Path) -> PriceBook:
    """The snapshot with the saved prices over it. Corrupt, FormatTooNew."""
    try:
        data = json.loads(Path(path).read_text("utf-8"))
        if data["format"] > FORMAT:
            raise FormatTooNew(
                f"{path}: prices of format {data['format']}, this Sundog reads {FORMAT}",
                "refresh them with this Sundog",
            )
        prices = read_prices(data["prices"], source="account")
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"{path}: not a price file: {error}", "refresh it") from None
    return snapshot().with_more(prices)
