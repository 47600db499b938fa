"""API keys: made once, shown once, kept as hashes; scopes, expiry and limits for each.

Checks from memory alone. A key has 160 random bits, so a plain SHA-256 keeps it: there is nothing
to guess, and a slow hash would only slow down every request.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from sundog.clock import WALL
from sundog.security.authoriser import ANONYMOUS, Headers, Identity, Refusal
from sundog.security.limits import Allowed, Limiter

PREFIX = "sd_"


@dataclass(frozen=True)
class KeyRecord:
    """What is known of a key. `scopes`: names of services, `*` patterns allowed."""

    key_id: str
    name: str
    hash: str
    scopes: tuple[str, ...] = ("*",)
    rate: float | None = None
    """requests per second; None: as many as come"""
    burst: float | None = None
    quota: int | None = None
    """requests per day (UTC)"""
    quota_tokens: int | None = None
    created_s: float = 0.0
    expires_s: float | None = None
    revoked_s: float | None = None
    ttl_s: float | None = None
    """How long it was made for; a successor is made for as long"""

    @property
    def allowed(self) -> Allowed:
        return Allowed(self.key_id, self.rate, self.burst, self.quota, self.quota_tokens)

    def document(self) -> dict[str, Any]:
        """As the store keeps it."""
        return {
            "key_id": self.key_id, "name": self.name, "hash": self.hash,
            "body": {
                "scopes": list(self.scopes), "rate": self.rate, "burst": self.burst,
                "quota": self.quota, "quota_tokens": self.quota_tokens, "ttl_s": self.ttl_s,
            },
            "created_s": self.created_s, "expires_s": self.expires_s,
            "revoked_s": self.revoked_s,
        }  # fmt: skip


def record_of(document: dict[str, Any]) -> KeyRecord:
    body, created_s, expires_s = document["body"], document["created_s"], document["expires_s"]
    # Keys of before did not say.
    ttl_s = body["ttl_s"] if "ttl_s" in body else expires_s and expires_s - created_s
    return KeyRecord(
        document["key_id"], document["name"], document["hash"], tuple(body["scopes"]),
        body["rate"], body["burst"], body.get("quota"), body.get("quota_tokens"),
        created_s, expires_s, document["revoked_s"], ttl_s,
    )  # fmt: skip


def new_key(
    name: str,
    now_s: float,
    *,
    scopes: Iterable[str] = ("*",),
    rate: float | None = None,
    burst: float | None = None,
    quota: int | None = None,
    quota_tokens: int | None = None,
    ttl_s: float | None = None,
) -> tuple[str, KeyRecord]:
    """A fresh key, to be shown once, and its record, to be kept."""
    key_id = secrets.token_hex(4)
    key = f"{PREFIX}{key_id}_{secrets.token_urlsafe(20)}"
    expires_s = now_s + ttl_s if ttl_s is not None else None
    return key, KeyRecord(
        key_id, name, hash_of(key.encode()), tuple(scopes), rate, burst, quota, quota_tokens,
        now_s, expires_s, ttl_s=ttl_s,
    )  # fmt: skip


def hash_of(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()


class KeyRing:
    """Asks for a key as soon as there is one (a revoked one too: revoking the last opens nothing)."""

    def __init__(
        self,
        now_s: Callable[[], float] = WALL.now_s,
        monotonic_s: Callable[[], float] = WALL.monotonic_s,
        gateways: int = 1,
    ) -> None:
        """`gateways`: how many there are; each begins with its part of a rate."""
        self._now_s = now_s
        self.limiter = Limiter(gateways, now_s, monotonic_s)
        self._by_hash: dict[str, KeyRecord] = {}
        self._seen: dict[bytes, KeyRecord] = {}

    def update(self, documents: Iterable[dict[str, Any]]) -> None:
        """Take over the keys of a snapshot; what is used of a limit stays with its key."""
        records = [record_of(d) for d in documents]
        self._by_hash = {r.hash: r for r in records}
        self._seen = {}
        self.limiter.update(r.allowed for r in records)

    def authorise(self, headers: Headers, service: str) -> Identity | Refusal:
        if not self._by_hash:
            return ANONYMOUS
        given = _given(headers)
        if given is None:
            return Refusal(401, "this gateway asks for a key: Authorization: Bearer sd_…")
        record = self._seen.get(given)
        if record is None:
            record = self._by_hash.get(hash_of(given))
            if record is None:
                return Refusal(401, "this key is not known here")
            if len(self._seen) < 10_000:
                self._seen[given] = record
        key_id = record.key_id
        if record.revoked_s is not None and record.revoked_s <= self._now_s():
            return Refusal(401, f"key {key_id} was revoked", key_id=key_id)
        if record.expires_s is not None and record.expires_s <= self._now_s():
            return Refusal(401, f"key {key_id} has expired", key_id=key_id)
        if not service:
            return Identity(key_id, record.scopes)
        if not any(fnmatchcase(service, scope) for scope in record.scopes):
            return Refusal(403, f"key {key_id} is not for service {service!r}", key_id=key_id)
        taken = self.limiter.take(key_id, headers)
        return taken if isinstance(taken, Refusal) else Identity(key_id, record.scopes, taken)


def _given(headers: Headers) -> bytes | None:
    for name, value in headers:
        if name == b"authorization":
            scheme, _, key = value.partition(b" ")
            return key.strip() if scheme.lower() == b"bearer" else None
        if name == b"x-api-key":
            return value
    return None
