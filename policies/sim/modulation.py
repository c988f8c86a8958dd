"""How a rate moves within the steps of its curve: seeded fluctuations and bursts.

All of them are stationary and have the mean 1, so that the curve stays the expected rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policies.core.errors import ConfigError

Floats = NDArray[np.float64]

MIN_TIME_S = 0.1
MAX_CV = 10.0
MAX_CELL_S = 10.0
_CELLS_PER_CORRELATION = 10
_SCAN = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Bursts:
    """What makes arrivals burstier than a Poisson process of the curve's rate. Default: nothing.

    `interarrival_cv`: standard deviation over mean of the gaps at a constant rate, gamma
    distributed; 1 is Poisson. `rate_cv`, `correlation_s`: the rate itself fluctuates, as the
    exponential of an Ornstein-Uhlenbeck process, with this coefficient of variation and correlation
    time. `burst_factor`, `burst_s`, `gap_s`: square bursts at so many times the rate between them,
    of exponential lengths and gaps with these means (a Markov-modulated process of two states).
    """

    interarrival_cv: float = 1.0
    rate_cv: float = 0.0
    correlation_s: float = 60.0
    burst_factor: float = 1.0
    burst_s: float = 30.0
    gap_s: float = 600.0

    def __post_init__(self) -> None:
        for name in ("interarrival_cv", "rate_cv"):
            if not 0 <= getattr(self, name) <= MAX_CV:
                raise ConfigError(f"{name} {getattr(self, name):g}: expected 0..{MAX_CV:g}")
        for name in ("correlation_s", "burst_s", "gap_s"):
            if not MIN_TIME_S <= getattr(self, name) < math.inf:
                raise ConfigError(
                    f"{name} {getattr(self, name):g}: expected seconds ≥ {MIN_TIME_S:g}"
                )
        if not 1 <= self.burst_factor < math.inf:
            raise ConfigError(f"burst_factor {self.burst_factor:g}: expected a number ≥ 1")

    @property
    def burst_share_ratio(self) -> float:
        """Share of the time in bursts."""
        return self.burst_s / (self.burst_s + self.gap_s)

    @property
    def cell_s(self) -> float:
        """Time for which a fluctuation is held: a tenth of its correlation time or less."""
        if self.rate_cv == 0:
            return MAX_CELL_S
        return min(MAX_CELL_S, self.correlation_s / _CELLS_PER_CORRELATION)


class Modulation:
    """The factor on the rate, from 0 s on, one stretch after another."""

    def __init__(self, bursts: Bursts, rng: np.random.Generator) -> None:
        fluctuation_rng, episode_rng = rng.spawn(2)
        self._fluctuation = Fluctuation(bursts, fluctuation_rng)
        self._episodes = Episodes(bursts, episode_rng)
        self._cell_s = bursts.cell_s

    def stretch(self, begin_s: float, cells: int) -> tuple[Floats, Floats]:
        """(edges in s, factors) of the next `cells` cells, which begin at `begin_s`."""
        grid_s = begin_s + np.arange(cells + 1) * self._cell_s
        levels = self._fluctuation.take(cells)
        switches_s = self._episodes.switches_within(begin_s, float(grid_s[-1]))
        edges_s = np.union1d(grid_s, switches_s)
        middles_s = (edges_s[:-1] + edges_s[1:]) / 2
        cell = np.clip(np.searchsorted(grid_s, middles_s) - 1, 0, cells - 1)
        return edges_s, levels[cell] * self._episodes.factors_at(middles_s)


class Fluctuation:
    """exp(X - s²/2), where X is an Ornstein-Uhlenbeck process in its steady state: its samples are
    x' = a x + s √(1 - a²) e, a = exp(-cell / correlation time), s² = ln(1 + cv²). The mean is 1
    and the coefficient of variation cv (log-normal)."""

    def __init__(self, bursts: Bursts, rng: np.random.Generator) -> None:
        self._rng = rng
        self._sigma = math.sqrt(math.log1p(bursts.rate_cv**2))
        decay = math.exp(-bursts.cell_s / bursts.correlation_s)
        lag = np.arange(_SCAN)[:, None] - np.arange(_SCAN)[None, :]
        # One product for _SCAN steps of the recursion: row n sums what the noises left until then.
        self._kernel = np.where(lag >= 0, decay ** np.maximum(lag, 0), 0.0)
        self._noise = math.sqrt(1 - decay**2)
        self._decays = decay ** np.arange(1, _SCAN + 1)
        self._state = float(rng.standard_normal())

    def take(self, count: int) -> Floats:
        """The factors of the next `count` cells."""
        if self._sigma == 0:
            return np.ones(count)
        found = np.empty(count)
        for first in range(0, count, _SCAN):
            size = min(_SCAN, count - first)
            noises = self._rng.standard_normal(size) * self._noise
            states = self._kernel[:size, :size] @ noises + self._decays[:size] * self._state
            self._state = float(states[-1])
            found[first : first + size] = states
        return np.asarray(np.exp(self._sigma * found - self._sigma**2 / 2), dtype=np.float64)


class Episodes:
    """Bursts and the gaps between them: exponential lengths, and the steady state from 0 s on."""

    def __init__(self, bursts: Bursts, rng: np.random.Generator) -> None:
        self._rng = rng
        self._bursts = bursts
        share = bursts.burst_share_ratio
        base = 1 / (1 + share * (bursts.burst_factor - 1))
        self._levels = np.array((base, base * bursts.burst_factor))
        self._in_burst = bool(rng.random() < share)  # before the first of the switches held
        # A process without bursts never switches.
        self._switches_s = np.zeros(0) if bursts.burst_factor > 1 else np.array([math.inf])
        self._until_s = 0.0

    def switches_within(self, begin_s: float, end_s: float) -> Floats:
        """Times between begin_s and end_s at which a burst begins or ends; those before are no
        longer held."""
        while not len(self._switches_s) or self._switches_s[-1] <= end_s:
            self._draw()
        passed = int(np.searchsorted(self._switches_s, begin_s, side="right"))
        self._in_burst ^= bool(passed % 2)
        self._switches_s = self._switches_s[passed:]
        return self._switches_s[: int(np.searchsorted(self._switches_s, end_s))]

    def factors_at(self, times_s: Floats) -> Floats:
        """The factor at each of the times, which lie within the last stretch asked for."""
        state = (np.searchsorted(self._switches_s, times_s, side="right") + self._in_burst) % 2
        return self._levels[state]

    def _draw(self) -> None:
        in_burst = self._in_burst ^ bool(len(self._switches_s) % 2)
        means_s = (self._bursts.gap_s, self._bursts.burst_s)
        pattern = np.tile((means_s[in_burst], means_s[not in_burst]), _SCAN // 2)
        added_s = self._until_s + np.cumsum(self._rng.standard_exponential(_SCAN) * pattern)
        self._switches_s = np.append(self._switches_s, added_s)
        self._until_s = float(added_s[-1])
