"""Which offer to launch next, what a refusal means, when a stand-in goes back. Pure.

A snapshot comes in, a decision with its reason goes out; production and the simulator run this same
code. It reads no clock, no cloud and no randomness.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from sundog.capacity.state import Cooldown, Hold, Node, PoolPlan, Refusal, View
from sundog.market.offers import Offer

# First wait after a refusal, and the longest. Capacity comes back within minutes; quotas move
# when a person asks; a shape that a zone does not sell will not be sold there an hour later. A role
# or a request is wrong until a person mends it, who then wants to see it work.
FIRST_WAIT_S: Mapping[Refusal | Hold, float] = {
    "capacity": 30.0, "price": 60.0, "quota": 300.0, "unsupported": 3600.0,
    "denied": 30.0, "rejected": 30.0, "cloud-away": 5.0,
}  # fmt: skip
LONGEST_WAIT_S: Mapping[Refusal | Hold, float] = {
    "capacity": 900.0, "price": 1800.0, "quota": 3600.0, "unsupported": 86400.0,
    "denied": 300.0, "rejected": 300.0, "cloud-away": 60.0,
}  # fmt: skip
POOL_KEY = "pool/"
# A stand-in is worth moving only once it has worked a while and spot has been quiet a while.
STAND_IN_MIN_AGE_S = 600.0
SPOT_QUIET_S = 300.0
# Nodes of a gang that found no work for this long wait for the others: work that one node is enough
# for is placed within seconds.
GANG_IDLE_S = 60.0
BUDGET_ROUNDING_USD = 1e-9


@dataclass(frozen=True, slots=True)
class Launch:
    offer: Offer
    count: int
    why: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can be launched. `state` names the kind: refused, budget, price, gang or no-offer, or

    what holds the whole pool: denied, rejected or cloud-away.
    """

    state: str
    why: str
    next_try_s: float | None = None


@dataclass(frozen=True, slots=True)
class HandBack:
    """Drain this on-demand stand-in; its work moves to `offer`, which is cheaper."""

    node_id: str
    offer: Offer
    saving_usd_hour: float
    why: str


@dataclass(frozen=True, slots=True)
class Leave:
    """Drain this idle node of a gang that cannot be completed where it is."""

    node_id: str
    why: str


def next_launch(
    pool: PoolPlan, view: View, count: int, tried: Collection[str] = ()
) -> Launch | Wait:
    """The rung to try for `count` more nodes of `pool`; `tried` are keys refused for this request.

    At most `count` nodes of one offer; call again for the rest. Every skipped rung's reason is in
    the decision. The on-demand floor comes first; where none of its rungs can be had, spot stands in,
    because work that waits is worse than work on spot. How many nodes a pool may have is Ray's to
    count: it leaves out those that drain, so that a replacement comes early.
    """
    live = view.of(pool.name)
    if not pool.offers:
        return Wait("no-offer", f"pool {pool.name} has no offer")
    held = view.cooldowns.get(POOL_KEY + pool.name)
    if held is not None and held.until_s > view.now_s:
        return hold(pool, held, view.now_s)
    owed = max(0, pool.on_demand_floor - sum(n.market == "on-demand" for n in live))
    zone = gang_zone(pool, live)
    skipped: list[_Skip] = []
    in_turn = sorted(pool.offers, key=lambda o: bool(owed) and o.market != "on-demand")
    for offer in in_turn:
        skip = _why_not(offer, pool, view, tried, zone)
        if skip is None:
            wanted = min(count, owed) if owed and offer.market == "on-demand" else count
            fits = _within_budget(offer, view, wanted)
            if fits:
                return Launch(offer, fits, _why(offer, owed, zone, skipped))
            skip = _Skip("budget", _budget_reason(offer, view), None)
        skipped.append(skip)
    return _wait(pool, view, skipped)


@dataclass(frozen=True, slots=True)
class _Skip:
    state: str
    why: str
    until_s: float | None


def _why_not(
    offer: Offer, pool: PoolPlan, view: View, tried: Collection[str], zone: str | None
) -> _Skip | None:
    if zone is not None and offer.zone != zone:
        return _Skip("gang", f"{offer}: the gang is in {zone}", None)
    limit = pool.max_price_usd_hour
    if limit is not None and offer.usd_hour is not None and offer.usd_hour > limit:
        return _Skip("price", f"{offer}: ${offer.usd_hour:g}/h is above ${limit:g}/h", None)
    for key in (offer.key, offer.quota_key):
        cooling = view.cooldowns.get(key)
        if cooling is not None and cooling.until_s > view.now_s:
            return _Skip("refused", f"{offer}: {cooling.reason}", cooling.until_s)
    if offer.key in tried:
        return _Skip("refused", f"{offer}: refused just now", None)
    return None


def gang_zone(pool: PoolPlan, live: list[Node]) -> str | None:
    """The zone that a gang is bound to: where most of it already is."""
    zones = [n.zone for n in live if not n.draining]
    if not pool.one_zone or not zones:
        return None
    return max(sorted(set(zones)), key=zones.count)


def _within_budget(offer: Offer, view: View, count: int) -> int:
    if view.budget_usd_hour is None:
        return count
    price = offer.ceiling_usd_hour
    if price is None:
        return 0
    left = view.budget_usd_hour - view.spent_usd_hour
    return max(0, min(count, int((left + BUDGET_ROUNDING_USD) / price)))


def _budget_reason(offer: Offer, view: View) -> str:
    if offer.ceiling_usd_hour is None:
        return f"{offer}: its price is unknown, so it cannot be held to the budget"
    return (
        f"{offer}: ${offer.ceiling_usd_hour:.2f}/h on top of ${view.spent_usd_hour:.2f}/h passes "
        f"the budget of ${view.budget_usd_hour:.2f}/h"
    )


def _why(offer: Offer, owed: int, zone: str | None, skipped: list[_Skip]) -> str:
    if owed and offer.market == "on-demand":
        reason = "the on-demand floor"
    elif owed:
        reason = f"stands in for {owed} on-demand of the floor that cannot be had"
    elif offer.usd_hour is None:
        reason = f"cheapest rung left, price unknown, at most ${offer.bound_usd_hour}/h"
    else:
        reason = f"cheapest rung left at ${offer.usd_hour:g}/h"
    if zone is not None:
        reason += f", with its gang in {zone}"
    refused = [s.why for s in skipped if s.state in ("refused", "budget", "price")]
    return reason + (f"; passed over: {'; '.join(refused)}" if refused else "")


def _wait(pool: PoolPlan, view: View, skipped: list[_Skip]) -> Wait:
    untils = [s.until_s for s in skipped if s.until_s is not None]
    next_try_s = min(untils) if untils else None
    states = {s.state for s in skipped}
    # The most telling state: a budget or a price stands until a person acts, a refusal passes.
    state = next((s for s in ("refused", "budget", "price", "gang") if s in states), "no-offer")
    said = [s.why for s in skipped if s.state in ("refused", "budget", "price")]
    reasons = "; ".join(said or [s.why for s in skipped])
    when = "" if next_try_s is None else f"; next try in {max(0.0, next_try_s - view.now_s):.0f} s"
    return Wait(state, f"pool {pool.name}: no rung can be had{when}: {reasons}", next_try_s)


def hold(pool: PoolPlan, held: Cooldown, now_s: float) -> Wait:
    """The wait of a pool that `cool_pool` stopped."""
    when = f"next try in {max(0.0, held.until_s - now_s):.0f} s"
    return Wait(held.state, f"pool {pool.name}: {when}: {held.reason}", held.until_s)


def cool(
    cooldowns: Mapping[str, Cooldown], offer: Offer, refusal: Refusal, now_s: float, reason: str
) -> dict[str, Cooldown]:
    """The cool-downs after a refusal: of the offer, or of its whole quota.

    Doubles with each refusal in a row. It recovers: each whole quiet period after a wait was over,
    as long as that wait, halves the count again.
    """
    key = offer.quota_key if refusal == "quota" else offer.key
    return dict(cooldowns) | {key: _cooled(cooldowns.get(key), refusal, now_s, reason, "refused")}


def cool_pool(
    cooldowns: Mapping[str, Cooldown], pool: str, why: Hold, now_s: float, reason: str
) -> dict[str, Cooldown]:
    """The cool-downs after an error that no other rung of the pool would cure."""
    key = POOL_KEY + pool
    return dict(cooldowns) | {key: _cooled(cooldowns.get(key), why, now_s, reason, why)}


def _cooled(
    old: Cooldown | None, refusal: Refusal | Hold, now_s: float, reason: str, state: str
) -> Cooldown:
    failures = 1 if old is None else _remembered(old, now_s) + 1
    wait_s = min(FIRST_WAIT_S[refusal] * 2.0 ** (failures - 1), LONGEST_WAIT_S[refusal])
    return Cooldown(failures, now_s, now_s + wait_s, reason, state)


def _remembered(old: Cooldown, now_s: float) -> int:
    """How many refusals still count: halved for each quiet period as long as the wait."""
    wait_s = max(1.0, old.until_s - old.since_s)
    periods = int(max(0.0, now_s - old.until_s) / wait_s)
    return old.failures >> min(periods, 62)


def recovered(
    cooldowns: Mapping[str, Cooldown], offer: Offer, pool: str = ""
) -> dict[str, Cooldown]:
    """The cool-downs after `offer` was granted: it, its quota and its pool start afresh."""
    afresh = (offer.key, offer.quota_key, POOL_KEY + pool)
    return {k: v for k, v in cooldowns.items() if k not in afresh}


def hand_backs(pool: PoolPlan, view: View) -> list[HandBack]:
    """Stand-ins to drain, at most one at a time: on-demand nodes that spot would now do cheaper.

    Draining never kills: an idle node goes at once, a busy one when its work has moved or ended.
    Nothing happens while a drain is on, while spot was refused lately, below the floor, or where
    the saving is not worth the move (`pool.hand_back` of the stand-in's price).
    """
    live = view.of(pool.name)
    if any(n.draining for n in live):
        return []
    stand_ins = [n for n in live if n.market == "on-demand"]
    if len(stand_ins) <= pool.on_demand_floor:
        return []
    quiet = [o for o in pool.offers if _quiet_spot(o, view)]
    for node in sorted(stand_ins, key=lambda n: (n.busy is not False, -(n.usd_hour or 0.0), n.id)):
        if node.usd_hour is None or view.now_s - node.launched_s < STAND_IN_MIN_AGE_S:
            continue
        # What comes for it is bought where the rest of its gang is.
        zone = gang_zone(pool, [n for n in live if n is not node])
        offer = next((o for o in quiet if zone in (None, o.zone)), None)
        if offer is None:
            continue
        assert offer.expected_usd_hour is not None
        saving = node.usd_hour - offer.expected_usd_hour
        if saving >= pool.hand_back * node.usd_hour and saving > 0:
            when = "it is idle" if node.busy is False else "its work moves at a checkpoint"
            return [
                HandBack(
                    node.id, offer, saving,
                    f"{offer} is back at ${offer.expected_usd_hour:.2f}/h expected, saving "
                    f"${saving:.2f}/h on ${node.usd_hour:.2f}/h on-demand; {when}",
                )
            ]  # fmt: skip
    return []


def _quiet_spot(offer: Offer, view: View) -> bool:
    if offer.market != "spot" or offer.usd_hour is None or offer.expected_usd_hour is None:
        return False
    for key in (offer.key, offer.quota_key):
        cooling = view.cooldowns.get(key)
        if cooling is not None and view.now_s < max(
            cooling.until_s, cooling.since_s + SPOT_QUIET_S
        ):
            return False
    return True


def gang_moves(pool: PoolPlan, view: View) -> list[Leave]:
    """All nodes of a gang that waits in a zone where nothing more can be had, to gather elsewhere.

    Only while somebody asks for more, every node has been idle for a minute, and another zone has a
    rung: a gang at work stays. Drained nodes bind no gang, so the next launch is free to leave; a node
    that merely stayed behind would be counted by Ray as one of the gang, and split it.
    """
    live = [n for n in view.of(pool.name) if not n.draining]
    zone = gang_zone(pool, live)
    if zone is None or pool.name not in view.wanted:
        return []
    if any(n.busy is not False or n.idle_s < GANG_IDLE_S for n in live):
        return []
    after = replace(view, nodes=tuple(n for n in view.nodes if n not in live))
    if any(_to_be_had(o, pool, view) for o in pool.offers if o.zone == zone):
        return []
    other = next((o for o in pool.offers if o.zone != zone and _to_be_had(o, pool, after)), None)
    if other is None:
        return []
    why = f"no rung of {zone} can be had for the rest of the gang; it gathers anew with {other}"
    return [Leave(n.id, why) for n in live]


def _to_be_had(offer: Offer, pool: PoolPlan, view: View) -> bool:
    refused = _why_not(offer, pool, view, (), None)
    return refused is None and _within_budget(offer, view, 1) > 0
