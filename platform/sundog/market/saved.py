"""Prices and machines that somebody refreshed, in a file of their own, laid over the snapshot."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from sundog.errors import Corrupt, FormatTooNew
from sundog.market.prices import Price, PriceBook, read_prices, snapshot
from sundog.market.shapes import Shape, catalogue

FORMAT = 1
_FIELDS = ("cloud", "market", "region", "zone", "shape", "usd_hour")


def save_prices(prices: Iterable[Price], path: str | Path, shapes: Iterable[Shape] = ()) -> None:
    """Replace the file at `path` with these prices, and with shapes that the package does not know."""
    rows = [
        {**{f: getattr(p, f) for f in _FIELDS}, "date": p.day.isoformat() if p.day else ""}
        for p in prices
    ]
    target = Path(path)
    part = target.with_name(target.name + ".part")
    data = {"format": FORMAT, "shapes": [asdict(s) for s in shapes], "prices": rows}
    part.write_text(json.dumps(data, indent=0))
    part.replace(target)


def book_with(path: str | Path) -> PriceBook:
    """The snapshot with what was saved over it. Corrupt, FormatTooNew."""
    try:
        data = json.loads(Path(path).read_text("utf-8"))
        if data["format"] > FORMAT:
            raise FormatTooNew(
                f"{path}: prices of format {data['format']}, this Sundog reads {FORMAT}",
                "refresh them with this Sundog",
            )
        prices = read_prices(data["prices"], source="account")
        shapes = catalogue().with_more(Shape(**row) for row in data.get("shapes", ()))
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"{path}: not a price file: {error}", "refresh it") from None
    return snapshot().with_more(prices, shapes)
