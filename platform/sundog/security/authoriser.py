"""The hook in the request path that says who asks and whether they may.

Decides from headers alone; it never waits, so that the gateway can ask it for every request.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

Headers = Iterable[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks. `key_id` names a key in logs and metrics; it is never the key itself."""

    key_id: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why not: an HTTP status (401, 403 or 429), a sentence, and when to come back."""

    status: int
    message: str
    retry_after_s: float | None = None


ANONYMOUS = Identity()


class Authoriser(Protocol):
    def authorise(self, headers: Headers, service: str) -> Identity | Refusal:
        """Who asks for `service`, or why they may not. Header names are lower-case bytes."""
        ...
