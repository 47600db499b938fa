"""JSON documents with a format number: older ones are migrated, newer ones refused.

Knows nothing of what a document says; each kind brings its own migrations.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from sundog import __version__
from sundog.errors import Corrupt, FormatTooNew, SundogError

FORMAT = 1
Document = dict[str, Any]
Migrations = Mapping[int, Callable[[Document], Document]]
"""From a format number to the step that makes the next one of it."""

_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")


def encode(document: Mapping[str, Any], format: int = FORMAT) -> bytes:
    """Indented JSON, `format` first; NaN and infinities become words that `number` reads back.

    `sundog` is the version that wrote it, for whoever cannot read it to know which one can.
    """
    stamp = {"format": format, "sundog": __version__}
    body = stamp | {k: v for k, v in document.items() if k not in stamp}
    return (json.dumps(_plain(body), indent=2, allow_nan=False) + "\n").encode()


def decode(
    data: bytes, key: str, *, newest: int = FORMAT, migrations: Migrations | None = None
) -> Document:
    """The document, migrated to `newest`. Corrupt, FormatTooNew."""
    try:
        document = json.loads(data)
        format = document["format"]
    except (ValueError, TypeError, KeyError):
        format, document = None, {}
    if not isinstance(format, int):
        raise Corrupt(
            f"{key} is not a document of Sundog", fix="restore it from a copy, or delete it"
        )
    if format > newest:
        writer = document.get("sundog", "a later one")
        raise FormatTooNew(
            f"{key} has format {format}, this Sundog ({__version__}) reads up to {newest}: "
            f"{writer} wrote it",
            fix=f"upgrade Sundog here: pip install 'sundog>={writer}'"
            if "sundog" in document
            else "upgrade Sundog here: pip install --upgrade sundog",
        )
    document.pop("sundog", None)
    while format < newest:
        step = (migrations or {}).get(format)
        if step is None:
            raise Corrupt(
                f"{key} has format {format}, which no Sundog ever wrote",
                fix="restore it from a copy, or delete it",
            )
        document = step(document)
        format += 1
    return {**document, "format": newest}


def number(value: object) -> float:
    """A metric as it was before `encode`."""
    return float(value)  # type: ignore[arg-type]


def require_name(name: str, what: str) -> str:
    """Names become keys and URLs, so they are checked where they enter."""
    if not _NAME.fullmatch(name) or "--" in name:
        raise SundogError(
            f"{name!r} is not a name for a {what}",
            fix="use lower-case letters, digits, '.', '_' and single '-', at most 63 of them",
        )
    return name


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, bool) or value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if hasattr(value, "item"):  # a NumPy or torch scalar
        return _plain(value.item())
    return str(value)
