"""Seeded synthetic request traces of an hour: kinds of traffic, to develop a policy on.

Recorded traces are for judging, so a policy must not be fitted to them. Each family draws its own
parameters from the seed. Nothing here imitates a particular file.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sundog.sim.traces import (
    DECODE_S_TOKEN,
    PREFILL_TOKENS_S,
    RATE_SERVICE_S,
    Floats,
    Trace,
    from_rates,
)

HOUR_S = 3600
Rng = np.random.Generator


def diurnal(seed: int) -> Trace:
    """A day in an hour: two slow waves, little noise."""
    rng, t = _begin(seed)
    waves = 1 + 0.5 * _wave(rng, t, 3600) + 0.15 * _wave(rng, t, 1200)
    return _rates("diurnal", 160 * waves * (1 + 0.03 * _smooth(rng, 20)), seed)


def noisy(seed: int) -> Trace:
    """Noise at three time scales; every other seed steps up by 30% somewhere."""
    rng, _ = _begin(seed)
    noise = 0.08 * _smooth(rng, 15) + 0.1 * _smooth(rng, 300) + 0.1 * rng.normal(size=HOUR_S)
    level = 150 * (1 + noise)
    if seed % 2:
        level[rng.integers(900, 2700) :] *= 1.3
    return _rates("noisy", level, seed)


def ramp(seed: int) -> Trace:
    """One hill of two and a half to four times the load, minutes wide."""
    rng, t = _begin(seed)
    base = 120 * (1 + 0.15 * _smooth(rng, 120))
    centre, height, width_s = rng.integers(600, 3000), rng.uniform(1.5, 3), rng.uniform(150, 350)
    return _rates("ramp", base * (1 + height * np.exp(-(((t - centre) / width_s) ** 2) / 2)), seed)


def half_hours(seed: int) -> Trace:
    """Spikes on the half hour, smaller ones between, each decaying within minutes. Even seeds lie
    off the clock's grid, where the first spike cannot be foreseen.
    """
    rng, t = _begin(seed)
    level = 130 * (1 + 0.08 * _smooth(rng, 200) + 0.06 * rng.normal(size=HOUR_S))
    phase = 0 if seed % 2 else int(rng.integers(0, 1800))
    height = rng.uniform(0.8, 2.0)
    for at_s in range(-1800, 5400, 300):
        size = 0.08
        if at_s % 1800 == 0:
            size = height * rng.uniform(0.8, 1.2)
        elif at_s % 900 == 0:
            size = 0.25 * height * rng.uniform(0.3, 1.0)
        since = np.maximum(t - at_s - phase, 0.0)
        level += 130 * size * np.minimum(1, since / 8) * np.exp(-since / rng.uniform(40, 120))
    return _rates("half_hours", level, seed)


def steps(seed: int) -> Trace:
    """Levels held for minutes, each a third lower to 60% higher than the last."""
    rng, _ = _begin(seed)
    level, at, height = np.zeros(HOUR_S), 0, 120.0
    while at < HOUR_S:
        length = int(rng.integers(200, 600))
        level[at : at + length] = height
        at += length
        height = float(np.clip(height * rng.choice([0.6, 0.75, 1.3, 1.6]), 50, 350))
    return _rates("steps", rng.poisson(level), seed)


def two_states(seed: int) -> Trace:
    """Markov-modulated: twice the load for some 40 s, every minute and a half."""
    rng, _ = _begin(seed)
    level, at, state = np.zeros(HOUR_S), 0, 0
    while at < HOUR_S:
        length = int(rng.exponential((90, 40)[state])) + 5
        level[at : at + length] = (60, 130)[state]
        at, state = at + length, 1 - state
    return _rates("two_states", rng.poisson(level), seed)


def flash_crowd(seed: int) -> Trace:
    """Three and a half times the load within minutes, out of nowhere, once."""
    rng, t = _begin(seed)
    since = np.maximum(t - rng.integers(600, 2800), 0.0)
    crowd = 250 * (1 - np.exp(-since / 90)) * np.exp(-since / 500)
    return _rates("flash_crowd", rng.poisson(100 + crowd), seed)


def heavy_tailed(seed: int) -> Trace:
    """The diurnal one with log-normal service times (sigma 1.5)."""
    trace = diurnal(seed)
    rng = np.random.default_rng(seed + 1)
    service_s = RATE_SERVICE_S * rng.lognormal(-(1.5**2) / 2, 1.5, len(trace))
    return Trace(f"heavy_tailed-{seed}", trace.arrival_s, service_s, trace.duration_s)


def conversation(seed: int) -> Trace:
    """A chat model: about 5.5 requests a second, long answers, slow drift and ten-second swings."""
    rng, t = _begin(seed)
    drift = np.exp(0.25 * np.cumsum(rng.normal(size=HOUR_S)) / 60 + 0.2 * _wave(rng, t, 3800))
    swings = np.repeat(rng.gamma(25, 1 / 25, HOUR_S // 10), 10)
    return _tokens("conversation", 5.5 * drift / drift.mean() * swings, 129, 0.99, 700, seed)


def completion(seed: int) -> Trace:
    """A code model: bursts of seconds out of silence, short answers, long prompts."""
    rng, _ = _begin(seed)
    level, at = np.zeros(HOUR_S), 0.0
    while at < HOUR_S:
        at += rng.exponential(55) if rng.random() < 0.85 else rng.exponential(150)
        length = min(float(rng.lognormal(np.log(12), 1.0)), 80.0)
        level[int(at) : int(at + length) + 1] = rng.lognormal(np.log(9), 0.6)
        at += length
    return _tokens("completion", level, 13, 1.1, 1500, seed)


def office_day(seed: int = 0, peak: float = 8.0) -> Trace:
    """A day of an office in an hour: nothing from 20:00 to 7:00, two humps around 11:00 and 16:00 of
    `peak` requests a second, Poisson arrivals, one second of work each (exponential).
    """
    rng = np.random.default_rng(seed)
    hour = np.arange(HOUR_S) * 24 / HOUR_S
    humps = np.exp(-(((hour - 11) / 2) ** 2)) + np.exp(-(((hour - 16) / 1.7) ** 2))
    level = np.where((hour >= 7) & (hour < 20), peak * humps, 0.0)
    counts = rng.poisson(level).astype(np.int64)
    return from_rates(f"office-day-{seed}", counts, mean_service_s=1.0, seed=seed)


FAMILIES: dict[str, Callable[[int], Trace]] = {
    family.__name__: family
    for family in (
        diurnal,
        noisy,
        ramp,
        half_hours,
        steps,
        two_states,
        flash_crowd,
        heavy_tailed,
        conversation,
        completion,
    )
}


def _begin(seed: int) -> tuple[Rng, Floats]:
    return np.random.default_rng(seed), np.arange(HOUR_S, dtype=np.float64)


def _wave(rng: Rng, t: Floats, period_s: float) -> Floats:
    return np.sin(2 * np.pi * (t / period_s + rng.random()))


def _smooth(rng: Rng, memory_s: int) -> Floats:
    """Standard normal noise with an exponential memory."""
    kernel = np.exp(-np.arange(5 * memory_s) / memory_s)
    noise = rng.normal(size=HOUR_S + len(kernel) - 1)
    return np.convolve(noise, kernel / np.sqrt((kernel**2).sum()), "valid")


def _rates(name: str, level: Floats | NDArray[np.int64], seed: int) -> Trace:
    return from_rates(f"{name}-{seed}", np.maximum(level, 5).astype(np.int64), seed=seed)


def _tokens(
    name: str, level: Floats, answer: float, answer_sigma: float, prompt: float, seed: int
) -> Trace:
    rng = np.random.default_rng(seed + 1)
    arrivals = from_rates(name, rng.poisson(level), seed=seed).arrival_s
    generated = np.clip(rng.lognormal(np.log(answer), answer_sigma, len(arrivals)), 1, 1500)
    context = np.clip(rng.lognormal(np.log(prompt), 0.9, len(arrivals)), 10, 7400)
    service_s = context / PREFILL_TOKENS_S + generated * DECODE_S_TOKEN
    return Trace(f"{name}-{seed}", arrivals, service_s, float(HOUR_S))
