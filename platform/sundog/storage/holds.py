"""Who needs a model version: holders keep it from being deleted.

One document for each version, moved by compare-and-swap, so a hold and a delete cannot both win.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sundog.errors import Conflict, NotFound
from sundog.storage.documents import decode, encode
from sundog.storage.root import Root

_ATTEMPTS = 100


@dataclass(frozen=True)
class Holds:
    """`deleting` is set once, by the delete that won, or taken back by the one that gave up."""

    holders: tuple[str, ...] = ()
    deleting: bool = False


def read(root: Root, key: str) -> Holds:
    return _read(root, key)[0]


def change(root: Root, key: str, how: Callable[[Holds], Holds]) -> Holds:
    """Apply `how` to the current holds; it may raise to refuse. Retries when others were faster."""
    for _ in range(_ATTEMPTS):
        before, etag = _read(root, key)
        after = how(before)
        if after == before:
            return after
        try:
            root.swap(key, encode({"holders": after.holders, "deleting": after.deleting}), etag)
        except Conflict:
            continue
        return after
    raise Conflict(f"{key} keeps changing", fix="try again")


def _read(root: Root, key: str) -> tuple[Holds, str | None]:
    try:
        data, etag = root.read_tagged(key)
    except NotFound:
        return Holds(), None
    document = decode(data, key)
    return Holds(tuple(document["holders"]), bool(document["deleting"])), etag
