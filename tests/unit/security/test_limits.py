"""What one gateway lets a key do: quotas, repeats, days, and what happens while control is away."""

import pytest

from sundog.clock import ManualClock
from sundog.security.authoriser import Refusal
from sundog.security.limits import AWAY_S, DAY_S, FREE_REPEATS, Allowed, Limiter

KEY = "k1"


@pytest.fixture
def clock():
    return ManualClock(10 * DAY_S + 100.0)


def limiter(clock, gateways=1, **allowed):
    made = Limiter(gateways, clock.now_s, clock.monotonic_s)
    made.update([Allowed(KEY, **allowed)])
    return made


def grant(made, limit, reserve=None, left=1000, kind="requests"):
    day = made.usage()["day"]
    lease = [limit, limit if reserve is None else reserve, left]
    made.apply({"day": day, "keys": {KEY: {kind: lease}}})


def passed(made, times, request_id=None):
    headers = [] if request_id is None else [(b"x-request-id", request_id)]
    return sum(not isinstance(made.take(KEY, headers), Refusal) for _ in range(times))


def spent(made):
    return made.usage()["keys"][KEY]["requests"][0]


def test_a_key_without_limits_is_not_even_remembered(clock):
    made = limiter(clock)
    assert passed(made, 5) == 5
    assert not made.active


def test_one_of_many_begins_with_its_part(clock):
    made = limiter(clock)
    made.among(4)
    made.update([Allowed(KEY, rate=8.0, burst=8)])
    assert passed(made, 20) == 2


def test_a_gateway_spends_its_lease_and_says_when_to_come_back(clock):
    made = limiter(clock, quota=250)
    assert passed(made, 10) == 5, "before control was heard: one first lease"
    assert made.take(KEY, []).retry_after_s == 1.0
    assert made.usage()["keys"][KEY]["requests"] == [5, 5, 11]
    grant(made, 8)
    assert passed(made, 10) == 3
    grant(made, 8, left=0)
    refusal = made.take(KEY, [])
    assert (refusal.status, refusal.retry_after_s) == (429, DAY_S - 100)
    assert "250 requests of today" in refusal.message


def test_a_new_day_begins_anew(clock):
    made = limiter(clock, quota=3)
    grant(made, 3)
    assert passed(made, 5) == 3
    clock.advance(DAY_S)
    made.apply({"day": 11, "keys": {}})
    assert passed(made, 5) == 1, "a first lease of the new day"
    assert made.usage()["day"] == 11
    made.apply({"day": 10, "keys": {KEY: {"requests": [9, 9, 9]}}})
    assert passed(made, 5) == 0, "a grant of yesterday says nothing"


def test_while_control_is_away_the_reserve_is_used(clock):
    made = limiter(clock, quota=1000)
    grant(made, 2, reserve=7)
    assert passed(made, 9) == 2
    clock.advance(AWAY_S + 1)
    assert passed(made, 9) == 5


def test_a_request_id_counts_once_but_is_no_way_around_a_quota(clock):
    made = limiter(clock, quota=1000)
    grant(made, 1)
    assert passed(made, 20, b"same") == 1 + FREE_REPEATS
    assert spent(made) == 1
    clock.advance(31)
    grant(made, 3)
    assert passed(made, 1, b"other") == 1
    assert passed(made, 20, b"same") == 1, "used up: it counts again, each time"
    grant(made, 500)
    assert passed(made, 400, b"same") == 400
    assert spent(made) == 403
    clock.advance(100)
    assert passed(made, 20, b"same") == 20
    assert spent(made) == 420, "an id of long ago is a new one"


def test_only_what_was_counted_is_given_back(clock):
    made = limiter(clock, quota=1000)
    grant(made, 100)
    headers = [(b"x-request-id", b"same")]
    assert passed(made, 10) == 10
    assert [made.take(KEY, headers) for _ in range(4)] == [True, False, False, False]
    assert limiter(clock, rate=5.0).take(KEY, headers) is False, "no quota: nothing was counted"
    assert spent(made) == 11
    made.give_back(KEY, headers)
    assert spent(made) == 10
    assert [made.take(KEY, headers) for _ in range(2)] == [True, False], "the second try counts"
    assert spent(made) == 11


def test_control_is_told_of_ids_once(clock):
    made = limiter(clock, quota=5)
    grant(made, 5)
    passed(made, 1, b"a")
    assert len(made.usage()["keys"][KEY]["ids"]) == 1
    assert made.usage()["keys"][KEY]["ids"] == []


def test_what_the_rate_refuses_and_what_failed_costs_no_quota(clock):
    made = limiter(clock, rate=1.0, burst=2.0, quota=1000)
    grant(made, 100)
    assert passed(made, 10) == 2
    made.give_back(KEY, [])
    assert spent(made) == 1


def test_tokens_stop_the_request_after_the_one_that_crossed_the_line(clock):
    made = limiter(clock, quota_tokens=2500)
    assert passed(made, 1) == 1
    made.tokens(KEY, 49)
    assert passed(made, 1) == 1
    made.tokens(KEY, 700)
    assert passed(made, 1) == 0
    assert made.usage()["keys"][KEY]["tokens"] == [749, 50, 750]


def test_several_gateways_share_a_rate_from_the_beginning(clock):
    made = limiter(clock, gateways=2, rate=10.0, burst=10.0)
    assert passed(made, 20) == 5
    made.apply({"day": 10, "keys": {KEY: {"share": 1.0}}})
    clock.advance(0.5)
    assert passed(made, 20) == 5


def test_changed_limits_keep_what_was_used(clock):
    made = limiter(clock, quota=1000)
    grant(made, 10)
    passed(made, 10)
    made.update([Allowed(KEY, quota=2000)])
    assert made.usage()["keys"][KEY]["requests"][:2] == [10, 50]
    made.update([])
    assert not made.active
