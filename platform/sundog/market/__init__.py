"""What can be bought: shapes, prices with their age, offers. Pure: it calls no cloud."""

from sundog.market.offers import Offer, ladder
from sundog.market.prices import Price, PriceBook, price_at, snapshot
from sundog.market.shapes import Catalogue, Shape, catalogue

__all__ = [
    "Catalogue",
    "Offer",
    "Price",
    "PriceBook",
    "Shape",
    "catalogue",
    "ladder",
    "price_at",
    "snapshot",
]
