"""A plan as one picture: what latency costs at the planned rate, and the profiles over the rates.

On a white ground of its own, so that it reads the same on a light and on a dark page.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from policies.core.types import Binding
from policies.model.batch import Floats
from policies.model.grid import Ints, Mask
from serve_app.drawing import check_format, matplotlib, save
from serve_app.planner.plan import Answer, Plan
from serve_app.planner.selection import Place, tpot_front, ttft_front
from serve_app.planner.solve import Solution
from serve_app.planner.sweep import Sweep
from serve_app.planner.words import load_text

_MAX_DOTS = 4000  # per kind: more cannot be told apart on the page
_HOLDS, _UNSURE, _MISSES, _FRONT, _TARGET = "#4477aa", "#66ccee", "#cccccc", "#222222", "#ee6677"
_LINES = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")  # P. Tol's, safe


def draw(plan: Plan, path: Path) -> None:
    """Write the picture; the ending says the format. Raises ConfigError."""
    check_format(path)
    rows = len(plan.answers) + (plan.sweep is not None)
    figure = matplotlib("figure").Figure(
        figsize=(12, 4.4 * rows), layout="constrained", dpi=120, facecolor="white"
    )
    grid = figure.add_gridspec(rows, 2)
    for row, answer in enumerate(plan.answers):
        _fronts(figure.add_subplot(grid[row, 0]), figure.add_subplot(grid[row, 1]), answer)
    if plan.sweep is not None:
        _sweep(figure.add_subplot(grid[rows - 1, :]), plan.sweep)
    save(figure, path, "jouleserve plan")


def _fronts(left: Any, right: Any, answer: Answer) -> None:
    solution = answer.solution
    values, slo = solution.grid.values, solution.question.slo
    share = f"p{slo.percentile * 100:g}"
    _points(left, solution, values.ttft_s, slo.ttft_s)
    _points(right, solution, values.tpot_s, slo.tpot_s)
    _front(left, solution, values.ttft_s, ttft_front(solution.grid))
    _front(right, solution, values.tpot_s, tpot_front(solution.grid))
    left.set_xlabel(f"{share} TTFT, ms")
    right.set_xlabel(f"{share} TPOT, ms")
    load = load_text(solution.question.load)
    left.set_title(f"{answer.model.name}, {load}".replace("$", r"\$"), loc="left", fontsize=10)
    right.legend(loc="upper right", fontsize=8)


def _points(axes: Any, solution: Solution, latency_s: Floats, target_s: float) -> None:
    """Every point with a steady state, by what it holds, and the target."""
    grid = solution.grid
    joules = grid.values.joules_per_request
    stable = grid.binding != Binding.CAPACITY.value
    for mask, colour, label in (
        (stable & ~grid.feasible, _MISSES, "misses a target"),
        (grid.feasible & ~solution.sure, _UNSURE, "holds, but within the error"),
        (solution.sure, _HOLDS, "holds"),
    ):
        places = _thinned(mask)
        axes.plot(
            latency_s.flat[places] * 1e3, joules.flat[places], ".", ms=3, color=colour,
            label=label, rasterized=True,
        )  # fmt: skip
    axes.axvline(target_s * 1e3, color=_TARGET, lw=1.2, ls="--", label="target")
    axes.set_ylabel("J/request")
    _logarithmic(axes)
    if stable.any():
        least_s = latency_s[stable].min()
        axes.set_xlim(0.9e3 * least_s, 4e3 * max(target_s, least_s))


def _front(axes: Any, solution: Solution, latency_s: Floats, line: list[Place]) -> None:
    """What this latency costs while the other target holds, and the chosen points."""
    joules = solution.grid.values.joules_per_request
    axes.plot(
        [latency_s[place] * 1e3 for place in line], [joules[place] for place in line],
        color=_FRONT, lw=1.2, drawstyle="steps-post", label="Pareto front",
    )  # fmt: skip
    chosen = (("cheapest", "*", 15, solution.cheapest), ("policy", "D", 7, solution.policy))
    for label, marker, size, choice in chosen:
        if choice is None:
            continue
        place = solution.index(choice.point)
        axes.plot(
            latency_s[place] * 1e3, joules[place], marker, ms=size, color=_TARGET,
            markeredgecolor=_FRONT, label=label, ls="",
        )  # fmt: skip


def _thinned(mask: Mask) -> Ints:
    places = np.flatnonzero(mask)
    return places[:: max(1, len(places) // _MAX_DOTS)]


def _sweep(axes: Any, found: Sweep) -> None:
    """J/request of every profile by rate, with the places where the cheapest changes."""
    rates = [rate.rate_per_s for rate in found.rates]
    for place, model in enumerate(found.models):
        choices = [rate.choices[place] for rate in found.rates]
        joules = [np.nan if one is None else one.prediction.joules_per_request for one in choices]
        label = model.name.replace("$", r"\$")
        axes.plot(rates, joules, "o-", ms=4, lw=1.2, color=_LINES[place % len(_LINES)], label=label)
    for place, one in enumerate(found.crossovers):
        first = "the cheapest changes" if place == 0 else None
        axes.axvline(one.rate_per_s, color=_FRONT, lw=0.8, ls=":", label=first)
    axes.set_xlabel("requests/s")
    axes.set_ylabel("J/request, cheapest that holds")
    axes.legend(fontsize=8)
    _logarithmic(axes)


def _logarithmic(axes: Any) -> None:
    """Both axes, with plain numbers, some of them between the powers of ten."""
    ticker = matplotlib("ticker")
    for axis, set_scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
        set_scale("log")
        axis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(ticker.LogFormatter(minor_thresholds=(2, 0.5)))
        axis.set_tick_params(which="both", labelsize=8)
