"""The cluster's own record: one JSON value in Ray's internal KV, `sundog/config`.

Says where the storage root, the store and the gateway of this cluster are, so that a job that knows
nothing finds them. Private part of Ray: `internal_kv` of the GCS client.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from sundog.errors import ClusterError, FormatTooNew

_NAMESPACE = b"sundog"
_KEY = b"config"
_TIMEOUT_S = 10


def put_config(config: dict[str, Any], address: str | None = None) -> None:
    """Write the record. `address` is the GCS (`host:port`); None: the cluster of this driver."""
    value = json.dumps({"format": 1, **config}).encode()
    _client(address).internal_kv_put(_KEY, value, True, _NAMESPACE, _TIMEOUT_S)


def get_config(address: str | None = None) -> dict[str, Any] | None:
    """The record, or None where nobody wrote one (a plain `ray start`)."""
    value = _client(address).internal_kv_get(_KEY, _NAMESPACE, _TIMEOUT_S)
    if value is None:
        return None
    config: dict[str, Any] = json.loads(value)
    if config.get("format", 0) > 1:
        raise FormatTooNew(
            f"this cluster's record has format {config['format']}, this Sundog reads 1",
            "install the Sundog that started the cluster",
        )
    return config


def _client(address: str | None) -> Any:
    if address is not None:
        from ray._raylet import GcsClient  # type: ignore[attr-defined]

        return GcsClient(address=address)
    from ray.experimental import internal_kv

    client = internal_kv.internal_kv_get_gcs_client()
    if client is None:
        raise ClusterError(
            "not connected to a Ray cluster", "call ray.init() first, or give the GCS address"
        )
    return client


if __name__ == "__main__":
    put_config(json.loads(sys.argv[2]), sys.argv[1])
