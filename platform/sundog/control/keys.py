"""API keys as people handle them: create (shown once), list, rotate, revoke. Writes to the store.

Gateways get hashes with the next route snapshot; the key itself is returned once and kept nowhere.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sundog import telemetry
from sundog.clock import Clock
from sundog.control.limits import Limits
from sundog.errors import Conflict, NotFound
from sundog.security.keys import KeyRecord, new_key, record_of
from sundog.store import Lease, Store

ROTATION_S = 24 * 3600.0
"""How long a rotated key goes on beside its successor."""


class Keys:
    def __init__(
        self, store: Store, lease: Lease, clock: Clock, limits: Limits | None = None
    ) -> None:
        self._store = store
        self._lease = lease
        self._clock = clock
        self._limits = limits
        self._tell()

    def create(
        self,
        name: str,
        scopes: list[str] | None = None,
        rate: float | None = None,
        burst: float | None = None,
        quota: int | None = None,
        quota_tokens: int | None = None,
        ttl_s: float | None = None,
    ) -> dict[str, Any]:
        """{key, key_id, …}: the only time that the key is seen."""
        key, record = new_key(
            name, self._clock.now_s(), scopes=scopes or ["*"], rate=rate, burst=burst,
            quota=quota, quota_tokens=quota_tokens, ttl_s=ttl_s,
        )  # fmt: skip
        self._put(record, telemetry.KEY_CREATED)
        return {"key": key, **shown(record)}

    def listing(self) -> list[dict[str, Any]]:
        """What may be printed of every key, with what it used of its quotas today."""
        rows = [shown(record_of(d)) for d in self._store.keys()]  # noqa: SIM118
        if self._limits is not None:
            for row in rows:
                row["used"] = self._limits.used(row["key_id"])
        return rows

    def revoke(self, key_id: str) -> None:
        """From the next snapshot on, within a second, the key opens nothing. NotFound."""
        record = replace(self._find(key_id), revoked_s=self._clock.now_s())
        self._put(record, telemetry.KEY_REVOKED)

    def delete(self, key_id: str) -> None:
        """Forget a key that opens nothing any more. Without any key left, nobody is asked for one.

        NotFound; Conflict for a key that still opens something: revoke it first.
        """
        record = self._find(key_id)
        if not self._has_ended(record):
            raise Conflict(f"key {key_id} is in use", f"sundog keys revoke {key_id}")
        self._store.delete_key(self._lease, key_id)
        self._tell()
        self._store.add_event(self._lease, telemetry.KEY_DELETED, key_id, {"name": record.name})

    def rotate(self, key_id: str, overlap_s: float = ROTATION_S) -> dict[str, Any]:
        """A successor with the same rights, for as long; the old key goes on for `overlap_s`.

        NotFound; Conflict for a key that opens nothing any more: it would come to life again.
        """
        old = self._find(key_id)
        if self._has_ended(old):
            raise Conflict(f"key {key_id} has ended", f"sundog keys create {old.name}")
        end_s = self._clock.now_s() + overlap_s
        until = end_s if old.expires_s is None else min(end_s, old.expires_s)
        made = self.create(
            old.name, list(old.scopes), old.rate, old.burst, old.quota, old.quota_tokens, old.ttl_s
        )
        self._put(replace(old, expires_s=until), telemetry.KEY_ROTATED)
        return made

    def _has_ended(self, record: KeyRecord) -> bool:
        ends_s = [t for t in (record.expires_s, record.revoked_s) if t is not None]
        return any(t <= self._clock.now_s() for t in ends_s)

    def _find(self, key_id: str) -> KeyRecord:
        for document in self._store.keys():  # noqa: SIM118
            if document["key_id"] == key_id:
                return record_of(document)
        raise NotFound(f"there is no key {key_id!r}", "`sundog keys list` shows the ids")

    def _tell(self) -> None:
        if self._limits is not None:
            self._limits.update(record_of(d) for d in self._store.keys())  # noqa: SIM118

    def _put(self, record: KeyRecord, event: str) -> None:
        self._store.put_key(self._lease, record.document())
        self._tell()
        self._store.add_event(self._lease, event, record.key_id, {"name": record.name})


def shown(record: KeyRecord) -> dict[str, Any]:
    """What may be printed of a key."""
    return {
        "key_id": record.key_id, "name": record.name, "scopes": list(record.scopes),
        "rate": record.rate, "burst": record.burst, "quota": record.quota,
        "quota_tokens": record.quota_tokens, "created_s": record.created_s,
        "expires_s": record.expires_s, "revoked_s": record.revoked_s,
    }  # fmt: skip
