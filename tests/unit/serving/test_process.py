"""What is done before and after a model, for answers of every kind; and a model's first call and faults."""

from __future__ import annotations

import asyncio
import logging

import numpy as np
import pytest

from sundog.errors import NotFound, ServiceError, SundogError, Unsafe
from sundog.serving import frames, replica
from sundog.serving.process import Process
from sundog.serving.runner import Runner
from sundog.storage.models import Registry
from sundog.storage.root import open_root
from sundog.storage.signature import Signature, TensorSpec


def signature(taken, given):
    return {
        "inputs": [{"name": taken, "datatype": "FP32", "shape": [-1, 1]}],
        "outputs": [{"name": given, "datatype": "FP32", "shape": [-1, 1]}],
    }


MODEL = signature("x", "y")
SEEN = Process(
    signature("text", "word"),
    lambda inputs: {"x": inputs["text"] + 1},
    lambda outputs: {"word": outputs["y"] * 10},
)


class Whole:
    def predict(self, inputs):
        return {"y": inputs["x"]}


class Awaited:
    async def predict(self, inputs):
        return {"y": inputs["x"]}


class InParts:
    def __init__(self):
        self.closed = 0

    def predict(self, inputs):
        try:
            for _ in range(2):
                yield {"y": inputs["x"]}
        finally:
            self.closed += 1


class InAwaitedParts:
    async def predict(self, inputs):
        for _ in range(2):
            yield {"y": inputs["x"]}


def asked(value=1.0):
    raw = np.array([value], "<f4").tobytes()
    return frames.tensor_meta([("FP32", (1, 1), len(raw))]), memoryview(raw)


def read(buffers):
    [frame] = frames.Reader().feed(b"".join(bytes(b) for b in buffers))
    if frame.kind == frames.FAULT:
        return frame.meta["message"]
    [(_, _, raw)] = frames.cut(frame.meta, frame.body)
    return np.frombuffer(raw, "<f4").tolist()


async def parts(runner, value=1.0):
    return [read(b) async for b in runner.parts(*asked(value))]


@pytest.mark.parametrize(
    ("model", "times"), [(Whole, 1), (Awaited, 1), (InParts, 2), (InAwaitedParts, 2)]
)
def test_before_and_after_are_around_answers_of_every_kind(model, times):
    assert asyncio.run(parts(Runner(model(), MODEL, process=SEEN))) == [[20.0]] * times


def test_either_is_enough():
    before = Process(signature("text", "y"), before=SEEN.before)
    after = Process(signature("x", "word"), after=SEEN.after)
    assert read(Runner(Whole(), MODEL, process=before).run(*asked())) == [2.0]
    assert read(Runner(Whole(), MODEL, process=after).run(*asked())) == [10.0]


def test_leaving_an_answer_in_parts_ends_the_model_behind_it():
    async def main():
        model = InParts()
        answering = Runner(model, MODEL, process=SEEN).parts(*asked())
        await anext(answering)
        await answering.aclose()
        assert model.closed == 1

    asyncio.run(main())


def test_what_before_refuses_is_said():
    def before(inputs):
        if inputs["x"] > 1:
            raise TypeError("a mistake")
        raise ValueError("no picture")

    runner = Runner(Whole(), MODEL, process=Process(MODEL, before))
    for value, kind, says in (1.0, "input", "no picture"), (2.0, "model", "TypeError: a mistake"):
        [frame] = frames.Reader().feed(b"".join(runner.run(*asked(value))))
        assert frame.meta["kind"] == kind
        assert says in frame.meta["message"]
        [said] = asyncio.run(parts(runner, value))
        assert says in said


# -- loading it


def register(root, folder, body, name="io"):
    folder.mkdir()
    (folder / "around.py").write_text(body)
    shape = Signature((TensorSpec("text", "BYTES", (1,)),), (TensorSpec("word", "BYTES", (1,)),))
    return Registry(root).import_python(name, folder, "around:Around", shape)


def test_a_registered_class_is_loaded_with_its_own_signature(tmp_path):
    root = open_root((tmp_path / "root").as_uri())
    register(root, tmp_path / "a", "class Around:\n  def after(self, o): return {'word': 1}\n")
    place = {"process": "io@1", "allow_code": True}
    process = replica.load_process(root, place)
    assert process.before is None
    assert process.after({}) == {"word": 1}
    assert process.signature["inputs"][0]["name"] == "text"
    assert replica.load_process(root, {"allow_code": True}) is None
    with pytest.raises(Unsafe, match="allow_code"):
        replica.load_process(root, {**place, "allow_code": False})
    register(root, tmp_path / "b", "class Around:\n  pass\n", "empty")
    with pytest.raises(ServiceError, match="neither before nor after"):
        replica.load_process(root, {**place, "process": "empty@1"})
    register(root, tmp_path / "c", "class Other:\n  pass\n", "other")
    with pytest.raises(NotFound):
        replica.load_process(root, {**place, "process": "other@1"})
    with pytest.raises(SundogError):
        replica.load_process(root, {**place, "process": "nowhere@1"})


# -- the first call


class Notes:
    def __init__(self, how):
        self.how, self.reached, self.loop, self.closed = how, 0, None, 0

    def predict(self, inputs):
        self.given = inputs["x"].tolist()
        return getattr(self, self.how)()

    def whole(self):
        self.reached += 1
        return {}

    async def awaited(self):
        self.loop = asyncio.get_running_loop()
        return self.whole()

    def in_parts(self):
        try:
            while True:
                yield self.whole()
        finally:
            self.closed += 1

    async def in_awaited_parts(self):
        self.loop = asyncio.get_running_loop()
        try:
            while True:
                yield self.whole()
        finally:
            self.closed += 1


@pytest.mark.parametrize("how", ["whole", "awaited", "in_parts", "in_awaited_parts"])
@pytest.mark.parametrize("streams", [True, False])
def test_a_first_call_runs_the_model_up_to_its_first_part(how, streams):
    async def main():
        model = Notes(how)
        model.streams = streams
        await Runner(model, MODEL, process=SEEN).warm_up()
        assert model.given == [[0.0]], "the model's own inputs, whatever clients send"
        assert model.reached == 1
        assert model.closed == how.endswith("parts")
        assert model.loop in (None, asyncio.get_running_loop())

    asyncio.run(main())


class Fails:
    def predict(self, inputs):
        raise ValueError("dislikes it")


def test_a_first_call_that_fails_is_in_the_log(caplog):
    asyncio.run(Runner(Fails(), MODEL).warm_up())
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "with zeros" in record.getMessage()
    assert "dislikes it" in caplog.text


def test_a_failing_models_traceback_is_in_the_log_now_and_then(caplog, monkeypatch):
    runner = Runner(Fails(), MODEL)
    for _ in range(5):
        assert "ValueError: dislikes it" in read(runner.run(*asked()))
    [record] = caplog.records
    assert record.exc_info[2] is not None
    assert "in predict" in caplog.text
    runner._log_again_s = 0.0
    assert "dislikes it" in asyncio.run(parts(runner))[0]
    assert "for the 6. time" in caplog.records[1].getMessage()
