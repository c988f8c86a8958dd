"""Shadow prices: what relaxing or tightening one condition by a stated step saves or costs.

Finite differences between two optima, the planned one and the one under the changed condition; the
steps are as large as a user would move a target, so that they include jumps to another replica.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from policies.core.objective import Choice
from policies.core.types import Binding
from policies.model.grid import Grid, Mask, evaluate
from serve_app.planner.solve import Solution, nearest

TPOT_STEP_S = 0.01
SHARE_STEP = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class ShadowPrice:
    """The optimum under one changed condition.

    `choice` None: nothing holds, and `binding` says what stops the nearest point. The ratios are
    the changed optimum's J/request and draw over the planned one's, less 1: below 0 saves. None
    where one of the two does not exist.
    """

    change: str
    choice: Choice | None
    binding: Binding | None
    joules_per_request_ratio: float | None
    draw_ratio: float | None


def shadow_prices(solution: Solution) -> tuple[ShadowPrice, ...]:
    """The prices of TPOT, TTFT, one replica and the rate, each up and down."""
    return (*_of_targets(solution), *_of_replicas(solution), *_of_rate(solution))


def _of_targets(solution: Solution) -> Iterator[ShadowPrice]:
    slo = solution.question.slo
    step_s = TPOT_STEP_S if slo.tpot_s > TPOT_STEP_S else SHARE_STEP * slo.tpot_s
    share_s = SHARE_STEP * slo.ttft_s
    for change, changed in (
        (f"TPOT target +{step_s * 1e3:g} ms", replace(slo, tpot_s=slo.tpot_s + step_s)),
        (f"TPOT target -{step_s * 1e3:g} ms", replace(slo, tpot_s=slo.tpot_s - step_s)),
        (f"TTFT target +{SHARE_STEP:.0%}", replace(slo, ttft_s=slo.ttft_s + share_s)),
        (f"TTFT target -{SHARE_STEP:.0%}", replace(slo, ttft_s=slo.ttft_s - share_s)),
    ):
        grid = solution.grid.at_targets(changed)
        yield _price(solution, change, grid, np.ones_like(grid.feasible))


def _of_replicas(solution: Solution) -> Iterator[ShadowPrice]:
    if solution.cheapest is None:
        return
    grid, planned = solution.grid, solution.cheapest.point.num_replicas
    counts = grid.replicas[np.newaxis, :, np.newaxis]
    for change, chosen in (
        ("one replica more", counts > planned),
        ("one replica fewer", counts < planned),
    ):
        if chosen.any():
            yield _price(solution, change, grid, np.broadcast_to(chosen, grid.feasible.shape))


def _of_rate(solution: Solution) -> Iterator[ShadowPrice]:
    question, model = solution.question, solution.model
    box, rate_per_s = question.box(model), question.load.arrival_rate_per_s
    for change, factor in (
        (f"rate +{SHARE_STEP:.0%}", 1.0 + SHARE_STEP),
        (f"rate -{SHARE_STEP:.0%}", 1.0 - SHARE_STEP),
    ):
        load = question.at_rate(rate_per_s * factor).load
        grid = evaluate(model, load, question.slo, box)
        yield _price(solution, change, grid, np.ones_like(grid.feasible))


def _price(solution: Solution, change: str, grid: Grid, among: Mask) -> ShadowPrice:
    choice, planned = grid.cheapest(among & grid.feasible), solution.cheapest
    joules = draw = None
    if choice is not None and planned is not None:
        new, old = choice.prediction, planned.prediction
        joules = _less_1(new.joules_per_request, old.joules_per_request)
        draw = _less_1(new.draw_watts, old.draw_watts)
    stopped = nearest(grid, among) if choice is None else None
    return ShadowPrice(
        change=change,
        choice=choice,
        binding=None if stopped is None else stopped.prediction.binding,
        joules_per_request_ratio=joules,
        draw_ratio=draw,
    )


def _less_1(new: float, old: float) -> float | None:
    return new / old - 1.0 if old > 0.0 else None
