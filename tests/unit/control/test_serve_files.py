"""Deployment files: read with line-exact faults, merged with what other files declared."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from sundog.control.serve_files import (
    deploy_file,
    notes,
    read_file,
    read_services,
    undeploy,
    wait_applied,
)
from sundog.errors import ClusterError, NotFound, ServiceError, SpecError
from sundog.spec import ServiceSpec

GOOD = """\
proxy_location: Disabled
applications:
  - name: digits
    import_path: sundog:service
    args: {service: digits, model: digits@champion, replicas: 1..3}
  - name: theirs
    import_path: theirs:app
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "d.yaml"
    path.write_text(GOOD)
    return path


def app(name, source="declarative", status="RUNNING", **config):
    return {
        "status": status, "source": source,
        "deployed_app_config": {"name": name, "import_path": "x:y", **config},
    }  # fmt: skip


@pytest.fixture
def dashboard():
    """Serve's REST API, as far as it is used: remembers what is put."""
    state = {
        "token": "secret",
        "puts": [],
        "applications": {
            "old": app("old"),
            "digits": app("digits", import_path="sundog:service", args={"service": "digits"}),
            "leaving": app("leaving", status="DELETING"),
            "digits--v1": {
                "status": "RUNNING",
                "source": "imperative",
                "deployed_app_config": None,
            },
        },
    }

    class Handler(BaseHTTPRequestHandler):
        def answer(self, code, body=b"{}"):
            self.send_response(code)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            if self.headers["authorization"] != f"Bearer {state['token']}":
                self.answer(401)
                return
            document = {
                "proxy_location": "Disabled", "controller_info": {},
                "applications": state["applications"],
            }  # fmt: skip
            self.answer(200, json.dumps(document).encode())

        def do_PUT(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            state["puts"].append(json.loads(body))
            self.answer(state.get("put_status", 200), b"bad idea")

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state["address"] = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()


def names(body):
    return [a["name"] for a in body["applications"]]


def test_a_file_is_merged_with_what_others_declared(file, dashboard):
    assert deploy_file(file, dashboard["address"], "secret") == ["digits"]
    [put] = dashboard["puts"]
    assert names(put) == ["old", "digits", "theirs"]
    assert put["proxy_location"] == "Disabled"
    assert put["applications"][1]["args"]["replicas"] == "1..3"


def test_a_service_belongs_to_one_application(tmp_path, dashboard):
    once = "  - {name: NAME, import_path: sundog:service, args: {service: digits, model: d}}\n"
    path = tmp_path / "d.yaml"
    path.write_text("applications:\n" + once.replace("NAME", "a") + once.replace("NAME", "b"))
    with pytest.raises(SpecError, match=r"d.yaml:3: application b .* application a does"):
        read_file(path)
    path.write_text("applications:\n" + once.replace("NAME", "mine"))
    with pytest.raises(SpecError, match=r"application mine .* as application digits does"):
        deploy_file(path, dashboard["address"], "secret")
    assert dashboard["puts"] == []


TRACEBACK = """Deploying app 'digits' failed with exception:
Traceback (most recent call last):
  File "anchor.py", line 55, in check
    profiles.check_limit(found.name)
sundog.errors.ServiceError: digits@2 takes 30 ms: no number of replicas meets 5 ms
  ask for more time (slo)
"""


def test_a_spec_that_serve_refuses_is_said_with_its_reason(dashboard):
    wait_applied(["digits"], dashboard["address"], 20, "secret")
    mine = dashboard["applications"]["digits"]
    mine |= {"status": "DEPLOY_FAILED", "message": TRACEBACK}
    with pytest.raises(ServiceError, match=r"^digits: digits@2 takes 30 ms") as refused:
        wait_applied(["digits"], dashboard["address"], 20, "secret")
    assert str(refused.value).endswith("meets 5 ms\n  ask for more time (slo)")
    mine["status"] = "DEPLOYING"
    turned = threading.Timer(0.3, mine.update, [{"status": "RUNNING"}])
    turned.start()
    wait_applied(["digits"], dashboard["address"], 20, "secret")
    assert mine["status"] == "RUNNING"


def test_undeploying_keeps_the_others(dashboard):
    undeploy("digits", dashboard["address"], "secret")
    assert names(dashboard["puts"][0]) == ["old"]


def test_undeploying_what_is_not_there_names_the_nearest(dashboard):
    with pytest.raises(NotFound, match="did you mean 'digits'"):
        undeploy("digit", dashboard["address"], "secret")
    assert dashboard["puts"] == []


def test_what_the_cluster_refuses_is_said(file, dashboard):
    with pytest.raises(ClusterError, match="refuses the token"):
        deploy_file(file, dashboard["address"], "wrong")
    with pytest.raises(ClusterError, match="no Ray dashboard"):
        deploy_file(file, "http://127.0.0.1:1", "secret")
    dashboard["put_status"] = 400
    with pytest.raises(ClusterError, match="bad idea"):
        deploy_file(file, dashboard["address"], "secret")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1", "lists no applications"),
        ("[]", "lists no applications"),
        ("applications: [{import_path: x}]", ":1: an application needs a name"),
        (GOOD.replace("replicas: 1..3", "replica: 3"), "d.yaml:5: replica: unknown key"),
        (GOOD.replace("model: digits@champion, ", ""), "d.yaml:5: model: is missing"),
        (GOOD.replace("    args: {service: digits, model: digits@champion, replicas: 1..3}\n", ""),
         "the spec is empty"),
    ],
)  # fmt: skip
def test_faults_of_a_file_name_their_line(tmp_path, text, says):
    path = tmp_path / "d.yaml"
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        read_file(path)
    assert says in str(caught.value)


def test_the_specs_of_a_file(file):
    [spec] = read_services(file)
    assert (spec.service, spec.replicas.high) == ("digits", 3)


def test_the_shipped_deployment_is_good():
    [spec] = read_services("deployments/digits.yaml")
    assert spec.model == "digits@champion"


def test_a_deploy_says_what_of_a_spec_has_no_effect():
    def said(**more):
        return notes(ServiceSpec.model_validate({"service": "s", "model": "m", **more}))

    assert said() == []
    assert said(replicas="1..4", slo={"p99": "50ms"}) == []
    assert said(replicas="0..4") == []
    assert "only refuses what would be late" in said(slo={"p95": "1s"})[0]
    assert "never stacked" in said(idempotent=False, batch=8)[0]
    assert said(idempotent=False) == []
    assert "hold 2 s" in said(replicas="0..4", hold="2s")[0]
    assert "write 2..8" in said(replicas=2, slo={"p95": "1s"})[0]
    assert "splits no traffic" in said(rollout={"strategy": "shadow", "sticky": "key"})[0]
    assert "only `sundog rollback` tells it" in said(rollout={"webhook": "https://example.org"})[0]
