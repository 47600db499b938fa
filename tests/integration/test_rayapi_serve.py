"""The private parts of Ray Serve that we use: fails first when Ray moves them."""

from __future__ import annotations

import inspect

import pytest
from ray.serve._private.common import DeploymentTargetInfo, RunningReplicaInfo
from ray.serve._private.constants import RECORD_REPLICA_METADATA_METHOD
from ray.serve._private.controller import ServeController
from ray.serve._private.long_poll import LongPollNamespace, UpdatedObject
from ray.serve.deployment import Deployment


def test_the_long_poll_says_which_replicas_run_and_what_they_publish():
    assert hasattr(LongPollNamespace, "DEPLOYMENT_TARGETS")
    assert "running_replicas" in DeploymentTargetInfo.__annotations__
    assert {"replica_id", "node_id", "node_ip", "replica_metadata"} <= set(
        RunningReplicaInfo.__annotations__
    )
    assert {"object_snapshot", "snapshot_id"} <= set(UpdatedObject.__annotations__)
    signature = inspect.signature(ServeController.listen_for_change)
    assert list(signature.parameters)[1:] == ["keys_to_snapshot_ids"]


def test_our_replicas_answer_serves_metadata_hook():
    from sundog.serving.replica import Model

    assert callable(getattr(Model, RECORD_REPLICA_METADATA_METHOD))


def test_the_controller_gives_the_details_of_its_rest_api():
    assert callable(ServeController.get_serve_instance_details)


def test_a_deployment_can_be_pinned_to_a_version():
    from ray import serve

    from sundog.rayapi.serve_apps import pinned

    class Empty:
        pass

    made = pinned(serve.deployment(Empty, name="e"), "v1")
    assert isinstance(made, Deployment)
    assert made.version == "v1"


def test_the_port_between_deployments_is_opened_by_what_we_replace(monkeypatch):
    import ray
    from ray.serve._private import replica

    from sundog.rayapi import serve_ports

    source = inspect.getsource(replica)
    assert 'add_port_to_grpc_server(self._server, "[::]:0")' in source
    opened = []
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setattr(
        replica, "add_port_to_grpc_server", lambda server, where: opened.append(where) or 1
    )
    serve_ports.bind_to_node()
    serve_ports.bind_to_node()
    replica.add_port_to_grpc_server(None, "[::]:0")
    assert opened == ["127.0.0.1:0"]


@pytest.mark.parametrize(
    ("address", "mode", "warned"),
    [("10.0.0.7", "disabled", True), ("fd00::7", None, True), ("10.0.0.7", "token", False),
     ("127.0.0.1", None, False), ("::1", None, False)],
)  # fmt: skip
def test_a_port_that_asks_for_no_token_is_said(monkeypatch, caplog, address, mode, warned):
    import ray
    from ray.serve._private import replica

    from sundog.rayapi import serve_ports

    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: address)
    monkeypatch.setattr(replica, "add_port_to_grpc_server", lambda server, where: 1)
    if mode is None:
        monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    else:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    serve_ports.bind_to_node()
    assert ("RAY_AUTH_MODE=token" in caplog.text) == warned
