"""The books of limited keys, on a real store: several gateways, restarts, gateways that go."""

import pytest

from sundog.clock import ManualClock
from sundog.control.keys import Keys
from sundog.control.limits import GATEWAY_GONE_S, KEEP_S, SETTLE_S, Limits
from sundog.security.authoriser import Refusal
from sundog.security.keys import record_of
from sundog.security.limits import Limiter
from sundog.store import open_store


class World:
    """Control and gateways on one clock."""

    def __init__(self, tmp_path):
        self.clock = ManualClock(1_000_000.0)
        self.store = open_store(f"sqlite:///{tmp_path}/c.db", clock=self.clock)
        self.lease = self.store.acquire("t")
        self.gateways = {}
        self.start()

    def start(self):
        """Control, again."""
        self.limits = Limits(self.store, self.lease, self.clock)
        self.keys = Keys(self.store, self.lease, self.clock, self.limits)

    def gateway(self, name, of=2):
        made = Limiter(of, self.clock.now_s, self.clock.monotonic_s)
        made.update(record_of(d).allowed for d in self.store.keys())  # noqa: SIM118
        self.gateways[name] = made
        return made

    def turn(self, rounds=1):
        for _ in range(rounds):
            self.clock.advance(0.5)
            for name, gateway in self.gateways.items():
                gateway.apply(self.limits.exchange(name, gateway.usage()))


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    yield made
    made.store.close()


def passed(gateway, key, times, request_id=None):
    headers = [] if request_id is None else [(b"x-request-id", request_id)]
    return sum(not isinstance(gateway.take(key, headers), Refusal) for _ in range(times))


def test_a_quota_holds_over_gateways_and_over_controls(world):
    key = world.keys.create("me", quota=100)["key_id"]
    a, b = world.gateway("a"), world.gateway("b")
    world.turn(int(SETTLE_S / 0.5) + 2)
    through = 0
    for _ in range(10):
        through += passed(a, key, 4) + passed(b, key, 2)
        world.turn()
    assert 30 <= through <= 60
    world.clock.advance(KEEP_S)
    world.limits.keep()
    world.start()
    assert world.limits.used(key) == {"requests": through}
    for _ in range(60):
        through += passed(a, key, 5) + passed(b, key, 5)
        world.turn()
    assert through == 100
    assert world.keys.listing()[0]["used"] == {"requests": 100}
    world.clock.advance(86400)
    world.turn(2)
    assert world.limits.used(key) == {"requests": 0}
    assert passed(a, key, 1) == 1


def test_a_gateway_that_is_gone_leaves_what_it_did_not_spend(world):
    key = world.keys.create("me", quota=40)["key_id"]
    a, b = world.gateway("a"), world.gateway("b")
    world.turn(8)
    assert passed(a, key, 1) + passed(b, key, 1) == 2
    world.turn(2)
    del world.gateways["b"]
    world.turn(int(GATEWAY_GONE_S / 0.5) + 2)
    through = 2
    for _ in range(40):
        through += passed(a, key, 10)
        world.turn()
    assert through == 40
    world.gateways["b"] = b  # it was only away: nothing of it is counted twice
    world.turn(3)
    assert world.limits.used(key) == {"requests": 40}


def test_an_id_that_two_gateways_counted_counts_once(world):
    key = world.keys.create("me", quota=1000)["key_id"]
    a, b = world.gateway("a"), world.gateway("b")
    world.turn(8)
    assert passed(a, key, 1, b"x") + passed(b, key, 1, b"x") + passed(b, key, 1, b"y") == 3
    world.turn(2)
    assert world.limits.used(key) == {"requests": 2}


def test_a_first_try_that_failed_makes_the_second_one_elsewhere_no_repeat(world):
    key = world.keys.create("me", quota=1000)["key_id"]
    a, b = world.gateway("a"), world.gateway("b")
    world.turn(8)
    assert passed(a, key, 1, b"x") == 1
    world.turn()
    a.give_back(key, [(b"x-request-id", b"x")])
    world.turn()
    assert passed(b, key, 1, b"x") == 1
    world.turn(2)
    assert world.limits.used(key) == {"requests": 1}


def test_a_rate_moves_to_where_it_is_asked_for(world):
    key = world.keys.create("me", rate=100.0, burst=100.0)["key_id"]
    a, b = world.gateway("a"), world.gateway("b")
    world.turn(8)
    a_through = b_through = 0
    for i in range(40):
        asked_a, asked_b = (60, 0) if i < 20 else (0, 60)
        a_through += passed(a, key, asked_a)
        b_through += passed(b, key, asked_b)
        world.turn()
    # 10 s each at 100 a second, less what moving costs, plus what the buckets had saved
    assert 700 <= a_through <= 1100
    assert 700 <= b_through <= 1100


def test_a_rotated_key_keeps_its_limits(world):
    old = world.keys.create("me", rate=3.0, quota=10, quota_tokens=20)
    new = world.keys.rotate(old["key_id"])
    assert (new["rate"], new["quota"], new["quota_tokens"]) == (3.0, 10, 20)
