"""Days of load made from a rate curve, length distributions and a burstiness, in order of arrival.

The arrivals are a renewal process of mean gap 1 (gamma gaps; exponential ones make it Poisson) in
the time that the modulated rate counts: arrival k is where the integral of the rate reaches the sum
of the first k gaps (time change; Cinlar, Introduction to Stochastic Processes, 1975). The rate is
the curve times a modulation of mean 1, so this is a Cox process for exponential gaps (Cox, 1955).
The first gap is drawn from the time that remains in a gap met at random (Cox, Renewal Theory,
1962): the expected number of arrivals is then exactly the integral of the rate.

Everything is made stretch by stretch: memory does not depend on the length of the trace. Times and
lengths come from separate streams of the seed, as in `policies.sim.arrivals`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from policies.core.errors import ConfigError
from policies.sim.arrivals import Lengths, RateCurve, TraceRow
from policies.sim.blocks import BLOCK_ROWS, Block, pieces, rows_of_blocks
from policies.sim.mixing import scaled_rate, superposed, superposed_blocks
from policies.sim.modulation import Bursts, Modulation
from policies.sim.rate_shapes import RateShape, diurnal_curve, mean_rate_per_s

__all__ = [
    "Block",
    "Bursts",
    "day",
    "day_blocks",
    "diurnal_curve",
    "scaled_rate",
    "superposed",
    "superposed_blocks",
]

MAX_RATE_PER_S = 1e6
MAX_EXPECTED_ARRIVALS = 10**10
_MAX_CELLS = 4096
_FEWEST_GAPS = 64


def day(
    curve: RateCurve, lengths: Lengths, bursts: Bursts, seed: int, *, interpolate: bool = False
) -> Iterator[TraceRow]:
    """The rows of `day_blocks`, one after another."""
    return rows_of_blocks(day_blocks(curve, lengths, bursts, seed, interpolate=interpolate))


def day_blocks(
    curve: RateCurve, lengths: Lengths, bursts: Bursts, seed: int, *, interpolate: bool = False
) -> Iterator[Block]:
    """Arrivals whose expected rate is the curve's, in order, as blocks. Raises ConfigError.

    `interpolate`: the rate runs in straight lines through the middles of the curve's steps, and
    keeps the mean of each, instead of jumping from step to step.
    """
    highest = max(curve.rates_per_s) * bursts.burst_factor
    expected = mean_rate_per_s(curve) * curve.end_s
    if highest > MAX_RATE_PER_S or expected > MAX_EXPECTED_ARRIVALS:
        raise ConfigError(
            f"{expected:.3g} arrivals expected, up to {highest:.3g} per second; generated are at "
            f"most {MAX_EXPECTED_ARRIVALS:.0e} and {MAX_RATE_PER_S:.0e}: lower the rate"
        )
    shape = RateShape.of(curve, interpolate=interpolate)
    return _generate(shape, lengths, bursts, seed)


def _generate(shape: RateShape, lengths: Lengths, bursts: Bursts, seed: int) -> Iterator[Block]:
    rate_rng, time_rng, length_rng = np.random.default_rng(seed).spawn(3)
    modulation = Modulation(bursts, rate_rng)
    renewal = _Renewal(bursts.interarrival_cv, time_rng)
    begin_s, end_s = 0.0, shape.end_s
    while begin_s < end_s:
        cells = _cells(shape, begin_s, bursts.cell_s)
        grid_s, factors = modulation.stretch(begin_s, cells)
        stop_s = float(grid_s[-1])
        kinks_s = shape.kinks_s[slice(*np.searchsorted(shape.kinks_s, (begin_s, stop_s)))]
        edges_s = np.union1d(grid_s, kinks_s)
        edges_s = edges_s[(edges_s >= begin_s) & (edges_s <= end_s)]
        middles_s = (edges_s[:-1] + edges_s[1:]) / 2
        factor = factors[np.searchsorted(grid_s, middles_s) - 1]
        masses = np.diff(edges_s) * shape.rate_at(middles_s) * factor
        counted = np.append(0.0, np.cumsum(masses))
        points = renewal.until(float(counted[-1]))
        times_s = np.interp(points, counted, edges_s)
        prompts = lengths.prompt.sample(length_rng, times_s.size)
        outputs = lengths.output.sample(length_rng, times_s.size)
        yield from pieces(Block(times_s, prompts, outputs))
        begin_s = stop_s


def _cells(shape: RateShape, begin_s: float, cell_s: float) -> int:
    """How many cells hold about BLOCK_ROWS arrivals at the rate ahead."""
    per_cell = shape.highest_within(begin_s, begin_s + _MAX_CELLS * cell_s) * cell_s
    return min(_MAX_CELLS, max(1, math.floor(BLOCK_ROWS / per_cell)) if per_cell else _MAX_CELLS)


class _Renewal:
    """Points at gaps of mean 1 and the given CV, as one met at random."""

    def __init__(self, cv: float, rng: np.random.Generator) -> None:
        self._cv, self._rng = cv, rng
        # The gap around a random time is longer than others: for gamma gaps of shape k it is gamma
        # of shape k + 1. The time lies anywhere in it.
        met = 1.0 if cv == 0 else rng.standard_gamma(1 / cv**2 + 1) * cv**2
        self._points: NDArray[np.float64] = np.array([met * rng.random()])

    def until(self, end: float) -> NDArray[np.float64]:
        """The points before `end`; the next call counts from there."""
        while self._points[-1] < end:
            missing = end - self._points[-1]
            count = int(missing + 4 * self._cv * math.sqrt(missing)) + _FEWEST_GAPS
            added = self._points[-1] + np.cumsum(self._gaps(count))
            self._points = np.concatenate((self._points, added))
        taken = int(np.searchsorted(self._points, end))
        found, self._points = self._points[:taken], self._points[taken:] - end
        return found

    def _gaps(self, count: int) -> NDArray[np.float64]:
        if self._cv == 0:
            return np.ones(count)
        if self._cv == 1:
            return self._rng.standard_exponential(count)
        return self._rng.standard_gamma(1 / self._cv**2, count) * self._cv**2
