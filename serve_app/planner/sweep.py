"""At which load which profile is the cheapest: the GPU, model variant or engine feature that pays.

A profile stands for what it was measured with, features of the engine and tensor parallelism
included. Joules per request jump where another replica is needed, so that between two rates the
cheapest may change more than once; one crossover is found per pair of neighbouring rates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from policies.core.errors import ModelError
from policies.core.objective import Choice
from policies.model.fitted import FittedModel
from policies.model.grid import ROUNDING_RATIO, evaluate
from serve_app.planner.question import Question

_CLOSE_RATIO = 1.01  # a crossover is known to within 1 %


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """One rate: the cheapest feasible point of each profile, None where it has none; `cheapest` is
    the place of the profile with the fewest joules per request, of equals the first, None where
    nothing holds."""

    rate_per_s: float
    choices: tuple[Choice | None, ...]

    @property
    def cheapest(self) -> int | None:
        joules = {
            place: choice.prediction.joules_per_request
            for place, choice in enumerate(self.choices)
            if choice is not None
        }
        least = min(joules.values(), default=0.0) * (1.0 + ROUNDING_RATIO)
        return next((place for place, one in joules.items() if one <= least), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Crossover:
    """Up to about `rate_per_s` the profile `below` is the cheapest, then `above`; None: nothing
    holds the targets there."""

    rate_per_s: float
    below: int | None
    above: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """The profiles over a range of rates; places count in `models`."""

    models: tuple[FittedModel, ...]
    rates: tuple[Rate, ...]
    crossovers: tuple[Crossover, ...]


def sweep(models: Sequence[FittedModel], question: Question, rates: Sequence[float]) -> Sweep:
    """Each profile at each of the ascending rates, and where the cheapest changes."""
    found = [_at(models, question, rate) for rate in rates]
    crossovers = [
        _crossover(models, question, low, high)
        for low, high in pairwise(found)
        if low.cheapest != high.cheapest
    ]
    return Sweep(models=tuple(models), rates=tuple(found), crossovers=tuple(crossovers))


def _at(models: Sequence[FittedModel], question: Question, rate_per_s: float) -> Rate:
    asked = question.at_rate(rate_per_s)
    return Rate(rate_per_s=rate_per_s, choices=tuple(_cheapest(one, asked) for one in models))


def _cheapest(model: FittedModel, question: Question) -> Choice | None:
    try:
        grid = evaluate(model, question.load, question.slo, question.box(model))
    except ModelError:
        return None
    return grid.cheapest(grid.feasible)


def _crossover(
    models: Sequence[FittedModel], question: Question, low: Rate, high: Rate
) -> Crossover:
    """Bisection by the logarithm of the rate: `low` and `high` never have the same cheapest."""
    while high.rate_per_s > _CLOSE_RATIO * low.rate_per_s:
        middle = _at(models, question, math.sqrt(low.rate_per_s * high.rate_per_s))
        if middle.cheapest == low.cheapest:
            low = middle
        else:
            high = middle
    return Crossover(rate_per_s=high.rate_per_s, below=low.cheapest, above=high.cheapest)
