"""What conditions and a day cost, as tables for people."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

from serve_app.planner.day import Day
from serve_app.planner.plan import Answer, Plan
from serve_app.planner.shadow import ShadowPrice
from serve_app.planner.words import NOTHING_HOLDS
from serve_app.report.text import UNAVAILABLE, number

_JOULES_PER_KWH = 3.6e6


def prices_table(prices: Iterable[ShadowPrice]) -> Table:
    """Shadow prices: what a changed condition does to the optimum."""
    table = Table(title="what a change would save (-) or cost (+)", title_justify="left")
    table.add_column("change")
    for name in ("J/request", "W", "replicas", "batch cap", "limit W"):
        table.add_column(name, justify="right")
    for price in prices:
        if price.choice is None:
            binding = "" if price.binding is None else f": {price.binding.value}"
            table.add_row(price.change, f"{NOTHING_HOLDS}{binding}", "", "", "", "", style="dim")
            continue
        point = price.choice.point
        limit = point.power_limit_watts
        table.add_row(
            price.change,
            _change(price.joules_per_request_ratio),
            _change(price.draw_ratio),
            str(point.num_replicas),
            str(point.max_num_active_seqs),
            "default" if limit is None else f"{limit:g}",
        )
    return table


def days_table(plan: Plan, answer: Answer) -> Table:
    """A day at the cheapest point, and one as the policy would run it."""
    tariff = plan.question.tariff
    table = Table(title="a day", title_justify="left")
    table.add_column("")
    for name in ("kWh", "J/request", "mean replicas", "hours that miss"):
        table.add_column(name, justify="right")
    if tariff.price_per_kwh is not None:
        table.add_column(tariff.currency, justify="right")
    if tariff.intensity is not None:
        table.add_column("kg CO2", justify="right")
    ways = (("the cheapest point, kept", answer.kept), ("the policy, following", answer.followed))
    for title, day in ways:
        if day is not None:
            table.add_row(title, *_day(plan, day))
    return table


def _day(plan: Plan, day: Day) -> list[str]:
    tariff = plan.question.tariff
    kwh = None if day.joules is None else day.joules / _JOULES_PER_KWH
    cells = [
        number(kwh, 2),
        number(day.joules_per_request, 3),
        number(day.mean_replicas, 2),
        f"{day.missed_slots + day.unanswered_slots} of {day.num_slots}",
    ]
    if tariff.price_per_kwh is not None:
        cells.append(number(day.cost, 2))
    if tariff.intensity is not None:
        grams = number(None if day.grams is None else day.grams / 1e3, 2)
        known = day.grams_known_ratio
        partly = known is not None and known < 1.0
        cells.append(f"{grams} (intensity known for {known:.0%})" if partly else grams)
    return cells


def _change(ratio: float | None) -> str:
    return UNAVAILABLE if ratio is None else f"{ratio:+.2%}"
