"""Small messages between a run's workers and its driver, through the key-value store of Ray's GCS.

A put or a get takes about a millisecond and needs no actor; `ray.train.report` is a barrier that
waits for the controller's poll. Private part of Ray: the GCS client's `internal_kv`.
"""

from __future__ import annotations

import json
from typing import Any

from sundog.errors import ClusterError

_NAMESPACE = b"sundog"
_TIMEOUT_S = 10


class Channel:
    """The messages of one run. The last one posted under a topic is the one that is read."""

    def __init__(self, run_id: str) -> None:
        self._prefix = f"run/{run_id}/"

    def post(self, topic: str, message: dict[str, Any]) -> None:
        _client().internal_kv_put(
            self._key(topic), json.dumps(message).encode(), True, _NAMESPACE, _TIMEOUT_S
        )

    def read(self, topic: str) -> dict[str, Any] | None:
        value = _client().internal_kv_get(self._key(topic), _NAMESPACE, _TIMEOUT_S)
        if value is None:
            return None
        message: dict[str, Any] = json.loads(value)
        return message

    def clear(self) -> None:
        """Forget everything that was posted."""
        _client().internal_kv_del(self._prefix.encode(), True, _NAMESPACE, _TIMEOUT_S)

    def _key(self, topic: str) -> bytes:
        return f"{self._prefix}{topic}".encode()


def _client() -> Any:
    from ray.experimental import internal_kv

    client = internal_kv.internal_kv_get_gcs_client()
    if client is None:
        raise ClusterError("not connected to a Ray cluster", "call ray.init() first")
    return client
