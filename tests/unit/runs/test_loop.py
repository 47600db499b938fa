from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from toy import Toy, toy_spec

from sundog.errors import FormatTooNew, RecipeError, RunError, StorageUnavailable
from sundog.runs.exchange import Alone, PeerLost
from sundog.runs.interval import Cadence
from sundog.runs.loop import HANDOVER, SAVE, STOP, Loop
from sundog.runs.saver import Saver
from sundog.runs.verify import verify
from sundog.storage.root import open_root


def trained(spec=None, recipe=None, saver=None, **more):
    loop = Loop(spec or toy_spec(), recipe or Toy(), **more)
    loop.saver = saver
    curve = []
    loop.trace = lambda step, loss: curve.append(loss)
    loop.join(Alone())
    return loop, loop.run(), curve


def saver(tmp_path, every=4, keep=2):
    return Saver(open_root(str(tmp_path)), "runs/r", keep=keep, cadence=Cadence(every))


def test_a_save_that_fails_ends_the_run_with_its_reason(tmp_path, monkeypatch):
    def full(state, buffer):
        raise MemoryError

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunError, match="checkpoint of step 4 could not be written: MemoryError"):
        trained(saver=saver(tmp_path))


def parameters(loop):
    return torch.cat([p.detach().flatten() for p in loop.params])


def test_it_learns_and_measures():
    _, outcome, curve = trained(toy_spec(steps=150))
    assert outcome.state == "finished"
    assert sum(curve[-10:]) < 0.5 * sum(curve[:10])
    assert set(outcome.metrics) == {"val_loss", "error"}


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    one, two, other = (trained(toy_spec(seed=s))[0] for s in (1, 1, 2))
    assert torch.equal(parameters(one), parameters(two))
    assert not torch.equal(parameters(one), parameters(other))


def test_a_run_that_stopped_goes_on_with_the_same_bits(tmp_path):
    whole, _, curve = trained()
    asked = iter([0, 0, 0, 0, 0, STOP])
    _, outcome, first = trained(saver=saver(tmp_path), asked=lambda: next(asked))
    assert (outcome.state, outcome.step) == ("stopped", 6)  # the step it was asked in counts
    rest, outcome, second = trained(saver=saver(tmp_path))
    assert outcome.state == "finished"
    assert first + second == curve
    assert torch.equal(parameters(rest), parameters(whole))
    assert verify(open_root(str(tmp_path)), "r").good


def test_a_corrupted_checkpoint_costs_steps_and_nothing_else(tmp_path):
    whole, _, _ = trained()
    asked = iter([0] * 8 + [STOP])
    trained(saver=saver(tmp_path), asked=lambda: next(asked))
    for file in (tmp_path / "runs/r/checkpoints/9").glob("state*"):
        file.write_bytes(b"rubbish")
    again, outcome, curve = trained(saver=saver(tmp_path))
    assert outcome.state == "finished"
    assert len(curve) == 4  # from step 8
    assert torch.equal(parameters(again), parameters(whole))
    verdict = verify(open_root(str(tmp_path)), "r")
    assert (verdict.lost, verdict.duplicated) == (0, 0)


def test_a_checkpoint_is_taken_when_asked_for(tmp_path):
    asked = iter([0, 0, SAVE, 0, 0, STOP])
    source = saver(tmp_path, every=1000, keep=9)
    trained(saver=source, asked=lambda: next(asked))
    assert source.checkpoints.steps() == [3, 6]


def test_a_handover_saves_and_keeps_its_step(tmp_path):
    whole, _, curve = trained()
    source = saver(tmp_path, every=1000, keep=9)
    asked = iter([0, 0, HANDOVER, *[0] * 20])
    loop, outcome, first = trained(saver=source, asked=lambda: next(asked))
    assert (outcome.state, outcome.step) == ("yielded", 3)
    source.settle()
    assert source.checkpoints.steps() == [3]
    loop.join(Alone())  # the same process in a new group: nothing is read
    assert loop.run().state == "finished"
    assert first == curve  # the list goes on being filled
    assert torch.equal(parameters(loop), parameters(whole))


class Seat(Alone):
    """One of several loops of this process that meet in threads."""

    def __init__(self, rank, barrier, table):
        self.rank, self.world = rank, barrier.parties
        self._barrier, self._table = barrier, table

    def gather(self, value):
        self._table[self.rank] = value
        self._barrier.wait(30)
        found = [self._table[rank] for rank in range(self.world)]
        self._barrier.wait(30)
        return found

    def hand(self, value, source):
        return self.gather(value)[source]


def test_a_newcomer_evaluates_where_the_survivor_does_and_nowhere_else():
    """A peer was lost right after an evaluation: the newcomer must not wait for one alone."""

    class Lost(Alone):
        def sum(self, count, slots, header):
            if survivor.step == survivor.evaluate_every:
                raise PeerLost("in the step after the evaluation")
            return super().sum(count, slots, header)

    survivor, newcomer = Loop(toy_spec(), Toy()), Loop(toy_spec(), Toy())
    survivor.join(Lost())
    with pytest.raises(PeerLost):
        survivor.run()
    assert survivor._evaluated == survivor.step
    barrier, table = threading.Barrier(2), {}
    with ThreadPoolExecutor(2) as pool:
        seats = (Seat(0, barrier, table), Seat(1, barrier, table))
        list(pool.map(lambda loop, seat: loop.join(seat), (survivor, newcomer), seats))
    assert survivor.step == newcomer.step == survivor.evaluate_every
    assert survivor._evaluated == newcomer._evaluated == survivor.step


def test_who_does_not_save_forgets_what_the_root_has_and_can_take_over(tmp_path, monkeypatch):
    monkeypatch.setattr("sundog.runs.loop._SHARE_EVERY", 5)

    class Pair(Seat):
        """The first one is gone in its eighth step."""

        steps = 0

        def sum(self, count, slots, header):
            self.steps += 1
            if self.steps == 8:
                raise PeerLost("gone")
            [half] = slots  # of the tree
            left, right = self.gather(half.clone())
            return left + right, self.gather(list(header))

    def work(rank):
        loops[rank].join(Pair(rank, barrier, table))
        with pytest.raises(PeerLost):
            loops[rank].run()

    # Not exact: the two of one process draw from the same randomness.
    loops = [Loop(toy_spec(workers=2, exact=False), Toy()) for _ in range(2)]
    for loop in loops:
        loop.saver = saver(tmp_path)
        loop.trace = lambda step, loss, saver=loop.saver: saver.settle()
    barrier, table = threading.Barrier(2), {}
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))
    left = loops[1]
    assert left.step == 7
    assert [e.step for e in left.entries] == [4, 5, 6], "step 4 was saved before they shared in 5"
    left.join(Alone())
    assert left.run().state == "finished"
    verdict = verify(open_root(str(tmp_path)), "r")
    assert verdict.good
    assert verdict.steps == 12


@pytest.mark.parametrize(
    ("fail", "message"),
    [
        ("model", r"model\(\) raised ValueError: no such layer \(toy.py:\d+, in model\)"),
        ("batchnorm", "exact mode refuses BatchNorm1d"),
    ],
)
def test_a_recipe_that_cannot_be_built_says_why(fail, message):
    with pytest.raises(RecipeError, match=message):
        trained(recipe=Toy(fail=fail))


@pytest.mark.parametrize(
    ("fail", "message"),
    [
        ("loss", r"loss\(\) raised RuntimeError: shapes do not match \(toy.py:\d+, in loss\)"),
        ("shape", "not a scalar"),
        ("unrepeatable", "differs between two calls"),
    ],
)
def test_a_recipe_that_raises_is_one_message(fail, message):
    with pytest.raises(RecipeError, match=message):
        trained(recipe=Toy(fail=fail))


def test_batchnorm_is_allowed_where_exactness_is_not_asked_for():
    assert trained(toy_spec(exact=False), Toy(fail="batchnorm"))[1].state == "finished"


def test_a_loss_that_is_not_a_number_stops_the_run_with_its_last_checkpoint(tmp_path):
    source = saver(tmp_path)
    _, outcome, _ = trained(recipe=Toy(fail="nan", bad_step=50), saver=source)
    assert outcome.state == "failed"
    assert "the loss became nan" in outcome.why
    assert "learning rate" in outcome.fix
    assert source.checkpoints.latest().step == 4
    _, outcome, curve = trained(saver=saver(tmp_path))
    assert outcome.state == "finished"
    assert len(curve) == 8


def test_a_data_set_that_changed_its_length_is_refused(tmp_path):
    trained(toy_spec(steps=5), saver=saver(tmp_path))
    with pytest.raises(RunError, match="rows of training data 100 → 120"):
        trained(recipe=Toy(rows=120), saver=saver(tmp_path))


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    trained(toy_spec(steps=5), saver=saver(tmp_path))

    class Wider(Toy):
        def model(self):
            return torch.nn.Linear(4, 1)

    with pytest.raises(RunError, match="of another model"):
        trained(recipe=Wider(), saver=saver(tmp_path))


def test_a_checkpoint_of_a_newer_version_is_refused_and_kept(tmp_path):
    trained(toy_spec(steps=5), saver=saver(tmp_path))
    manifest = tmp_path / "runs/r/checkpoints/5/manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(FormatTooNew, match="has format 99") as caught:
        trained(saver=saver(tmp_path))
    assert "upgrade" in caught.value.fix
    manifest.write_text(manifest.read_text().replace('"format": 99', '"format": 1'))
    _, outcome, curve = trained(saver=saver(tmp_path))
    assert (outcome.state, len(curve)) == ("finished", 7)


def test_a_root_that_cannot_be_written_any_more_ends_the_run(tmp_path, monkeypatch):
    source = saver(tmp_path)
    write = source.checkpoints.save

    def full(step, parts, about):
        if step > 4:
            raise StorageUnavailable("the disk is full", "make room")
        return write(step, parts, about)

    monkeypatch.setattr(source.checkpoints, "save", full)
    _, outcome, _ = trained(saver=source)
    assert outcome.state == "failed"
    assert (outcome.why, outcome.fix) == ("the disk is full", "make room")
    assert source.checkpoints.latest().step == 4
    whole, _, _ = trained()
    again, outcome, curve = trained(saver=saver(tmp_path))  # there is room again
    assert (outcome.state, len(curve)) == ("finished", 8)
    assert torch.equal(parameters(again), parameters(whole))


def test_parameters_must_be_float32():
    class Double(Toy):
        def model(self):
            return super().model().double()

    with pytest.raises(RecipeError, match="float32"):
        trained(recipe=Double())


def test_bf16_runs_and_is_repeatable():
    one, two = (trained(toy_spec(precision="bf16"))[0] for _ in range(2))
    assert torch.equal(parameters(one), parameters(two))


def test_progress_is_told():
    seen = []
    trained(tell=seen.append)
    assert [p.step for p in seen] == list(range(1, 13))
    assert seen[-1].world == 1
    assert seen[-1].epoch == pytest.approx(12 * 24 / 100)


def test_weights_that_are_not_finite_are_never_a_checkpoint(tmp_path):
    class Root(Toy):
        """A finite loss with a gradient that is none: the root of zero."""

        last = False

        def loss(self, model, batch, rng):
            loss = super().loss(model, batch, rng)
            return loss + sum((p * 0).abs().sum().sqrt() for p in model.parameters() if self.last)

    recipe, kept = Root(), saver(tmp_path)

    def tell(progress):
        recipe.last = progress.step == 6  # a step more, and the loss itself would tell

    _, outcome, _ = trained(toy_spec(steps=7), recipe, kept, tell=tell)
    assert (outcome.state, outcome.diverged) == ("failed", True)
    assert "not finite" in outcome.why
    assert kept.checkpoints.latest().step == 4


def test_a_save_that_takes_longer_than_others_wait_is_put_off(tmp_path, monkeypatch):
    monkeypatch.setattr("sundog.runs.saver._LONGEST_WAIT_S", 0.01)
    kept, begun, go_on = saver(tmp_path, every=1, keep=20), threading.Event(), threading.Event()
    real = kept.checkpoints.save

    def slow(step, parts, about):
        begun.set()
        assert go_on.wait(60)
        return real(step, parts, about)

    monkeypatch.setattr(kept.checkpoints, "save", slow)
    done = []

    def tell(progress):
        if progress.step == 6:
            go_on.set()
        done.append(progress.step)

    _, outcome, _ = trained(saver=kept, tell=tell)
    assert begun.is_set()
    assert outcome.state == "finished"
    assert done[:6] == [1, 2, 3, 4, 5, 6]  # though the first save was not written before
    assert kept.checkpoints.latest().step == 12
    assert verify(open_root(str(tmp_path)), "r").good
