"""Which version gets which traffic: a pure function of what was asked, what was seen and the time.

Responsible for promote, hold or roll back, each with its reason and evidence. Refuses to reach
anything: control observes, calls `decide`, stores the state, then acts. Counting a minute twice
or asking twice changes nothing, so a controller killed at any moment resumes from its last state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from sundog.errors import ServiceError
from sundog.serving.evidence import FACTORS, Counts, Evidence
from sundog.serving.rollout_facts import (
    ENDED,
    Decision,
    Health,
    Phase,
    Plan,
    Reading,
    Snapshot,
    State,
    Strategy,
)
from sundog.serving.rollout_learning import learned

_STOP: frozenset[Phase] = frozenset({"paused", "rolled-back", "aborted"})


def _table(rows: Mapping[Phase, set[Phase]]) -> dict[Phase, frozenset[Phase]]:
    table: dict[Phase, frozenset[Phase]] = {p: frozenset(to) | _STOP for p, to in rows.items()}
    table["paused"] = frozenset(rows) | frozenset({"promoted", "rolled-back", "aborted"})
    return table | {end: frozenset() for end in ENDED}


TRANSITIONS: dict[Strategy, dict[Phase, frozenset[Phase]]] = {
    "all-at-once": _table({"warming": {"promoted"}}),
    "canary": _table({
        "warming": {"stepping", "promoted"},
        "stepping": {"stepping", "inconclusive", "promoted"},
        "inconclusive": {"stepping", "promoted"},
    }),
    "blue-green": _table({
        "warming": {"switched", "promoted"},
        "switched": {"inconclusive", "promoted"},
        "inconclusive": {"promoted"},
    }),
    "ab": _table({"warming": {"comparing", "promoted"}, "comparing": {"promoted"}}),
    "shadow": _table({
        "warming": {"shadowing", "promoted"},
        "shadowing": {"inconclusive", "cleared", "promoted"},
        "inconclusive": {"cleared", "promoted"},
        "cleared": {"promoted"},
    }),
}  # fmt: skip
"""Every move there is. Whatever ended stays ended: an aborted version gets no traffic again."""

_FIRST: dict[Strategy, Phase] = {
    "all-at-once": "promoted", "canary": "stepping", "blue-green": "switched",
    "ab": "comparing", "shadow": "shadowing",
}  # fmt: skip

CRASHES = 3
"""Restarts of the candidate's replicas within the last minutes that count as a crash loop, unless
the running version's go as often."""
BURST = Counts(10, 20)
"""A burst: at least this many recent requests, at least this share of them failed."""
_MIRRORED = 0.05


def begin(plan: Plan, now_s: float, running: State | None = None) -> State:
    """The state of a new rollout. Raises ServiceError while another one runs."""
    if running is not None and running.phase not in ENDED:
        raise ServiceError(
            f"a rollout is {running.phase}: {running.reason}",
            "wait for it, or end it with `sundog rollout promote` or `sundog rollout abort`",
        )
    if plan.baseline == plan.candidate:
        raise ServiceError(f"{plan.candidate} is running already", "name another version")
    why = f"waiting for {plan.candidate} to be ready"
    return State(since_s=now_s, started_s=now_s, reason=why)


def decide(plan: Plan, state: State, seen: Snapshot) -> Decision:
    """What shall be true after `seen`. ServiceError for a command that makes no sense now."""
    if state.phase in ENDED:
        if seen.command is not None:
            raise ServiceError(
                f"this rollout has ended: {state.phase}", "use `sundog rollback` or deploy again"
            )
        return _said(plan, state, seen.now_s)
    state = learned(plan, state, seen)
    for rule in _RULES:
        after = rule(plan, state, seen)
        if after is not None:
            return _said(plan, _checked(plan, state, after), seen.now_s)
    return _said(plan, state, seen.now_s)


def _checked(plan: Plan, before: State, after: State) -> State:
    same = after.phase == before.phase and after.step == before.step
    if not same and after.phase not in TRANSITIONS[plan.strategy][before.phase]:
        raise ServiceError(
            f"a {plan.strategy} rollout that is {before.phase} cannot become {after.phase}",
            f"from here: {', '.join(sorted(TRANSITIONS[plan.strategy][before.phase]))}",
        )
    return after


# --- reading: evidence into what each guard says ---


def factor_before(weight: float) -> float:
    """How many times worse the candidate must be shown not to be before it gets `weight`."""
    return FACTORS[0] if weight <= 0.05 else FACTORS[1] if weight <= 0.25 else (
        FACTORS[2] if weight <= 0.5 else FACTORS[3])  # fmt: skip


def readings(plan: Plan, state: State) -> tuple[Reading, ...]:
    """What each guard says about the next move."""
    factor = _factor(plan, state)
    return tuple(_reading(plan, state.evidence, guard, factor) for guard in plan.guards)


def _factor(plan: Plan, state: State) -> float:
    if plan.strategy == "canary":
        following = plan.steps[state.step + 1 :]
        return factor_before(following[0] if following else 1.0)
    return 2.0 if plan.strategy == "blue-green" else 1.5


def _reading(plan: Plan, evidence: Evidence, guard: str, factor: float) -> Reading:
    # The last step exposes everybody: it asks for twice the evidence.
    needed = plan.shown_at * (2 if factor == FACTORS[-1] else 1)

    def said(base: float, new: float, of: int, harm: float, shown: float) -> Reading:
        return Reading(guard, base, new, of, harm, plan.harm_at, factor, shown, needed)

    if guard == "feedback":
        quality, n = evidence.feedback, max(1, evidence.feedback.num_pairs)
        return said(
            quality.sum_baseline / n, quality.sum_candidate / n, quality.num_pairs,
            quality.harm_e, quality.safe_e(factor),
        )  # fmt: skip
    if guard == "answers":
        differ, shift = evidence.differ, evidence.shift
        compared = differ.rate.candidate
        # Two tests share this guard; their mean is one e-value.
        harm = (differ.harm_e + shift.harm_e) / 2
        if compared.of:
            return said(differ.rate.baseline.share, compared.share, compared.of, harm,
                        differ.safe_e(factor))  # fmt: skip
        num = sum(shift.candidate)
        return said(0.0, 0.0, num, harm, needed if num >= plan.min_requests else 1.0)
    rate = evidence.errors if guard == "errors" else evidence.latency
    return said(
        rate.baseline.share, rate.candidate.share, rate.candidate.of, rate.harm_e,
        rate.safe_e(factor),
    )  # fmt: skip


# --- rules, in order; the first that speaks wins ---


def _by(seen: Snapshot) -> str:
    return f"by {seen.by}" if seen.by else "by hand"


def _aborted(plan: Plan, state: State, seen: Snapshot) -> State | None:
    if seen.command != "abort":
        return None
    return state.moved("aborted", f"aborted {_by(seen)}", seen.now_s)


def _rails(plan: Plan, state: State, seen: Snapshot) -> State | None:
    why = _fault(seen.health)
    return state.moved("rolled-back", f"rolled back: {why}", seen.now_s) if why else None


def _fault(health: Health) -> str:
    if health.failed:
        return f"it cannot run: {health.failed}"
    if health.restarts >= CRASHES and health.restarts > 2 * health.restarts_baseline:
        return f"crash loop, {health.restarts} restarts"
    recent, beside = health.recent, health.recent_baseline
    if recent.of >= BURST.of and recent.share >= BURST.share > 2 * beside.share:
        return f"burst of errors, {recent.hits} of the last {recent.of} requests"
    return ""


def _harmed(plan: Plan, state: State, seen: Snapshot) -> State | None:
    for reading in readings(plan, state):
        if reading.harmful:
            return state.moved("rolled-back", f"rolled back: {reading}", seen.now_s)
    return None


def _commanded(plan: Plan, state: State, seen: Snapshot) -> State | None:
    match seen.command:
        case "pause" if state.phase != "paused":
            paused = state.moved("paused", f"paused {_by(seen)}", seen.now_s)
            return replace(paused, resume_to=state.acting)
        case "resume":
            if state.phase != "paused":
                raise ServiceError(f"the rollout is {state.phase}, not paused")
            return state.moved(state.resume_to, f"resumed {_by(seen)}", seen.now_s)
        case "promote":
            if state.acting == "warming" and not seen.health.ready:
                raise ServiceError(
                    f"{plan.candidate} is not ready to take traffic", "wait until it is"
                )
            return state.moved("promoted", f"promoted {_by(seen)}", seen.now_s)
    return state if state.phase == "paused" else None


def _warmed(plan: Plan, state: State, seen: Snapshot) -> State | None:
    if state.phase != "warming":
        return None
    if seen.health.ready and not seen.health.baseline_ready and plan.strategy != "all-at-once":
        why = f"{plan.candidate} is ready; waiting for a replica of {plan.baseline} beside it"
        return replace(state, reason=why)
    if seen.health.ready:
        first = _FIRST[plan.strategy]
        return state.moved(first, f"{plan.candidate} is ready", seen.now_s)
    if seen.now_s - state.since_s > plan.patience_s:
        why = f"rolled back: not ready within {plan.patience_s:g} s; it got no traffic"
        return state.moved("rolled-back", why, seen.now_s)
    return state


def _advanced(plan: Plan, state: State, seen: Snapshot) -> State | None:
    acting = state.acting
    if acting in ("comparing", "cleared"):
        why = {
            "comparing": f"compared for as long as wanted at {plan.share:.0%}; promote or abort",
            "cleared": "shown to be no worse on mirrored traffic; promote or abort",
        }[acting]
        return replace(state, reason=why)
    waiting = _waiting(plan, state, seen)
    if not waiting:
        return _onwards(plan, state, seen.now_s)
    if state.phase != "inconclusive" and seen.now_s - state.since_s > plan.patience_s:
        why = f"inconclusive after {plan.patience_s:g} s, traffic stays: {waiting}"
        doubt = replace(state, resume_to=acting, phase="inconclusive", reason=why)
        return doubt
    prefix = "inconclusive, traffic stays: " if state.phase == "inconclusive" else ""
    return replace(state, reason=prefix + waiting)


def _waiting(plan: Plan, state: State, seen: Snapshot) -> str:
    """What the next step waits for; empty when nothing is missing."""
    if state.step_requests < plan.min_requests:
        few = f"{state.step_requests} of at least {plan.min_requests} requests"
        return f"waiting for traffic: {few} in this step"
    if state.acting == "stepping" and not state.step_baseline:
        return f"the running version {plan.baseline} had no traffic to compare with in this step"
    unsafe = [
        f"{r.guard} ({'nothing seen' if not r.requests else f'{r.shown:.3g} of {r.shown_at:g}'})"
        for r in readings(plan, state)
        if not r.safe
    ]
    if unsafe:
        return f"waiting for 'not worse than {_factor(plan, state):g}×': {', '.join(unsafe)}"
    left_s = state.since_s + plan.step_s - seen.now_s
    return f"shown to be no worse; next in {left_s:.0f} s" if left_s > 0 else ""


def _onwards(plan: Plan, state: State, now_s: float) -> State:
    shown = f"shown not to be {_factor(plan, state):g}× worse"
    if plan.strategy == "shadow":
        return state.moved("cleared", shown, now_s)
    if plan.strategy == "canary" and state.step + 1 < len(plan.steps):
        step = state.step + 1
        return state.moved("stepping", f"{plan.steps[step]:.0%}: {shown}", now_s, step)
    return state.moved("promoted", f"promoted: {shown}", now_s)


Rule = Callable[[Plan, State, Snapshot], State | None]
_RULES: tuple[Rule, ...] = (_aborted, _rails, _harmed, _commanded, _warmed, _advanced)


# --- saying: state into traffic ---


def candidate_weight(plan: Plan, state: State) -> float:
    match state.acting:
        case "stepping":
            return plan.steps[state.step]
        case "comparing":
            return plan.share
        case "switched" | "promoted":
            return 1.0
    return 0.0


def _said(plan: Plan, state: State, now_s: float) -> Decision:
    weight, acting = candidate_weight(plan, state), state.acting
    mirror = 1.0 if acting in ("shadowing", "cleared") else (
        _MIRRORED if acting == "stepping" and "answers" in plan.guards else 0.0)  # fmt: skip
    warm = acting in ("warming", "shadowing", "cleared")
    back = acting == "switched" or (
        plan.strategy == "blue-green"
        and acting == "promoted"
        and now_s - state.since_s < plan.standby_s
    )
    standby = (plan.candidate,) if warm else (plan.baseline,) if back else ()
    return Decision(
        weights={plan.candidate: weight, plan.baseline: 1.0 - weight},
        mirror=mirror,
        standby=standby,
        phase=state.phase,
        step=state.step,
        reason=state.reason,
        evidence=readings(plan, state),
        state=state,
    )
