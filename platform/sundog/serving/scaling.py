"""How many replicas a service should have now, and why.

A pure decider: snapshot and state in, decision out. It reads no clock and no Ray; production and
the simulator run this code. Who starts and stops replicas, and who counts requests, is elsewhere.

The count carries the largest of: the demand expected once a replica started now is ready, plus a
margin for noise and drift; a reserve for jumps like those of the last half hour; an onset that the
calendar expects; what other signals ask for. It rises at once and falls only to the most that was
wanted within a hold, never while requests wait, nor where a little more load would ask again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from sundog.serving import calendar, forecast, warmth
from sundog.serving.demand import (
    WINDOW_S,
    Bin,
    ServiceTime,
    add_bin,
    demand_slots,
    forget,
    noise_slots,
    rate_s,
)

# The share of the demand kept free for drift that no slope shows yet, and how many standard
# deviations of chance arrivals (docs/decisions/0401 says where both come from).
DRIFT_SHARE = 0.25
# A replica leaves only if the others would do for this much more than is asked for: a start that
# noise around a threshold asks for is billed, and late.
STAY_SHARE = 0.06
NOISE_DEVIATIONS = 2.2
SIGNAL_TOLERANCE = 0.1
_SILENCE_S = 120.0


@dataclass(frozen=True)
class Profile:
    """What a service is like and what was asked for it. Times in seconds.

    `service_s` is the mean time in a slot as a load test found it: a prior, replaced by what is
    seen. `cold_start_worth_s` is how many replica-seconds of idling one cold start is worth.
    """

    slots: int = 8
    startup_s: float = 60.0
    service_s: float = 1.0
    wait_slo_s: float = 5.0
    min_replicas: int = 0
    max_replicas: int = 100
    cold_start_worth_s: float = 600.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_replicas <= self.max_replicas or self.max_replicas < 1:
            raise ValueError(f"replicas {self.min_replicas}..{self.max_replicas} are no bounds")
        if self.slots < 1 or self.service_s <= 0 or self.startup_s < 0 or self.wait_slo_s < 0:
            raise ValueError(f"a profile needs slots and times above zero: {self}")


@dataclass(frozen=True)
class Signal:
    """Another measure of load, e.g. GPU utilisation: its mean over ready replicas, and the value
    to hold it at.
    """

    name: str
    value: float
    target: float


@dataclass(frozen=True)
class Snapshot:
    """What is known at `now_s` (Unix). Counts are those since the last decision, over all gateways.

    `completed_service_sq_s2` is the sum of squared service times; None where nobody sums them.
    """

    now_s: float
    ready: int
    starting: int = 0
    queued: int = 0
    running: int = 0
    arrivals: int = 0
    completions: int = 0
    completed_service_s: float = 0.0
    completed_service_sq_s2: float | None = None
    signals: tuple[Signal, ...] = ()


@dataclass(frozen=True)
class State:
    """What the decider remembers. Plain numbers: `scaling_state` writes it as JSON."""

    at_s: float
    born_s: float
    service: ServiceTime
    bins: tuple[Bin, ...] = ()
    forecaster: forecast.Forecaster = field(default_factory=forecast.Forecaster)
    onsets: tuple[calendar.Onset, ...] = ()
    wanted: tuple[tuple[float, int], ...] = ()
    idle: warmth.Idle = field(default_factory=warmth.Idle)
    count: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Decision:
    """How many replicas, why, and what to remember."""

    count: int
    reason: str
    state: State


@dataclass(frozen=True)
class _Wish:
    """Slots or replicas that one consideration asks for, and its words."""

    replicas: int
    why: str
    stay: int = 0
    """So many may stay if they are there, though fewer would not be topped up."""


def first_state(profile: Profile, now_s: float) -> State:
    """The state of a service that nobody has watched yet."""
    return State(now_s, now_s, ServiceTime.prior(profile.service_s))


def decide(snapshot: Snapshot, state: State | None, profile: Profile) -> Decision:
    """The replicas to have from now. `state` None: nothing is remembered.

    Asked again at the same instant it answers the same and learns nothing twice.
    """
    if state is None:
        state = first_state(profile, snapshot.now_s)
    elif snapshot.now_s <= state.at_s and state.reason:
        return Decision(state.count, state.reason, state)
    state = _observe(snapshot, state, profile)
    service_s = state.service.mean_s
    demand = demand_slots(state.bins, service_s, profile.wait_slo_s)
    expected, rises = forecast.expect(
        state.forecaster, state.bins, demand, service_s, profile.startup_s
    )
    # A jump is what the replicas asked for could not take, so what rounding up adds counts too.
    asked = _replicas(expected + margin_slots(expected, state.service, profile.wait_slo_s), profile)
    spare = asked * profile.slots - expected
    state = _learn(snapshot, state, profile, demand, expected, spare, rises)
    wishes = _wishes(snapshot, state, profile, demand, expected)
    best = max(wishes, key=lambda wish: wish.replicas)
    stay = max(wish.stay for wish in wishes)
    state, count, why = _settle(snapshot, state, profile, replace(best, stay=stay))
    reason = f"{count} {'replica' if count == 1 else 'replicas'}: {why}"
    return Decision(count, reason, replace(state, count=count, reason=reason))


def margin_slots(demand: float, service: ServiceTime, wait_slo_s: float) -> float:
    """Free slots beside `demand`: for chance, or for drift, whichever asks for more."""
    chance = noise_slots(demand, service, wait_slo_s, NOISE_DEVIATIONS)
    return max(chance, DRIFT_SHARE * demand)


def hold_s(profile: Profile) -> float:
    """How long a count is held after it was last wanted: a third of what a new start would cost."""
    return max(profile.startup_s / 3, 10.0)


def _observe(snapshot: Snapshot, state: State, profile: Profile) -> State:
    """The new counts in the history. After a long silence the history of rates starts anew."""
    elapsed_s = snapshot.now_s - state.at_s
    service = state.service
    if elapsed_s > _SILENCE_S:
        state = replace(
            state,
            born_s=snapshot.now_s,
            bins=(),
            wanted=(),
            forecaster=replace(state.forecaster, guesses=()),
        )
        service, elapsed_s = forget(service), 0.0
    keep_s = max(WINDOW_S, *forecast.slope_windows_s(profile.startup_s))
    bins = state.bins
    if elapsed_s > 0.0:
        bins = add_bin(bins, elapsed_s, snapshot.arrivals, keep_s)
    service = service.learn(
        snapshot.completions,
        snapshot.completed_service_s,
        snapshot.completed_service_sq_s2,
        rate_s(bins),
    )
    busy = snapshot.arrivals + snapshot.queued + snapshot.running > 0
    idle = warmth.observe(state.idle, snapshot.now_s, busy)
    return replace(state, at_s=snapshot.now_s, bins=bins, service=service, idle=idle)


def _learn(
    snapshot: Snapshot,
    state: State,
    profile: Profile,
    demand: float,
    expected: float,
    margin: float,
    rises: tuple[float, ...],
) -> State:
    now_s = snapshot.now_s
    guess = forecast.Guess(now_s, demand, rises, expected, margin)
    # What the history begins with may be an onset: nobody saw what was before it.
    first = not state.onsets and now_s < state.born_s + profile.startup_s
    short = demand > snapshot.ready * profile.slots
    overrun = first or (short and forecast.is_surprise(state.forecaster, demand))
    warm_s = state.born_s + 2 * WINDOW_S
    announced = calendar.announced(state.onsets, now_s)
    return replace(
        state,
        forecaster=forecast.learn(state.forecaster, guess, profile.startup_s, warm_s, announced),
        onsets=calendar.remember(
            state.onsets, now_s, demand, overrun, forecast.has_risen(state.forecaster, demand)
        ),
    )


def _wishes(
    snapshot: Snapshot, state: State, profile: Profile, demand: float, expected: float
) -> list[_Wish]:
    """What each consideration asks for, the plainest first: it names the reason in a draw."""
    service = state.service
    # What waits now cannot start in time; it should be gone by the time a new replica is ready.
    backlog = snapshot.queued * service.mean_s / max(profile.startup_s, profile.wait_slo_s, 1.0)
    base = expected + backlog
    total = base + margin_slots(base, service, profile.wait_slo_s)
    words = f"{demand:.1f} slots of demand at {service.mean_s:.3g} s each"
    if expected > demand + 0.05:
        words += f", rising by {expected - demand:.1f} within {profile.startup_s:.0f} s"
    if snapshot.queued:
        words += f", {snapshot.queued} waiting"
    stay = _replicas(total * (1.0 + STAY_SHARE), profile)
    wishes = [_Wish(_replicas(total, profile), f"{words}, {total - base:.1f} spare", stay)]
    reserve = forecast.reserve_slots(state.forecaster, demand)
    if reserve > 0.0 and not _may_sleep(state, profile):
        # Before a whole memory of jumps was watched the largest is yet to come, and no start-up
        # follows a jump from a single busy replica.
        watched = snapshot.now_s - state.born_s >= forecast.JUMP_MEMORY_S
        jumps = len(state.forecaster.jumps)
        count = max(_replicas(reserve, profile), 1 if watched else 2)
        words = f"{jumps} sudden {'jump' if jumps == 1 else 'jumps'} in the last half hour"
        wishes.append(_Wish(count, f"{words}, {reserve:.1f} slots in reserve"))
    due = calendar.expected_slots(state.onsets, snapshot.now_s, profile.startup_s)
    if due > 0.0:
        slots = due + margin_slots(due, service, profile.wait_slo_s)
        wishes.append(_Wish(_replicas(slots, profile), f"an onset of {due:.1f} slots is due"))
    wishes += [_signal_wish(signal, snapshot) for signal in snapshot.signals]
    return wishes


def _may_sleep(state: State, profile: Profile) -> bool:
    """Idle for longer than a start, and allowed to go to zero: then only warmth holds it."""
    idle_s = warmth.idle_for_s(state.idle, state.at_s)
    return profile.min_replicas == 0 and idle_s > profile.startup_s


def _replicas(slots: float, profile: Profile) -> int:
    return math.ceil(slots / profile.slots - 1e-9)


def _signal_wish(signal: Signal, snapshot: Snapshot) -> _Wish:
    """Replicas in proportion to the signal, as Kubernetes' HPA counts them; within a tenth of the
    target the count that is there is right.
    """
    if signal.target <= 0.0 or snapshot.ready == 0:
        return _Wish(0, f"{signal.name} says nothing")
    ratio = max(signal.value, 0.0) / signal.target
    near = abs(ratio - 1.0) <= SIGNAL_TOLERANCE
    count = snapshot.ready if near else math.ceil(snapshot.ready * ratio - 1e-9)
    return _Wish(count, f"{signal.name} at {signal.value:.3g} of {signal.target:.3g}")


def _settle(
    snapshot: Snapshot, state: State, profile: Profile, best: _Wish
) -> tuple[State, int, str]:
    """The wish within bounds, held, and kept warm; the words say which of them decided."""
    now_s, there = snapshot.now_s, snapshot.ready + snapshot.starting
    warm = warmth.keep_warm_s(state.idle, profile.cold_start_worth_s)
    low = profile.min_replicas
    asked, why = best.replicas, best.why
    if asked < 1 and warmth.is_warm(state.idle, now_s, warm):
        asked, why = 1, f"idle, kept warm for {warm:.0f} s"
    elif asked < 1:
        why = "idle"
    wanted = _push(state.wanted, now_s, asked, hold_s(profile))
    held = wanted[0][1]
    if held > asked:
        asked, why = held, f"held {hold_s(profile):.0f} s; now {why}"
    near = min(there, best.stay)
    if asked < near:
        asked, why = near, f"{near - asked} too near to being needed to leave; {why}"
    if asked < there and _stands(snapshot, state, profile):
        asked, why = there, f"{snapshot.queued} waiting, none leaves; {why}"
    if (
        asked < there
        and now_s < state.born_s + WINDOW_S
        and (snapshot.arrivals or snapshot.running or now_s == state.born_s)
    ):
        asked, why = there, f"watched for {now_s - state.born_s:.0f} s only, none leaves; {why}"
    if asked < low:
        asked, why = low, f"the least allowed; {why}"
    if asked > profile.max_replicas:
        asked, why = profile.max_replicas, f"the most allowed, {asked} wanted; {why}"
    return replace(state, wanted=wanted), asked, why


def _stands(snapshot: Snapshot, state: State, profile: Profile) -> bool:
    """Does a queue stand? A few requests between two slots do not: a tenth of the wait allowed."""
    wait_s = snapshot.queued * state.service.mean_s / max(snapshot.ready * profile.slots, 1)
    return wait_s > profile.wait_slo_s / 10


def _push(
    wanted: tuple[tuple[float, int], ...], now_s: float, count: int, keep_s: float
) -> tuple[tuple[float, int], ...]:
    """A falling list whose first is the most wanted within `keep_s`."""
    kept = [one for one in wanted if one[0] >= now_s - keep_s - 1e-9 and one[1] > count]
    return (*kept, (now_s, count))
