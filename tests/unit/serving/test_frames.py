"""The framing: whole frames from any cut of the stream, and nothing out of bounds."""

import asyncio
import contextlib
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sundog.serving import frames
from sundog.serving.contract import Contract
from sundog.serving.frames import (
    ANSWER,
    END,
    FAULT,
    HELLO,
    INFER,
    PART,
    BadFrame,
    Reader,
    cut,
    pack,
    tensor_meta,
)  # fmt: skip
from sundog.serving.lane import Lane, Limits, NotServed
from sundog.serving.links import SocketLink
from sundog.serving.runner import Runner
from sundog.serving.sockets import _Peer
from sundog.serving.streams import StreamFault, StreamLost
from sundog.serving.tensors import DATATYPES


def whole(*args):
    return b"".join(pack(*args))


@given(
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.binary(max_size=50)), min_size=1), st.data()
)
def test_frames_come_out_however_the_stream_is_cut(sent, data):
    stream = b"".join(whole(INFER, n, {"n": n}, [body]) for n, body in sent)
    reader, got, at = Reader(), [], 0
    while at < len(stream):
        step = data.draw(st.integers(1, len(stream) - at))
        got += [(f.number, bytes(f.body), f.meta) for f in reader.feed(stream[at : at + step])]
        at += step
    assert got == [(n, body, {"n": n}) for n, body in sent]


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_waited_for(data):
    reader = Reader(max_body=1000)
    try:
        for frame in reader.feed(data):
            assert frame.kind in frames._KINDS
    except BadFrame:
        pass


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["tensors", "traces", "kind", "message"]), inner)
    ),
    max_leaves=8,
)
SIZES = st.integers(-1, 24) | st.sampled_from([2**31, 2**63, 2**64 - 1])
TENSORS = st.lists(
    st.tuples(
        st.sampled_from([*DATATYPES, "FP31"]) | JSON,
        st.lists(SIZES, max_size=3) | JSON,
        SIZES | JSON,
    ),
    max_size=2,
)
META = JSON | TENSORS | st.fixed_dictionaries({"tensors": TENSORS, "traces": JSON})
BODY = st.binary(max_size=24)
KINDS = st.sampled_from(sorted(frames._KINDS))
HOSTILE = st.builds(
    lambda kind, number, meta, body: whole(kind, number, meta, [body]),
    KINDS, st.integers(0, 2), META, BODY,
)  # fmt: skip


@given(
    st.builds(
        lambda *head_and_rest: frames._HEAD.pack(b"SD", *head_and_rest[:-1]) + head_and_rest[-1],
        st.sampled_from([frames.VERSION, 0, 255]), st.integers(0, 255), st.integers(0, 2**32 - 1),
        st.integers(0, 40) | st.just(2**32 - 1), st.integers(0, 40) | st.just(2**64 - 1),
        st.binary(max_size=80),
    )
)  # fmt: skip
def test_whatever_follows_a_head_is_a_frame_or_refused(data):
    with contextlib.suppress(BadFrame):
        for frame in Reader(max_body=1000).feed(data):
            assert frame.kind in frames._KINDS
            with contextlib.suppress(BadFrame):
                cut(frame.meta, frame.body)


class Echo:
    """Any inputs, in parts or whole."""

    streams = False

    def predict(self, inputs):
        return inputs


RUNNERS = [
    Runner(
        Echo(),
        {"inputs": [tensor], "outputs": [tensor]},
    )
    for datatype in DATATYPES
    for tensor in [{"name": "x", "datatype": datatype, "shape": [-1, 2]}]
]


@example(RUNNERS[0], [["INT8", [2**63], 0]], b"")
@example(RUNNERS[0], [["BYTES", [2**64 - 1], 0]], b"")
@example(RUNNERS[0], [["FP31", [0], 0]], b"")
@example(RUNNERS[0], [["BOOL", {}, 1]], b"1")
@example(RUNNERS[0], {"tensors": [["INT8", [1], 1]], "traces": ["no such trace"]}, b"1")
@given(st.sampled_from(RUNNERS), META, BODY)
def test_a_replica_answers_any_description_with_an_answer_or_a_fault(runner, meta, body):
    [head, *_] = runner.run(meta, memoryview(body), 7)
    assert head[3] in (frames.ANSWER, frames.FAULT)


class Wire:
    """A connection that notes what becomes of it."""

    def __init__(self):
        self.written, self.aborted = b"", False

    def writelines(self, buffers):
        self.written += b"".join(bytes(b) for b in buffers)

    def abort(self):
        self.aborted = True


@settings(deadline=None)
@given(st.lists(HOSTILE, max_size=6), st.sampled_from(RUNNERS), st.binary(max_size=3))
def test_a_gateway_that_sends_anything_is_answered_or_let_go(sent, runner, cut_off):
    async def main():
        peer, wire = _Peer(SimpleNamespace(runner=runner, peers=set())), Wire()
        peer.connection_made(wire)
        for data in sent:
            if not wire.aborted:
                peer.data_received(data)
        if not wire.aborted:
            peer.data_received(cut_off)
        streams = [task for task, _ in peer._streams.values()]
        peer.connection_lost(None)
        ended = await asyncio.gather(*streams, return_exceptions=True)
        assert {type(e) for e in ended} <= {type(None), asyncio.CancelledError}
        for frame in Reader().feed(wire.written):
            assert frame.kind in (HELLO, ANSWER, FAULT, PART, END)

    asyncio.run(main())


@settings(deadline=None)
@given(st.lists(HOSTILE, max_size=6))
def test_a_replica_that_sends_anything_breaks_no_gateway(sent):
    async def main():
        tensor = {"name": "x", "datatype": "FP32", "shape": [-1, 2]}
        contract = Contract("s", "1", {"inputs": [tensor], "outputs": [tensor]})
        lane, wire = Lane(contract, Limits(deadline_s=5)), Wire()
        wire.close = wire.abort
        link = SocketLink(lane, lambda _: None)
        link.connection_made(wire)
        link.data_received(whole(HELLO, 0, {}))
        parsed = contract.parse_rows({"x": [1.0, 2.0]})[0]
        call = lane.call(parsed)
        await asyncio.sleep(0)
        stream = link.stream(parsed)
        for data in sent:
            if not wire.aborted:
                link.data_received(data)
        link.connection_lost(None)
        with contextlib.suppress(StreamLost, StreamFault):
            async for _ in stream:
                pass
        lane.close("over")
        with contextlib.suppress(NotServed):
            await call

    asyncio.run(main())


@given(st.binary(min_size=1, max_size=80), st.integers(0, 60))
def test_a_damaged_frame_never_crashes_the_reader(noise, at):
    stream = bytearray(whole(ANSWER, 7, tensor_meta([("FP32", [1, 2], 8)]), [b"12345678"]))
    stream[at : at + len(noise)] = noise
    try:
        for frame in Reader(max_body=1000).feed(bytes(stream)):
            cut(frame.meta, frame.body)
    except BadFrame:
        pass


def test_a_frame_over_the_limits_is_refused_before_its_bytes_come():
    head = frames._HEAD.pack(b"SD", frames.VERSION, INFER, 1, 0, 2**40)
    with pytest.raises(BadFrame, match="over the limit"):
        list(Reader().feed(head))
    meta = frames._HEAD.pack(b"SD", frames.VERSION, INFER, 1, 2**30, 0)
    with pytest.raises(BadFrame, match="over the limit"):
        list(Reader().feed(meta))


def test_another_version_is_refused():
    head = frames._HEAD.pack(b"SD", frames.VERSION + 1, INFER, 1, 0, 0)
    with pytest.raises(BadFrame, match="version"):
        list(Reader().feed(head))


@pytest.mark.parametrize(
    "meta",
    [
        None, 3, [[1]], [["FP32", [1], 9]], [["FP32", [1], -1]], [["FP32", [1], "8"]],
        [["FP32", [-1], 8]], [["FP32", 3, 8]], [[7, [2], 8]], [], [["FP32", [1], 4]],
    ],
)  # fmt: skip
def test_a_description_that_does_not_fit_the_body_is_refused(meta):
    with pytest.raises(BadFrame):
        cut(meta, memoryview(b"12345678"))


def test_tensors_are_cut_in_order():
    meta = tensor_meta([("FP32", (1, 1), 4), ("INT8", (4,), 4)])
    assert [(d, s, bytes(r)) for d, s, r in cut(meta, memoryview(b"aaaabbbb"))] == [
        ("FP32", [1, 1], b"aaaa"), ("INT8", [4], b"bbbb"),
    ]  # fmt: skip
