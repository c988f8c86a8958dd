"""A description as tables for people. What is not known is called unavailable, never 0."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from policies.model.binned import Bin
from serve_app.report.text import UNAVAILABLE, number, percent
from serve_app.workload.arrivals import Arrivals
from serve_app.workload.describe import Description, LengthFigures
from serve_app.workload.energy import BinEnergy, Comparison

_LEAST_SHARE_RATIO = 0.0005  # of a bin that is shown as a number; below, it rounds to 0.0 %


def render(found: Description) -> RenderableType:
    """All tables, and what has to be known beside them."""
    head = f"{found.workload.source} ({found.workload.format})"
    if found.workload.start is not None:
        head += f", from {found.workload.start:%Y-%m-%d %H:%M:%S} UTC"
    parts: list[RenderableType] = [Text(head, style="bold")]
    parts += ["arrivals", _arrivals(found.arrivals)]
    parts += [f"req/s by hour of the day ({found.day.clock})", _day(found)]
    if found.prompt is not None and found.output is not None:
        parts += ["lengths, tokens", _lengths(found.prompt, found.output)]
        parts += [
            "% of requests with up to so many prompt (rows) and output tokens",
            _bins(found.bins),
        ]
    if found.energy is not None:
        if found.energy.bins:
            parts += ["by the batch that requests run in", _batches(found.energy.bins)]
        parts += [Text(_energy_title(found.energy)), _estimates(found.energy)]
    return Group(*parts, *(Text(f"note: {note}") for note in found.notes))


def _arrivals(found: Arrivals) -> Table:
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    rows = [
        ("requests", UNAVAILABLE if found.requests is None else f"{found.requests:,}"),
        ("span, s", f"{found.span_s:,.1f}"),
        ("mean rate, req/s", number(found.mean_per_s, 3)),
        ("peak minute, req/s", number(found.peak_per_s, 3)),
        ("peak to mean", number(found.peak_to_mean_ratio, 2)),
        ("minutes p50 / p90 / p99, req/s", " / ".join(
            number(v, 3) for v in (found.p50_per_s, found.p90_per_s, found.p99_per_s))),
        ("inter-arrival CV (Poisson: 1)", number(found.interarrival_cv, 2)),
        *((f"index of dispersion, {width} s (Poisson: 1)", number(value, 2))
          for width, value in found.dispersion.items()),
    ]  # fmt: skip
    for row in rows:
        table.add_row(*row)
    return table


def _day(found: Description) -> Table:
    day = found.day
    rows = [("every day", day.every_day), ("weekday", day.weekday), ("weekend", day.weekend)]
    table = Table()
    table.add_column("hour")
    touched = [hour for hour, rate in enumerate(day.every_day) if rate is not None]
    shown = [(name, rates) for name, rates in rows if rates is not None]
    for name, _ in shown:
        table.add_column(name, justify="right")
    for hour in touched:
        cells = (rates[hour] for _, rates in shown)
        table.add_row(f"{hour:02}", *("" if rate is None else f"{rate:.3f}" for rate in cells))
    return table


def _lengths(prompt: LengthFigures, output: LengthFigures) -> Table:
    table = Table()
    for name in ("", "mean", "p50", "p90", "p99", "max"):
        table.add_column(name, justify="right" if name else "left")
    for name, one in (("prompt", prompt), ("output", output)):
        values = (one.mean, one.p50, one.p90, one.p99, one.max)
        table.add_row(name, *(f"{value:,.0f}" for value in values))
    return table


def _bins(bins: tuple[Bin, ...]) -> Table:
    total = sum(one.requests for one in bins)
    outputs = sorted({one.output_bin for one in bins})
    shares = {(one.prompt_bin, one.output_bin): one.requests / total for one in bins}
    table = Table()
    table.add_column("", justify="right")
    for output in outputs:
        table.add_column(f"{output:,}", justify="right")
    for prompt in sorted({one.prompt_bin for one in bins}):
        cells = (shares.get((prompt, output)) for output in outputs)
        table.add_row(f"{prompt:,}", *map(_share, cells))
    return table


def _share(ratio: float | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio:.1%}".removesuffix("%") if ratio >= _LEAST_SHARE_RATIO else "<0.1"


def _batches(bins: tuple[BinEnergy, ...]) -> Table:
    total = sum(one.bin.requests for one in bins)
    table = Table()
    for name in ("batch up to", "requests", "share", "J", "J/request"):
        table.add_column(name, justify="right")
    for batch in sorted({one.bin.batch_bin or 0 for one in bins}):
        mine = [one for one in bins if one.bin.batch_bin == batch]
        count = sum(one.bin.requests for one in mine)
        joules = sum(one.joules for one in mine)
        table.add_row(
            f"{batch:,}", f"{count:,}", percent(count / total), number(joules, 1),
            number(joules / count, 2),
        )  # fmt: skip
    return table


def _energy_title(found: Comparison) -> str:
    title = f"energy of {found.requests:,} requests, {found.tokens:,} tokens"
    return title if found.profile is None else f"{title}; profile {found.profile}"


def _estimates(found: Comparison) -> Table:
    table = Table()
    table.add_column("")
    for name in ("J", "J/request", "against measured"):
        table.add_column(name, justify="right")
    for one in found.estimates:
        error = UNAVAILABLE if one.error_ratio is None else f"{one.error_ratio:+.1%}"
        table.add_row(one.name, number(one.joules, 1), number(one.joules_per_request, 2), error)
    measured = found.measured_joules
    table.add_row(
        "measured" if measured is None else f"measured, by {found.measured_from}",
        number(measured, 1),
        number(None if measured is None else measured / found.requests, 2),
        "",
        style="bold",
    )
    return table
