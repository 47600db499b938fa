"""Prometheus' answers, as its HTTP API gives them, become signals; what is unknown says why."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
from pydantic import ValidationError

from sundog.clock import ManualClock
from sundog.control import signals
from sundog.control.signals import Signals, ask_prometheus, query_of
from sundog.spec import ServiceSpec


def spec_of(*asked):
    return ServiceSpec.model_validate({"service": "chat", "model": "m", "signals": list(asked)})


@contextlib.contextmanager
def prometheus(answers, monkeypatch):
    class Api(BaseHTTPRequestHandler):
        def do_GET(self):
            [query] = parse_qs(urlsplit(self.path).query)["query"]
            body = json.dumps(answers[query]).encode()
            self.send_response(200 if answers[query]["status"] == "success" else 400)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv(signals.SETTING, f"http://127.0.0.1:{server.server_port}/")
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def vector(*values):
    rows = [{"metric": {"i": str(i)}, "value": [1.5, v]} for i, v in enumerate(values)]
    return {"status": "success", "data": {"resultType": "vector", "result": rows}}


def test_vectors_scalars_and_what_has_no_value(monkeypatch):
    answers = {
        "several": vector("1", "3"), "none": vector(), "nan": vector("NaN"),
        "scalar": {"status": "success", "data": {"resultType": "scalar", "result": [1, "7"]}},
        "bad(": {"status": "error", "error": "parse error: unclosed parenthesis"},
    }  # fmt: skip
    with prometheus(answers, monkeypatch):
        assert ask_prometheus("several") == 2.0
        assert ask_prometheus("scalar") == 7.0
        for query in ("none", "nan"):
            with pytest.raises(ValueError, match="no value"):
                ask_prometheus(query)
        with pytest.raises(ValueError, match="unclosed parenthesis"):
            ask_prometheus("bad(")


def test_without_an_address_the_setting_is_named(monkeypatch):
    monkeypatch.delenv(signals.SETTING, raising=False)
    known = Signals(ManualClock(0.0))
    spec = spec_of({"name": "gpu", "target": 0.7})
    assert known.read(spec, "3", 1) == ((), "")
    known.ask_all()
    assert known.read(spec, "3", 1) == (
        (),
        "signal gpu: set RAY_PROMETHEUS_HOST=http://host:9090 on the head",
    )


def test_known_signals_are_shared_by_the_replicas_and_others_are_not():
    clock = ManualClock(0.0)
    known = Signals(clock, lambda query: 6.0)
    spec = spec_of({"name": "gpu", "target": 0.7}, {"name": "kv", "query": "x", "target": 1})
    known.read(spec, "3", 3)
    known.ask_all()
    found, fault = known.read(spec, "3", 3)
    assert ([(s.name, s.value) for s in found], fault) == ([("gpu", 2.0), ("kv", 6.0)], "")
    clock.advance(signals.STALE_S + 1)
    assert known.read(spec, "3", 3)[0] == ()


def test_queries_name_what_is_scaled():
    assert query_of("chat", "3", "kv", "kv{s='$service',v='$version'}") == "kv{s='chat',v='3'}"
    assert "ray::ServeReplica:chat--v3:.*" in query_of("chat", "3", "gpu", None)


def test_nobody_is_asked_about_a_service_that_is_gone():
    clock, asked = ManualClock(0.0), []
    known = Signals(clock, lambda query: asked.append(query) or 1.0)
    known.read(spec_of({"name": "cpu", "target": 1}), "1", 1)
    known.ask_all()
    clock.advance(signals.STALE_S + 1)
    known.ask_all()
    assert len(asked) == 1


def test_a_signal_without_a_query_must_be_a_known_one():
    with pytest.raises(ValidationError, match="kv needs a query"):
        spec_of({"name": "kv", "target": 1})
    with pytest.raises(ValidationError):
        spec_of({"name": "gpu", "target": 0})
