"""A report as one picture: joules over time by phase, joules per request and per token over time,
and who used them. A time without known energy is an empty place, not a zero."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from policies.core.errors import ConfigError
from serve_app.drawing import check_format, matplotlib, save
from serve_app.report.figures import Figures
from serve_app.report.summary import Report
from serve_app.report.text import NOBODY, percent

_MAX_GROUPS = 12
_PREFILL, _DECODE, _IDLE, _LINE = "#4477aa", "#ee6677", "#bbbbbb", "#222222"  # P. Tol's, safe
_WIDTHS = {60: "minute", 300: "5 minutes", 900: "15 minutes", 3600: "hour", 86_400: "day"}


def draw(report: Report, path: Path) -> None:
    """Write the picture; the ending says the format. Raises ConfigError."""
    check_format(path)
    if not report.total.requests:
        raise ConfigError("--picture: no request in the period, nothing to draw")
    groups = _groups(report)
    figure = matplotlib("figure").Figure(
        figsize=(11, 6.5 + 0.28 * len(groups)), layout="constrained", dpi=120
    )
    over_time, costs, used = figure.subplots(
        3, 1, gridspec_kw={"height_ratios": [3, 2.2, 0.5 + 0.36 * len(groups)]}
    )
    figure.suptitle(_title(report), fontsize=11)
    _joules_over_time(over_time, report)
    _cost_over_time(costs, report)
    costs.sharex(over_time)
    _used_by(used, report, groups)
    save(figure, path, "jouleserve report")


def _title(report: Report) -> str:
    total = report.total
    first = "" if report.first is None else f"{report.first:%Y-%m-%d %H:%M}"
    last = "" if report.last is None else f"{report.last:%Y-%m-%d %H:%M} UTC"
    sources = ", ".join(sorted(total.sources)) or "unavailable"
    return (
        f"{total.requests:,} requests, {first} to {last}; energy known for "
        f"{percent(total.known_ratio)} of them; source: {sources}"
    )


def _bars(report: Report) -> tuple[list[datetime], list[Figures], float]:
    """Bar centres, figures and width in days, every place of the span once."""
    line = report.timeline
    starts = range(min(line.bars), max(line.bars) + 1, line.width_s)
    centres = [datetime.fromtimestamp(start + line.width_s / 2, UTC) for start in starts]
    return centres, [line.bars.get(s, Figures()) for s in starts], line.width_s / 86_400


def _joules_over_time(axes: Any, report: Report) -> None:
    centres, bars, width = _bars(report)
    prefill = [bar.prefill_joules for bar in bars]
    decode = [bar.decode_joules for bar in bars]
    axes.bar(centres, prefill, width * 0.9, color=_PREFILL, label="prefill")
    axes.bar(centres, decode, width * 0.9, bottom=prefill, color=_DECODE, label="decode")
    idle = [bar.idle_joules for bar in bars]
    axes.bar(centres, idle, width * 0.3, color=_IDLE, alpha=0.8, label="of which idle draw")
    unknown = [
        centre
        for centre, bar in zip(centres, bars, strict=True)
        if bar.known_requests < bar.meterable
    ]
    if unknown:
        axes.plot(
            unknown, [0.0] * len(unknown), "x", color=_LINE, clip_on=False,
            label="requests with unknown energy",
        )  # fmt: skip
    per = _WIDTHS.get(report.timeline.width_s, f"{report.timeline.width_s / 86_400:g} days")
    axes.set_ylabel(f"J per {per}")
    axes.legend(loc="upper left", fontsize=8, ncols=4, frameon=False)
    axes.margins(y=0.2)


def _cost_over_time(axes: Any, report: Report) -> None:
    centres, bars, _ = _bars(report)
    request = [_or_nan(bar.joules_per_request) for bar in bars]
    token = [_or_nan(bar.joules_per_output_token) for bar in bars]
    (first,) = axes.plot(centres, request, "o-", ms=3, lw=1, color=_LINE, label="J/request")
    axes.set_ylabel("J/request")
    axes.set_ylim(0.0, _above(request))
    other = axes.twinx()
    (second,) = other.plot(centres, token, "s--", ms=3, lw=1, color=_DECODE, label="J/output token")
    other.set_ylabel("J/output token", color=_DECODE)
    other.set_ylim(0.0, _above(token))
    axes.legend(handles=[first, second], loc="upper left", fontsize=8, ncols=2, frameon=False)
    dates = matplotlib("dates")
    locator = dates.AutoDateLocator(tz=UTC)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator, tz=UTC))


def _groups(report: Report) -> list[tuple[str, Figures]]:
    """The largest groups with a name, the rest as one."""
    groups = sorted(report.ordered(), key=lambda item: -item[1].joules)
    named = [(" · ".join(part or NOBODY for part in key), f) for key, f in groups[:_MAX_GROUPS]]
    if len(groups) > _MAX_GROUPS:
        rest = Figures()
        for _, figures in groups[_MAX_GROUPS:]:
            rest.merge(figures)
        named.append((f"{len(groups) - _MAX_GROUPS} more", rest))
    return named


def _used_by(axes: Any, report: Report, groups: list[tuple[str, Figures]]) -> None:
    names = [_literal(name) for name, _ in groups]
    places = range(len(groups))
    prefill = [figures.prefill_joules for _, figures in groups]
    decode = [figures.decode_joules for _, figures in groups]
    axes.barh(places, prefill, color=_PREFILL)
    axes.barh(places, decode, left=prefill, color=_DECODE)
    axes.set_yticks(list(places), names, fontsize=8)
    axes.invert_yaxis()
    for place, (_, figures) in zip(places, groups, strict=True):
        axes.annotate(
            _cost_text(figures), (figures.joules, place), xytext=(4, 0),
            textcoords="offset points", va="center", fontsize=8,
        )  # fmt: skip
    axes.set_xlabel(f"J, by {', '.join(report.question.by)}")
    axes.margins(x=0.35)


def _cost_text(figures: Figures) -> str:
    if figures.joules_per_request is None:
        return "J/request unavailable"
    text = f"{figures.joules_per_request:,.2f} J/request"
    token = figures.joules_per_output_token
    return text if token is None else f"{text}, {token:.3f} J/token"


def _literal(text: str) -> str:
    """The text as it stands: a tenant's dollar signs are no formula. Of bounded length."""
    short = text if len(text) <= 60 else f"{text[:59]}…"
    return short.replace("$", r"\$")


def _above(values: list[float]) -> float:
    """The top of an axis that leaves room for a legend."""
    return 1.3 * max((v for v in values if not math.isnan(v)), default=1.0) or 1.0


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
