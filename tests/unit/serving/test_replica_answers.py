"""What a replica makes of a model's answer."""

from __future__ import annotations

import numpy as np

from sundog.serving import frames
from sundog.serving.runner import Runner

SIGNATURE = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}],
}


class InParts:
    def predict(self, inputs):
        yield {"y": inputs["x"]}


class Whole:
    def predict(self, inputs):
        return {"y": inputs["x"] * 2}


def answer(model):
    x = np.ones((1, 2), np.float32)
    meta = frames.tensor_meta([("FP32", x.shape, x.nbytes)])
    return b"".join(
        bytes(part) for part in Runner(model, SIGNATURE).run(meta, memoryview(x.tobytes()))
    )


def test_a_model_that_answers_in_parts_is_told_what_to_return():
    assert b"generate_stream" in answer(InParts())
    assert b"generate_stream" not in answer(Whole())
