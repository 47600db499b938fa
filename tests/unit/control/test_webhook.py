"""Webhooks are told at least once: written down first, crossed off when taken, by whoever leads."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from sundog.clock import ManualClock
from sundog.control.webhook import AGAIN_S, GIVE_UP_S, Delivery, Outbox, send
from sundog.errors import LeaseLost
from sundog.store import open_store


class World:
    def __init__(self, folder):
        self.clock = ManualClock(1000.0)
        self.store = open_store(f"sqlite:///{folder}/control.db", clock=self.clock)
        self.sent = []
        self.restart()

    def restart(self):
        self.outbox = Outbox(self.store, self.store.acquire("c"), self.clock, self.send)

    def send(self, url, news):
        self.sent.append((url, news, Delivery()))
        return self.sent[-1][2]


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    yield made
    made.store.close()


def test_what_a_killed_control_did_not_deliver_its_successor_does_once_it_is_taken(world):
    world.outbox.add("rollout/s/1", "http://u", {"n": 1})
    world.outbox.add("rollout/s/1", "http://u", {"n": 1})
    world.outbox.step()
    assert [(url, news) for url, news, _ in world.sent] == [("http://u", {"n": 1})]
    world.outbox.step()
    assert len(world.sent) == 1, "it is on its way"
    stale = world.outbox
    world.restart()
    world.outbox.step()
    assert len(world.sent) == 2, "nobody knows whether the first one arrived"
    with pytest.raises(LeaseLost):
        stale.add("rollout/s/2", "http://u", {"n": 2})
    world.sent[-1][2].fault = ""
    world.outbox.step()
    world.restart()
    world.outbox.step()
    assert len(world.sent) == 2, "it was taken"


def test_a_url_that_does_not_answer_is_asked_again_for_a_day(world, caplog):
    world.outbox.add("a", "http://host/secret?token", {"event": "e"})
    for tries in range(1, 4):
        world.outbox.step()
        assert len(world.sent) == tries
        world.sent[-1][2].fault = "it answers 500"
        world.outbox.step()
        world.outbox.step()
        assert len(world.sent) == tries, "not before a minute has passed"
        world.clock.advance(AGAIN_S)
    world.clock.advance(GIVE_UP_S)
    world.outbox.step()
    world.sent[-1][2].fault = "it answers 500"
    world.outbox.step()
    world.clock.advance(AGAIN_S)
    world.outbox.step()
    assert len(world.sent) == 4
    assert "given up after a day" in caplog.text
    assert "host" in caplog.text
    assert "secret" not in caplog.text


def test_a_real_server_gets_the_document_and_one_that_refuses_is_a_fault(monkeypatch):
    got, answers = [], iter([500, 200, 500, 500, 500])

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self):
            got.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(next(answers))
            self.end_headers()

        def log_message(self, *words):
            pass

    monkeypatch.setattr("sundog.hooks.WALL.sleep", lambda s: None)
    server = HTTPServer(("127.0.0.1", 0), Hook)
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/hook"
        for fault in ("", "it answered 500"):
            delivery = send(url, {"service": "s"})
            waited = threading.Event()
            for _ in range(6000):
                if delivery.fault is not None:
                    break
                waited.wait(0.01)
            assert delivery.fault == fault
    finally:
        server.shutdown()
        server.server_close()
        serving.join(10)
    assert got == [b'{"service":"s"}'] * 5
