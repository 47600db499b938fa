"""Evidence that may be looked at every minute: e-processes for harm, and their reverse for safety.

Responsible for turning counts of two versions into numbers that a rollout may act on at any time
without inflating false alarms. Refuses to decide: thresholds and consequences live in `rollout`.

An e-process is a non-negative process whose mean is at most 1 while the hypothesis holds, however
and whenever one looks, so it reaches 1/alpha with a chance of at most alpha (Ville 1939; Ramdas,
Grunwald, Vovk & Shafer 2023, "Game-theoretic statistics and safe anytime-valid inference").
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

RATIOS = (1.2, 1.5, 2.0, 3.0, 5.0, 10.0)
"""How many times worse a bad version may be: the alternatives that the mixture bets on."""
FACTORS = (10.0, 5.0, 2.0, 1.5)
"""What a version must be shown *not* to be, ever more strictly as it gets more traffic."""
BETS = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Shares of the capital that the quality test stakes on each pair."""
LIMIT = 0.05
"""More errors than this are harm where nothing is known of the running version's."""
_SHARES = (1 / 10, 1 / 3, 2 / 3)
_SHIFTS = (1.5, 3.0)


def log_mean_exp(logs: Sequence[float]) -> float:
    """Logarithm of the mean of `exp(logs)`: a uniform mixture of likelihood ratios."""
    top = max(logs)
    return top + math.log(sum(math.exp(x - top) for x in logs) / len(logs))


def as_number(log_e: float) -> float:
    """An e-value for people and JSON: finite, whatever the logarithm."""
    return math.exp(min(log_e, 690.0))


@dataclass(frozen=True)
class Counts:
    """`hits` (errors, slow answers, differing answers) among `of` requests."""

    hits: int = 0
    of: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.hits <= self.of:
            raise ValueError(f"{self.hits} hits of {self.of} requests")

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.hits + other.hits, self.of + other.of)

    @property
    def share(self) -> float:
        return self.hits / self.of if self.of else 0.0


def conditional(baseline: Counts, candidate: Counts, ratio: float, against: float) -> float:
    """Log likelihood ratio of "the rate is `ratio` times the baseline's" to "`against` times".

    Given how many hits a minute had in all, how many fell to the candidate depends only on both
    arms' traffic and on the ratio of their rates, not on how bad a minute it was for everybody:
    binomial with probability r*m/(r*m + n). So shared shocks cancel (Lindon & Malek 2022,
    "Anytime-valid inference for multinomial count data", NeurIPS). When hits are not rare the true
    law is a hypergeometric one, which Hoeffding (1963, theorem 4) puts below the binomial in convex
    order: the test then errs towards caution.
    """
    if not baseline.of or not candidate.of:
        return 0.0
    at = [r * candidate.of / (r * candidate.of + baseline.of) for r in (ratio, against)]
    return candidate.hits * math.log(at[0] / at[1]) + baseline.hits * math.log(
        (1 - at[0]) / (1 - at[1])
    )


def binomial(counts: Counts, rate: float, against: float) -> float:
    """Log likelihood ratio of "the rate is `rate`" to "it is `against`"; both in (0, 1)."""
    misses = counts.of - counts.hits
    return counts.hits * math.log(rate / against) + misses * math.log((1 - rate) / (1 - against))


def upper_rate(counts: Counts, misjudged: float = 0.01) -> float:
    """A rate that the true one exceeds with a chance of about `misjudged` (Wilson 1927)."""
    if not counts.of:
        return 1.0
    z = 2.326 if misjudged <= 0.01 else 1.645
    n, p = counts.of, counts.share
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return min(1.0, (centre + spread) / (1 + z * z / n))


@dataclass(frozen=True)
class Dispersion:
    """How far the baseline's errors are from independent: its halves against each other.

    Given a minute's errors of the baseline, the share of one half varies as a binomial's does where
    errors are independent, and `factor` times as much where they come in clusters (McCullagh &
    Nelder 1989, "Generalized Linear Models", 4.5). Shared shocks cancel, as between the versions.
    """

    squares: float = 0.0
    hits: float = 0.0

    def add(self, half: Counts, whole: Counts) -> Dispersion:
        """With one more minute: `half` of the requests in `whole`, split as the versions are."""
        share = half.of / whole.of if whole.of else 0.0
        if not whole.hits or not 0.1 < share < 0.9:
            return self
        square = (half.hits - share * whole.hits) ** 2 / (share * (1 - share))
        return Dispersion(self.squares + square, self.hits + whole.hits)

    @property
    def factor(self) -> float:
        """How much more the halves vary than chance explains, as far as is known; never below 1.

        Chance alone lifts it above 1 at first. To wait until it is surely above 1 costs more: what comes
        in clusters then counts in full for as long (decision 0502).
        """
        return max(1.0, self.squares / self.hits) if self.hits else 1.0


@dataclass(frozen=True)
class RateEvidence:
    """Is the candidate's rate of something bad higher than the baseline's?

    `harm`: per ratio of RATIOS, against "not higher". `safe` and `low`: per factor of FACTORS, the
    reverse test, against "at least `factor` times the baseline's" and against "at least
    `factor**2 * floor`", so that a service without any errors can show something too: easily
    while few are exposed, strictly before everybody is.
    """

    baseline: Counts = Counts()
    candidate: Counts = Counts()
    harm: tuple[float, ...] = (0.0,) * len(RATIOS)
    safe: tuple[float, ...] = (0.0,) * len(FACTORS)
    low: tuple[tuple[float, ...], ...] = ((0.0,) * len(_SHARES),) * len(FACTORS)

    def add(
        self, baseline: Counts, candidate: Counts, floor: float, temper: float = 1.0
    ) -> RateEvidence:
        """With one more minute of both arms; `floor` is a rate too low to matter.

        `temper`: the baseline's dispersion. So many hits that come together say as much as one:
        the likelihood is raised to the power 1/temper (Wedderburn 1974, quasi-likelihood).
        """
        return RateEvidence(
            self.baseline + baseline,
            self.candidate + candidate,
            tuple(
                x + conditional(baseline, candidate, r, 1.0) / temper
                for x, r in zip(self.harm, RATIOS, strict=True)
            ),
            tuple(
                x + conditional(baseline, candidate, 1.0, f) / temper
                for x, f in zip(self.safe, FACTORS, strict=True)
            ),
            self._lower(candidate, floor, temper),
        )

    def add_alone(self, reference: Counts, candidate: Counts, floor: float) -> RateEvidence:
        """With a minute in which the candidate had all traffic (blue/green after the switch).

        There is no baseline beside it to cancel a shared shock, so it is held against 1.5 times
        the most that the reference before the switch allows; without any reference against `LIMIT`,
        which can show harm and never that it is no worse.
        """
        if not reference.of:
            limit = max(LIMIT, 1.5 * floor)
            return replace(
                self,
                candidate=self.candidate + candidate,
                harm=tuple(
                    x + binomial(candidate, min(0.98, r * limit), limit)
                    for x, r in zip(self.harm, RATIOS, strict=True)
                ),
                low=self._lower(candidate, floor),
            )
        allowed = min(0.5, 1.5 * max(upper_rate(reference), floor))
        return RateEvidence(
            self.baseline,
            self.candidate + candidate,
            tuple(
                x + binomial(candidate, min(0.98, r * allowed), allowed)
                for x, r in zip(self.harm, RATIOS, strict=True)
            ),
            tuple(
                x + binomial(candidate, allowed / 1.5, min(0.9, f * allowed))
                for x, f in zip(self.safe, FACTORS, strict=True)
            ),
            self._lower(candidate, floor),
        )

    def _lower(
        self, candidate: Counts, floor: float, temper: float = 1.0
    ) -> tuple[tuple[float, ...], ...]:
        return tuple(
            tuple(
                x + binomial(candidate, share * limit, limit) / temper
                for x, share in zip(row, _SHARES, strict=True)
            )
            for row, limit in ((row, min(0.9, f * f * floor)) for row, f in self._rows())
        )

    def _rows(self) -> Iterable[tuple[tuple[float, ...], float]]:
        return zip(self.low, FACTORS, strict=True)

    @property
    def harm_e(self) -> float:
        return as_number(log_mean_exp(self.harm))

    def safe_e(self, factor: float) -> float:
        """Evidence for "not `factor` times worse" or "below `factor**2 * floor`".

        The mean of two e-values for hypotheses that hold together is one for their intersection.
        """
        i = FACTORS.index(factor)
        return (as_number(self.safe[i]) + as_number(log_mean_exp(self.low[i]))) / 2


@dataclass(frozen=True)
class DifferEvidence:
    """Do mirrored answers differ more than the baseline differs from itself, and more than allowed?

    Two harms must both be shown (the smaller of two e-values is one for the union of their
    hypotheses): above the noise of the baseline asked twice, and above the tolerated share.
    """

    rate: RateEvidence = RateEvidence()
    above: tuple[float, ...] = (0.0,) * len(RATIOS)

    def add(self, itself: Counts, candidate: Counts, tolerated: float) -> DifferEvidence:
        return DifferEvidence(
            self.rate.add(itself, candidate, tolerated),
            tuple(
                x + binomial(candidate, min(0.99, r * tolerated), tolerated)
                for x, r in zip(self.above, RATIOS, strict=True)
            ),
        )

    @property
    def harm_e(self) -> float:
        # Without the baseline asked twice its noise is unknown and nothing counts as harm.
        return min(self.rate.harm_e, as_number(log_mean_exp(self.above)))

    def safe_e(self, factor: float) -> float:
        return self.rate.safe_e(factor)


@dataclass(frozen=True)
class ShiftEvidence:
    """Has the mix of answers (per class or bin) moved by more than `tolerance` in any class?

    Both directions of every class, each against "within tolerance"; their mean is an e-value.
    """

    tolerance: float = 1.5
    logs: tuple[tuple[float, ...], ...] = ()
    baseline: tuple[int, ...] = ()
    candidate: tuple[int, ...] = ()

    def add(self, baseline: Sequence[int], candidate: Sequence[int]) -> ShiftEvidence:
        """`baseline[i]` and `candidate[i]` answers of class i in this minute (same classes)."""
        size = max(len(baseline), len(candidate), len(self.logs))
        b, c = _padded(baseline, size), _padded(candidate, size)
        old = self.logs + ((0.0,) * (2 * len(_SHIFTS)),) * (size - len(self.logs))
        logs = tuple(
            tuple(x + y for x, y in zip(old[i], self._class(b, c, i), strict=True))
            for i in range(size)
        )
        return ShiftEvidence(
            self.tolerance,
            logs,
            tuple(x + y for x, y in zip(_padded(self.baseline, size), b, strict=True)),
            tuple(x + y for x, y in zip(_padded(self.candidate, size), c, strict=True)),
        )

    def _class(self, b: Sequence[int], c: Sequence[int], i: int) -> list[float]:
        base, new = Counts(b[i], sum(b)), Counts(c[i], sum(c))
        up = [conditional(base, new, self.tolerance * s, self.tolerance) for s in _SHIFTS]
        down = [conditional(base, new, 1 / (self.tolerance * s), 1 / self.tolerance)
                for s in _SHIFTS]  # fmt: skip
        return up + down

    @property
    def harm_e(self) -> float:
        flat = [x for row in self.logs for x in row]
        return as_number(log_mean_exp(flat)) if flat else 1.0


def _padded(values: Sequence[int], size: int) -> tuple[int, ...]:
    return (*values, *([0] * (size - len(values))))


def pairs(baseline: Sequence[float], candidate: Sequence[float]) -> list[tuple[float, float]]:
    """(baseline, candidate) scores of equal age; the larger side is averaged in equal groups.

    An average of several scores has the same mean, the same range and less noise than one.
    """
    for score in (*baseline, *candidate):
        if not 0.0 <= score <= 1.0:
            raise ValueError(f"a feedback score lies in 0..1, not at {score}")
    num = min(len(baseline), len(candidate))
    return [
        (math.fsum(b) / len(b), math.fsum(c) / len(c))
        for b, c in ((baseline[i::num], candidate[i::num]) for i in range(num))
    ]


@dataclass(frozen=True)
class QualityEvidence:
    """Are scores in [0, 1] (1 is good) of the candidate lower than the baseline's?

    Testing by betting (Waudby-Smith & Ramdas 2024, "Estimating means of bounded random variables
    by betting", JRSS B): the capital of a gambler who stakes a share on each pair. A mixture over
    fixed shares needs no tuning. `safe` bets against "worse by at least margin * factor".
    """

    margin: float = 0.03
    num_pairs: int = 0
    sum_baseline: float = 0.0
    sum_candidate: float = 0.0
    harm: tuple[float, ...] = (0.0,) * len(BETS)
    safe: tuple[tuple[float, ...], ...] = ((0.0,) * len(BETS),) * len(FACTORS)

    def add(self, scored: Iterable[tuple[float, float]]) -> QualityEvidence:
        """With more `(baseline, candidate)` pairs of equal age (see `pairs`)."""
        harm, safe = list(self.harm), [list(row) for row in self.safe]
        num, base, new = self.num_pairs, self.sum_baseline, self.sum_candidate
        for b, c in scored:
            num, base, new = num + 1, base + b, new + c
            for j, bet in enumerate(BETS):
                harm[j] += math.log1p(bet * (b - c))
                for row, factor in zip(safe, FACTORS, strict=True):
                    row[j] += math.log1p(bet * (c - b + self.margin * factor))
        return QualityEvidence(
            self.margin, num, base, new, tuple(harm), tuple(tuple(row) for row in safe)
        )

    @property
    def harm_e(self) -> float:
        return as_number(log_mean_exp(self.harm))

    def safe_e(self, factor: float) -> float:
        return as_number(log_mean_exp(self.safe[FACTORS.index(factor)]))


@dataclass(frozen=True)
class Evidence:
    """All that a rollout has seen so far, as sufficient statistics that fit into one JSON row."""

    errors: RateEvidence = RateEvidence()
    latency: RateEvidence = RateEvidence()
    differ: DifferEvidence = DifferEvidence()
    shift: ShiftEvidence = ShiftEvidence()
    feedback: QualityEvidence = field(default_factory=QualityEvidence)
    dispersion: Dispersion = Dispersion()


NO_COUNTS = Counts()
NO_EVIDENCE = Evidence()
