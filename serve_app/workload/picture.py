"""A description as one picture: lengths, rate over time, the day, and the energy estimates.

On a white ground of its own, so that it reads the same on a light and on a dark page.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from serve_app.drawing import check_format, matplotlib, save
from serve_app.workload.arrivals import MINUTE_S, rates_over_time
from serve_app.workload.describe import Description

_MAX_POINTS = 1500  # of the rate over time: more cannot be told apart on the page
_LINE, _MEAN, _WEEKEND = "#4477aa", "#222222", "#ee6677"  # P. Tol's, safe for the colour-blind
_NAIVE, _BINNED, _MEASURED = "#bbbbbb", "#4477aa", "#ee6677"


def draw(found: Description, path: Path) -> None:
    """Write the picture; the ending says the format. Raises ConfigError."""
    check_format(path)
    figure = matplotlib("figure").Figure(
        figsize=(12.5, 8.5), layout="constrained", dpi=120, facecolor="white"
    )
    (lengths, rate), (energy, day) = figure.subplots(2, 2)
    figure.suptitle(_title(found), fontsize=11)
    _lengths(figure, lengths, found)
    _rate(rate, found)
    _day(day, found)
    _energy(energy, found)
    save(figure, path, "jouleserve workload")


def _title(found: Description) -> str:
    arrivals = found.arrivals
    parts = [Path(found.workload.source).name.replace("$", r"\$")]
    if arrivals.requests is not None:
        parts.append(f"{arrivals.requests:,} requests")
    if arrivals.mean_per_s is not None:
        parts.append(f"{arrivals.mean_per_s:.3g} req/s")
    if arrivals.interarrival_cv is not None:
        parts.append(f"inter-arrival CV {arrivals.interarrival_cv:.2f}")
    return ", ".join(parts)


def _lengths(figure: Any, axes: Any, found: Description) -> None:
    axes.set_title("requests by length", loc="left", fontsize=10)
    if not found.bins:
        _say(axes, "the trace holds no lengths")
        return
    prompts = _powers({one.prompt_bin for one in found.bins})
    outputs = _powers({one.output_bin for one in found.bins})
    total = sum(one.requests for one in found.bins)
    share = np.full((len(prompts), len(outputs)), np.nan)
    for one in found.bins:
        share[prompts.index(one.prompt_bin), outputs.index(one.output_bin)] = one.requests / total
    image = axes.imshow(100.0 * share, cmap="cividis", origin="lower", aspect="auto")
    figure.colorbar(image, ax=axes, label="% of requests")
    axes.set_xticks(range(len(outputs)), [f"{o:,}" for o in outputs], fontsize=8, rotation=45)
    axes.set_yticks(range(len(prompts)), [f"{p:,}" for p in prompts], fontsize=8)
    axes.set_xlabel("output, tokens up to")
    axes.set_ylabel("prompt, tokens up to")
    middle = 0.5 * float(np.nanmax(share))
    for (row, column), value in np.ndenumerate(share):
        if value >= 0.005:
            axes.annotate(
                f"{100.0 * value:.0f}", (column, row), ha="center", va="center", fontsize=7,
                color="black" if value > middle else "white",
            )  # fmt: skip


def _powers(bins: set[int]) -> list[int]:
    """Every power of two from the least to the largest bin: an empty one keeps its place."""
    return [1 << k for k in range(min(bins).bit_length() - 1, max(bins).bit_length())]


def _rate(axes: Any, found: Description) -> None:
    axes.set_title("arrival rate", loc="left", fontsize=10)
    span_s = found.workload.end_s
    if span_s <= 0.0:
        _say(axes, "all requests arrive at one moment")
        return
    width_s = min(MINUTE_S, span_s) * max(1, math.ceil(span_s / MINUTE_S / _MAX_POINTS))
    over_time = rates_over_time(found.workload, width_s)
    unit, seconds = ("h", 3600.0) if span_s > 2 * 3600.0 else ("min", 60.0)
    axes.stairs(over_time.rates_per_s, over_time.edges_s / seconds, color=_LINE, lw=1.0)
    if found.arrivals.mean_per_s is not None:
        axes.axhline(found.arrivals.mean_per_s, color=_MEAN, lw=0.8, ls="--", label="mean")
        axes.legend(fontsize=8, frameon=False)
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel(f"{unit} from the start")
    axes.set_ylabel(f"req/s, mean of {width_s:g} s")


def _day(axes: Any, found: Description) -> None:
    day = found.day
    axes.set_title("shape of the day", loc="left", fontsize=10)
    curves = [("every day", day.every_day, _MEAN), ("weekday", day.weekday, _LINE),
              ("weekend", day.weekend, _WEEKEND)]  # fmt: skip
    for name, rates, colour in curves:
        if rates is not None:
            values = [math.nan if rate is None else rate for rate in rates]
            axes.plot(range(24), values, "o-", ms=3, lw=1.0, color=colour, label=name)
    axes.set_xlim(-0.5, 23.5)
    axes.set_xticks(range(0, 24, 3))
    axes.margins(y=0.15)  # room for the legend
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel(f"hour of the day ({day.clock})")
    axes.set_ylabel("req/s")
    axes.legend(fontsize=8, frameon=False)


def _energy(axes: Any, found: Description) -> None:
    axes.set_title("energy of the trace", loc="left", fontsize=10)
    energy = found.energy
    if energy is None or not (energy.estimates or energy.measured_joules):
        _say(axes, "no profile, no rated FLOPs and TDP, nothing measured")
        return
    bars = [
        (one.name, one.joules, _NAIVE if one.name.startswith("naive") else _BINNED,
         "" if one.error_ratio is None else f" ({one.error_ratio:+.0%})")
        for one in energy.estimates
    ]  # fmt: skip
    if energy.measured_joules is not None:
        bars.append(("measured", energy.measured_joules, _MEASURED, ""))
    places = range(len(bars))
    axes.barh(places, [joules for _, joules, _, _ in bars], color=[bar[2] for bar in bars])
    axes.set_yticks(list(places), [bar[0] for bar in bars], fontsize=8)
    axes.invert_yaxis()
    for place, (_, joules, _, error) in zip(places, bars, strict=True):
        axes.annotate(
            f"{joules / energy.requests:,.3g} J/request{error}", (joules, place), xytext=(4, 0),
            textcoords="offset points", va="center", fontsize=8,
        )  # fmt: skip
    axes.margins(x=0.4)
    axes.xaxis.set_major_formatter(matplotlib("ticker").EngFormatter(unit="J"))
    axes.set_xlabel(f"energy of {energy.requests:,} requests")


def _say(axes: Any, text: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)
