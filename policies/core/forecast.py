"""What the load does until a new replica would be there: what it did before.

No form of the load is assumed. Each 10 s are compared with three bases as they were a horizon
before: how often the load came to so many times its base is the forecast for the base of now.
What follows a calm is not what follows a burst, so each is counted by how the load then stood to
its own mean; of what has been seen seldom, all cases together speak with the weight of a few.

Where the present tells no more than the mean, the load is one of bursts: what is asked for within
one comes when it is over, and has left when the next one comes. Such a load has a forecast that is
the same at all times: half an hour's mean, and all that the load has been of its mean. How high the
next burst is, a handful of them do not tell; they are taken for a log-normal sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from policies.core.memory import Memory

Floats = NDArray[np.float64]

LEVEL_S = 10.0  # span of one level
BASE_LEVELS = 6  # a minute: the present
TOP_LEVELS = 180  # half an hour
KNOWN_LEVELS = 30  # of it, before it says anything
FORGET_TOP_S = 14_400.0
TOP_SHARE = 0.4  # of what a level is above the top: a single one may be an outlier
KNOWN_S = 7200.0  # in which a load shows its habits
LONG_S = 600.0  # time constant of the mean
PRIOR_CASES = 60.0
POOLED_CASES = 20.0
BURSTY_RATIO, BURSTY_LEVELS = 2.0, 90  # of its ten-minute mean; a quarter of an hour of it
BURSTY_REACH, REACHED_SHARE = 0.9, 0.02  # of the swings; of what is asked for, what is beyond
BURST_RATIO = 1.75  # of the mean: what counts as a burst
BURST_SIGMA, BURST_CASES = 0.25, 5.0  # of the logarithm of bursts, before any is seen
SEEN_ONCE = 0.5  # of a case: what was seen once is forgotten with the rest
STATES = (0.75, 1.33)  # of the ten-minute mean: calm below, a burst above
GROWTH_STEP = 0.05  # of the logarithm of growth
SHRUNK_BINS = 30  # from e^-1.5
GROWTH_BINS = 90  # to e^3 = 20 times
RATIOS = np.exp(GROWTH_STEP * (np.arange(GROWTH_BINS) - SHRUNK_BINS))
FORGET_PER_LEVEL = 0.9997  # half of it in 6 hours


def with_level(
    memory: Memory, now_s: float, rate_per_s: float, steady_per_s: float, horizon_s: float
) -> Memory:
    """Take the load of the last seconds, and that of a longer window; each 10 s that are full are
    compared with the minute, the mean over ten minutes, and the top of half an hour that were known
    `horizon_s` before. What differs from the longer window by no more than the noise of a Poisson
    count in 10 s is taken for noise, and as much is taken off what differs more."""
    total, count = memory.level_sum + rate_per_s, memory.level_count + 1
    begun_s = memory.level_s if memory.level_count or memory.levels else now_s
    if 0.0 <= now_s - begun_s < LEVEL_S:
        return replace(memory, level_s=begun_s, level_sum=total, level_count=count)
    apart = total / count - steady_per_s
    noise = math.sqrt(max(steady_per_s, 0.0) / LEVEL_S)
    level = max(steady_per_s + math.copysign(max(abs(apart) - noise, 0.0), apart), 0.0)
    ahead = max(math.ceil(horizon_s / LEVEL_S), 1)
    levels = (*memory.levels, level)[-TOP_LEVELS - ahead :]
    long = memory.longs[-1] if memory.longs else level
    longs = (*memory.longs, long + LEVEL_S / LONG_S * (level - long))[-ahead - 1 :]
    grown = memory.grown
    if len(levels) >= BASE_LEVELS + ahead:
        before = levels[:-ahead]
        top = max(before) if len(before) >= KNOWN_LEVELS else 0.0
        bases = (sum(before[-BASE_LEVELS:]) / BASE_LEVELS, longs[0], top)
        state = _state(levels[-ahead - 1], longs[0])
        grown = tuple(
            _counted(counts, level, bases[place // 3]) if place % 3 == state else counts
            for place, counts in enumerate(grown)
        )
    span_s = max(now_s - begun_s, 0.0)
    return replace(
        memory,
        level_s=now_s,
        level_sum=0.0,
        level_count=0,
        top_per_s=_top(memory, level, span_s),
        seen_s=memory.seen_s + span_s,
        levels=levels,
        longs=longs,
        grown=grown,
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Outlook:
    """Loads that may come within the horizon, requests/s, and how many cases speak for each."""

    rates_per_s: Floats
    cases: Floats


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Swings:
    """How often the load was each of RATIOS times its ten-minute mean, in whatever state, the
    highest of them that was seen at least once (1 where nothing is known), and whether the last
    minute says no more about what comes than that mean."""

    cases: Floats
    top_ratio: float
    bursts: bool


def swings_of(memory: Memory) -> Swings:
    """How far the load of 10 s has swung about its mean."""
    growth = _growth(memory.grown)
    known = len(memory.levels) >= BURSTY_LEVELS and growth.top_ratio >= BURSTY_RATIO
    return Swings(
        cases=growth.pooled[1], top_ratio=growth.top_ratio, bursts=known and growth.bursts
    )


def outlooks(memory: Memory, present_per_s: float, unknown: float) -> tuple[Outlook, ...]:
    """One for each base that has been seen often enough; each is a forecast by itself. In a steady
    rise the first is the narrowest, in gentle waves the second, at their top the third. 20 cases
    in which the load grew to `unknown` times the present stand for what has not been seen; they
    fade."""
    long = memory.longs[-1] if memory.longs else 0.0
    top = max(memory.levels[-TOP_LEVELS:], default=0.0)
    state = _state(present_per_s, long)
    growth = _growth(memory.grown)
    found = []
    for place, base in enumerate((present_per_s, long, top)):
        pooled = growth.pooled[place]
        total = float(pooled.sum())
        cases = growth.cases[place, state] + POOLED_CASES / max(total, POOLED_CASES) * pooled
        if place == 0:
            cases[_place(unknown)] += POOLED_CASES * PRIOR_CASES / max(total, PRIOR_CASES)
        if place == 0 or total >= PRIOR_CASES / 2.0:
            found.append(Outlook(rates_per_s=base * RATIOS, cases=cases))
    return tuple(found)


def burst_outlook(memory: Memory, swings: Swings) -> Outlook:
    """The forecast of a load of bursts, the same within one and between."""
    mean_per_s = sum(memory.levels) / max(len(memory.levels), 1)
    return Outlook(rates_per_s=mean_per_s * RATIOS, cases=_smoothed(swings.cases))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Growth:
    """`Memory.grown` as arrays. `cases`: (bases, states, bins), the bases being the last minute,
    the ten-minute mean and the top of half an hour; `pooled`: over the states; `top_ratio` and
    `bursts` as in Swings, before it is asked for how long the load has been watched."""

    cases: Floats
    pooled: Floats
    top_ratio: float
    bursts: bool


@lru_cache(maxsize=32)
def _growth(grown: tuple[tuple[float, ...], ...]) -> _Growth:
    """Made anew only where a level has come, every 10 s."""
    unknown = (0.0,) * GROWTH_BINS
    cases = np.array([one or unknown for one in grown]).reshape(-1, len(STATES) + 1, GROWTH_BINS)
    pooled = cases.sum(axis=1)
    cases.flags.writeable = pooled.flags.writeable = False
    seen = np.flatnonzero(np.cumsum(pooled[1][::-1])[::-1] >= SEEN_ONCE)
    return _Growth(
        cases=cases,
        pooled=pooled,
        top_ratio=float(RATIOS[seen[-1]]) if len(seen) else 1.0,
        bursts=_reach(pooled[0]) >= BURSTY_REACH * _reach(pooled[1]),
    )


def _reach(cases: Floats) -> float:
    """The ratio beyond which no more than a fiftieth of all that was asked for came; 0 of none."""
    asked = np.cumsum((cases * RATIOS)[::-1])[::-1]
    reached = np.flatnonzero(asked > REACHED_SHARE * asked[0])
    return float(RATIOS[reached[-1]]) if len(reached) else 0.0


def _smoothed(cases: Floats) -> Floats:
    """As many bursts as were seen, as high as a log-normal distribution with their mean and their
    spread has them (each added to a few cases of the prior spread)."""
    bursts = RATIOS >= BURST_RATIO
    counts = np.where(bursts, cases, 0.0)
    seen = float(counts.sum())
    if seen <= 0.0:
        return cases
    heights = np.log(RATIOS)
    mean = float(counts @ heights) / seen
    squares = float(counts @ (heights - mean) ** 2) + BURST_CASES * BURST_SIGMA**2
    variance = squares / (seen + BURST_CASES)
    shape = np.where(bursts, np.exp(-((heights - mean) ** 2) / (2.0 * variance)), 0.0)
    return np.where(bursts, seen * shape / float(shape.sum()), cases)


def known_ratio(memory: Memory) -> float:
    """How far the habits of the load are known, 0..1: after two hours, silent or not."""
    return min(memory.seen_s / KNOWN_S, 1.0)


def _top(memory: Memory, level: float, span_s: float) -> float:
    """The highest level of the last hours; a new one is believed as it lasts or comes again."""
    top = memory.top_per_s * math.exp(-span_s / FORGET_TOP_S)
    share = TOP_SHARE if len(memory.levels) >= KNOWN_LEVELS else 1.0
    return top + share * max(level - top, 0.0)


def _state(rate_per_s: float, mean_per_s: float) -> int:
    """0: calm, 1: as usual, 2: a burst."""
    return sum(rate_per_s > limit * mean_per_s for limit in STATES)


def _place(ratio: float) -> int:
    place = math.ceil(math.log(max(ratio, 1e-9)) / GROWTH_STEP) + SHRUNK_BINS
    return min(max(place, 0), GROWTH_BINS - 1)


def _counted(counts: tuple[float, ...], most: float, base: float) -> tuple[float, ...]:
    if base <= 0.0:
        return counts
    more = [FORGET_PER_LEVEL * one for one in counts] or [0.0] * GROWTH_BINS
    more[_place(most / base)] += 1.0
    return tuple(more)
