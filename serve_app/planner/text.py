"""A plan as tables for people."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from policies.core.objective import Choice
from serve_app.planner.costs_text import days_table, prices_table
from serve_app.planner.errors import Interval, errors_of, margins_of
from serve_app.planner.plan import Answer, Plan
from serve_app.planner.selection import thinned
from serve_app.planner.solve import HOLDS, Solution
from serve_app.planner.sweep_text import comparison_table, crossover_lines, sweep_table
from serve_app.planner.words import figures, kind_of, load_text, replicas_text
from serve_app.report.text import percent

SAME_RATIO = 5e-5  # below this, two costs are printed the same
_COLUMNS = (
    "replicas", "batch cap", "limit W", "TTFT ms", "TPOT ms", "J/request", "J/token", "W",
)  # fmt: skip


def render(plan: Plan) -> RenderableType:
    """Every profile's tables, the comparison, and what limits the figures."""
    parts: list[RenderableType] = [Text(_asked(plan), style="bold")]
    for answer in plan.answers:
        parts += _answer(plan, answer)
    if len(plan.answers) > 1:
        parts += [Text(""), comparison_table(plan)]
    if plan.sweep is not None:
        parts += [Text(""), sweep_table(plan.sweep, plan.question)]
        parts += [Text(line) for line in crossover_lines(plan.sweep)]
    parts += [Text(f"not known: {line}") for line in plan.refusals]
    return Group(*parts, *(Text(line) for line in _notes(plan)))


def _asked(plan: Plan) -> str:
    question = plan.question
    slo = question.slo
    asked = (
        f"{load_text(question.load)}; p{slo.percentile * 100:g} TTFT <= {slo.ttft_s * 1e3:g} ms, "
        f"TPOT <= {slo.tpot_s * 1e3:g} ms"
    )
    if plan.demand.source is None:
        return asked
    return f"{plan.demand.source}, its busy minutes: {asked}"


def _answer(plan: Plan, answer: Answer) -> Iterator[RenderableType]:
    solution, model = answer.solution, answer.model
    yield Text("")
    title = f"{model.name}: {model.model} on {model.device} (profile {kind_of(model)})"
    yield Text(title, style="bold")
    yield _points(answer)
    for line in _conclusions(solution):
        yield Text(line)
    yield from (Text(f"not known: {line}") for line in solution.grid.refused)
    yield Text(_errors(solution))
    yield prices_table(answer.shadow_prices)
    yield days_table(plan, answer)


def _points(answer: Answer) -> Table:
    solution, selection = answer.solution, answer.selection
    table = Table()
    table.add_column("")
    for title in _COLUMNS:
        table.add_column(title, justify="right")
    table.add_column("")
    groups: tuple[tuple[str, Iterable[Choice]], ...] = (
        ("cheapest", _some(solution.cheapest)),
        ("cheapest for sure", _some(solution.sure_cheapest)),
        ("the policy's", (solution.policy,)),
        ("by replicas", selection.by_replicas),
        ("by limit", selection.by_limit if len(selection.by_limit) > 1 else ()),
        ("Pareto, TTFT", thinned(selection.ttft_front)),
        ("Pareto, TPOT", thinned(selection.tpot_front)),
        ("cheaper, but", selection.near_misses),
    )
    for title, choices in groups:
        for place, choice in enumerate(choices):
            style = "" if choice.feasible else "dim"
            table.add_row(title if place == 0 else "", *_cells(solution, choice), style=style)
        if choices and title not in {"cheapest", "cheapest for sure"}:
            table.add_section()
    return table


def _some(choice: Choice | None) -> tuple[Choice, ...]:
    return () if choice is None else (choice,)


def _cells(solution: Solution, choice: Choice) -> list[str]:
    point, predicted, question = choice.point, choice.prediction, solution.question
    margins = margins_of(solution.model, choice, question.load, question.slo)
    ttft, tpot, joules = (
        (None, None, None)
        if margins is None
        else (margins.ttft_s.times(1e3), margins.tpot_s.times(1e3), margins.joules_per_request)
    )
    limit = point.power_limit_watts
    return [
        replicas_text(point.num_replicas, solution.model.power.num_devices),
        str(point.max_num_active_seqs),
        "default" if limit is None else f"{limit:g}",
        _with_margin(predicted.ttft_s * 1e3, ttft, "{:,.0f}".format),
        _with_margin(predicted.tpot_s * 1e3, tpot, "{:,.1f}".format),
        _with_margin(predicted.joules_per_request, joules, figures),
        figures(predicted.joules_per_request / question.load.output_tokens),
        f"{predicted.draw_watts:,.0f}",
        solution.verdict(choice),
    ]


def _with_margin(value: float, margin: Interval | None, form: Callable[[float], str]) -> str:
    """The value with its error, up and down apart: a queue does not grow evenly."""
    if margin is None:
        return f"{form(value)} ±?"
    up = "∞" if margin.high is None else form(margin.high - value)
    return f"{form(value)} +{up} -{form(value - margin.low)}"


def _conclusions(solution: Solution) -> Iterator[str]:
    grid = solution.grid
    yield f"{grid.feasible.size:,} points evaluated, {int(grid.feasible.sum()):,} hold the targets"
    if solution.cheapest is None:
        binding = solution.policy.prediction.binding.value
        yield f"nothing holds the targets; the least bad point, the policy's, misses: {binding}"
        return
    if solution.verdict(solution.cheapest) != HOLDS:
        yield f"mind the error: the cheapest {solution.verdict(solution.cheapest)}"
    extra = solution.policy_extra_ratio
    headroom = f"{solution.question.headroom_ratio:.0%} headroom"
    if extra is None:
        yield f"the policy, with its {headroom}, finds nothing that holds"
    elif solution.policy.point == solution.cheapest.point:
        yield f"the policy, with its {headroom}, chooses the same point"
    elif extra < SAME_RATIO:
        yield f"the policy, with its {headroom}, chooses another point of the same J/request"
    else:
        yield (
            f"the policy, with its {headroom} and a cap that guards the TPOT of a full batch, "
            f"takes {extra:+.2%} J/request"
        )


def _errors(solution: Solution) -> str:
    """How far off the profile may be."""
    errors = errors_of(solution.model)
    limit = errors.power_limit_ratio
    parts = (
        f"step time {percent(errors.step_time_ratio)}",
        f"prompts {percent(errors.prefill_ratio)}",
        f"step energy {percent(errors.energy_ratio)}",
        f"effect of a power limit {'not known' if limit is None else percent(limit)}",
    )
    fallback = ", by its held-out residuals" if errors.from_residuals else ""
    return f"error of the profile (95 %{fallback}): {', '.join(parts)}"


def _notes(plan: Plan) -> Iterator[str]:
    """What limits the figures, one line each."""
    yield "J, W: the devices', idle included; J/token: per output token"
    yield "TTFT, TPOT: at the replica, in the steady state"
    if plan.demand.source is not None:
        yield "of lengths only the means count: long tails make TTFT later than planned"
        yield "the start-up of replicas is in no figure"
    if len({answer.model.model for answer in plan.answers}) > 1:
        yield "the profiles are of different models: their answers differ in quality"
