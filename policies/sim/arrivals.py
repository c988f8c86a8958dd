"""What arrives and when: trace rows, length distributions, rate curves, and seeded generators.

Every generator is deterministic by its seed, and draws arrival times and lengths from separate
streams: the same seed with other lengths keeps the same arrival times, so that two runs pair up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Self

import numpy as np

from policies.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

DEFAULT_DUTY_RATIO = 1 / 3
MAX_EXPECTED_ARRIVALS = 20_000_000
"""More than this is a slip of a unit, not a load: refused before it fills the memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceRow:
    """One request: seconds after the start of the trace, and its lengths, each at least 1."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LengthCdf:
    """A length distribution as points (share ≤ x, x), linear between the points.

    `shares` ascend within 0..1, `tokens` never descend. Shares below the first point get the first
    length and shares above the last point the last one. Samples are whole tokens, at least 1.
    """

    shares: tuple[float, ...]
    tokens: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.shares or len(self.shares) != len(self.tokens):
            raise ConfigError("length CDF: needs as many shares as lengths, at least one of each")
        if any(not 0 <= share <= 1 for share in self.shares):
            raise ConfigError("length CDF: every share must lie in 0..1")
        if any(not 0 <= token < math.inf for token in self.tokens):
            raise ConfigError("length CDF: every length must be a finite number ≥ 0")
        for name, values in (("shares", self.shares), ("lengths", self.tokens)):
            if any(after < before for before, after in pairwise(values)):
                raise ConfigError(f"length CDF: {name} must not descend")

    @classmethod
    def constant(cls, tokens: int) -> Self:
        """Return the distribution in which every request has this length."""
        return cls(shares=(1.0,), tokens=(float(tokens),))

    @classmethod
    def uniform(cls, low: int, high: int) -> Self:
        """Return the distribution that is uniform over the whole numbers low..high, both in."""
        if not 1 <= low <= high:
            raise ConfigError(f"uniform lengths {low}:{high}: expected 1 ≤ low ≤ high")
        return cls(shares=(0.0, 1.0), tokens=(low - 0.5, high + 0.5))

    def sample(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        """Return `count` lengths in tokens (inverse transform sampling)."""
        lengths = np.interp(rng.random(count), self.shares, self.tokens)
        whole: NDArray[np.int64] = np.maximum(1, np.floor(lengths + 0.5)).astype(np.int64)
        return whole


@dataclass(frozen=True, kw_only=True, slots=True)
class Lengths:
    """Prompt and output lengths, drawn independently of each other."""

    prompt: LengthCdf
    output: LengthCdf

    @classmethod
    def constant(cls, prompt_tokens: int, output_tokens: int) -> Self:
        """Return lengths that are the same for every request."""
        return cls(
            prompt=LengthCdf.constant(prompt_tokens), output=LengthCdf.constant(output_tokens)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RateCurve:
    """A piecewise constant arrival rate: `rates_per_s[i]` holds from `starts_s[i]` to the next one.

    The first start is 0; the last rate holds until `end_s`.
    """

    starts_s: tuple[float, ...]
    rates_per_s: tuple[float, ...]
    end_s: float

    def __post_init__(self) -> None:
        if not self.starts_s or len(self.starts_s) != len(self.rates_per_s):
            raise ConfigError("rate curve: needs as many rates as start times, at least one")
        edges = (*self.starts_s, self.end_s)
        ascends = all(before < after for before, after in pairwise(edges))
        if edges[0] != 0 or not ascends or not math.isfinite(self.end_s):
            raise ConfigError("rate curve: times must start at 0 and ascend up to a finite end")
        if any(not 0 <= rate < math.inf for rate in self.rates_per_s):
            raise ConfigError("rate curve: every rate must be a finite number ≥ 0")

    def rate_per_s_at(self, times_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the rate at each time; times lie in 0..end_s."""
        index = np.searchsorted(self.starts_s, times_s, side="right") - 1
        return np.asarray(self.rates_per_s, dtype=np.float64)[index]

    def cut(self, end_s: float) -> RateCurve:
        """Return the curve up to `end_s`; itself when it ends earlier."""
        if end_s >= self.end_s:
            return self
        kept = sum(1 for start in self.starts_s if start < end_s)
        return RateCurve(
            starts_s=self.starts_s[:kept], rates_per_s=self.rates_per_s[:kept], end_s=end_s
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class BurstShape:
    """A square wave: each period is at the base rate, with one peak in its middle.

    The peak takes `duty_ratio` of the period, so that a single period already goes base, peak,
    base. Rates in requests per second.
    """

    base_rate_per_s: float
    peak_rate_per_s: float
    period_s: float
    duty_ratio: float = DEFAULT_DUTY_RATIO

    def __post_init__(self) -> None:
        if not 0 <= self.base_rate_per_s <= self.peak_rate_per_s < math.inf:
            raise ConfigError(
                f"burst {self.base_rate_per_s:g}:{self.peak_rate_per_s:g}: "
                "expected 0 ≤ base ≤ peak, in requests per second"
            )
        if not 0 < self.period_s < math.inf or not 0 < self.duty_ratio < 1:
            raise ConfigError(
                f"burst period {self.period_s:g}, duty {self.duty_ratio:g}: "
                "expected a period > 0 s and a duty between 0 and 1"
            )

    def curve(self, duration_s: float) -> RateCurve:
        """Return the rate curve of this wave over 0..duration_s."""
        _require_duration(duration_s)
        rise = self.period_s * (1 - self.duty_ratio) / 2
        fall = rise + self.period_s * self.duty_ratio
        starts, rates = [0.0], [self.base_rate_per_s]
        for period in range(math.ceil(duration_s / self.period_s)):
            begin = period * self.period_s
            starts += [begin + rise, begin + fall]
            rates += [self.peak_rate_per_s, self.base_rate_per_s]
        kept = sum(1 for start in starts if start < duration_s)
        return RateCurve(
            starts_s=tuple(starts[:kept]), rates_per_s=tuple(rates[:kept]), end_s=duration_s
        )


def poisson(
    rate_per_s: float, duration_s: float, lengths: Lengths, seed: int
) -> tuple[TraceRow, ...]:
    """Return Poisson arrivals at a constant rate over 0..duration_s, in order of arrival."""
    _require_duration(duration_s)
    if not 0 < rate_per_s < math.inf:
        raise ConfigError(f"rate {rate_per_s:g}: expected requests per second > 0")
    curve = RateCurve(starts_s=(0.0,), rates_per_s=(rate_per_s,), end_s=duration_s)
    return from_rate_curve(curve, lengths, seed)


def burst(
    shape: BurstShape, duration_s: float, lengths: Lengths, seed: int
) -> tuple[TraceRow, ...]:
    """Return Poisson arrivals whose rate follows a square wave, in order of arrival."""
    return from_rate_curve(shape.curve(duration_s), lengths, seed)


def from_rate_curve(curve: RateCurve, lengths: Lengths, seed: int) -> tuple[TraceRow, ...]:
    """Return the arrivals of a Poisson process with this rate, in order of arrival.

    Thinning (Lewis and Shedler, 1979): arrivals at the highest rate, each kept with probability
    rate(t) / highest rate. Given their number, the arrivals of the constant-rate process are
    uniform over the interval.
    """
    highest = max(curve.rates_per_s)
    expected = highest * curve.end_s
    if expected > MAX_EXPECTED_ARRIVALS:
        raise ConfigError(
            f"{expected:.3g} arrivals expected, at most {MAX_EXPECTED_ARRIVALS:,} are generated: "
            "lower the rate or the duration"
        )
    time_rng, keep_rng, length_rng = np.random.default_rng(seed).spawn(3)
    candidates = np.sort(time_rng.random(time_rng.poisson(expected))) * curve.end_s
    kept = candidates[keep_rng.random(candidates.size) * highest < curve.rate_per_s_at(candidates)]
    prompts = lengths.prompt.sample(length_rng, kept.size)
    outputs = lengths.output.sample(length_rng, kept.size)
    return tuple(
        TraceRow(arrival_s=arrival, prompt_tokens=prompt, output_tokens=output)
        for arrival, prompt, output in zip(
            kept.tolist(), prompts.tolist(), outputs.tolist(), strict=True
        )
    )


def scale_time(rows: Iterable[TraceRow], factor: float) -> tuple[TraceRow, ...]:
    """Return the rows with every arrival time multiplied: 0.5 plays a trace at twice its rate."""
    if not 0 < factor < math.inf:
        raise ConfigError(f"time scale {factor:g}: expected a number > 0")
    return tuple(replace(row, arrival_s=row.arrival_s * factor) for row in rows)


def _require_duration(duration_s: float) -> None:
    if not 0 < duration_s < math.inf:
        raise ConfigError(f"duration {duration_s:g}: expected seconds > 0")
