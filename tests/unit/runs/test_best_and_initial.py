"""The best checkpoint by a metric, first weights from a registered version, and a profile."""

from __future__ import annotations

import gzip
import json
from types import SimpleNamespace

import pytest
import torch
from toy import Toy, toy_spec

from sundog.errors import NotFound, RunError, SpecError
from sundog.runs.best import Best, best_checkpoint
from sundog.runs.exchange import Alone
from sundog.runs.initial import kept_own, load_weights, pin
from sundog.runs.interval import Cadence
from sundog.runs.loop import Loop
from sundog.runs.profiling import Profiler
from sundog.runs.saver import Saver
from sundog.spec.load import parse
from sundog.spec.run import RunSpec
from sundog.storage.models import Registry
from sundog.storage.programs import export_program
from sundog.storage.root import open_root
from sundog.storage.runs import new_run


@pytest.fixture
def root(tmp_path):
    return open_root(str(tmp_path / "root"))


def trained(root, rule: str, values: list[float], notes: list, saver=None):
    """A run whose validation metric goes through `values`, one each two steps."""
    loop = Loop(toy_spec(steps=2 * len(values), evaluate=2), Toy())
    loop.saver = saver
    best = Best(root, "runs/r", rule, notes.append)
    left = iter(values)

    def told(loop: Loop) -> None:
        loop.metrics["score"] = next(left)
        best(loop)

    loop.after_evaluation = told
    loop.join(Alone())
    loop.run()
    return loop


def test_the_best_model_is_kept_and_a_resumed_run_does_not_forget_it(root):
    notes: list = []
    trained(root, "max score", [0.5, 0.9, float("nan"), 0.7], notes)
    assert [n["step"] for n in notes] == [2, 4]
    best = best_checkpoint(root, "r")
    assert (best.step, best.about["value"]) == (4, 0.9)
    trained(root, "max score", [0.8, 0.6], notes)  # a new process, the same run
    assert best_checkpoint(root, "r").step == 4
    assert best_checkpoint(root, "nobody") is None


def test_what_keeping_the_best_takes_is_a_checkpoint_s_stall(root):
    saver = Saver(root, "runs/r", keep=1, cadence=Cadence(1000))
    stalls: list = []  # at each note of a best one: the first is before any other save
    notes = SimpleNamespace(append=lambda note: stalls.append(saver.stall_s))
    trained(root, "max score", [0.5, 0.4], notes, saver)
    assert stalls[0] > 0


def test_less_is_better_when_the_rule_says_min(root):
    notes: list = []
    trained(root, "min score", [0.5, 0.9, 0.4], notes)
    assert [n["value"] for n in notes] == [0.5, 0.4]


def test_a_metric_that_nobody_reports_is_an_error_that_names_those_there_are(root):
    with pytest.raises(RunError, match="no metric 'skill'") as caught:
        trained(root, "max skill", [1.0], [])
    assert "error" in caught.value.fix


@pytest.fixture
def version(root, tmp_path):
    model = Toy().model()
    with torch.no_grad():
        model[0].weight.fill_(0.25)
    path = tmp_path / "model.pt2"
    signature = export_program(model.eval(), Toy().example_inputs(), path)
    return Registry(root).register(
        "toy", {"model.pt2": path}, kind="torch-export", signature=signature, metrics={},
        lineage={},
    )  # fmt: skip


def test_a_run_begins_with_the_weights_of_a_version(root, version):
    assert pin(root, "toy@latest") == "toy@1"
    assert pin(root, "toy@latest", before="toy@7") == "toy@7"  # what it began with stays
    with pytest.raises(NotFound):
        pin(root, "tyo@1")
    loop = Loop(toy_spec(), Toy())
    assert load_weights(root, "toy@1", loop.model) == []
    assert torch.equal(loop.model[0].weight, torch.full((8, 4), 0.25))
    # A head of another shape stays the recipe's own.
    other = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    own = load_weights(root, "toy@1", other)
    assert own == ["2.bias", "2.weight"]
    assert "2 of the recipe's own: 2.bias, 2.weight" in kept_own(own)
    with pytest.raises(RunError, match="no weight in common"):
        load_weights(root, "toy@1", torch.nn.Linear(9, 9))


def test_the_spec_takes_them_and_refuses_nonsense():
    text = "run: a\nrecipe: b:C\nsteps: 1\n"
    spec = parse(
        text
        + "init_from: gpt@3\nwebhook: env:HOOK\nprofile: 3\ncheckpoint: {best: max accuracy}\n",
        RunSpec,
    )
    assert (spec.init_from, spec.checkpoint.best) == ("gpt@3", "max accuracy")
    for line in ("webhook: ftp://x", "checkpoint: {best: accuracy}", "profile: 0"):
        with pytest.raises(SpecError):
            parse(text + line + "\n", RunSpec)


def test_a_profile_is_a_trace_of_some_steps_in_the_run_s_folder(root):
    folder = new_run(root, "p", "p-1")
    loop = Loop(toy_spec(steps=12), Toy())
    loop.trace = Profiler(folder, 3)
    loop.join(Alone())
    loop.run()
    assert root.children("runs/p-1/profile") == ["8.json.gz"]
    trace = json.loads(gzip.decompress(root.read("runs/p-1/profile/8.json.gz")))
    names = {event.get("name", "") for event in trace["traceEvents"]}
    assert any("addmm" in name or "linear" in name for name in names)
