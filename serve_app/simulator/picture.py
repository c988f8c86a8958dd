"""Simulated runs over time, as one picture: a column per trace, a colour per policy.

On a white ground of its own, so that it reads the same on a light and on a dark page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from policies.sim.fleet_state import Floats
from serve_app.drawing import check_format, matplotlib, save
from serve_app.simulator.run import Run

if TYPE_CHECKING:
    from policies.sim.moments import Moment

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")  # P. Tol's, safe
MOST_SPANS = 288
FEW = 20  # requests: of fewer, no share is drawn


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Series:
    """A run in at most MOST_SPANS spans of equal length; hours, and per span means and rates.

    `limit_watts`: NaN where no limit is set; `attained_ratio`: of what ended in the span, NaN
    where few did."""

    hours: Floats
    arrivals_per_s: Floats
    replicas: Floats
    limit_watts: Floats
    draw_watts: Floats
    outstanding: Floats
    attained_ratio: Floats


def series_of(moments: Sequence[Moment]) -> Series:
    """The moments of a run, joined to spans. Draw times span summed stays the energy."""
    groups = np.array_split(np.arange(len(moments)), min(MOST_SPANS, max(len(moments), 1)))
    held = [[moments[place] for place in group] for group in groups if len(group)]
    ends = np.array([group[-1].time_s for group in held])
    spans_s = np.array([sum(one.span_s for one in group) for group in held])

    def grown(value: Callable[[Moment], float]) -> Floats:
        return np.diff([0.0, *(value(group[-1]) for group in held)])

    def mean(value: Callable[[Moment], float]) -> Floats:
        sums = [sum(value(one) * one.span_s for one in group) for group in held]
        return np.asarray(np.array(sums) / np.maximum(spans_s, 1e-9))

    ended = grown(lambda one: one.completed)
    with np.errstate(invalid="ignore", divide="ignore"):
        attained = np.where(ended >= FEW, grown(lambda one: one.attained) / ended, np.nan)
    return Series(
        hours=(ends - spans_s) / 3600.0,
        arrivals_per_s=grown(lambda one: one.arrived) / np.maximum(spans_s, 1e-9),
        replicas=mean(lambda one: one.accepting + one.starting + one.draining),
        limit_watts=mean(
            lambda one: np.nan if one.mean_limit_watts is None else one.mean_limit_watts
        ),
        draw_watts=mean(lambda one: one.draw_watts),
        outstanding=mean(lambda one: one.outstanding),
        attained_ratio=attained,
    )


_PANELS = (
    ("arrivals_per_s", "requests/s"),
    ("replicas", "replicas"),
    ("limit_watts", "mean limit, W/GPU"),
    ("draw_watts", "fleet's draw, W"),
    ("outstanding", "requests inside"),
    ("attained_ratio", "attained, from 90 %"),
)
_SHARE, WORST_SHARE = "attained_ratio", 0.9


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Curve:
    """One run to be drawn: the column that it belongs to, its label, and the share aimed at."""

    column: str
    label: str
    series: Series
    percentile: float


def draw(runs: Sequence[Run], path: Path) -> None:
    """Write the picture of these runs; the ending says the format. Raises ConfigError."""
    curves = [
        Curve(
            column=f"{Path(run.trace).name}, {run.scenario.truth.name}, simulated",
            label=run.spec.text,
            series=series_of(list(run.result.moments)),
            percentile=run.scenario.slo.percentile,
        )
        for run in runs
    ]
    draw_curves(curves, path, "jouleserve simulate")


def draw_curves(curves: Sequence[Curve], path: Path, title: str) -> None:
    """Write the picture: a column per name, the curves of each on the same axes. Raises
    ConfigError."""
    check_format(path)
    names = list(dict.fromkeys(curve.column for curve in curves))
    figure = matplotlib("figure").Figure(
        figsize=(9.0 * len(names), 11.0), layout="constrained", dpi=100, facecolor="white"
    )
    grid = figure.subplots(len(_PANELS), len(names), squeeze=False, sharex="col")
    for place, name in enumerate(names):
        for number, curve in enumerate(one for one in curves if one.column == name):
            _column(grid[:, place], curve, number)
        grid[0, place].set_title(_plain(name), fontsize=10)
        grid[-1, place].set_xlabel("hours")
        grid[1, place].legend(fontsize=8, loc="best")
    save(figure, path, title)


def _column(axes: Any, curve: Curve, place: int) -> None:
    colour = COLOURS[place % len(COLOURS)]
    for axis, (name, label) in zip(axes, _PANELS, strict=True):
        if name == "arrivals_per_s" and place:
            continue  # the same for every policy
        values = getattr(curve.series, name)
        axis.plot(
            curve.series.hours, np.maximum(values, WORST_SHARE) if name == _SHARE else values,
            color=colour, lw=1.0, drawstyle="steps-post", label=_plain(curve.label),
        )  # fmt: skip
        axis.set_ylabel(label, fontsize=8)
        axis.tick_params(labelsize=8)
        if name == _SHARE and not place:
            axis.axhline(curve.percentile, color="#222222", lw=0.8, ls="--")
            axis.set_ylim(WORST_SHARE - 0.005, 1.005)


def _plain(text: str) -> str:
    return (text if len(text) <= 90 else f"{text[:87]}...").replace("$", r"\$")
