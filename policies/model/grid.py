"""Every operating point of a box at once: `FittedModel.predict`, for a whole fleet's choices.

The formulas are those of the scalar path (`batch`, `replica`, `latency`). What differs is the
chain: at one limit and replica count its log-weights do not depend on the cap, so the sums up to
every cap are prefix sums of one row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from policies.core.errors import OutOfRange
from policies.core.objective import Candidates, Choice
from policies.core.types import SLO, Binding, Load, OperatingPoint, Prediction
from policies.model.batch import (
    MAX_STABLE_RATIO,
    BatchProcess,
    Floats,
    completed_per_s,
    slot_wait_s,
    tables,
    uncapped_batch,
)
from policies.model.curve import StepCurve
from policies.model.fitted import CAPACITY_SHARE, RANGE_MARGIN, FittedModel
from policies.model.latency import stalled_tpot_s
from policies.model.replica import first_token_s

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
ROUNDING_RATIO = 1e-9  # points whose joules differ by less are the same to the last digits


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Values:
    """What a model says about points, as in `Prediction`; arrays of one shape. `full_batch_tpot_s`
    is the TPOT while the batch is full."""

    ttft_s: Floats
    tpot_s: Floats
    full_batch_tpot_s: Floats
    draw_watts: Floats
    joules_per_request: Floats
    utilization_ratio: Floats


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Grid:
    """All points of a box under one load: arrays of the shape (limits, replicas, caps).

    `binding` holds the values of `Binding` for `slo`. What the model has no answer for is not in
    the axes; `refused` says what and why, one line each.
    """

    load: Load
    slo: SLO
    limits: tuple[float | None, ...]
    replicas: Ints
    caps: Ints
    values: Values
    binding: NDArray[np.str_]
    refused: tuple[str, ...] = ()

    @property
    def feasible(self) -> Mask:
        """Which points hold both targets."""
        return np.asarray(self.binding == Binding.NONE.value)

    def at_targets(self, slo: SLO) -> Grid:
        """The same points judged by other targets of the same percentile."""
        if slo.percentile != self.slo.percentile:
            raise OutOfRange(
                f"the grid holds percentile {self.slo.percentile}, not {slo.percentile}"
            )
        return replace(self, slo=slo, binding=_binding(self.values, slo))

    def choice(self, index: tuple[int, ...]) -> Choice:
        """The point at (limit, replicas, cap) with what the model says."""
        limit, replicas, cap = index
        point = OperatingPoint(
            num_replicas=int(self.replicas[replicas]),
            max_num_active_seqs=int(self.caps[cap]),
            power_limit_watts=self.limits[limit],
        )
        values = {
            item.name: float(getattr(self.values, item.name)[index])
            for item in fields(Prediction)
            if item.name != "binding"
        }
        prediction = Prediction(**values, binding=Binding(str(self.binding[index])))
        return Choice(point=point, prediction=prediction)

    def cheapest(self, among: Mask) -> Choice | None:
        """The point with the fewest joules per request of those that the mask holds; of equals the
        one with the fewest replicas, then the largest cap, then the limit that comes first."""
        if not among.any():
            return None
        joules = np.where(among, self.values.joules_per_request, math.inf)
        equals = np.argwhere(joules <= joules.min() * (1.0 + ROUNDING_RATIO))
        limit, replicas, cap = equals.T
        first = int(np.lexsort((limit, -cap, replicas))[0])
        return self.choice(tuple(int(place) for place in equals[first]))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Axes:
    """What all limits share: one column per cap, one row per replica count."""

    model: FittedModel
    load: Load
    percentile: float
    replicas: Ints
    caps: Ints

    @property
    def shares_per_s(self) -> Floats:
        """Arrivals/s of one replica, as a column."""
        return np.asarray(self.load.arrival_rate_per_s / self.replicas[:, np.newaxis])


def evaluate(model: FittedModel, load: Load, slo: SLO, box: Candidates) -> Grid:
    """All points of `box`. Raises ModelError where the model can answer for none of them."""
    (fewest, most), (smallest, largest) = box.replicas, box.caps
    model.check(OperatingPoint(num_replicas=fewest, max_num_active_seqs=smallest), load)
    known = min(largest, math.floor(RANGE_MARGIN * model.valid.max_num_seqs))
    axes = _Axes(
        model=model,
        load=load,
        percentile=slo.percentile,
        replicas=np.arange(fewest, most + 1),
        caps=np.arange(smallest, known + 1),
    )
    refused = []
    if largest > known:
        fitted = f"fitted: 1 to {model.valid.max_num_seqs}"
        refused.append(f"max_num_active_seqs {known + 1} to {largest}; {fitted}")
    found: dict[float | None, Values] = {}
    for limit in box.limits:
        try:
            found[limit] = _at_limit(axes, limit)
        except OutOfRange as error:
            refused.append(str(error))
    if not found:
        raise OutOfRange(f"profile {model.name}: {'; '.join(refused)}")
    values = _stacked(list(found.values()))
    return Grid(
        load=load,
        slo=slo,
        limits=tuple(found),
        replicas=axes.replicas,
        caps=axes.caps,
        values=values,
        binding=_binding(values, slo),
        refused=tuple(refused),
    )


def _at_limit(axes: _Axes, limit: float | None) -> Values:
    """What `FittedModel.predict` computes, for all replica counts and caps."""
    curve = axes.model.latency_under(limit).curve(axes.load)
    shares, caps, percentile = axes.shares_per_s, axes.caps.astype(np.float64), axes.percentile
    capacity = completed_per_s(curve, caps)
    admitted = np.minimum(shares, capacity)
    uncapped = [uncapped_batch(curve, s, percentile, int(axes.caps[-1])) for s in shares[:, 0]]
    batch = np.minimum(np.array(uncapped, dtype=np.float64)[:, np.newaxis], caps)
    full_share, replica_watts = _chain(axes, curve, limit)
    slack = capacity - np.minimum(shares, MAX_STABLE_RATIO * capacity)
    slot_s = slot_wait_s(full_share, slack, percentile)
    num_replicas = axes.replicas[:, np.newaxis]
    draw_watts = num_replicas * replica_watts
    completed = np.minimum(axes.load.arrival_rate_per_s, capacity * num_replicas)
    return Values(
        ttft_s=first_token_s(curve, admitted, batch, slot_s, percentile),
        tpot_s=stalled_tpot_s(curve, admitted, batch, percentile),
        full_batch_tpot_s=stalled_tpot_s(curve, admitted, caps, percentile),
        draw_watts=draw_watts,
        joules_per_request=draw_watts / completed,
        utilization_ratio=shares / capacity,
    )


def _chain(axes: _Axes, curve: StepCurve, limit: float | None) -> tuple[Floats, Floats]:
    """p(n >= cap) and the mean draw of one replica: `BatchProcess.probabilities` for every cap.

    In logarithms, where no prefix can underflow. Beyond 0.999 of the capacity the arrivals count as
    0.999 of it, so that the chain depends on the cap alone.
    """
    caps, shares = axes.caps, axes.shares_per_s
    utilization = shares / completed_per_s(curve, caps.astype(np.float64))
    draw = axes.model.draw_by_batch(axes.load, int(caps[-1]), limit)
    states, log_steps = tables(curve, int(caps[-1]))
    weights = states * np.log(shares * curve.output_tokens) + log_steps
    with np.errstate(divide="ignore"):  # an idle replica may draw nothing
        log_draw = np.log(draw)
    waiting = np.log1p(-np.minimum(utilization, MAX_STABLE_RATIO))  # the queue's geometric tail
    full = weights[:, caps] - waiting
    total = np.logaddexp(_sums_below(weights, caps), full)
    watts = np.logaddexp(_sums_below(weights + log_draw, caps), full + log_draw[caps])
    full_share, replica_watts = np.exp(full - total), np.exp(watts - total)
    over = utilization > MAX_STABLE_RATIO
    for column in np.flatnonzero(over.any(axis=0)):
        process = BatchProcess(arrival_rate_per_s=math.inf, curve=curve, cap=int(caps[column]))
        probabilities = process.probabilities()
        full_share[over[:, column], column] = probabilities[-1]
        replica_watts[over[:, column], column] = probabilities @ draw[: process.cap + 1]
    return full_share, replica_watts


def _sums_below(log_weights: Floats, caps: Ints) -> Floats:
    """Logarithms of the sums over 0..cap - 1."""
    return np.asarray(np.logaddexp.accumulate(log_weights, axis=1)[:, caps - 1])


def _stacked(by_limit: list[Values]) -> Values:
    shape = by_limit[0].joules_per_request.shape
    return Values(
        **{
            item.name: np.stack(
                [np.broadcast_to(getattr(one, item.name), shape) for one in by_limit]
            )
            for item in fields(Values)
        }
    )


def _binding(values: Values, slo: SLO) -> NDArray[np.str_]:
    reasons = (
        (values.utilization_ratio >= CAPACITY_SHARE, Binding.CAPACITY),
        (values.ttft_s > slo.ttft_s, Binding.TTFT),
        (values.tpot_s > slo.tpot_s, Binding.TPOT),
    )
    return np.select(
        [mask for mask, _ in reasons], [reason.value for _, reason in reasons], Binding.NONE.value
    )
