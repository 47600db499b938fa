"""The aliases of a model: one small document, moved by compare-and-swap.

Knows nothing of versions; whether a number exists is the registry's to check.
"""

from __future__ import annotations

from typing import Literal

from sundog.errors import Conflict, NotFound, SundogError
from sundog.storage.documents import decode, encode, require_name
from sundog.storage.root import Root
from sundog.storage.versions import FOLDER

Expected = int | Literal["any"] | None
_ATTEMPTS = 100


def read(root: Root, name: str) -> dict[str, int]:
    return _read(root, name)[0]


def move(root: Root, name: str, alias: str, to: int | None, expect: Expected) -> int | None:
    """Point `alias` at `to` (None: nowhere) if it points at `expect`; returns where it pointed.

    Conflict if somebody moved it. Other aliases of the model may move at the same time.
    """
    for _ in range(_ATTEMPTS):
        aliases, etag = _read(root, name)
        before = aliases.get(alias)
        if expect != "any" and before != expect:
            raise Conflict(
                f"{name}@{alias} points at {before or 'nothing'}, "
                f"not at {expect or 'nothing'}: somebody moved it in between",
                fix=f"look at it again: sundog models show {name}",
            )
        if before == to:
            return before
        after = {a: n for a, n in aliases.items() if a != alias} | ({alias: to} if to else {})
        try:
            root.swap(_key(name), encode({"aliases": after}), etag)
        except Conflict:
            continue
        return before
    raise Conflict(f"the aliases of {name} keep changing", fix="try again")


def require_alias(alias: str) -> None:
    require_name(alias, "alias")
    if alias == "latest" or alias.isdigit():
        raise SundogError(
            f"{alias!r} cannot be an alias: it already means a version", fix="try 'champion'"
        )


def _read(root: Root, name: str) -> tuple[dict[str, int], str | None]:
    try:
        data, etag = root.read_tagged(_key(name))
    except NotFound:
        return {}, None
    document = decode(data, _key(name))
    return {a: int(n) for a, n in document["aliases"].items()}, etag


def _key(name: str) -> str:
    return f"{FOLDER}/{name}/aliases.json"
