"""W3C trace context: read as the standard says, continued, carried to the model and into log lines."""

import asyncio
import json
import os

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from gateway_kit import Served, reaching, route_of, tensors
from hypothesis import given
from hypothesis import strategies as st

from sundog.errors import SpecError
from sundog.security.keys import KeyRing
from sundog.serving import frames, http_api
from sundog.serving.calls import Call, Calls
from sundog.serving.lane import NotServed
from sundog.serving.routes import Routes
from sundog.serving.runner import Runner
from sundog.serving.tracing import Traces, context_of, parent_of, trace_id_of, traces_of

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = f"00-{TRACE}-{SPAN}-01"


class Kept:
    """An exporter that remembers."""

    def __init__(self):
        self.spans = []

    def export(self, spans):
        self.spans += spans

    def shutdown(self):
        pass

    def force_flush(self, timeout_millis=0):
        return True


def kept_spans(work, share=1.0):
    exporter = Kept()
    traces = Traces(exporter, "test", share)
    work(traces)
    traces.close()
    return exporter.spans


def test_a_given_context_is_read():
    found = context_of(GIVEN)
    assert (f"{found.trace_id:032x}", f"{found.span_id:016x}") == (TRACE, SPAN)
    assert found.trace_flags.sampled
    assert context_of(f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like") is not None
    assert trace_id_of({b"traceparent": GIVEN.encode()}) == TRACE
    assert trace_id_of({}) == ""


@pytest.mark.parametrize(
    "text",
    ["", "00", f"00-{TRACE}-{SPAN}", f"ff-{TRACE}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01",
     f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE.upper()}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01-x"],
)  # fmt: skip
def test_what_is_no_context_is_none(text):
    assert context_of(text) is None


@given(st.text(max_size=80))
def test_any_header_is_survived(text):
    context_of(text)


def test_a_request_continues_its_trace_and_the_model_is_its_child():
    model = type("M", (), {"predict": lambda self, inputs: {"y": inputs["x"]}})()
    tensor = {"name": "x", "datatype": "FP32", "shape": [-1]}
    runner = Runner(model, {"inputs": [tensor], "outputs": [{**tensor, "name": "y"}]})

    def work(traces):
        runner.traces = traces
        request = traces.begin({b"traceparent": GIVEN.encode()})
        other = traces.begin({})
        raw = np.ones(2, np.float32).tobytes()
        meta = frames.with_traces(
            frames.tensor_meta([("FP32", (2,), 8)]), [parent_of(request), parent_of(other)]
        )
        answer = runner.run(meta, memoryview(raw))
        assert answer[0][3] == frames.ANSWER
        for span in (request, other):
            span.end()

    spans = kept_spans(work)
    model_span, request, other = spans
    assert [s.name for s in spans] == ["model", "request", "request"]
    assert f"{request.parent.span_id:016x}" == SPAN
    assert model_span.parent.span_id == request.context.span_id
    assert f"{model_span.context.trace_id:032x}" == TRACE
    assert [link.context.span_id for link in model_span.links] == [other.context.span_id]
    assert other.context.trace_id != request.context.trace_id


def test_the_share_holds_for_traces_that_begin_here_only():
    def work(traces):
        for headers in ({}, {b"traceparent": GIVEN.encode()}):
            traces.begin(headers).end()

    assert [f"{s.context.trace_id:032x}" for s in kept_spans(work, share=0.0)] == [TRACE]


class Log:
    def __init__(self):
        self.entries = []

    def add(self, entry):
        self.entries.append(entry)


class NoRoutes:
    services = {}


def test_log_lines_name_the_trace_with_and_without_spans():
    log = Log()
    calls = Calls(NoRoutes(), None, log=log)
    call = Call({b"traceparent": GIVEN.encode()}, b"r1", "digits", "3")
    calls.begin(call)
    calls.note(call, 200, 0, 0.001)
    assert log.entries[0]["trace"] == TRACE
    calls.note(Call({}, b"r2", "digits"), 200, 0, 0.001)
    assert "trace" not in log.entries[1]

    def work(traces):
        calls.traces = traces
        again = Call({b"traceparent": GIVEN.encode()}, b"r3", "digits", "3")
        calls.begin(again)
        assert again.trace.startswith(f"00-{TRACE}-")
        assert again.trace != GIVEN
        calls.note(again, 503, 0, 0.001)

    [span] = kept_spans(work)
    assert log.entries[2]["trace"] == TRACE
    assert span.attributes["sundog.request_id"] == "r3"
    assert not span.status.is_ok


def test_what_generates_is_traced_to_the_model(monkeypatch):
    asked = []

    async def parts(lane, parsed, later):
        asked.append(parsed.trace)
        raise NotServed(503, "no replica")
        yield

    async def nothing(*_):
        await asyncio.Event().wait()

    monkeypatch.setattr(http_api, "parts_of", parts)
    signature = {
        "inputs": tensors(("text_input", "BYTES", (-1,))),
        "outputs": tensors(("text_output", "BYTES", (-1,))),
    }

    async def main(traces):
        routes = Routes(reaching(nothing))
        services = {"words": route_of("words", Served(None, signature))}
        routes.apply({"epoch": 1, "version": 1, "services": services, "keys": []})
        calls = Calls(routes, KeyRing(), log=Log())
        calls.traces = traces
        transport = httpx.ASGITransport(http_api.GatewayApp(calls, FastAPI()))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            for verb in ("generate", "generate_stream"):
                await client.post(
                    f"/v2/models/words/{verb}", json={"text_input": "a"},
                    headers={"traceparent": GIVEN},
                )  # fmt: skip

    kept_spans(lambda traces: asyncio.run(main(traces)))
    assert [a.split("-")[1] for a in asked] == [TRACE, TRACE]


def test_a_frame_whose_traces_are_no_words_is_refused():
    for traces in ("x", [1], None):
        with pytest.raises(frames.BadFrame):
            frames.without_traces({"tensors": [], "traces": traces})
    assert frames.without_traces([1]) == ([1], [])


def test_spans_go_to_a_folder(tmp_path):
    traces = traces_of("gate", {"SUNDOG_TRACES": str(tmp_path)})
    traces.begin({b"traceparent": GIVEN.encode()}).end()
    traces.close()
    [line] = (tmp_path / f"gate-{os.getpid()}.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert (row["trace_id"], row["parent_id"], row["process"]) == (TRACE, SPAN, "gate")


@pytest.mark.parametrize(
    "environ",
    [{"SUNDOG_TRACES": "somewhere"}, {"SUNDOG_TRACES": "/x", "SUNDOG_TRACES_SHARE": "2"}],
)
def test_what_is_not_understood_is_said(environ):
    with pytest.raises(SpecError, match="SUNDOG_TRACES"):
        traces_of("x", environ)
