"""Version numbers: 1, 2, 3 … without gaps and without reuse, however many writers race.

A number is taken by the conditional creation of its document and stays taken after a delete.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

from sundog.errors import AlreadyExists, NotFound, SundogError
from sundog.storage.documents import require_name
from sundog.storage.root import Root


def taken(root: Root, prefix: str) -> list[int]:
    """Numbers below `prefix`, ascending: one listing of one level."""
    return sorted(int(n) for n in root.children(prefix) if n.isascii() and n.isdigit())


def commit_next(
    root: Root, prefix: str, document: str, body: Callable[[int], bytes], attempts: int = 1000
) -> int:
    """Create `<prefix>/<n>/<document>` for the first free n; every caller gets its own n."""
    number = max(taken(root, prefix), default=0)
    for _ in range(attempts):
        number += 1
        try:
            root.create(f"{prefix}/{number}/{document}", body(number))
        except AlreadyExists:
            continue
        return number
    raise SundogError(
        f"no free version number for {prefix} in {attempts} attempts",
        fix="many write it at once: try again",
    )


def near(root: Root, what: str, folder: str, name: str) -> NotFound:
    """The error for a name that is not there, with the names that look like it."""
    names = [n for n in root.children(folder) if not n.startswith(".")]
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        fix = f"did you mean {' or '.join(repr(n) for n in close)}?"
    elif names:
        fix = f"there are: {', '.join(names[:10])}{' …' if len(names) > 10 else ''}"
    else:
        fix = f"there is no {what} yet in this root; check SUNDOG_ROOT if you expected one"
    return NotFound(f"no {what} {name!r} in {root.url}", fix=fix)


def parse_version(reference: str, what: str) -> tuple[str, int | None, str]:
    """`digits@3` -> `('digits', 3, '3')`; `digits@champion` -> `('digits', None, 'champion')`."""
    name, _, version = reference.partition("@")
    require_name(name, what)
    return name, int(version) if version.isascii() and version.isdigit() else None, version
