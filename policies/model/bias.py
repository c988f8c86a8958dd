"""How far one quantity of a model is off, followed through noise, outliers and jumps.

A scalar Kalman filter (Kalman, 1960) of a random walk, in logarithms: x of the bias, z of measured
over modelled in one window of steps, P and r the variances of x and z.

    P <- min(P + q dt, P0)         what nobody looks at is known less and less, down to nothing
    v = z - x, S = P + r           the innovation and its variance
    |v| <= k sqrt(S)               x <- x + v P/S, P <- P r/S
    |v| >  k sqrt(S)               gated: x and P stay
    N in a row gated to one side   no outlier but a jump: P <- max(P, u^2), v <- u, the smallest of
                                   the N, and x follows

r is learned from the innovations: sqrt(r) moves by 2 % (more at first) towards 1.48 times the
median of |v|, which ten per cent of outliers hardly change; slowly, so that drift does not pass for
noise. A two-sided CUSUM (Page, 1954) of v / sqrt(S) sees what the filter is too slow for; its alarm
makes it faster: P <- max(P, r).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from policies.core.errors import ConfigError

SETTLED_WINDOWS = 10  # before that the bias is not known: the first windows may be outliers
WALK_PER_S = 0.05**2 / 60.0  # q: 5 % in a minute; clocks, neighbours and caches move like that
START_VARIANCE = math.log(2.0) ** 2  # P0: a profile from another machine may be off by 2
RESUMED_VARIANCE = math.log(1.1) ** 2  # the same profile after a restart, perhaps on another device
FARTHEST = math.log(1000.0)  # |z|: beyond this the window says no more than "far off"
GATE = 4.0  # k
JUMP_WINDOWS = 6  # N: with one outlier in ten, a window a second, chance makes one in 12 days
NOISE_STEP = 0.02
NOISE_RANGE = (0.01, 0.5)
NORMAL_MEDIAN = 0.6745  # of |v| / sqrt(r) where v is normal
CUSUM_SLACK = 0.5  # standard deviations
CUSUM_ALARM = 12.0  # a false alarm of white noise in 5e5 windows (Siegmund's formula)
RETURN_SHARE = 0.9  # of a level's logarithm: what was above it is called so until it is below this


@dataclass(frozen=True, kw_only=True, slots=True)
class CorrectionSettings:
    """How far a model may be corrected (`max_ratio` and its inverse), and when a new profile is
    suggested: a bias above `refit_ratio` or below its inverse for longer than `refit_after_s`."""

    max_ratio: float = 2.0
    refit_ratio: float = 1.25
    refit_after_s: float = 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Bias:
    """What is known about measured / modelled of one quantity.

    `ratio`: the bias; `variance`: of its logarithm; `noise_ratio`: one standard deviation of a
    window around it, in logarithms. Counters: `windows` learned from, `gated` as outliers,
    `ignored` as no positive numbers; `gated_up`, `gated_down`, `gated_least`: the present run of
    gated ones and its smallest |innovation|; `bound_windows`: windows since the bias went beyond
    the bound. Times are those of the caller, None = never: of the last window, the last drift
    alarm, and since when the bias is above the refit level.
    """

    noise_ratio: float
    ratio: float = 1.0
    variance: float = START_VARIANCE
    windows: int = 0
    gated: int = 0
    ignored: int = 0
    gated_up: int = 0
    gated_down: int = 0
    gated_least: float = 0.0
    cusum_up: float = 0.0
    cusum_down: float = 0.0
    bound_windows: int = 0
    time_s: float | None = None
    drift_s: float | None = None
    high_since_s: float | None = None

    @property
    def known(self) -> bool:
        """Whether enough windows were seen to act on the ratio."""
        return self.windows >= SETTLED_WINDOWS

    @property
    def band_ratio(self) -> float:
        """The half-width of the 95 % band of `ratio`, relative to it."""
        return math.expm1(2.0 * math.sqrt(self.variance))

    @property
    def drift_ratio(self) -> float:
        """The drift detector over its alarm level: 1 = alarm."""
        return max(self.cusum_up, self.cusum_down) / CUSUM_ALARM

    def resumed(self) -> Bias:
        """The same knowledge in a new process: less certain, with counters and clocks at zero."""
        return Bias(
            noise_ratio=self.noise_ratio,
            ratio=self.ratio,
            variance=max(self.variance, RESUMED_VARIANCE),
            windows=min(self.windows, SETTLED_WINDOWS),
            bound_windows=min(self.bound_windows, 1),
        )

    def check(self, source: str) -> None:
        """ConfigError where the values cannot be those of a filter."""
        low, high = NOISE_RANGE
        checks = (
            ("ratio", self.ratio, math.exp(-FARTHEST) / 2.0, 2.0 * math.exp(FARTHEST)),
            ("variance", self.variance, 0.0, FARTHEST**2),
            ("noise_ratio", self.noise_ratio, low, high),
        )
        for key, value, least, most in checks:
            if not least <= value <= most:
                raise ConfigError(f"{source}.{key} is {value}; allowed: {least:g} to {most:g}")


def start(noise_ratio: float) -> Bias:
    """Nothing known yet; `noise_ratio` is the first guess, brought into the allowed range."""
    low, high = NOISE_RANGE
    return Bias(noise_ratio=min(max(noise_ratio, low), high) if noise_ratio >= 0.0 else high)


def learn(
    bias: Bias, measured: float, modelled: float, now_s: float, settings: CorrectionSettings
) -> Bias:
    """The bias after one window: `measured` over `modelled`, in any unit. Never NaN, O(1).

    A value that is no finite number above 0, or a time that is not finite, is ignored and counted.
    A clock that steps back counts as standing still.
    """
    if not (_positive(measured) and _positive(modelled) and math.isfinite(now_s)):
        return replace(bias, ignored=bias.ignored + 1)
    z = min(max(math.log(measured) - math.log(modelled), -FARTHEST), FARTHEST)
    innovation = z - math.log(bias.ratio)
    elapsed_s = max(now_s - bias.time_s, 0.0) if bias.time_s is not None else 0.0
    variance = min(bias.variance + WALK_PER_S * elapsed_s, START_VARIANCE)
    seen = replace(bias, time_s=now_s, variance=variance)
    if abs(innovation) > GATE * _spread(seen):
        return _gate(seen, innovation, settings)
    return _watched(_follow(_scored(seen, innovation, now_s), innovation), settings)


def _gate(bias: Bias, innovation: float, settings: CorrectionSettings) -> Bias:
    """An outlier, or the last of a run that is none."""
    up = bias.gated_up + 1 if innovation > 0.0 else 0
    down = bias.gated_down + 1 if innovation < 0.0 else 0
    run = max(up, down)
    least = min(bias.gated_least, abs(innovation)) if run > 1 else abs(innovation)
    gated = replace(
        bias,
        gated=bias.gated + 1,
        gated_up=up,
        gated_down=down,
        gated_least=least,
        noise_ratio=_noise(bias, innovation),
    )
    if run < JUMP_WINDOWS:
        return gated
    jumped = replace(
        gated,
        variance=max(gated.variance, least**2),
        drift_s=bias.time_s if bias.known else None,
        cusum_up=0.0,
        cusum_down=0.0,
    )
    return _watched(_follow(jumped, math.copysign(least, innovation)), settings)


def _scored(bias: Bias, innovation: float, now_s: float) -> Bias:
    """With the noise and the drift detector after this innovation; an alarm starts it afresh."""
    if not bias.known:
        return bias
    score = innovation / _spread(bias)
    up = max(0.0, bias.cusum_up + score - CUSUM_SLACK)
    down = max(0.0, bias.cusum_down - score - CUSUM_SLACK)
    noise_ratio = _noise(bias, innovation)
    if max(up, down) < CUSUM_ALARM:
        return replace(bias, cusum_up=up, cusum_down=down, noise_ratio=noise_ratio)
    return replace(
        bias,
        cusum_up=0.0,
        cusum_down=0.0,
        drift_s=now_s,
        noise_ratio=noise_ratio,
        variance=max(bias.variance, noise_ratio**2),
    )


def _follow(bias: Bias, innovation: float) -> Bias:
    """The measurement update of the filter; ends a run of gated windows."""
    noise = bias.noise_ratio**2
    gain = bias.variance / (bias.variance + noise)
    x = min(max(math.log(bias.ratio) + gain * innovation, -FARTHEST), FARTHEST)
    return replace(
        bias,
        ratio=math.exp(x),
        variance=(1.0 - gain) * bias.variance,
        windows=bias.windows + 1,
        gated_up=0,
        gated_down=0,
        gated_least=0.0,
    )


def _watched(bias: Bias, settings: CorrectionSettings) -> Bias:
    """With the clocks of the two levels: refit, and the bound."""
    size = abs(math.log(bias.ratio))
    high = bias.known and _above(size, settings.refit_ratio, was=bias.high_since_s is not None)
    beyond = bias.known and _above(size, settings.max_ratio, was=bias.bound_windows > 0)
    since_s = bias.time_s if bias.high_since_s is None else bias.high_since_s
    return replace(
        bias,
        high_since_s=since_s if high else None,
        bound_windows=bias.bound_windows + 1 if beyond else 0,
    )


def _above(size: float, level_ratio: float, *, was: bool) -> bool:
    level = math.log(level_ratio)
    return size >= level or (was and size > RETURN_SHARE * level)


def _noise(bias: Bias, innovation: float) -> float:
    """One step towards the spread of the innovations; 10 windows in, where P no longer counts."""
    if not bias.known:
        return bias.noise_ratio
    wider = abs(innovation) > NORMAL_MEDIAN * bias.noise_ratio
    step = max(NOISE_STEP, 1.0 / bias.windows)
    low, high = NOISE_RANGE
    return min(max(bias.noise_ratio * math.exp(step if wider else -step), low), high)


def _spread(bias: Bias) -> float:
    return math.sqrt(bias.variance + bias.noise_ratio**2)


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0.0
