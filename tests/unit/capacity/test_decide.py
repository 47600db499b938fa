"""The decider: order, refusals, floor, budget, gangs and stand-ins, on generated worlds."""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from sundog.capacity import decide
from sundog.capacity.decide import HandBack, Launch, Wait, cool, hand_backs, next_launch, recovered
from sundog.capacity.state import (
    Cooldown,
    Node,
    PoolPlan,
    Refusal,
    View,
    plans_from_dict,
    plans_to_dict,
)  # fmt: skip
from sundog.market.offers import Offer


def offer(market: str, zone: str, usd: float | None, shape: str = "g5.xlarge") -> Offer:
    return Offer("aws", market, "r1", zone, shape, "G and VT", usd, 1.0, usd or 1.0)  # type: ignore[arg-type]


SPOT_A, SPOT_B = offer("spot", "z1", 0.3), offer("spot", "z2", 0.35)
FULL_A, FULL_B = offer("on-demand", "z1", 1.0), offer("on-demand", "z2", 1.0)
POOL = PoolPlan("gpu", (SPOT_A, SPOT_B, FULL_A, FULL_B))


def node(market: str = "spot", zone: str = "z1", name: str = "n", **change: object) -> Node:
    usd = 0.3 if market == "spot" else 1.0
    return replace(Node(name, "gpu", market, zone, "g5.xlarge", usd, 0.0), **change)  # type: ignore[arg-type]


def launched(decision: Launch | Wait) -> Launch:
    assert isinstance(decision, Launch), decision
    return decision


def waited(decision: Launch | Wait) -> Wait:
    assert isinstance(decision, Wait), decision
    return decision


def test_the_first_rung_that_is_not_cooling_is_taken_and_the_others_are_named() -> None:
    view = View(100.0)
    assert launched(next_launch(POOL, view, 3)) == Launch(
        SPOT_A, 3, "cheapest rung left at $0.3/h"
    )  # fmt: skip
    cooled = cool({}, SPOT_A, "capacity", 100.0, "InsufficientInstanceCapacity")
    second = launched(next_launch(POOL, View(100.0, cooldowns=cooled), 1))
    assert second.offer == SPOT_B
    assert "InsufficientInstanceCapacity" in second.why


def test_a_quota_refusal_cools_its_family_market_and_region_in_one_go() -> None:
    cooled = cool({}, SPOT_A, "quota", 0.0, "MaxSpotInstanceCountExceeded")
    assert launched(next_launch(POOL, View(1.0, cooldowns=cooled), 1)).offer == FULL_A
    p_family = replace(SPOT_A, quota="P", shape="p3.2xlarge")
    other = replace(POOL, offers=(p_family, FULL_A))
    assert launched(next_launch(other, View(1.0, cooldowns=cooled), 1)).offer == p_family


def test_when_every_rung_refuses_the_state_has_a_name_and_a_time() -> None:
    cooled: dict[str, Cooldown] = {}
    for i, each in enumerate(POOL.offers):
        cooled = cool(cooled, each, "capacity", float(i), f"no capacity {i}")
    wait = waited(next_launch(POOL, View(5.0, cooldowns=cooled), 1))
    assert wait.state == "refused"
    assert wait.next_try_s == 30.0
    assert "next try in 25 s" in wait.why
    assert all(f"no capacity {i}" in wait.why for i in range(4))
    assert launched(next_launch(POOL, View(30.0, cooldowns=cooled), 1)).offer == SPOT_A


def test_waits_double_to_a_limit_and_recover_with_quiet_time() -> None:
    cooled: dict[str, Cooldown] = {}
    now, waits = 0.0, []
    for _ in range(8):
        cooled = cool(cooled, SPOT_A, "capacity", now, "x")
        waits.append(cooled[SPOT_A.key].until_s - now)
        now = cooled[SPOT_A.key].until_s
    assert waits == [30, 60, 120, 240, 480, 900, 900, 900]
    later = cool(cooled, SPOT_A, "capacity", now + 20 * 900.0, "x")
    assert later[SPOT_A.key].failures == 1
    assert recovered(cooled, SPOT_A) == {}


def test_the_floor_is_on_demand_before_anything_else() -> None:
    pool = replace(POOL, on_demand_floor=2)
    first = launched(next_launch(pool, View(0.0), 5))
    assert (first.offer, first.count) == (FULL_A, 2)
    two = (node("on-demand", name="a"), node("on-demand", name="b"))
    assert launched(next_launch(pool, View(0.0, two), 3)).offer == SPOT_A


def test_spot_stands_in_for_a_floor_that_cannot_be_had_and_the_floor_comes_first_again() -> None:
    pool = replace(POOL, on_demand_floor=2)
    cooled = cool(cool({}, FULL_A, "capacity", 0, "none left"), FULL_B, "capacity", 0, "none left")
    stood_in = launched(next_launch(pool, View(0.0, cooldowns=cooled), 3))
    assert (stood_in.offer, stood_in.count) == (SPOT_A, 3)
    assert "stands in for 2 on-demand of the floor" in stood_in.why
    assert "none left" in stood_in.why
    spot = tuple(node(name=f"s{i}") for i in range(3))
    later = launched(next_launch(pool, View(31.0, spot, cooled), 1))
    assert (later.offer, later.count) == (FULL_A, 1)


def test_a_pool_at_its_size_is_rays_to_refuse_so_that_a_draining_node_is_replaced_early() -> None:
    pool = replace(POOL, max_nodes=1)
    assert launched(next_launch(pool, View(0.0, (node(name="drains, says Ray alone"),)), 1))


def test_a_gang_stays_in_the_zone_where_it_is() -> None:
    pool = replace(POOL, one_zone=True)
    view = View(0.0, (node(zone="z2"),))
    assert launched(next_launch(pool, view, 1)).offer == SPOT_B
    cooled = cool(cool({}, SPOT_B, "capacity", 0, "a"), FULL_B, "capacity", 0, "b")
    assert waited(next_launch(pool, replace(view, cooldowns=cooled), 1)).state == "refused"


def gang_view(**change: object) -> tuple[PoolPlan, View]:
    """One of a gang of more came in z1, where nothing else can be had; it waits there."""
    cooled = cool(cool({}, SPOT_A, "capacity", 0, "a"), FULL_A, "capacity", 0, "b")
    waits = replace(node(zone="z1", busy=False, idle_s=120.0), **change)  # type: ignore[arg-type]
    view = View(10.0, (waits,), cooled, wanted=frozenset({"gpu"}))
    return replace(POOL, one_zone=True), view


def test_an_idle_gang_leaves_a_zone_that_has_no_more_and_gathers_elsewhere() -> None:
    pool, view = gang_view()
    assert waited(next_launch(pool, view, 3)).state == "refused"
    [leave] = decide.gang_moves(pool, view)
    assert leave.node_id == "n"
    assert "spot z2" in leave.why
    drained = replace(view, nodes=(replace(view.nodes[0], draining=True),))
    assert decide.gang_moves(pool, drained) == []
    assert launched(next_launch(pool, drained, 4)).offer == SPOT_B


def test_a_gang_that_works_has_just_come_or_is_not_asked_for_stays() -> None:
    for change in ({"busy": True}, {"busy": None}, {"idle_s": 5.0}, {"draining": True}):
        assert decide.gang_moves(*gang_view(**change)) == []
    pool, view = gang_view()
    busy = replace(view, nodes=(*view.nodes, node(name="m", busy=True)))
    assert decide.gang_moves(pool, busy) == []
    assert decide.gang_moves(pool, replace(view, wanted=frozenset())) == []
    assert decide.gang_moves(pool, replace(view, cooldowns={})) == [], "its zone has more"
    assert decide.gang_moves(replace(pool, one_zone=False), view) == []
    everywhere = cool(cool(view.cooldowns, SPOT_B, "capacity", 0, ""), FULL_B, "capacity", 0, "")
    assert decide.gang_moves(pool, replace(view, cooldowns=everywhere)) == []
    # 0.3 is spent on the node that would leave, so 0.4 is enough for one in the other zone.
    assert decide.gang_moves(pool, replace(view, budget_usd_hour=0.4))
    assert decide.gang_moves(pool, replace(view, budget_usd_hour=0.2)) == []


def test_an_unknown_price_is_refused_under_a_budget_and_allowed_without_one() -> None:
    blank = replace(SPOT_A, usd_hour=None, bound_usd_hour=None, expected_usd_hour=None)
    pool = replace(POOL, offers=(blank,))
    wait = waited(next_launch(pool, View(0.0, budget_usd_hour=100.0), 1))
    assert (wait.state, "unknown" in wait.why) == ("budget", True)
    assert launched(next_launch(pool, View(0.0), 1)).offer == blank


def stand_in_view(**change: object) -> View:
    at = node("on-demand", name="s", launched_s=0.0)
    return View(10_000.0, (replace(at, **change),))  # type: ignore[arg-type]


def test_a_stand_in_goes_back_when_spot_is_quiet_and_the_saving_is_worth_it() -> None:
    [back] = hand_backs(POOL, stand_in_view(busy=False))
    assert (back.node_id, back.offer, round(back.saving_usd_hour, 2)) == ("s", SPOT_A, 0.7)
    assert "idle" in back.why
    assert "checkpoint" in hand_backs(POOL, stand_in_view(busy=True))[0].why
    assert hand_backs(replace(POOL, hand_back=0.8), stand_in_view()) == []
    assert hand_backs(replace(POOL, on_demand_floor=1), stand_in_view()) == []
    assert hand_backs(POOL, stand_in_view(launched_s=9_900.0)) == []
    assert hand_backs(POOL, stand_in_view(draining=True)) == []
    refused = cool(cool({}, SPOT_A, "capacity", 9_900.0, "x"), SPOT_B, "capacity", 9_900.0, "x")
    assert hand_backs(POOL, replace(stand_in_view(), cooldowns=refused)) == []


def test_a_gangs_stand_in_goes_back_to_spot_of_the_zone_where_the_gang_is() -> None:
    pool = replace(POOL, one_zone=True)
    two = (node("on-demand", "z2", "a", launched_s=0.0), node("on-demand", "z2", "b"))
    [back] = hand_backs(pool, View(10_000.0, two))
    assert back.offer == SPOT_B
    dry = cool({}, SPOT_B, "capacity", 9_990.0, "x")
    assert hand_backs(pool, View(10_000.0, two, dry)) == [], "spot elsewhere would split it"
    assert hand_backs(pool, View(10_000.0, two[:1]))[0].offer == SPOT_A, "alone it may go anywhere"


def test_a_plan_survives_the_compiled_file() -> None:
    plans = {"gpu": replace(POOL, on_demand_floor=1, max_price_usd_hour=2.0)}
    assert plans_from_dict(plans_to_dict(plans)) == plans


prices = st.one_of(st.none(), st.floats(0.01, 5.0))
offers = st.builds(
    offer, st.sampled_from(["spot", "on-demand"]), st.sampled_from(["z1", "z2", "z3"]), prices,
    st.sampled_from(["g5.xlarge", "g5.2xlarge"]),
)  # fmt: skip
nodes = st.builds(
    Node, st.uuids().map(str), st.just("gpu"), st.sampled_from(["spot", "on-demand"]),
    st.sampled_from(["z1", "z2", "z3"]), st.just("g5.xlarge"), st.floats(0.01, 5.0),
    st.floats(0, 9_000), st.sampled_from([None, True, False]), st.booleans(), st.floats(0, 200),
)  # fmt: skip
pools = st.builds(
    PoolPlan, st.just("gpu"), st.lists(offers, max_size=8, unique_by=lambda o: o.key).map(tuple),
    st.integers(0, 3), st.one_of(st.none(), st.floats(0.1, 5)), st.booleans(), st.floats(0, 1),
    st.integers(0, 6),
)  # fmt: skip
refusals: st.SearchStrategy[Refusal] = st.sampled_from(
    ["capacity", "price", "quota", "unsupported"]
)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[PoolPlan, View]:
    pool = draw(pools)
    live = tuple(draw(st.lists(nodes, max_size=5, unique_by=lambda n: n.id)))
    cooled: dict[str, Cooldown] = {}
    for each in pool.offers:
        if draw(st.booleans()):
            cooled = cool(cooled, each, draw(refusals), draw(st.floats(0, 10_000)), "why")
    budget = draw(st.one_of(st.none(), st.floats(0.1, 20)))
    wanted = frozenset({"gpu"} if draw(st.booleans()) else ())
    return pool, View(10_000.0, live, cooled, budget, draw(st.floats(0, 1)), wanted)


@given(worlds(), st.integers(1, 9))
def test_no_launch_breaks_budget_price_floor_or_zone(
    world: tuple[PoolPlan, View], count: int
) -> None:
    pool, view = world
    decision = next_launch(pool, view, count)
    assert decision.why
    if isinstance(decision, Wait):
        return
    chosen, live = decision.offer, view.of("gpu")
    assert 1 <= decision.count <= count
    if view.budget_usd_hour is not None:
        assert chosen.ceiling_usd_hour is not None
        total = view.spent_usd_hour + decision.count * chosen.ceiling_usd_hour
        assert total <= view.budget_usd_hour + 1e-6
    if pool.max_price_usd_hour is not None and chosen.usd_hour is not None:
        assert chosen.usd_hour <= pool.max_price_usd_hour
    owed = pool.on_demand_floor - sum(n.market == "on-demand" for n in live)
    if owed > 0 and chosen.market == "on-demand":
        assert decision.count <= owed
    elif owed > 0:
        full = tuple(o for o in pool.offers if o.market == "on-demand")
        assert isinstance(next_launch(replace(pool, offers=full), view, 1), Wait)
    zone = decide.gang_zone(pool, live)
    assert zone in (None, chosen.zone)
    for key in (chosen.key, chosen.quota_key):
        cooling = view.cooldowns.get(key)
        assert cooling is None or cooling.until_s <= view.now_s


@given(worlds(), st.integers(1, 9))
def test_refusing_every_rung_once_ends_in_a_wait(world: tuple[PoolPlan, View], count: int) -> None:
    pool, view = world
    tried: list[str] = []
    for _ in range(len(pool.offers) + 1):
        decision = next_launch(pool, view, count, tried)
        if isinstance(decision, Wait):
            break
        assert decision.offer.key not in tried
        tried.append(decision.offer.key)
        cooled = cool(view.cooldowns, decision.offer, "capacity", view.now_s, "gone")
        view = replace(view, cooldowns=cooled)
    assert isinstance(decision, Wait)
    if tried:
        assert decision.next_try_s is not None
        assert decision.next_try_s > view.now_s


@given(worlds(), refusals, st.floats(0, 1e6))
def test_a_cool_down_ends_within_its_limit(
    world: tuple[PoolPlan, View], refusal: Refusal, now_s: float
) -> None:
    pool, view = world
    for each in pool.offers:
        after = cool(view.cooldowns, each, refusal, now_s, "why")
        changed = [k for k in after if after[k] != view.cooldowns.get(k)]
        assert changed == [each.quota_key if refusal == "quota" else each.key]
        wait_s = after[changed[0]].until_s - now_s
        assert math.nextafter(0, 1) < wait_s <= decide.LONGEST_WAIT_S[refusal] + 1e-6


@given(worlds())
def test_a_stand_in_only_goes_when_it_saves_and_the_floor_holds(
    world: tuple[PoolPlan, View],
) -> None:
    pool, view = world
    backs: list[HandBack] = hand_backs(pool, view)
    assert len(backs) <= 1
    for back in backs:
        node_ = next(n for n in view.nodes if n.id == back.node_id)
        assert node_.market == "on-demand"
        assert back.offer.market == "spot"
        assert back.saving_usd_hour > 0
        left = sum(n.market == "on-demand" for n in view.of("gpu")) - 1
        assert left >= pool.on_demand_floor
        assert not any(n.draining for n in view.of("gpu"))


@given(worlds())
def test_a_gang_moves_as_a_whole_and_only_to_where_it_can(world: tuple[PoolPlan, View]) -> None:
    pool, view = world
    moves = decide.gang_moves(pool, view)
    if not moves:
        return
    live = [n for n in view.of("gpu") if not n.draining]
    assert [m.node_id for m in moves] == [n.id for n in live]
    assert all(n.busy is False for n in live)
    here = decide.gang_zone(pool, live)
    gone = tuple(n for n in view.nodes if n.draining)
    assert launched(next_launch(pool, replace(view, nodes=gone), 1)).offer.zone != here
