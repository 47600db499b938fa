"""A service's life on a real Serve: rolled, killed, controlled, undeployed, and always answering."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
from ray.serve.generated.serve_pb2 import ASGIRequest
from ray.serve.generated.serve_pb2_grpc import ASGIServiceStub
from serving_kit import (
    WIDTH,
    infer,
    load,
    processes,
    register_scale,
    serve_cli,
    serve_status,
    wait_for,
    wait_ready,
    write_deployment,
    x_body,
)

from sundog.control import serve_files
from sundog.errors import NotFound
from sundog.storage.models import Registry
from sundog.storage.root import open_root

ROWS = [[1.0] * WIDTH]


@pytest.fixture(scope="module")
def served(local_ray, tmp_path_factory):
    """The gateway, with service `life` at life-scale@champion = version 1, factor 2."""
    tmp = tmp_path_factory.mktemp("life")
    register_scale(local_ray.endpoints.root, "life-scale", 2.0, tmp)
    file = write_deployment(tmp / "d.yaml", {"service": "life", "model": "life-scale@champion"})
    serve_cli(local_ray, "deploy", file)
    gateway = local_ray.endpoints.gateway
    wait_ready(gateway, "life")
    yield gateway, tmp
    (tmp / "empty.yaml").write_text("proxy_location: Disabled\napplications: []\n")
    serve_cli(local_ray, "deploy", tmp / "empty.yaml")
    gone = lambda: not any("--v" in name for name in serve_status(local_ray))  # noqa: E731
    wait_for("all versions removed", gone)


def test_a_moved_alias_rolls_the_new_version_in_without_a_failed_request(served, local_ray):
    gateway, tmp = served
    root = local_ray.endpoints.root
    with load(gateway, "life", {"1": 2.0, "2": 3.0}) as seen:
        wait_for("load", lambda: seen.total > 50)
        register_scale(root, "life-scale", 3.0, tmp)
        wait_for("the new version answers", lambda: seen.answers.get("2", 0) > 50)
        wait_for("the old one is removed", lambda: "life--v1" not in serve_status(local_ray))
    assert seen.failures == []
    assert infer(gateway, "life", ROWS) == ("2", [3.0] * WIDTH)
    registry = Registry(open_root(root))
    assert registry.holds("life-scale", 2)
    wait_for("the hold is released", lambda: not registry.holds("life-scale", 1))


def scaled(served, local_ray, replicas):
    """The service on so many replicas, changed in place."""
    gateway, tmp = served
    spec = {"service": "life", "model": "life-scale@champion", "replicas": replicas}
    serve_files.deploy_file(write_deployment(tmp / "n.yaml", spec), local_ray.endpoints.dashboard)

    def connected():
        rows = httpx.get(f"{gateway}/sundog/services", trust_env=False).json()
        [row] = [r for r in rows if r["service"] == "life"]
        return row["replicas"] == replicas

    wait_for(f"{replicas} replicas", connected)


def replica_pids(local_ray):
    return {p.pid for p in processes(local_ray, "ServeReplica:life--v2:Model")}


def test_replicas_come_go_and_are_killed_without_a_failed_request(served, local_ray):
    gateway, _ = served
    [first] = replica_pids(local_ray)
    with load(gateway, "life", {"2": 3.0}) as seen:
        scaled(served, local_ray, 2)
        assert first in replica_pids(local_ray), "more replicas need no new first one"
        os.kill(first, signal.SIGKILL)
        count = seen.total
        wait_for("answers go on", lambda: seen.total > count + 50)
        wait_for("two again", lambda: len(replica_pids(local_ray) - {first}) == 2)
        scaled(served, local_ray, 1)
        wait_for("one left", lambda: len(replica_pids(local_ray)) == 1)
    assert seen.failures == []


def test_a_request_waits_for_the_only_replica_to_come_back(served, local_ray):
    gateway, _ = served
    [only] = replica_pids(local_ray)
    os.kill(only, signal.SIGKILL)
    # On a busy machine a replica may take longer than a request is held: ask until it is there,
    # and see that nothing but "not ready" is ever said.
    seen = []

    def answered():
        answer = httpx.post(
            f"{gateway}/v2/models/life/infer", json=x_body(ROWS), timeout=30, trust_env=False
        )
        seen.append(answer.status_code)
        return answer.status_code == 200

    wait_for("an answer", answered)
    assert set(seen) <= {200, 503}


def test_the_gateway_serves_on_while_control_is_killed_and_control_resumes(served, local_ray):
    gateway, tmp = served
    control = processes(local_ray, "ray::Control")
    assert len(control) == 1
    with load(gateway, "life", {"2": 3.0, "3": 5.0}) as seen:
        wait_for("load", lambda: seen.total > 20)
        control[0].send_signal(signal.SIGKILL)
        register_scale(local_ray.endpoints.root, "life-scale", 5.0, tmp)
        wait_for("control is back and rolls", lambda: seen.answers.get("3", 0) > 20)
    assert seen.failures == []


def test_a_second_control_is_refused_by_the_lease(served, local_ray):
    from sundog.control.loop import store_url
    from sundog.errors import LeaseHeld
    from sundog.store import open_store

    store = open_store(store_url({}, local_ray.endpoints.root))
    try:
        with pytest.raises(LeaseHeld, match="another control"):
            store.acquire("somebody else")
        assert [r["reason"] for r in store.revisions("life")]
        assert store.events("life")
    finally:
        store.close()


def test_a_file_beside_another_keeps_both_and_undeploying_removes_one(served, local_ray):
    gateway, tmp = served
    register_scale(local_ray.endpoints.root, "life-other", 7.0, tmp)
    file = write_deployment(tmp / "o.yaml", {"service": "other", "model": "life-other"})
    dashboard = local_ray.endpoints.dashboard
    assert serve_files.deploy_file(file, dashboard) == ["other"]
    wait_ready(gateway, "other")
    assert infer(gateway, "life", ROWS)[0] == "3"
    with pytest.raises(NotFound, match="no deployed service"):
        serve_files.undeploy("othr", dashboard)
    serve_files.undeploy("other", dashboard)
    url = f"{gateway}/v2/models/other"
    wait_for("404", lambda: httpx.get(url, trust_env=False).status_code == 404)
    wait_for("removed", lambda: "other--v1" not in serve_status(local_ray))
    assert infer(gateway, "life", ROWS)[0] == "3"


def test_serves_own_port_in_a_replica_refuses_who_has_not_rays_token(served, local_ray):
    token = Path(local_ray.endpoints.token_path).read_text().strip()
    bearer = (("authorization", f"Bearer {token}"),)
    refused = []
    for process in processes(local_ray, "ServeReplica:"):
        for connection in process.net_connections(kind="inet"):
            if connection.status != psutil.CONN_LISTEN:
                continue
            port = connection.laddr.port
            if asks_of_serve(port, bearer) in (None, grpc.StatusCode.UNIMPLEMENTED):
                continue  # no gRPC, or Ray's own port of every worker
            refused.append(asks_of_serve(port, ()))
            assert asks_of_serve(port, (("authorization", "Bearer x"),)) == refused[-1]
    assert len(refused) >= 2, "of a replica and of the gateway"
    assert set(refused) == {grpc.StatusCode.UNAUTHENTICATED}


def asks_of_serve(port, metadata):
    """The status of a call as Serve makes it between deployments; None where nobody speaks gRPC."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = ASGIServiceStub(channel).HandleRequest
        try:
            call(ASGIRequest(), timeout=10, metadata=metadata)
        except grpc.RpcError as error:
            return error.code() if error.code() != grpc.StatusCode.UNAVAILABLE else None
    return grpc.StatusCode.OK


def test_everything_listens_on_loopback_and_private_sockets_are_private(served, local_ray):
    gateway, _ = served
    port = int(gateway.rpartition(":")[2])
    listening = {}
    for process in local_ray.processes():
        try:
            for c in process.net_connections(kind="inet"):
                if c.status == psutil.CONN_LISTEN:
                    listening[c.laddr.port] = (c.laddr.ip, process.name())
        except psutil.Error:
            continue
    assert port in listening
    open_to_all = {
        p: w
        for p, w in listening.items()
        if w[0].removeprefix("::ffff:") not in ("127.0.0.1", "::1")
    }
    assert not open_to_all
    sockets = list(local_ray.temp_dir.glob("**/sundog-*/s"))
    assert sockets
    for path in sockets:
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700
