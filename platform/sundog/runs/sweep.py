"""A sweep: many short runs of one recipe on Ray Tune, each by the same loop at world size one.

From spec and journal to a Tune run and back: what was known goes in, what was found is told,
registered and kept. Which trial runs when is the conductor's business.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sundog.errors import RunCancelled, RunError, SpecError, SundogError
from sundog.runs import place, sweep_book, sweep_space
from sundog.runs.driver import driving, interruptible, say
from sundog.runs.follower import count
from sundog.runs.initial import pin
from sundog.runs.lineage import lineage
from sundog.runs.notify import notified
from sundog.runs.sweep_book import Book, Journal, Trial
from sundog.runs.sweep_purse import Rates, forecast, require_prices
from sundog.runs.sweep_rest import rest
from sundog.runs.sweep_search import Modelled, configurations, searcher
from sundog.runs.sweep_table import best_of, front, table
from sundog.runs.sweep_tracking import tracking
from sundog.runs.train import driver_recipe, pin_data, ray_storage, worker_resources
from sundog.runs.trial import pauses, plain_function, run_trial, trial_spec
from sundog.runs.trial_kept import Kept, trial_prefix
from sundog.runs.worker import open_recipe
from sundog.security.secrets import secret_environment
from sundog.spec.sweep import SweepSpec
from sundog.storage.runs import RunFolder, open_run

if TYPE_CHECKING:
    from sundog.runs.sweep_conduct import Conductor
    from sundog.runs.sweep_room import Sizes
    from sundog.storage.models import ModelVersion

# What Tune would write again beside our journal, or wait for.
_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial's last word may be why it failed
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


@dataclass(frozen=True)
class Swept:
    run_id: str
    trials: tuple[Trial, ...]
    best: Trial
    version: ModelVersion | None = None


def run_sweep(spec: SweepSpec, folder: RunFolder) -> Swept:
    """Search to the end, or go on where an earlier submission of this run left off.

    SpecError when the space changed since. RunError when no trial reported anything.
    """
    with (
        notified(folder, spec.run.webhook),
        driving(folder, "sweep", metric=spec.metric, mode=spec.mode) as done,
    ):
        before = folder.record()
        _same_search(spec, before, folder.run_id)
        data = pin_data(folder.root, spec.run, before.get("data"))
        begun = pin(folder.root, spec.run.init_from, before.get("init_from"))
        folder.update(
            data=data, init_from=begun, spec=spec.model_dump(mode="json"), search=sweep_space.identity(spec),
            ended_by=None, paused_until_s=None,
        )  # fmt: skip
        place.check_reach(folder.root)
        place.check_fit(spec.run.workers.low, _need(spec), spec.run.market)
        require_prices(spec, _unpriced(spec, folder))
        os.environ.update(secret_environment(spec.run))
        reports = _reports(spec, folder, data)  # fails here, before any trial
        rest(spec, folder)
        while (conductor := _search(spec, folder, data, reports)).resting:
            rest(spec, folder)
        return _conclude(spec, folder, data, conductor, done)


def _conclude(
    spec: SweepSpec, folder: RunFolder, data: str | None, conductor: Conductor, done: dict[str, Any]
) -> Swept:
    book = conductor.book
    trials = sorted(book.trials.values(), key=lambda t: t.place)
    ahead = forecast(book, conductor.total)
    done |= {
        "trials": [t.row() for t in trials], "usd": book.usd, "node_hours": book.node_hours,
        "unpriced_node_hours": book.unpriced_hours,
        "ended_by": conductor.ending or conductor.closing, "forecast_usd": ahead.usd,
    }  # fmt: skip
    if conductor.fatal:
        raise RunError(*conductor.fatal)
    best = best_of(trials, spec)
    if best is None:
        raise _nothing(spec, trials, conductor)
    for line in table(trials, best, spec):
        say(folder, line)
    if conductor.ending or conductor.closing:
        say(folder, f"ended early: {conductor.ending or conductor.closing}; best so far above")
    done |= {"metrics": best.metrics, "best": best.name, "params": best.shown}
    if spec.also:
        done["front"] = [t.name for t in front(trials, spec)]
        say(folder, f"Pareto front of {', '.join(spec.objectives)}: {', '.join(done['front'])}")
    failed = [t for t in trials if t.state == "failed"]
    if len(failed) >= spec.max_failed:
        raise RunError(
            f"{len(failed)} of {len(trials)} trials failed: {_faults(failed)}",
            f"best so far {best.name} ({spec.metric} {best.value:.4g}); mend it and submit the same "
            f"run id again, or register what there is: sundog sweep promote {folder.run_id}",
        )
    version = register_best(spec, folder, data, best)
    if version is not None:
        done["model"] = version.ref
    done["message"] = conductor.ending or conductor.closing or ""
    return Swept(folder.run_id, tuple(trials), best, version)


def _nothing(spec: SweepSpec, trials: Sequence[Trial], conductor: Conductor) -> RunError:
    failed = [t for t in trials if t.state == "failed"]
    if failed:
        return RunError(
            f"no trial reported {spec.metric!r}: {_faults(failed)}",
            "does metrics() of the recipe return it? val_loss is always there with a 'val' split",
        )
    if conductor.ending:
        spent = sum(t.node_s for t in trials)
        return RunError(
            f"no trial reported {spec.metric!r} before {conductor.ending} ({spent:.0f} s of trials)",
            "raise the cap and submit the same run id again: it goes on",
        )
    diverged = [t for t in trials if t.diverged]
    if diverged or any(t.reports for t in trials):
        why = f": {_faults(diverged)}" if diverged else f", only {spec.metric} that is no number"
        return RunError(
            f"none of {len(trials)} trials has a {spec.metric}{why}",
            "does every configuration diverge? lower the learning rates of the space, or clip gradients",
        )
    return RunError(f"no trial reported {spec.metric!r}", "does the run have a 'val' split?")


def _faults(failed: Sequence[Trial]) -> str:
    return "; ".join(sorted({t.why for t in failed})[:3])


def _same_search(spec: SweepSpec, record: dict[str, Any], run_id: str) -> None:
    if not record.get("search"):
        return
    changed = sweep_space.difference(record["search"], sweep_space.identity(spec))
    if changed:
        raise SpecError(
            f"{run_id} was begun as another search ({changed}), so its trials do not belong to this",
            "give the spec back its values, or begin a new one: another --run-id. Trials, caps, "
            "concurrency and register may change",
        )


def _unpriced(spec: SweepSpec, folder: RunFolder) -> list[str]:
    rates = Rates(folder.root, _need(spec), spec.usd_node_hour)
    return [n for n, have in _nodes().items() if rates.holds(have) and rates.usd_hour(n) is None]


def _need(spec: SweepSpec) -> dict[str, float]:
    """What one worker takes; a type of GPU the way that Ray's nodes count it."""
    kind = spec.run.resources.gpu
    return worker_resources(spec.run) | ({f"accelerator_type:{kind}": 0.001} if kind else {})


def _nodes() -> dict[str, dict[str, float]]:
    import ray

    return {n["NodeID"]: n["Resources"] for n in ray.nodes() if n["Alive"]}


def _reports(spec: SweepSpec, folder: RunFolder, data: str | None) -> int:
    """How many reports a whole trial of the base run sends; builds the recipe once, to see it can."""
    if plain_function(spec.run.recipe, None) is not None:
        if spec.register_ is not None:
            raise SpecError(
                "register: the trial is a plain function, which leaves no model",
                "register from a recipe, or drop it",
            )
        if (spec.run.workers.high or 1) > 1:
            raise SpecError(
                "run.workers: the trial is a plain function, which runs in one process",
                "give the process more: run.resources: {cpus: 4}; or write a recipe",
            )
        return spec.run.steps or int(spec.run.epochs or 1)
    recipe = driver_recipe(folder.root, spec.run, data, registers=True)
    if not pauses(spec) and not spec.scheduler.pbt:
        return 0  # nobody asks
    from sundog.runs.loop import Loop

    loop = Loop(trial_spec(spec, {}), recipe)
    return -(-loop.steps // loop.evaluate_every)


def _search(spec: SweepSpec, folder: RunFolder, data: str | None, reports: int) -> Conductor:
    os.environ.update({k: v for k, v in _QUIET.items() if k not in os.environ})
    if pauses(spec):
        # Tune starts waiting fresh trials by itself, before it asks who deserves to go on.
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = "1"
    from ray import tune

    from sundog.rayapi.cluster import may_grow
    from sundog.rayapi.tune_feed import Feed
    from sundog.runs.sweep_conduct import Conductor
    from sundog.runs.sweep_room import Room, sizes
    from sundog.runs.sweep_schedule import Watched, scheduler

    need = _need(spec)
    journal = _journal(spec, folder)
    book = journal.book
    search = _told(spec, folder, book)
    rates = Rates(folder.root, need, spec.usd_node_hour)
    told = tracking(folder)
    conductor = Conductor(spec, folder, journal, search, rates, _nodes, tracking=told)
    size = sizes(spec, place.capacity(need), conductor.total, may_grow())
    room = Room(need, size.workers, spec.run.market, lambda market: place.room_on(market, need))
    conductor.watched = Watched(
        scheduler(spec, reports), spec, size.at_once,
        {t.name: t.reports for t in book.trials.values()},
        [t.name for t in book.trials.values() if t.ended],
        lambda name: _worth(book, book.trials[name]), room,
    )  # fmt: skip
    _announce(spec, folder, book, conductor.total, size)
    job = {
        "sweep": spec.model_dump(mode="json"), "folder": folder, "data": data,
        "init_from": folder.record().get("init_from"), "workers": size.workers,
        "directory": place.working_directory(), "environment": secret_environment(spec.run),
        "repeats": {f"trial-{n:03d}-{r}": r for n in range(search.total)
                    for r in range(1, spec.repeats)},
        "reported": {t.name: t.report for t in book.trials.values()},
    }  # fmt: skip
    if conductor.over():  # all trials had ended before: its winner is to be registered
        conductor.close()
        if told:
            told.end("finished")
        return conductor
    trainable = tune.with_resources(tune.with_parameters(run_trial, job=job), room.request())
    with tempfile.TemporaryDirectory(prefix="sundog-tune-") as scratch:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=Feed(conductor.following, conductor.over),
                scheduler=conductor.watched, reuse_actors=True, num_samples=conductor.total,
                trial_name_creator=_trial_name, trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name=folder.run_id, verbose=0, stop=conductor, callbacks=[conductor],
                failure_config=tune.FailureConfig(max_failures=spec.run.max_failures),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=4 if pauses(spec) else 1),
                **ray_storage(folder.root, folder, scratch),
            ),
        )  # fmt: skip
        state = "failed"
        try:
            interruptible(tuner.fit, folder.check_lease)
            state = "failed" if conductor.fatal else "paused" if conductor.resting else "finished"
        except RunCancelled:
            state = "cancelled"
            raise
        finally:
            conductor.close()
            if told:
                told.end(state)
    return conductor


def _worth(book: Book, trial: Trial) -> float:
    """What a trial cost, in one unit for all: dollars, or node-hours where not all have a price."""
    return trial.node_hours if book.unpriced_hours or trial.usd is None else trial.usd


def _trial_name(trial: Any) -> str:
    return str(trial.trial_id)


def _journal(spec: SweepSpec, folder: RunFolder) -> Journal:
    """The journal of all submissions; what failed in an earlier one gets another chance."""
    journal = Journal(folder, spec.mode)
    for trial in list(journal.book.trials.values()):
        if trial.state == "failed":
            journal.write("state", trial=trial.name, state="waiting", why="")
    return journal


def _told(spec: SweepSpec, folder: RunFolder, book: Book) -> Any:
    """The searcher, told what earlier submissions and earlier sweeps found."""
    from sundog.runs.sweep_conduct import outcome

    search = searcher(spec, book.numbers())
    if isinstance(search, Modelled):
        for run_id in spec.warm_start:
            _warm(search, spec, folder, run_id)
    groups: dict[int, list[Trial]] = {}
    for trial in book.trials.values():
        groups.setdefault(trial.number, []).append(trial)
    for number, group in groups.items():
        search.began(number, group[0].params)
        if found := outcome(group, spec):
            search.ended(number, *found)
    return search


def _warm(search: Modelled, spec: SweepSpec, folder: RunFolder, run_id: str) -> None:
    from sundog.runs.sweep_conduct import objectives

    trials = list(sweep_book.read(open_run(folder.root, run_id)).trials.values())
    found = [(t.shown, objectives(t, spec)) for t in trials if t.state == "finished"]
    fitting = sum(search.learn(p, o) for p, o in found if o is not None)
    if not fitting:
        raise SpecError(
            f"warm_start: no finished trial of {run_id} fits this space and metric",
            "it must have the same parameters, within their bounds, and the same metrics",
        )
    say(folder, f"learnt from {fitting} of {len(trials)} trials of {run_id}")


def _announce(spec: SweepSpec, folder: RunFolder, book: Book, total: int, size: Sizes) -> None:
    each = f" on {count(size.workers)} each" if size.workers > 1 else ""
    say(
        folder,
        f"{folder.run_id} · {total} trials of {spec.run.recipe}, {size.at_once} at once{each}",
    )
    if spec.searcher.grid and (whole := len(sweep_space.grid(spec))) > configurations(spec):
        say(folder, f"trials: {configurations(spec)} of the {whole} combinations of this grid")
    if not book.trials:
        return
    ended = sum(t.ended for t in book.trials.values())
    going = sum(not t.ended and bool(t.reports) for t in book.trials.values())
    from sundog.runs.sweep_conduct import spending

    say(
        folder,
        f"going on: {ended} trials have ended, {going} resume from their checkpoints, "
        f"{spending(book)} spent so far",
    )


def register_best(
    spec: SweepSpec, folder: RunFolder, data: str | None, best: Trial
) -> ModelVersion | None:
    """The trial's best state as a new version, by the spec's register rule; None: not good enough."""
    from sundog.runs.register import announced, register

    if spec.register_ is None:
        return None
    run = trial_spec(spec, best.shown, best.repeat)
    recipe = open_recipe(folder.root, run, data, None)
    checkpoint = Kept(folder.root, trial_prefix(folder.run_id, best.name)).best_checkpoint()
    if checkpoint is None:
        raise RunError(f"{best.name} left no good checkpoint to register", "run the sweep again")
    registered = register(
        folder.root, spec.register_, recipe, checkpoint, best.metrics,
        lineage(data=data, run_id=folder.run_id, spec=run, trial=best.name, params=best.shown,
                step=checkpoint.step),
    )  # fmt: skip
    return announced(folder, spec.register_, registered, f" from {best.name}")


def already_swept(spec: SweepSpec, folder: RunFolder) -> str | None:
    """What to say instead of sweeping when this run id is done; None: go on.

    A sweep that a cap ended goes on when the cap was raised, one that ran all its trials when there
    are more of them now, or when its winner is to be registered otherwise.
    """
    try:
        record = folder.record()
    except SundogError:
        return None
    _same_search(spec, record, folder.run_id)
    if record.get("state") != "finished":
        return None
    old = SweepSpec.model_validate(record["spec"])
    wider = any(
        (getattr(spec, name) or float("inf")) > (getattr(old, name) or float("inf"))
        for name in ("max_usd", "max_time")
    )
    if wider or configurations(spec) > configurations(old) or spec.register_ != old.register_:
        return None
    model = f", registered as {record['model']}" if record.get("model") else ""
    return f"{folder.run_id} is finished already: best {record.get('best')}{model}"
