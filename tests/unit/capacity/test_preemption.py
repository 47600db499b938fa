"""The agent against a local metadata server: notices, advice, lies, slowness, and its own node only."""

from __future__ import annotations

import contextlib
import fcntl
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from sundog.capacity import identity, metadata, preemption
from sundog.capacity.metadata import AwsMetadata, AzureMetadata, GcpMetadata, MetadataUnavailable
from sundog.capacity.preemption import Agent
from sundog.clock import ManualClock
from sundog.errors import AlreadyExists, ClusterError, StorageUnavailable
from sundog.ledger import Entry, FileLedger
from sundog.market.prices import price_at
from sundog.rayapi.drain import RayNode

CONFIGS = Path(__file__).parents[3] / "cluster-configs"
NOW_S = 1_800_000_000.0
MINE = RayNode("a" * 56, "i-1", "gpu", "RUNNING")
OTHER = RayNode("b" * 56, "i-2", "gpu", "RUNNING")


class Nonsense:
    """An answer that is not even HTTP."""


class Server:
    """`answers[path]` is (status, body) or a function of the headers that returns one."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.seen: list[tuple[str, str]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def _answer(self) -> None:
                outer.seen.append((self.command, self.path))
                found = outer.answers.get(self.path, (404, ""))
                if found is Nonsense:
                    self.wfile.write(b"this is no HTTP\r\n\r\n")
                    return
                if callable(found):
                    found = found(self.headers)
                status, body = found
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "http://192.0.2.1/")
                self.end_headers()
                self.wfile.write(body.encode())

            do_GET = do_PUT = _answer

            def log_message(self, *args: Any) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def aws(self, **paths: Any) -> None:
        self.answers["/latest/api/token"] = (200, "secret")
        need = "X-aws-ec2-metadata-token"
        for path, body in paths.items():
            full = "/latest/meta-data/" + path.replace("__", "/").replace("_", "-")
            self.answers[full] = lambda h, b=body: (
                (200, b) if h.get(need) == "secret" else (401, "")
            )


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(metadata, "TIMEOUT_S", 30.0)  # a busy machine answers late
    found = Server()
    yield found
    found.http.shutdown()
    found.http.server_close()


@dataclass
class Cluster:
    known: list[RayNode] = field(default_factory=lambda: [OTHER, MINE])
    drains: list[tuple[str, float | None, str]] = field(default_factory=list)
    down: bool = False

    def nodes(self) -> list[RayNode]:
        if self.down:
            raise ClusterError("away")
        return self.known

    def drain(self, node_id: str, deadline_s: float | None, why: str) -> bool:
        self.drains.append((node_id, deadline_s, why))
        return True


@dataclass
class Heard:
    lines: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, line: str, flush: bool = False) -> None:
        self.lines.append(json.loads(line))

    @property
    def events(self) -> list[str]:
        return [x["event"] for x in self.lines]


def agent(server: Server, **change: Any) -> tuple[Agent, Cluster, Heard]:
    cluster, heard = Cluster(), Heard()
    values: dict[str, Any] = {
        "cloud": "aws", "metadata": AwsMetadata(server.url), "cluster": cluster,
        "instance_id": "i-1", "clock": ManualClock(NOW_S), "say": heard,
    }  # fmt: skip
    return Agent(**(values | change)), cluster, heard


ENDS = {"action": "terminate", "time": "2027-01-15T08:02:00Z"}  # NOW_S is 08:00:00


def test_a_spot_notice_drains_this_node_with_the_real_deadline_and_once(server: Server) -> None:
    server.aws(spot__instance_action=json.dumps(ENDS))
    ear, cluster, heard = agent(server)
    ear.step()
    ear.step()
    assert cluster.drains == [(MINE.node_id, NOW_S + 120.0, "aws: spot terminate")]
    assert heard.events == ["drained"]


def test_nothing_to_say_means_nothing_is_done_and_the_token_is_kept(server: Server) -> None:
    server.aws()
    ear, cluster, heard = agent(server)
    assert [ear.step() for _ in range(3)] == [preemption.POLL_S] * 3
    assert (cluster.drains, heard.lines) == ([], [])
    assert server.seen.count(("PUT", "/latest/api/token")) == 1


def test_rebalance_is_advice_and_drains_only_when_asked_to(server: Server) -> None:
    server.aws(events__recommendations__rebalance='{"noticeTime": "2027-01-15T08:00:00Z"}')
    ear, cluster, heard = agent(server)
    ear.step()
    ear.step()
    assert cluster.drains == []
    assert heard.events == ["advice"]
    ear, cluster, _ = agent(server, drain_on_advice=True)
    ear.step()
    assert [d[0] for d in cluster.drains] == [MINE.node_id]


@pytest.mark.parametrize(("said", "drains"), [("1", True), ("0", False), (None, False)])
def test_a_spec_asks_for_it_with_a_variable(
    said: str | None, drains: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a spec has under `env` is there for the command that starts the agent."""
    if said is not None:
        monkeypatch.setenv("SUNDOG_DRAIN_ON_ADVICE", said)
    found = preemption._parser().parse_args(["aws", "--gcs", "h:1"])
    assert found.drain_on_advice is drains


def test_advice_asks_once_for_a_spare_and_leaves_the_node_alone(server: Server) -> None:
    server.aws(events__recommendations__rebalance='{"noticeTime": "2027-01-15T08:00:00Z"}')
    asked: list[str] = []
    ear, cluster, heard = agent(server, spare=asked.append)
    ear.step()
    ear.step()
    assert (asked, cluster.drains, heard.events) == ([MINE.node_id], [], ["advice"])


@pytest.mark.parametrize(
    "break_it",
    [
        lambda s: s.answers.update({"/latest/api/token": (403, "")}),
        lambda s: s.answers.update({"/latest/api/token": (302, "")}),
        lambda s: s.aws(spot__instance_action="<html>not json"),
        lambda s: s.aws(spot__instance_action="[1, 2]"),
        lambda s: s.answers.update({"/latest/api/token": Nonsense}),
        lambda s: s.http.server_close() or s.http.shutdown(),
    ],
)
def test_a_service_that_refuses_or_lies_harms_nothing_and_is_asked_less_often(
    server: Server, break_it: Callable[[Server], Any]
) -> None:
    break_it(server)
    ear, cluster, heard = agent(server)
    waits = [ear.step() for _ in range(6)]
    assert cluster.drains == []
    assert waits == sorted(waits)
    assert waits[0] > preemption.POLL_S
    assert waits[-1] == preemption.SLOWEST_POLL_S
    assert heard.events == ["metadata-unavailable"]


def test_a_slow_service_is_given_up_on(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "TIMEOUT_S", 0.2)
    hold = threading.Event()
    server.answers["/latest/api/token"] = lambda h: (hold.wait(5), (200, "secret"))[1]
    with pytest.raises(MetadataUnavailable):
        AwsMetadata(server.url).notices(NOW_S)
    hold.set()


def test_an_ended_token_is_renewed(server: Server) -> None:
    server.aws(spot__instance_action=json.dumps(ENDS))
    service = AwsMetadata(server.url)
    service._token = "old"
    assert [n.kind for n in service.notices(NOW_S)] == ["interruption"]


@pytest.mark.parametrize(
    ("time", "left_s"),
    [("2027-01-15T08:02:00Z", 120.0), ("2020-01-01T00:00:00Z", 1.0), ("2099-01-01T00:00:00Z", 120.0),
     ("soon", 120.0), (None, 120.0)],
)  # fmt: skip
def test_a_deadline_that_cannot_be_is_not_believed(
    server: Server, time: str | None, left_s: float
) -> None:
    server.aws(spot__instance_action=json.dumps({"action": "terminate", "time": time}))
    ear, cluster, _ = agent(server)
    ear.step()
    assert cluster.drains[0][1] == NOW_S + left_s


def test_it_never_drains_a_node_that_is_not_surely_its_own(server: Server) -> None:
    server.aws(spot__instance_action=json.dumps(ENDS))
    for known in ([OTHER], [MINE, RayNode("c" * 56, "i-1", "gpu", "RUNNING")], []):
        ear, cluster, heard = agent(server)
        cluster.known = list(known)
        ear.step()
        assert cluster.drains == []
        assert heard.events == ["unknown-node"]
    ear, cluster, _ = agent(server, instance_id="")
    cluster.known = [RayNode("d" * 56, "", "gpu", "RUNNING")]
    ear.step()
    assert cluster.drains == []


def test_a_cluster_that_is_away_is_asked_again(server: Server) -> None:
    server.aws(spot__instance_action=json.dumps(ENDS))
    ear, cluster, heard = agent(server)
    cluster.down = True
    ear.step()
    cluster.down = False
    ear.step()
    assert heard.events == ["drain-failed", "drained"]


def test_gcp_notices(server: Server) -> None:
    base = "/computeMetadata/v1/instance/"
    flavour = lambda body: lambda h: (200, body) if h.get("Metadata-Flavor") else (403, "")  # noqa: E731
    server.answers[base + "preempted"] = flavour("TRUE")
    [notice] = GcpMetadata(server.url).notices(NOW_S)
    assert (notice.kind, notice.deadline_s) == ("interruption", NOW_S + 30)
    server.answers[base + "preempted"] = flavour("FALSE")
    server.answers[base + "maintenance-event"] = flavour("MIGRATE_ON_HOST_MAINTENANCE")
    assert [n.kind for n in GcpMetadata(server.url).notices(NOW_S)] == ["advice"]


def test_azure_hears_only_its_own_events(server: Server) -> None:
    server.answers["/metadata/instance?api-version=2021-02-01"] = (
        200, json.dumps({"compute": {"name": "vm-1", "priority": "Spot", "location": "eastus"}})
    )  # fmt: skip
    event = {"EventType": "Preempt", "Resources": ["vm-2"],
             "NotBefore": "Fri, 15 Jan 2027 08:00:30 GMT"}  # fmt: skip
    path = "/metadata/scheduledevents?api-version=2020-07-01"
    server.answers[path] = (200, json.dumps({"Events": [event]}))
    service = AzureMetadata(server.url)
    assert service.notices(NOW_S) == []
    event["Resources"] = ["vm-1"]
    server.answers[path] = (200, json.dumps({"Events": [event, "nonsense"]}))
    [notice] = service.notices(NOW_S)
    assert notice.deadline_s == NOW_S + 30
    assert service.placement()[0] == "spot"


def test_a_node_of_gcp_and_of_azure_knows_its_pool_price_and_cluster(server: Server) -> None:
    base = "/computeMetadata/v1/instance/"
    for path, body in {
        "zone": "projects/1/zones/us-central1-a", "machine-type": "projects/1/machineTypes/g2",
        "attributes/sundog-pool": "l4", "attributes/sundog-usd-hour": "0.31",
        "attributes/ray-cluster-name": "g",
    }.items():  # fmt: skip
        server.answers[base + path] = (200, body)
    found = GcpMetadata(server.url).about()
    assert (found["pool"], found["usd_hour"], found["cluster"]) == ("l4", "0.31", "g")
    tags = {"sundog:pool": "t4", "sundog:usd-hour": "0.5", "ray-cluster-name": "a"}
    compute = {"name": "vm-1", "tagsList": [{"name": k, "value": v} for k, v in tags.items()]}
    server.answers["/metadata/instance?api-version=2021-02-01"] = (
        200, json.dumps({"compute": compute})
    )  # fmt: skip
    found = AzureMetadata(server.url).about()
    assert (found["pool"], found["usd_hour"], found["cluster"]) == ("t4", "0.5", "a")


@pytest.mark.parametrize("kind", ["Reboot", "Redeploy"])
def test_azure_that_boots_a_machine_anew_ends_what_runs_there(server: Server, kind: str) -> None:
    """Its raylet does not come back with it, so its work needs the time until then."""
    document = {"compute": {"name": "vm-1", "location": "eastus"}}
    server.answers["/metadata/instance?api-version=2021-02-01"] = (200, json.dumps(document))
    event = {"EventType": kind, "Resources": ["vm-1"], "NotBefore": "Fri, 15 Jan 2027 08:10:00 GMT"}
    freeze = {**event, "EventType": "Freeze"}
    path = "/metadata/scheduledevents?api-version=2020-07-01"
    server.answers[path] = (200, json.dumps({"Events": [freeze, event]}))
    ear, cluster, _ = agent(server, cloud="azure", metadata=AzureMetadata(server.url))
    ear.step()
    assert cluster.drains == [(MINE.node_id, NOW_S + 600.0, f"azure: {kind}")]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
    | st.sampled_from(["vm-1", "Preempt", "terminate", "0001-01-01T00:00:00", "9" * 30]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["Events", "Resources", "EventType", "NotBefore", "action", "time",
                         "noticeTime", "compute", "name", "tagsList", "value"]), inner, max_size=5,
    ),
    max_leaves=12,
)  # fmt: skip


@given(json_values | st.fixed_dictionaries({"Events": st.lists(st.fixed_dictionaries(
    {"EventType": st.just("Preempt"), "Resources": json_values, "NotBefore": json_values}
))}))  # fmt: skip
@example({"Events": [{"EventType": "Preempt", "Resources": 5}]})
@example({"Events": [{"EventType": "Preempt", "Resources": "vm-10, vm-11"}]})
def test_whatever_a_service_says_is_a_notice_or_none_and_never_a_crash(said: Any) -> None:
    """A string that merely holds this node's name is no list with it."""

    class Says:
        def call(self, path: str, headers: Any, method: str = "GET") -> str:
            return "token" if "token" in path else json.dumps(said)

    for make in (AwsMetadata, GcpMetadata, AzureMetadata):
        service = make("http://x")
        service._http = Says()  # type: ignore[assignment]
        if isinstance(service, AzureMetadata):
            service._name = "vm-1"
        for ask in (lambda s=service: s.notices(NOW_S), service.placement, service.about):
            try:
                found = ask()
            except MetadataUnavailable:
                continue
            if isinstance(service, AzureMetadata) and isinstance(found, list) and found:
                assert any(
                    "vm-1" in e["Resources"]
                    for e in said["Events"]
                    if isinstance(e, dict) and isinstance(e.get("Resources"), list)
                )


def test_nesting_without_end_is_no_document() -> None:
    with pytest.raises(MetadataUnavailable):
        metadata._parsed("[" * 60_000)


def test_identity_exports_labels_and_never_anything_a_shell_would_run(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.aws(instance_life_cycle="spot", placement__availability_zone="us-east-1a",
               placement__region="us-east-1; rm -rf /")  # fmt: skip
    monkeypatch.setenv("SUNDOG_METADATA_URL", server.url)
    assert identity.main(["aws"]) == 0
    out = capsys.readouterr().out
    assert "export RAY_NODE_MARKET_TYPE=spot;" in out
    assert "export RAY_NODE_ZONE=us-east-1a;" in out
    assert "rm" not in out
    monkeypatch.setenv("SUNDOG_METADATA_URL", "http://127.0.0.1:1")
    assert identity.main(["aws"]) == 0
    assert capsys.readouterr().out == ""


class Root:
    def __init__(self) -> None:
        self.made: dict[str, bytes] = {}

    def create(self, key: str, data: bytes) -> str:
        if key in self.made:
            raise AlreadyExists(key)
        self.made[key] = data
        return ""


def test_a_node_that_joined_is_recorded_once_with_the_price_it_was_born_with(
    server: Server,
) -> None:
    server.aws(instance_life_cycle="spot", placement__availability_zone="us-east-1a")
    server.answers["/latest/meta-data/tags/instance/sundog:usd-hour"] = (200, "0.301800")
    root = Root()
    ear, cluster, heard = agent(server, root=root)
    cluster.known = []
    ear.step()
    assert root.made == {}, "it has not joined yet"
    cluster.known = [MINE]
    ear.step()
    ear.step()
    record = json.loads(root.made[f"nodes/{MINE.node_id}.json"])
    assert (record["market"], record["instance_id"], record["format"]) == ("spot", "i-1", 1)
    assert price_at(record, NOW_S + 1) == 0.3018
    assert heard.events == ["recorded"]
    again, _, _ = agent(server, root=root)
    again.step()
    assert json.loads(root.made[f"nodes/{MINE.node_id}.json"]) == record


def test_a_record_is_asked_for_again_when_something_was_away(server: Server) -> None:
    server.aws()
    root, clock = Root(), ManualClock(NOW_S)
    ear, cluster, heard = agent(server, root=root, clock=clock)
    cluster.down = True
    asked = 0
    for _ in range(30):
        ear.step()
        asked = heard.events.count("not-recorded")
        clock.advance(preemption.POLL_S)
    assert 2 <= asked <= 5, "less and less often"
    cluster.down = False
    clock.advance(preemption.SLOWEST_RECORD_S)
    ear.step()
    ear.step()
    assert heard.events.count("recorded") == 1
    assert list(root.made) == [f"nodes/{MINE.node_id}.json"]


def test_a_node_without_a_price_tag_has_no_price(server: Server) -> None:
    server.aws()
    root = Root()
    ear, _, _ = agent(server, root=root)
    ear.step()
    [data] = root.made.values()
    assert price_at(json.loads(data), NOW_S + 1) is None


def test_an_interruption_is_in_the_ledger_once_and_advice_is_not(
    server: Server, tmp_path: Path
) -> None:
    ledger = FileLedger(tmp_path / "ledger")
    server.aws(
        spot__instance_action='{"action":"terminate","time":"2027-01-15T08:02:00Z"}',
        events__recommendations__rebalance='{"noticeTime":"2027-01-15T08:00:00Z"}',
        instance_life_cycle="spot", placement__availability_zone="us-east-1a",
        instance_type="g5.xlarge",
    )  # fmt: skip
    server.answers["/latest/meta-data/tags/instance/sundog:usd-hour"] = (200, "0.31")
    ear, cluster, _ = agent(server)
    ear.ledger = ledger
    ear.step()
    ear.step()
    assert len(cluster.drains) == 1
    [entry] = ledger.since(0.0)
    assert (entry.kind, entry.node, entry.usd_hour) == ("interruption", "i-1", 0.31)
    assert entry.about["shape"] == "g5.xlarge"


def test_a_ledger_that_cannot_be_written_costs_the_entry_and_not_the_drain(server: Server) -> None:
    class Broken:
        def append(self, entry: Entry) -> None:
            raise StorageUnavailable("away")

    server.aws(spot__instance_action='{"action":"terminate","time":"2027-01-15T08:02:00Z"}')
    ear, cluster, heard = agent(server)
    ear.ledger = Broken()  # type: ignore[assignment]
    ear.step()
    assert len(cluster.drains) == 1
    assert "not-in-the-ledger" in heard.events


def test_the_start_command_starts_an_agent_that_died_again_and_lets_a_second_one_be(
    tmp_path: Path,
) -> None:
    """The committed command itself, with a python3 that crashes twice and is then at rest."""
    start = yaml.safe_load((CONFIGS / "aws-train.yaml").read_text())["worker_start_ray_commands"]
    [line] = [c for c in start if "sundog.capacity.preemption" in c]
    count, pauses = tmp_path / "count", tmp_path / "pauses"
    fakes = {
        "python3": f'#!/bin/sh\necho "$@" >> {count}\n[ $(wc -l < {count}) -gt 2 ] && exit 0\n'
        f"[ $(wc -l < {count}) = 1 ] && kill -9 $$\nexit 1\n",
        "sleep": f'#!/bin/sh\necho "$@" >> {pauses}\n',
    }
    for name, text in fakes.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    env = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "RAY_HEAD_IP": "10.0.0.9",
    }
    subprocess.run(["bash", "-c", line], check=True, env=env, timeout=20)

    def calls() -> list[str]:
        return count.read_text().splitlines() if count.exists() else []

    deadline = time.monotonic() + 20
    while len(calls()) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    assert calls() == ["-m sundog.capacity.preemption aws --gcs 10.0.0.9:6379"] * 3
    assert pauses.read_text().split() == ["5", "5"]


def test_a_command_that_is_wrong_is_not_repeated(tmp_path: Path) -> None:
    start = yaml.safe_load((CONFIGS / "aws-train.yaml").read_text())["worker_start_ray_commands"]
    [line] = [c for c in start if "sundog.capacity.preemption" in c]
    count = tmp_path / "count"
    (tmp_path / "python3").write_text(f"#!/bin/sh\necho x >> {count}\nexit 2\n")
    (tmp_path / "python3").chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path), "RAY_HEAD_IP": "h"}
    subprocess.run(["bash", "-c", line], check=True, env=env, timeout=20)
    deadline = time.monotonic() + 20
    while not count.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    assert count.read_text() == "x\n"


def test_an_agent_of_another_head_makes_room_and_one_of_the_same_stays(tmp_path: Path) -> None:
    """A node that joined a new head has a stale agent, which would drain it nowhere."""
    lock = tmp_path / ".sundog" / "preemption-i-1.lock"

    def start(gcs: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "sundog.capacity.preemption", "aws", "--gcs", gcs,
                   "--instance", "i-1", "--metadata", "http://127.0.0.1:1"]  # fmt: skip
        return subprocess.Popen(
            command, env={**os.environ, "HOME": str(tmp_path)},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def holds(process: subprocess.Popen[bytes]) -> bool:
        with contextlib.suppress(OSError, ValueError):
            return bool(json.loads(lock.read_text())["pid"] == process.pid)
        return False

    def wait_for(process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 60
        while not holds(process):
            assert time.monotonic() < deadline, lock.read_text()
            time.sleep(0.05)

    old = start("10.0.0.1:6379")
    agents = [old]
    try:
        wait_for(old)
        new = start("10.0.0.2:6379")
        agents.append(new)
        wait_for(new)
        assert old.wait(60) == 0, "its loop would start it again"
        same = start("10.0.0.2:6379")
        agents.append(same)
        assert same.wait(60) == 0
        assert new.poll() is None
        assert holds(new)
    finally:
        for each in agents:
            each.kill()
            each.wait()


def test_a_lock_names_no_process_that_is_not_an_agent(tmp_path: Path) -> None:
    """A number is given to another process once its own has ended."""
    path = tmp_path / "lock"
    with path.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write(json.dumps({"pid": os.getpid(), "gcs": "10.0.0.1:6379"}))
        held.flush()
        with pytest.raises(ClusterError, match="does not end"):
            preemption.only_one(path, "10.0.0.2:6379", ManualClock())
