"""A report as tables for people. What is not known is called unavailable, never 0."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from serve_app.report.figures import Figures
from serve_app.report.summary import Report

UNAVAILABLE = "unavailable"
NOBODY = "(none)"
Column = tuple[str, Callable[[Figures], str]]


def render(report: Report, top: int) -> RenderableType:
    """The table of groups with the total, and what has to be known beside it."""
    period = "no requests in the period"
    if report.first is not None and report.last is not None:
        period = f"{report.first:%Y-%m-%d %H:%M:%S} to {report.last:%Y-%m-%d %H:%M:%S} UTC"
    head = Text(f"{report.question.folder}: {period}", style="bold")
    return Group(head, _table(report, top), *(Text(line) for line in notes(report)))


def _table(report: Report, top: int) -> Table:
    columns = _columns(report)
    table = Table(show_footer=False)
    for name in report.question.by:
        table.add_column(name, overflow="fold")
    for title, _ in columns:
        table.add_column(Text(title), justify="right")
    keys = len(report.question.by)
    groups = report.ordered()
    for key, figures in groups[:top]:
        named = (Text(part or NOBODY) for part in key)  # a tenant's brackets are no markup
        table.add_row(*named, *(show(figures) for _, show in columns))
    if len(groups) > top:
        rest = Figures()
        for _, figures in groups[top:]:
            rest.merge(figures)
        label = [f"{len(groups) - top} more", *[""] * (keys - 1)]
        table.add_row(*label, *(show(rest) for _, show in columns), style="dim")
    table.add_section()
    label = ["total", *[""] * (keys - 1)]
    table.add_row(*label, *(show(report.total) for _, show in columns), style="bold")
    return table


def _columns(report: Report) -> list[Column]:
    question, tariff = report.question, report.question.tariff

    def cost(name: str, digits: int, unit: float = 1.0) -> Callable[[Figures], str]:
        def show(figures: Figures) -> str:
            value = figures.costs(tariff)[name]
            return number(None if value is None else value * unit, digits)

        return show

    columns: list[Column] = [
        ("requests", lambda f: f"{f.requests:,}"),
        ("not completed", lambda f: f"{f.requests - f.outcomes['completed']:,}"),
        ("output tokens", lambda f: f"{f.output_tokens:,}"),
        ("J", lambda f: number(f.joules if f.known_requests else None, 1)),
        ("J/request", lambda f: number(f.joules_per_request, 2)),
        ("J/output token", lambda f: number(f.joules_per_output_token, 3)),
        ("J/prompt token", lambda f: number(f.joules_per_prompt_token, 4)),
    ]
    if question.slo is not None:
        columns.append(("SLO", lambda f: percent(f.attainment_ratio)))
    if tariff.price_per_kwh is not None:
        columns += [
            (f"{tariff.currency}/Mtok", cost("cost_per_million_output_tokens", 4)),
            (tariff.currency, cost("cost", 4)),
        ]
    if tariff.intensity is not None:
        columns += [
            ("gCO2/request", cost("gco2_per_request", 4)),
            ("gCO2/Mtok", cost("gco2_per_million_output_tokens", 1)),
            ("gCO2", cost("gco2", 2)),
        ]
    columns.append(("energy known", lambda f: percent(f.known_ratio)))
    return columns


def notes(report: Report) -> list[str]:
    """What limits the figures, one line each."""
    return [*_energy_notes(report), *_tariff_notes(report), *_file_notes(report)]


def _energy_notes(report: Report) -> list[str]:
    total = report.total
    lines = []
    if total.known_requests:
        split = ", ".join(f"{kind} {j:,.1f}" for kind, j in sorted(total.device_joules.items()))
        lines.append(
            f"joules by phase: prefill {total.prefill_joules:,.1f}, decode "
            f"{total.decode_joules:,.1f} (of both, idle part {total.idle_joules:,.1f}); "
            f"by device: {split}"
        )
        lines.append(
            f"energy of requests only: source {', '.join(sorted(total.sources))}, "
            f"{', '.join(sorted(total.methods))}; meters saw {percent(total.coverage_ratio)} of "
            "their work"
        )
    if total.known_requests < total.meterable:
        lines.append(
            f"energy unavailable for {total.meterable - total.known_requests:,} of "
            f"{total.meterable:,} requests; the J, J/request and J/token leave them out"
        )
    lines += [f"  {count:,} requests: {why}" for why, count in report.missing.most_common()]
    wasted = total.outcomes["aborted"] + total.outcomes["failed"]
    if wasted:
        lines.append(
            f"{total.outcomes['aborted']:,} aborted, {total.outcomes['failed']:,} failed: their "
            "joules are in J, and so in what each answer cost"
        )
    return lines


def _tariff_notes(report: Report) -> list[str]:
    tariff, total = report.question.tariff, report.total
    lines = []
    if tariff.price_per_kwh is not None or tariff.intensity is not None:
        price = f"{tariff.price_per_kwh:g} {tariff.currency}/kWh, " if tariff.price_per_kwh else ""
        lines.append(f"cost and CO2: {price}PUE {tariff.pue:g} (J are the devices', without PUE)")
    if report.gaps.joules:
        known = total.grams_joules / total.joules if total.joules else 0.0
        lines.append(f"carbon intensity is known for {percent(known)} of the joules; gaps:")
        lines += [f"  {name}: {joules:,.1f} J" for name, joules in report.gaps.joules.items()]
    return lines


def _file_notes(report: Report) -> list[str]:
    counts = report.counts
    lines = [f"read {counts.rows:,} rows in {counts.files} files"]
    for count, what in (
        (counts.torn_rows, "unfinished last lines (a writer was killed, or is writing)"),
        (counts.bad_rows, f"lines are no row, left out; the first: {counts.first_fault}"),
        (counts.newer_rows, "rows of a later version, left out"),
    ):
        if count:
            lines.append(f"{count:,} {what}")
    lines += [f"damaged: {name}: {why}" for name, why in counts.bad_files.items()]
    return lines


def number(value: float | None, digits: int) -> str:
    """A number for people."""
    return UNAVAILABLE if value is None else f"{value:,.{digits}f}"


def percent(value: float | None) -> str:
    """A share for people."""
    return UNAVAILABLE if value is None else f"{value:.1%}"
