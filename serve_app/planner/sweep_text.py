"""Profiles side by side, at one rate and over many, as tables for people."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from policies.core.objective import Choice
from policies.model.fitted import FittedModel
from serve_app.planner.errors import Interval, margins_of
from serve_app.planner.plan import Answer, Plan
from serve_app.planner.question import Question
from serve_app.planner.sweep import Sweep
from serve_app.planner.words import NOTHING_HOLDS, figures, replicas_text


def comparison_table(plan: Plan) -> Table:
    """The cheapest point of each profile, the cheapest profile first."""
    table = Table(title="profiles compared", title_justify="left")
    for name in ("profile", "model", "device"):
        table.add_column(name, overflow="fold")
    for name in ("replicas", "J/request", "J/output token", "against the best"):
        table.add_column(name, justify="right")
    for answer in sorted(plan.answers, key=_joules):
        table.add_row(*_compared(plan, answer))
    return table


def _joules(answer: Answer) -> float:
    best = answer.solution.cheapest
    return float("inf") if best is None else best.prediction.joules_per_request


def _compared(plan: Plan, answer: Answer) -> list[str]:
    model, choice, best = answer.model, answer.solution.cheapest, plan.best
    named = [model.name, model.model, model.device]
    if choice is None or best is None:
        return [*named, "", NOTHING_HOLDS, "", ""]
    joules = choice.prediction.joules_per_request
    extra = joules / _joules(best) - 1.0
    close = answer is not best and _overlap(_interval(answer), _interval(best))
    return [
        *named,
        replicas_text(choice.point.num_replicas, model.power.num_devices),
        figures(joules),
        figures(joules / plan.question.load.output_tokens),
        "the best" if answer is best else f"{extra:+.1%}{', within the error' if close else ''}",
    ]


def _overlap(dearer: Interval | None, cheaper: Interval | None) -> bool:
    """Whether the order may be the other way round; it may where an error is not known."""
    if dearer is None or cheaper is None or cheaper.high is None:
        return True
    return dearer.low <= cheaper.high


def _interval(answer: Answer) -> Interval | None:
    choice, question = answer.solution.cheapest, answer.solution.question
    assert choice is not None, "only what holds is compared"
    margins = margins_of(answer.model, choice, question.load, question.slo)
    return None if margins is None else margins.joules_per_request


def sweep_table(found: Sweep, question: Question) -> Table:
    """J/request, J/output token and devices of each profile by rate; the cheapest is bold."""
    table = Table(title="J/request (J/output token, devices) by rate", title_justify="left")
    table.add_column("requests/s", justify="right")
    for model in found.models:
        table.add_column(model.name, justify="right")
    for rate in found.rates:
        cells = [
            _cell(model, choice, question)
            for model, choice in zip(found.models, rate.choices, strict=True)
        ]
        if rate.cheapest is not None:
            cells[rate.cheapest].stylize("bold")
        table.add_row(f"{rate.rate_per_s:g}", *cells)
    return table


def _cell(model: FittedModel, choice: Choice | None, question: Question) -> Text:
    if choice is None:
        return Text(NOTHING_HOLDS, style="dim")
    joules = choice.prediction.joules_per_request
    devices = choice.point.num_replicas * model.power.num_devices
    return Text(f"{figures(joules)} ({figures(joules / question.load.output_tokens)}, {devices})")


def crossover_lines(found: Sweep) -> list[str]:
    """Where the cheapest profile changes, one line each."""
    names = [model.name for model in found.models]
    lines = []
    for one in found.crossovers:
        above = NOTHING_HOLDS if one.above is None else f"{names[one.above]} is the cheapest"
        below = NOTHING_HOLDS if one.below is None else names[one.below]
        lines.append(f"from about {one.rate_per_s:.3g} requests/s {above} (below: {below})")
    return lines
