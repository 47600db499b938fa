from __future__ import annotations

import pytest
import ray

from sundog.control.anchor import check
from sundog.errors import NotFound, SpecError, StorageUnavailable


def nodes(*addresses: str) -> list[dict]:
    return [
        {"Alive": True, "NodeManagerAddress": a, "NodeManagerHostname": f"host-{a}"}
        for a in addresses
    ]


def test_a_service_is_checked_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "nodes", lambda: nodes("10.0.0.1"))
    args = {"service": "digits", "model": "digits@champion", "root": tmp_path.as_uri()}
    with pytest.raises(NotFound, match="digits"):
        check(args)
    with pytest.raises(SpecError, match="modl"):
        check({**args, "modl": "digits"})
    with pytest.raises(SpecError, match="cannot be a service's name"):
        check({**args, "service": "sundog-gateway"})
    monkeypatch.setattr(ray, "nodes", lambda: nodes("10.0.0.1", "10.0.0.2"))
    with pytest.raises(StorageUnavailable, match="this cluster has 2 hosts") as raised:
        check(args)
    assert "s3://" in raised.value.fix
