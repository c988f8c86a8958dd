"""A plan as one JSON document; null is "not known"."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from policies.core.objective import Choice
from serve_app.planner.errors import errors_of, margins_of
from serve_app.planner.plan import Answer, Plan
from serve_app.planner.solve import Solution
from serve_app.planner.sweep import Sweep

SCHEMA_VERSION = 1
Json = dict[str, Any]


def document(plan: Plan) -> Json:
    """All of the plan, every point that was evaluated included."""
    best = plan.best
    return {
        "schema_version": SCHEMA_VERSION,
        "question": _question(plan),
        "best_profile": None if best is None else best.model.name,
        "profiles": [_answer(one) for one in plan.answers],
        "refusals": list(plan.refusals),
        "sweep": None if plan.sweep is None else _sweep(plan.sweep),
    }


def _question(plan: Plan) -> Json:
    question, demand = plan.question, plan.demand
    tariff = question.tariff
    return {
        "load": asdict(question.load),
        "slo": asdict(question.slo),
        "headroom_ratio": question.headroom_ratio,
        "min_replicas": question.min_replicas,
        "max_replicas": question.most_replicas,
        "max_num_seqs": question.max_num_seqs,
        "power_limits_watts": list(question.power_limits_watts),
        "price_per_kwh": tariff.price_per_kwh,
        "currency": tariff.currency,
        "pue": tariff.pue,
        "trace": demand.source,
        "mean_load": asdict(demand.mean),
    }


def _answer(answer: Answer) -> Json:
    solution, model, selection = answer.solution, answer.model, answer.selection
    return {
        "profile": model.name,
        "model": model.model,
        "device": model.device,
        "num_devices": model.power.num_devices,
        "provenance": dict(model.provenance),
        "errors": asdict(errors_of(model)),
        "evaluated_points": int(solution.grid.feasible.size),
        "feasible_points": int(solution.grid.feasible.sum()),
        "refused": list(solution.grid.refused),
        "cheapest": _point(solution, solution.cheapest),
        "sure_cheapest": _point(solution, solution.sure_cheapest),
        "policy": _point(solution, solution.policy),
        "policy_extra_ratio": solution.policy_extra_ratio,
        "by_replicas": [_point(solution, one) for one in selection.by_replicas],
        "by_limit": [_point(solution, one) for one in selection.by_limit],
        "near_misses": [_point(solution, one) for one in selection.near_misses],
        "ttft_front": [_point(solution, one) for one in selection.ttft_front],
        "tpot_front": [_point(solution, one) for one in selection.tpot_front],
        "shadow_prices": [asdict(one) for one in answer.shadow_prices],
        "day": {
            "kept": None if answer.kept is None else asdict(answer.kept),
            "followed": asdict(answer.followed),
        },
        "grid": _grid(solution),
    }


def _point(solution: Solution, choice: Choice | None) -> Json | None:
    if choice is None:
        return None
    question, predicted = solution.question, choice.prediction
    margins = margins_of(solution.model, choice, question.load, question.slo)
    return {
        "num_replicas": choice.point.num_replicas,
        "max_num_active_seqs": choice.point.max_num_active_seqs,
        "power_limit_watts": choice.point.power_limit_watts,
        "num_devices": choice.point.num_replicas * solution.model.power.num_devices,
        **asdict(predicted),
        "joules_per_output_token": predicted.joules_per_request / question.load.output_tokens,
        "verdict": solution.verdict(choice),
        "margins": None if margins is None else asdict(margins),
    }


def _grid(solution: Solution) -> Json:
    """Every point: the arrays are nested as limits, replicas, caps."""
    grid = solution.grid
    values = {item.name: getattr(grid.values, item.name).tolist() for item in fields(grid.values)}
    return {
        "power_limits_watts": list(grid.limits),
        "num_replicas": grid.replicas.tolist(),
        "max_num_active_seqs": grid.caps.tolist(),
        **values,
        "binding": grid.binding.tolist(),
        "sure": solution.sure.tolist(),
    }


def _sweep(found: Sweep) -> Json:
    names = [model.name for model in found.models]
    return {
        "profiles": names,
        "rates": [
            {
                "rate_per_s": one.rate_per_s,
                "cheapest": _name(names, one.cheapest),
                "choices": [None if choice is None else asdict(choice) for choice in one.choices],
            }
            for one in found.rates
        ],
        "crossovers": [
            {
                "rate_per_s": one.rate_per_s,
                "below": _name(names, one.below),
                "above": _name(names, one.above),
            }
            for one in found.crossovers
        ],
    }


def _name(names: list[str], place: int | None) -> str | None:
    return None if place is None else names[place]
