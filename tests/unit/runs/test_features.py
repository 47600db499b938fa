"""Clipping, schedules, half precision, recomputation, compilation and the automatic micro-batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy import Toy, toy_spec

from sundog.errors import RecipeError, RunError
from sundog.runs.exchange import Alone
from sundog.runs.fit import candidates, settle_micro_batch
from sundog.runs.interval import Cadence
from sundog.runs.loop import STOP, Loop
from sundog.runs.processes import Job, LocalGroup
from sundog.runs.replica import Scaler, blocks_of
from sundog.runs.saver import Saver
from sundog.runs.schedule import factor
from sundog.spec.run import Schedule
from sundog.storage.root import open_root

EVERYTHING = {
    "clip": 0.5, "recompute": True, "precision": "bf16",
    "schedule": {"shape": "cosine", "warmup": "20%", "end": 0.1},
}  # fmt: skip


def trained(recipe=None, saver=None, asked=None, **changes):
    loop = Loop(toy_spec(**changes), recipe or Toy(), **({"asked": asked} if asked else {}))
    loop.saver = saver
    loop.join(Alone())
    return loop, loop.run()


def parameters(loop) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in loop.params])


def test_clipping_bounds_what_the_optimizer_sees():
    seen = []

    class Watched(Toy):
        def optimizer(self, params):
            held = list(params)

            class Watching(torch.optim.SGD):
                def step(self, closure=None):
                    seen.append(float(torch.cat([p.grad.flatten() for p in held]).norm()))
                    return super().step(closure)

            return Watching(held, lr=0.01)

    trained(Watched())
    free, seen[:] = list(seen), []
    trained(Watched(), clip=0.5)
    assert max(free) > 0.6
    assert max(seen) <= 0.5 + 1e-6
    assert max(seen) > 0.49


def test_everything_at_once_gives_the_same_bits_at_three_workers(tmp_path):
    whole, _ = trained(steps=10, **EVERYTHING)
    with LocalGroup(Job(toy_spec(steps=10, **EVERYTHING), Toy)) as group:
        group.grow(3)
        group.form()
        assert set(group.settle()) == {"finished"}
        ended = group.result()
    assert np.array_equal(ended.parameters, parameters(whole).numpy())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_everything_goes_on_from_a_checkpoint_with_the_same_bits(tmp_path, precision):
    def saver():
        return Saver(open_root(str(tmp_path)), "runs/r", keep=2, cadence=Cadence(4))

    changes = {**EVERYTHING, "precision": precision}
    whole, _ = trained(**changes)
    asked = iter([0, 0, 0, 0, 0, STOP])
    trained(saver=saver(), asked=lambda: next(asked), **changes)
    rest, outcome = trained(saver=saver(), **changes)
    assert outcome.state == "finished"
    assert torch.equal(parameters(rest), parameters(whole))
    if rest.replica.scaler:
        assert rest.replica.scaler.state() == whole.replica.scaler.state()


def test_recomputation_changes_no_bit_and_needs_blocks():
    assert torch.equal(parameters(trained()[0]), parameters(trained(recompute=True)[0]))

    class Single(Toy):
        def model(self):
            return torch.nn.Linear(4, 1)

    with pytest.raises(RecipeError, match=r"no nn.ModuleList and no nn.Sequential"):
        Loop(toy_spec(recompute=True), Single())


def test_blocks_are_the_members_of_the_outermost_lists():
    inner = torch.nn.ModuleList([torch.nn.Linear(2, 2)])

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = inner

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = torch.nn.ModuleList([Block()])

    model = Model()
    assert blocks_of(model) == [model.blocks[0]]


def test_half_precision_skips_steps_that_overflow():
    class Large(Toy):
        def loss(self, model, batch, rng):
            return super().loss(model, batch, rng) * 1e30  # its gradient times 2^16 is not finite

    loop, outcome = trained(Large(), precision="fp16", steps=30, clip=1.0)
    assert outcome.state == "finished"
    assert loop.replica.scaler.scale < 65536
    assert torch.isfinite(parameters(loop)).all()


def test_a_scale_that_never_helps_is_one_message():
    scaler = Scaler()
    for _ in range(30):
        assert not scaler.saw(False)
    with pytest.raises(RunError, match="whatever the loss is scaled with"):
        scaler.saw(False)
    scaler.scale = 2.0**-15
    for _ in range(2000):
        assert scaler.saw(True)
    assert scaler.scale == 2.0**-14


def test_a_gradient_that_is_not_finite_ends_the_run_before_it_does_harm():
    class Broken(Toy):
        def loss(self, model, batch, rng):
            zero = sum(p.sum() for p in model.parameters()) * 0
            return super().loss(model, batch, rng) + torch.sqrt(zero * zero)

    loop, outcome = trained(Broken(), clip=1.0)
    assert outcome.state == "failed"
    assert "the gradient's norm became nan at step 0" in outcome.why
    assert torch.isfinite(parameters(loop)).all()


@pytest.mark.slow
def test_a_compiled_model_is_repeatable_and_near_the_other():
    one, two = (parameters(trained(compile=True)[0]) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.allclose(one, parameters(trained()[0]), atol=1e-5)


@given(
    shape=st.sampled_from(["constant", "linear", "cosine"]), warmup=st.integers(0, 900),
    end=st.floats(0, 1), batch=st.integers(1, 200),
)  # fmt: skip
def test_a_schedule_follows_samples_whatever_the_batch(shape, warmup, end, batch):
    end = 0.0 if shape == "constant" else end
    schedule = Schedule(shape=shape, warmup=warmup, end=end)
    rates = [factor(schedule, done, 1000) for done in range(0, 1000, batch)]
    assert all(0 < r <= 1 or r >= end for r in rates)
    after = [factor(schedule, done, 1000) for done in range(warmup, 1000, batch)]
    assert after == sorted(after, reverse=True)
    assert factor(schedule, warmup, 1000) == pytest.approx(1.0)
    assert factor(schedule, 1000, 1000) == pytest.approx(1.0 if shape == "constant" else end)


@pytest.mark.parametrize(
    ("text", "samples"), [("5%", 50), (0.1, 100), ("200 samples", 200), (200, 200), ("1_0", 10)]
)
def test_a_warm_up_is_a_share_or_a_number(text, samples):
    assert Schedule(warmup=text).warmup_samples(1000) == samples


def test_the_rate_is_the_recipe_s_own_times_the_schedule():
    loop, _ = trained(schedule={"shape": "linear", "end": 0.5}, steps=4)
    # The last step began after 3 of 4 batches.
    assert loop.replica.optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * (1 - 0.5 * 0.75))


class Hungry(Toy):
    """Runs out of memory above so many rows."""

    most = 7
    tried: list[int]

    def loss(self, model, batch, rng):
        self.tried.append(len(batch["input"]))
        if len(batch["input"]) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().loss(model, batch, rng)


def test_the_largest_micro_batch_that_fits_is_found_once(tmp_path):
    root, device = open_root(str(tmp_path)), torch.device("cpu")
    spec, recipe = toy_spec(micro_batch="auto"), Hungry()
    recipe.tried = []
    assert candidates(spec) == [6, 4, 3, 2, 1]
    recipe.most = 3
    settled = settle_micro_batch(root, "runs/a", spec, recipe, device)
    assert (settled.micro_batch, recipe.tried) == (3, [6, 4, 3])
    # Another run on such a device knows; this run keeps it whatever the device.
    recipe.tried.clear()
    assert settle_micro_batch(root, "runs/b", spec, recipe, device).micro_batch == 3
    assert settle_micro_batch(root, "runs/a", spec, recipe, torch.device("meta")).micro_batch == 3
    assert recipe.tried == []
    assert Loop(settled, recipe).plan.count == 8


def test_not_one_row_fits(tmp_path):
    recipe = Hungry()
    recipe.tried, recipe.most = [], 0
    with pytest.raises(RunError, match="not one row of the batch fits"):
        settle_micro_batch(
            open_root(str(tmp_path)), "runs/a", toy_spec(micro_batch="auto"), recipe,
            torch.device("cpu"),
        )  # fmt: skip
