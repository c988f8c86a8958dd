"""How far a profile may be off, and what a point then is.

A profile's own bands are used where it has them. Without them the held-out residuals stand in: the
p95 of the step time as it is; of energy only the median is kept, and 95 % of normally distributed
errors lie within 1.96 / 0.6745 = 2.9 times their median.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from policies.core.objective import Candidates, Choice
from policies.core.types import SLO, Binding, Load
from policies.model.fitted import FittedModel
from policies.model.grid import Grid, Mask, evaluate

_NORMAL_95_OVER_MEDIAN = 1.96 / 0.6745


@dataclass(frozen=True, kw_only=True, slots=True)
class Errors:
    """Relative 95 % half-widths. `power_limit_ratio` None: what a limit does is not known that
    well. `from_residuals`: those that the profile has no band for."""

    step_time_ratio: float
    prefill_ratio: float
    energy_ratio: float
    power_limit_ratio: float | None
    from_residuals: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A value at both ends of the error. `high` None: no bound, arrivals exceed the capacity."""

    low: float
    high: float | None

    def times(self, factor: float) -> Interval:
        """The same in another unit."""
        high = None if self.high is None else factor * self.high
        return Interval(low=factor * self.low, high=high)


@dataclass(frozen=True, kw_only=True, slots=True)
class Margins:
    """What a point may turn out to be. Latencies: steps, prompts and the limit's effect off by
    their errors, all the same way; joules: step energy and the limit's effect on the draw."""

    ttft_s: Interval
    tpot_s: Interval
    joules_per_request: Interval


def errors_of(model: FittedModel) -> Errors:
    """The errors that a plan with this model reckons with."""
    bands, seen = model.bands, model.residuals
    fallback = {
        "step_time_ratio": seen.step_time_p95_ratio,
        "prefill_ratio": seen.step_time_p95_ratio,
        "energy_ratio": seen.energy_median_ratio * _NORMAL_95_OVER_MEDIAN,
    }
    known = {name: getattr(bands, name) for name in fallback if getattr(bands, name) is not None}
    return Errors(
        **(fallback | known),
        power_limit_ratio=bands.power_limit_ratio,
        from_residuals=tuple(name for name in fallback if name not in known),
    )


def error_known(model: FittedModel, limit_watts: float | None) -> bool:
    """Whether it is known how far the model may be off under this limit."""
    return model.power.is_inert(limit_watts) or model.bands.power_limit_ratio is not None


def surely_feasible(model: FittedModel, grid: Grid, box: Candidates) -> Mask:
    """Which points of the grid of `box` hold the targets even if the model is off by its errors.

    A point under a limit whose effect has no known error is never sure.
    """
    by_limit = []
    for limit in grid.limits:
        if not error_known(model, limit):
            by_limit.append(np.zeros(grid.feasible.shape[1:], dtype=np.bool_))
            continue
        slow = _off(model, limit, slower=True)
        found = evaluate(slow, grid.load, grid.slo, replace(box, limits=(limit,)))
        by_limit.append(found.feasible[0])
    return grid.feasible & np.stack(by_limit)


def margins_of(model: FittedModel, choice: Choice, load: Load, slo: SLO) -> Margins | None:
    """The point of `choice` at both ends of the error; None where the error is not known."""
    point = choice.point
    if not error_known(model, point.power_limit_watts):
        return None
    fast, slow = (
        _off(model, point.power_limit_watts, slower=slower).predict(point, load, slo)
        for slower in (False, True)
    )
    energy, draw = 1.0 + errors_of(model).energy_ratio, _limit_error(model, point.power_limit_watts)
    cheap, dear = (
        model.corrected(energy_ratio=energy**sign).predict(point, load, slo).joules_per_request
        * draw**sign
        for sign in (-1, 1)
    )
    full = slow.binding is Binding.CAPACITY
    return Margins(
        ttft_s=Interval(low=fast.ttft_s, high=None if full else slow.ttft_s),
        tpot_s=Interval(low=fast.tpot_s, high=slow.tpot_s),
        joules_per_request=Interval(low=cheap, high=dear),
    )


def _off(model: FittedModel, limit_watts: float | None, *, slower: bool) -> FittedModel:
    """The model with its times off by the errors: by the factor 1 + e, or its inverse."""
    errors, limit = errors_of(model), _limit_error(model, limit_watts)
    prefill, decode = (1.0 + e for e in (errors.prefill_ratio, errors.step_time_ratio))
    sign = -1 if slower else 1
    latency = model.latency.slowed(
        prefill_speed_ratio=(prefill * limit) ** sign, decode_speed_ratio=(decode * limit) ** sign
    )
    return replace(model, latency=latency)


def _limit_error(model: FittedModel, limit_watts: float | None) -> float:
    """The factor by which the limit's effect may be off; 1 where it has none."""
    if model.power.is_inert(limit_watts):
        return 1.0
    return 1.0 + (model.bands.power_limit_ratio or 0.0)
