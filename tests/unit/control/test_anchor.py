from __future__ import annotations

import pytest
import ray

from sundog.control.anchor import check
from sundog.control.profiles import ServiceProfile, keep
from sundog.errors import NotFound, ServiceError, SpecError, StorageUnavailable
from sundog.storage.models import Registry
from sundog.storage.root import open_root
from sundog.storage.signature import Signature, TensorSpec


def nodes(*addresses: str) -> list[dict]:
    return [
        {"Alive": True, "NodeManagerAddress": a, "NodeManagerHostname": f"host-{a}"}
        for a in addresses
    ]


@pytest.fixture
def same(tmp_path):
    """The arguments of a service whose model is there."""
    root, source = open_root((tmp_path / "root").as_uri()), tmp_path / "source"
    source.mkdir()
    (source / "same.py").write_text(
        "class Same:\n    def predict(self, inputs):\n        return inputs\n"
    )
    x = TensorSpec("x", "FP32", (-1, 2))
    Registry(root).import_python("same", source, "same:Same", Signature((x,), (x,)))
    return {"service": "same", "model": "same@1", "root": root.url, "allow_code": True}


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


def test_where_gateways_cannot_be_is_said_at_deploy(monkeypatch, same):
    monkeypatch.setattr(ray, "nodes", lambda: nodes("10.0.0.1"))
    monkeypatch.setenv("SUNDOG_GATEWAY_NODES", "all")
    with pytest.raises(ServiceError, match=r"nobody reaches http://127\.0\.0\.1:8420"):
        check(same)
    monkeypatch.setenv("SUNDOG_GATEWAY", "http://node:8420")
    assert check(same).service == "same"


def test_an_slo_that_an_idle_replica_misses_is_refused(monkeypatch, same):
    monkeypatch.setattr(ray, "nodes", lambda: nodes("10.0.0.1"))
    args = {**same, "slo": {"p99": "20ms"}}
    root = open_root(same["root"])
    assert check(args).slo.p99 == 0.02
    keep(root, ServiceProfile("same", 1, 1, 0.03, 20.0, 0.1, 2.0, {1: 0.03}))
    with pytest.raises(ServiceError, match=r"same@1 takes 30 ms even on an idle replica.*20 ms"):
        check(args)
    assert check({**args, "slo": {"p99": "50ms"}}).slo.p99 == 0.05
    assert check({**args, "slo": {}}).service == "same"


def test_what_is_left_out_of_captures_is_a_tensor_of_the_model(monkeypatch, same):
    monkeypatch.setattr(ray, "nodes", lambda: nodes("10.0.0.1"))
    assert check({**same, "capture": {"leave_out": ["x"]}}).capture.leave_out == ("x",)
    with pytest.raises(SpecError, match="no input or output 'X'") as refused:
        check({**same, "capture": {"share": "1%", "leave_out": ["x", "X"]}})
    assert "it has x" in refused.value.fix


def test_what_is_done_around_a_model_is_checked_too(monkeypatch, same, tmp_path):
    monkeypatch.setattr(ray, "nodes", lambda: nodes("10.0.0.1"))
    folder = tmp_path / "around"
    folder.mkdir()
    (folder / "io.py").write_text(
        "class Io:\n    def before(self, inputs):\n        return inputs\n"
    )
    text = Signature((TensorSpec("text", "BYTES", (1,)),), (TensorSpec("y", "FP32", (-1, 2)),))
    Registry(open_root(same["root"])).import_python("io", folder, "io:Io", text)
    found = check({**same, "process": "io@1", "capture": {"leave_out": ["text"]}})
    assert found.process == "io@1"
    with pytest.raises(NotFound, match="io"):
        check({**same, "process": "io@2"})
    with pytest.raises(SpecError, match="its version by number"):
        check({**same, "process": "io@latest"})
    with pytest.raises(SpecError, match="io@1 is code") as refused:
        check({**same, "process": "io@1", "allow_code": False})
    assert "allow_code: true" in refused.value.fix
    with pytest.raises(SpecError, match="no input or output 'x'"):
        check({**same, "process": "io@1", "capture": {"leave_out": ["x"]}})
