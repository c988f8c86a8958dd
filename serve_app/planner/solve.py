"""One profile's answer: all points evaluated, the cheapest, the sure one, and the policy's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policies.core.objective import Choice, cheapest_feasible
from policies.core.types import OperatingPoint
from policies.model.batch import Floats
from policies.model.fitted import CAPACITY_SHARE, FittedModel
from policies.model.grid import Grid, Mask, evaluate
from serve_app.planner.errors import error_known, surely_feasible
from serve_app.planner.question import Question

HOLDS, WITHIN_ERROR = "holds", "holds, but within the error"
ERROR_NOT_KNOWN = "holds, error of the limit not known"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Solution:
    """What one profile offers for a question.

    `cheapest`: the fewest joules per request of all points that hold the targets; None = nothing
    does. `sure_cheapest`: of those that hold them even if the model is off by its errors. `policy`:
    what the running policy would choose, which keeps headroom and caps the batch so that a full one
    holds the TPOT; where nothing holds the targets, the least bad point.
    """

    model: FittedModel
    question: Question
    grid: Grid
    sure: Mask
    cheapest: Choice | None
    sure_cheapest: Choice | None
    policy: Choice

    @property
    def policy_extra_ratio(self) -> float | None:
        """What the policy's point costs beyond the cheapest, as a share of it."""
        if self.cheapest is None or not self.policy.feasible:
            return None
        best = self.cheapest.prediction.joules_per_request
        return self.policy.prediction.joules_per_request / best - 1.0 if best > 0.0 else None

    def verdict(self, choice: Choice) -> str:
        """Whether the point holds the targets, in a few words."""
        if not choice.feasible:
            return f"misses: {choice.prediction.binding.value}"
        if not error_known(self.model, choice.point.power_limit_watts):
            return ERROR_NOT_KNOWN
        return HOLDS if self.sure[self.index(choice.point)] else WITHIN_ERROR

    def index(self, point: OperatingPoint) -> tuple[int, int, int]:
        """Where the point stands in the grid."""
        grid = self.grid
        return (
            grid.limits.index(point.power_limit_watts),
            point.num_replicas - int(grid.replicas[0]),
            point.max_num_active_seqs - int(grid.caps[0]),
        )


def solve(model: FittedModel, question: Question) -> Solution:
    """The answer of one profile. Raises ModelError where it has none."""
    box = question.box(model)
    grid = evaluate(model, question.load, question.slo, box)
    sure = surely_feasible(model, grid, box)
    point = cheapest_feasible(model, question.load, question.policy_slo, box).point
    prediction = model.predict(point, question.load, question.slo)
    return Solution(
        model=model,
        question=question,
        grid=grid,
        sure=sure,
        cheapest=grid.cheapest(grid.feasible),
        sure_cheapest=grid.cheapest(sure),
        policy=Choice(point=point, prediction=prediction),
    )


def nearest(grid: Grid, among: Mask) -> Choice | None:
    """Of these points the one whose worst miss is the smallest; None if the mask is empty."""
    if not among.any():
        return None
    miss = np.where(among, _worst_miss(grid), np.inf)
    place = np.unravel_index(int(miss.argmin()), miss.shape)
    return grid.choice(tuple(int(axis) for axis in place))


def _worst_miss(grid: Grid) -> Floats:
    """The largest of TTFT, TPOT and utilisation, each over what it may be."""
    values, slo = grid.values, grid.slo
    return np.asarray(
        np.maximum.reduce(
            (
                values.ttft_s / slo.ttft_s,
                values.tpot_s / slo.tpot_s,
                values.utilization_ratio / CAPACITY_SHARE,
            )
        )
    )
