"""The loads: what is sent when, and how many replicas there are to be when. Pure, seeded.

The calibration has seeds, rates and lengths of its own: nothing of a held-out load is seen by it.
"""

from __future__ import annotations

from dataclasses import dataclass

from policies.core.errors import ConfigError
from policies.sim.arrivals import (
    BurstShape,
    LengthCdf,
    Lengths,
    RateCurve,
    TraceRow,
    burst,
    from_rate_curve,
    poisson,
)

STEADY_PER_S = 0.8
BURST = BurstShape(base_rate_per_s=0.4, peak_rate_per_s=1.8, period_s=60.0, duty_ratio=1 / 3)
SCALE_PER_S = 0.7
LENGTHS = Lengths(prompt=LengthCdf.uniform(50, 200), output=LengthCdf.uniform(30, 80))
CALIBRATION_LENGTHS = Lengths(prompt=LengthCdf.uniform(30, 240), output=LengthCdf.uniform(24, 96))


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """A load. `replicas`: (seconds after its start, how many from then on), the first at 0."""

    name: str
    what: str
    rows: tuple[TraceRow, ...]
    replicas: tuple[tuple[float, int], ...] = ((0.0, 1),)
    duration_s: float

    @property
    def max_replicas(self) -> int:
        """The most that it asks for."""
        return max(count for _, count in self.replicas)


def held_out(scale: float = 1.0) -> tuple[Load, ...]:
    """The three loads that are compared; `scale` shortens them all."""
    _check(scale)
    steady_s, burst_s = 180.0 * scale, 180.0 * scale
    return (
        Load(
            name="steady",
            what=f"Poisson {STEADY_PER_S:g} requests/s, {steady_s:g} s, one replica",
            rows=poisson(STEADY_PER_S, steady_s, LENGTHS, seed=101),
            duration_s=steady_s,
        ),
        Load(
            name="burst",
            what=(
                f"{BURST.base_rate_per_s:g} to {BURST.peak_rate_per_s:g} requests/s every "
                f"{BURST.period_s:g} s, {burst_s:g} s, one replica"
            ),
            rows=burst(BURST, burst_s, LENGTHS, seed=102),
            duration_s=burst_s,
        ),
        _scaling("scale", (40.0, 200.0, 260.0), (SCALE_PER_S,) * 3, scale, LENGTHS, 103),
    )


def calibration(scale: float = 1.0) -> Load:
    """One replica, a second one starting, two, and one again: what the constants are taken from."""
    _check(scale)
    return _scaling(
        "calibration", (90.0, 260.0, 310.0), (0.9, 0.9, 0.6), scale, CALIBRATION_LENGTHS, 7
    )


def _scaling(  # noqa: PLR0913, PLR0917
    name: str,
    times_s: tuple[float, float, float],
    rates_per_s: tuple[float, float, float],
    scale: float,
    lengths: Lengths,
    seed: int,
) -> Load:
    up_s, down_s, end_s = (time_s * scale for time_s in times_s)
    curve = RateCurve(starts_s=(0.0, up_s, down_s), rates_per_s=rates_per_s, end_s=end_s)
    rates = "/".join(f"{rate:g}" for rate in dict.fromkeys(rates_per_s))
    return Load(
        name=name,
        what=(
            f"{rates} requests/s, {end_s:g} s; a second replica is asked for at {up_s:g} s and "
            f"given up at {down_s:g} s"
        ),
        rows=from_rate_curve(curve, lengths, seed),
        replicas=((0.0, 1), (up_s, 2), (down_s, 1)),
        duration_s=end_s,
    )


def _check(scale: float) -> None:
    if not 0.0 < scale <= 10.0:
        raise ConfigError(f"scale is {scale:g}; allowed: above 0 and at most 10")
