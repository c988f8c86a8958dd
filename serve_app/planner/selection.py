"""The points of a grid that are worth reading: by replica count, by limit, the fronts, near misses.

A Pareto front of one latency: of the points that hold the other target those that no point beats in
both joules per request and this latency. So it shows what the one target costs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policies.core.objective import Choice
from policies.core.types import Binding
from policies.model.batch import Floats
from policies.model.grid import ROUNDING_RATIO, Grid, Ints, Mask
from serve_app.planner.solve import Solution, nearest

Place = tuple[int, int, int]
_REPLICA_ROWS = 6
_FRONT_ROWS = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Points by what they show. By replica count and by limit: the cheapest that holds, or where
    none does the one nearest to holding. `near_misses`: by what stops them, of those that would be
    cheaper than the cheapest that holds, the nearest. The fronts ascend in latency."""

    by_replicas: tuple[Choice, ...]
    by_limit: tuple[Choice, ...]
    near_misses: tuple[Choice, ...]
    ttft_front: tuple[Choice, ...]
    tpot_front: tuple[Choice, ...]


def select(solution: Solution) -> Selection:
    """The points of a solution that are worth reading; the fronts are whole."""
    grid = solution.grid
    return Selection(
        by_replicas=tuple(_by_replicas(solution)),
        by_limit=tuple(_best_at(grid, _at(grid, 0, i)) for i in range(len(grid.limits))),
        near_misses=tuple(_near_misses(solution)),
        ttft_front=tuple(grid.choice(place) for place in ttft_front(grid)),
        tpot_front=tuple(grid.choice(place) for place in tpot_front(grid)),
    )


def ttft_front(grid: Grid) -> list[Place]:
    """Where the points of the TTFT front stand, by ascending TTFT and so by descending joules."""
    return _front(grid, grid.values.ttft_s, grid.values.tpot_s <= grid.slo.tpot_s)


def tpot_front(grid: Grid) -> list[Place]:
    """Where the points of the TPOT front stand, by ascending TPOT and so by descending joules."""
    return _front(grid, grid.values.tpot_s, grid.values.ttft_s <= grid.slo.ttft_s)


def _front(grid: Grid, latency_s: Floats, among: Mask) -> list[Place]:
    places = np.flatnonzero(among & (grid.binding != Binding.CAPACITY.value))
    joules, seconds = grid.values.joules_per_request.flat[places], latency_s.flat[places]
    order = np.lexsort((joules, seconds))
    sorted_joules = joules[order]
    below = np.concatenate([[np.inf], np.minimum.accumulate(sorted_joules)])[: len(order)]
    chosen = places[order[sorted_joules < below * (1.0 - ROUNDING_RATIO)]]
    axes = zip(*np.unravel_index(chosen, latency_s.shape), strict=True)
    return [(int(limit), int(replicas), int(cap)) for limit, replicas, cap in axes]


def thinned(choices: tuple[Choice, ...], rows: int = _FRONT_ROWS) -> tuple[Choice, ...]:
    """So many of them, evenly spread, both ends included."""
    if len(choices) <= rows:
        return choices
    places = np.linspace(0, len(choices) - 1, rows).round().astype(int)
    return tuple(choices[place] for place in places)


def _by_replicas(solution: Solution) -> list[Choice]:
    """From the largest count at which nothing holds, upwards."""
    grid = solution.grid
    holding = np.flatnonzero(grid.feasible.any(axis=(0, 2)))
    count = len(grid.replicas)
    begin = max(0, int(holding[0]) - 1 if len(holding) else count - _REPLICA_ROWS)
    end = min(begin + _REPLICA_ROWS, count)
    return [_best_at(grid, _at(grid, 1, index)) for index in range(begin, end)]


def _best_at(grid: Grid, among: Mask) -> Choice:
    found = grid.cheapest(among & grid.feasible) or nearest(grid, among)
    assert found is not None, "an axis of a grid has points"
    return found


def _near_misses(solution: Solution) -> list[Choice]:
    grid, best = solution.grid, solution.cheapest
    cheaper = np.ones_like(grid.feasible)
    if best is not None:
        cheaper = grid.values.joules_per_request < best.prediction.joules_per_request
    found = []
    for binding in (Binding.TTFT, Binding.TPOT, Binding.CAPACITY):
        choice = nearest(grid, cheaper & (grid.binding == binding.value))
        if choice is not None:
            found.append(choice)
    return found


def _at(grid: Grid, axis: int, index: int) -> Mask:
    """The points at one place of an axis."""
    places: Ints = np.arange(grid.feasible.shape[axis])
    shape = [1, 1, 1]
    shape[axis] = -1
    return np.broadcast_to((places == index).reshape(shape), grid.feasible.shape)
