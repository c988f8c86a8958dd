"""The whole plan: every profile's answer to one question, the best of them, and the sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from policies.core.errors import ConfigError, ModelError
from policies.model.fitted import FittedModel
from serve_app.planner.day import Day, followed, kept
from serve_app.planner.demand import Demand
from serve_app.planner.question import Question
from serve_app.planner.selection import Selection, select
from serve_app.planner.shadow import ShadowPrice, shadow_prices
from serve_app.planner.solve import Solution, solve
from serve_app.planner.sweep import Sweep, sweep


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Answer:
    """All about one profile. `kept`: a day at the cheapest point, None where nothing holds;
    `followed`: a day as the policy would run it."""

    solution: Solution
    selection: Selection
    shadow_prices: tuple[ShadowPrice, ...]
    kept: Day | None
    followed: Day

    @property
    def model(self) -> FittedModel:
        """The profile."""
        return self.solution.model


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Plan:
    """`refusals`: of the profiles that have no answer at all, why, one line each."""

    question: Question
    demand: Demand
    answers: tuple[Answer, ...]
    refusals: tuple[str, ...]
    sweep: Sweep | None

    @property
    def best(self) -> Answer | None:
        """The profile with the fewest joules per request; None where nothing holds the targets."""
        joules = [
            (one.solution.cheapest.prediction.joules_per_request, place)
            for place, one in enumerate(self.answers)
            if one.solution.cheapest is not None
        ]
        return self.answers[min(joules)[1]] if joules else None


def make_plan(
    models: Sequence[FittedModel], question: Question, demand: Demand, rates: Sequence[float]
) -> Plan:
    """The plan for the demand's peak. Raises ConfigError where no profile can answer."""
    answers, refusals = [], []
    for model in models:
        try:
            answers.append(_answer(model, question, demand))
        except ModelError as error:
            refusals.append(str(error))
    if not answers:
        raise ConfigError("; ".join(refusals))
    return Plan(
        question=question,
        demand=demand,
        answers=tuple(answers),
        refusals=tuple(refusals),
        sweep=sweep(models, question, rates) if rates else None,
    )


def _answer(model: FittedModel, question: Question, demand: Demand) -> Answer:
    solution = solve(model, question)
    best = solution.cheapest
    return Answer(
        solution=solution,
        selection=select(solution),
        shadow_prices=shadow_prices(solution),
        kept=None if best is None else kept(model, question, demand, best.point),
        followed=followed(model, question, demand),
    )
