"""The framing: whole frames from any cut of the stream, and nothing out of bounds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sundog.serving import frames
from sundog.serving.frames import ANSWER, INFER, BadFrame, Reader, cut, pack, tensor_meta


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
            assert frame.kind in (1, 2, 3, 4, 5)
    except BadFrame:
        pass


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
