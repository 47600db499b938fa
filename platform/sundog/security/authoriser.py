"""The hook in the request path that says who asks and whether they may.

Decides from headers alone; it never waits, so that the gateway can ask it for every request.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Protocol

Headers = Iterable[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks. `key_id` names a key in logs and metrics; it is never the key itself."""

    key_id: str = ""
    scopes: tuple[str, ...] = field(default=("*",), compare=False)
    """The services they may ask and see, `*` patterns allowed"""
    counted: bool = field(default=False, compare=False)
    """The request was taken off a quota of requests: it goes back if there is no answer."""

    def may(self, service: str) -> bool:
        return any(fnmatchcase(service, scope) for scope in self.scopes)

    @property
    def sees_all(self) -> bool:
        return "*" in self.scopes


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why not: an HTTP status (401, 403 or 429), a sentence, and when to come back.

    `key_id`: whose it is, where that is known.
    """

    status: int
    message: str
    retry_after_s: float | None = None
    key_id: str = ""


ANONYMOUS = Identity()


class Authoriser(Protocol):
    def authorise(self, headers: Headers, service: str) -> Identity | Refusal:
        """Who asks for `service`, or why they may not. Header names are lower-case bytes.

        Counts against the limits of whoever asks; not without a service, when it only says who it is.
        """
        ...
