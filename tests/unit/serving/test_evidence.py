"""Evidence: e-processes keep their promise under the null, and grow with harm."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sundog.serving.evidence import (
    FACTORS,
    Counts,
    DifferEvidence,
    Dispersion,
    QualityEvidence,
    RateEvidence,
    ShiftEvidence,
    pairs,
    upper_rate,
)

LIMIT = 40.0  # two guards at 5%


def _rates(rng, error_ratio, minutes=90, weight=0.1, swing=0.8, base=0.02):
    evidence, peak = RateEvidence(), 0.0
    safest = dict.fromkeys(FACTORS, 0.0)
    for _ in range(minutes):
        rate = min(0.4, base * np.exp(swing * rng.standard_normal()))
        total = int(rng.poisson(1000))
        new = int(total * weight)
        evidence = evidence.add(
            Counts(int(rng.binomial(total - new, rate)), total - new),
            Counts(int(rng.binomial(new, min(0.95, rate * error_ratio))), new),
            floor=0.0005,
        )
        peak = max(peak, evidence.harm_e)
        for f in FACTORS:
            safest[f] = max(safest[f], evidence.safe_e(f))
    return peak, safest


def test_harm_is_rarely_seen_where_there_is_none_however_often_one_looks():
    rng = np.random.default_rng(1)
    peaks = [_rates(rng, 1.0)[0] for _ in range(400)]
    # 400 looks-at-all-times at 1/40 = 10 alarms allowed in expectation.
    assert sum(p >= LIMIT for p in peaks) <= 16


def test_harm_is_seen_where_it_is():
    rng = np.random.default_rng(2)
    assert all(_rates(rng, 2.0)[0] >= LIMIT for _ in range(40))


@pytest.mark.parametrize("factor", FACTORS)
def test_a_version_that_is_that_much_worse_seldom_passes_the_gate(factor):
    rng = np.random.default_rng(3)
    passed = sum(_rates(rng, factor, minutes=60)[1][factor] >= 20 for _ in range(200))
    assert passed <= 16  # 1/20 of 200 is 10; three standard errors above


def test_a_good_version_passes_every_gate():
    rng = np.random.default_rng(4)
    for _ in range(20):
        _, safest = _rates(rng, 1.0, minutes=120, weight=0.3)
        assert all(safest[f] >= 20 for f in FACTORS)


def test_shared_shocks_alone_say_nothing():
    calm = RateEvidence().add(Counts(10, 900), Counts(1, 90), 0.0005)
    stormy = RateEvidence().add(Counts(300, 900), Counts(30, 90), 0.0005)
    assert calm.harm_e < 2
    assert stormy.harm_e < 2


def test_a_service_without_errors_can_show_that_it_has_none():
    evidence = RateEvidence()
    for _ in range(40):
        evidence = evidence.add(Counts(0, 1000), Counts(0, 200), 0.0005)
    assert evidence.harm_e == pytest.approx(1.0)
    assert all(evidence.safe_e(f) >= 20 for f in FACTORS)


@settings(deadline=None)
@given(
    base=st.integers(0, 50), new=st.integers(0, 50), more=st.integers(1, 50),
    n_base=st.integers(100, 5000), n_new=st.integers(100, 5000),
)  # fmt: skip
def test_more_of_the_same_harm_is_more_evidence(base, new, more, n_base, n_new):
    less = RateEvidence().add(Counts(base, n_base), Counts(new, n_new), 0.0005)
    worse = RateEvidence().add(Counts(base, n_base), Counts(new + more, n_new), 0.0005)
    assert worse.harm_e >= less.harm_e
    assert all(worse.safe_e(f) <= less.safe_e(f) for f in FACTORS)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0, 0.3))
def test_lower_scores_are_more_evidence_of_lower_quality(scores, drop):
    lower = [max(0.0, s - drop) for s in scores]
    same = QualityEvidence().add(zip(scores, scores, strict=True))
    worse = QualityEvidence().add(zip(scores, lower, strict=True))
    assert same.harm_e == pytest.approx(1.0)
    assert worse.harm_e >= same.harm_e - 1e-9
    assert all(worse.safe_e(f) <= same.safe_e(f) + 1e-9 for f in FACTORS)


def test_betting_keeps_its_promise_and_finds_a_drop():
    rng = np.random.default_rng(5)

    def peak(drop: float) -> float:
        evidence, top = QualityEvidence(), 0.0
        for _ in range(60):
            level = rng.uniform(0.5, 0.9)
            base = rng.binomial(1, level, 30).astype(float)
            new = rng.binomial(1, level - drop, 15).astype(float)
            evidence = evidence.add(pairs(base.tolist(), new.tolist()))
            top = max(top, evidence.harm_e)
        return top

    assert sum(peak(0.0) >= 20 for _ in range(200)) <= 16
    assert all(peak(0.2) >= 20 for _ in range(20))


def test_pairs_are_of_means_over_equal_groups():
    assert pairs([1.0, 0.0, 1.0, 0.0], [0.5]) == [(0.5, 0.5)]
    assert pairs([], [0.5]) == []
    with pytest.raises(ValueError, match=r"0\.\.1"):
        pairs([2.0], [0.5])


def test_differing_answers_must_exceed_both_the_noise_and_what_is_tolerated():
    def after(itself: int, differ: int, tolerated: float) -> float:
        evidence = DifferEvidence()
        for _ in range(10):
            evidence = evidence.add(Counts(itself, 500), Counts(differ, 500), tolerated)
        return evidence.harm_e

    assert after(5, 60, 0.02) >= 80  # 12% against 1% noise and 2% tolerated
    assert after(60, 60, 0.02) < 2  # a model that differs from itself as much
    assert after(0, 8, 0.05) < 2  # a new model may differ a little


def test_a_shifted_mix_of_answers_is_seen_and_a_similar_one_is_not():
    rng = np.random.default_rng(6)

    def after(new_mix: list[float]) -> float:
        evidence = ShiftEvidence()
        for _ in range(20):
            evidence = evidence.add(
                rng.multinomial(900, [0.7, 0.2, 0.1]).tolist(),
                rng.multinomial(100, new_mix).tolist(),
            )
        return evidence.harm_e

    assert after([0.68, 0.21, 0.11]) < 2
    assert after([0.45, 0.2, 0.35]) >= 80


@settings(deadline=None)
@given(st.integers(0, 200), st.integers(1, 200))
def test_the_upper_rate_is_above_what_was_seen(hits, more):
    counts = Counts(hits, hits + more)
    assert counts.share <= upper_rate(counts) <= 1


def test_counts_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="5 hits of 3"):
        Counts(5, 3)


def test_evidence_has_mean_at_most_one_under_the_null():
    rng = np.random.default_rng(7)
    values = []
    for _ in range(4000):
        base, new = int(rng.binomial(900, 0.05)), int(rng.binomial(100, 0.05))
        evidence = RateEvidence().add(Counts(base, 900), Counts(new, 100), 0.0005)
        values.append(evidence.harm_e)
    assert np.mean(values) <= 1 + 3 * np.std(values) / np.sqrt(len(values))


def test_halves_that_vary_as_chance_does_hardly_temper_and_clusters_temper_by_their_size():
    rng = np.random.default_rng(5)

    def after(minutes, cluster):
        seen = Dispersion()
        for _ in range(minutes):
            halves = [0, 0]
            for _ in range(12 // cluster):
                halves[int(rng.random() < 0.5)] += cluster
            seen = seen.add(Counts(halves[0], 600), Counts(sum(halves), 1200))
        return seen.factor

    by_chance = [after(60, 1) for _ in range(50)]
    assert min(by_chance) == 1.0
    assert np.mean(by_chance) < 1.15
    assert max(after(2000, 1) for _ in range(3)) < 1.1
    assert 2.5 < after(400, 4) < 6.5
    assert Dispersion().add(Counts(0, 0), Counts(5, 1200)).factor == 1.0, "no halves, no verdict"
    plain = RateEvidence().add(Counts(5, 1000), Counts(15, 1000), 0.0005)
    tempered = RateEvidence().add(Counts(5, 1000), Counts(15, 1000), 0.0005, temper=4.0)
    assert tempered.harm == pytest.approx([x / 4 for x in plain.harm])
    assert 1.0 < tempered.harm_e < plain.harm_e
