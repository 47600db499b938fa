"""Simulated rollouts: ours keeps good versions and catches bad ones; fixed thresholds do not."""

import numpy as np

from sundog.serving.rollout_facts import Plan
from sundog.sim.rollout import Ours, Traffic, Version, World, run
from sundog.sim.rollout_peers import Peeking, argo, flagger

PLAN = Plan("v1", "v2")
GOOD = Version("good", True)


def phases(version, policy, num=12, world=None):
    return [run(world or World(), version, policy(), seed).phase for seed in range(num)]


def ours():
    return Ours(PLAN, through_json=True)


def test_good_versions_are_promoted():
    assert phases(GOOD, ours).count("promoted") >= 11


def test_bad_versions_are_rolled_back_before_many_see_them():
    for bad in (Version("e", False, error_ratio=3), Version("l", False, latency_ratio=1.3)):
        outcomes = [run(World(), bad, ours(), seed) for seed in range(12)]
        assert all(o.phase == "rolled-back" for o in outcomes)
        assert np.median([o.exposed for o in outcomes]) < 0.03


def test_a_crashing_version_exposes_nobody():
    outcome = run(World(), Version("c", False, crashes=True), ours(), 1)
    assert outcome.phase == "rolled-back"
    assert outcome.exposed == 0.0


def test_peers_behave_as_documented():
    doubled = Version("x5", False, error_ratio=5)
    assert phases(doubled, flagger).count("rolled-back") == 12
    assert phases(doubled, argo).count("rolled-back") < 12  # 95% success does not see 5% of errors
    assert phases(GOOD, Peeking).count("rolled-back") >= 4  # looking often invents harm


def test_the_same_seed_is_the_same_traffic():
    one, two = (Traffic(World(), GOOD, np.random.default_rng(3)) for _ in range(2))
    assert [one.minute(i, 0.1, 0.1) for i in range(9)] == [
        two.minute(i, 0.1, 0.1) for i in range(9)
    ]
