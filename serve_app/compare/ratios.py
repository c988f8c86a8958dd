"""Ratios between two systems: per round, then the median and the spread over the rounds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

TOLERANCE_RATIO = 0.05


class Verdict(StrEnum):
    """What the ratios say about the 5 % bar; `better` and `worse` are from the user's side."""

    WITHIN = "within 5 %"
    BETTER = "better"
    WORSE = "worse"
    UNDECIDED = "worse, but rounds differ"  # the median misses the bar, some round does not
    MISSING = "not measured"


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """A figure of a row. `more_is_better` for throughput, not for times."""

    key: str
    label: str
    more_is_better: bool


MEASURES = (
    Measure(key="tokens_per_s", label="throughput", more_is_better=True),
    Measure(key="ttft_p50_s", label="median TTFT", more_is_better=False),
    Measure(key="tpot_p50_s", label="median TPOT", more_is_better=False),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio:
    """system / base of one measure at one concurrency; None where no round has both."""

    part: str
    measure: str
    concurrency: int
    system: str
    base: str
    median: float | None
    least: float | None
    greatest: float | None
    rounds: int
    verdict: Verdict


def ratio_of(
    rows: Sequence[dict[str, Any]], measure: Measure, pair: tuple[str, str], place: tuple[str, int]
) -> Ratio:
    """Return the ratio of `pair` = (system, base) at `place` = (part, concurrency).

    A round's ratio takes both values from that round: they were measured within a minute of each
    other, so that a disturbance of the machine counts for both.
    """
    system, base = pair
    part, concurrency = place
    tops, bottoms = (_by_round(rows, measure.key, name, place) for name in pair)
    found = [tops[n] / bottoms[n] for n in sorted(tops.keys() & bottoms.keys()) if bottoms[n] > 0]
    median = statistics.median(found) if found else None
    return Ratio(
        part=part,
        measure=measure.key,
        concurrency=concurrency,
        system=system,
        base=base,
        median=median,
        least=min(found, default=None),
        greatest=max(found, default=None),
        rounds=len(found),
        verdict=verdict_of(found, more_is_better=measure.more_is_better),
    )


def _by_round(
    rows: Sequence[dict[str, Any]], key: str, system: str, place: tuple[str, int]
) -> dict[int, float]:
    return {
        row["round"]: float(row[key])
        for row in rows
        if (row["part"], row.get("concurrency")) == place
        and row["system"] == system
        and row[key] is not None
        and row["completed"] == row["requests"]
    }


def verdict_of(ratios: Sequence[float], *, more_is_better: bool) -> Verdict:
    """Return the verdict on the median; a worse one is undecided while a round reaches the bar."""
    if not ratios:
        return Verdict.MISSING
    losses = [(1.0 - r) if more_is_better else (r - 1.0) for r in ratios]
    loss = statistics.median(losses)
    if loss < -TOLERANCE_RATIO:
        return Verdict.BETTER
    if loss <= TOLERANCE_RATIO:
        return Verdict.WITHIN
    return Verdict.UNDECIDED if min(losses) <= TOLERANCE_RATIO else Verdict.WORSE


def all_ratios(rows: Sequence[dict[str, Any]]) -> list[Ratio]:
    """Return every ratio that the rows of the closed loop hold: ours to stock, all to bare."""
    pairs = (
        ("ours-off", "stock"),
        ("ours", "stock"),
        ("stock", "bare"),
        ("ours-off", "bare"),
        ("ours", "bare"),
    )
    places = sorted(
        {(row["part"], row["concurrency"]) for row in rows if "concurrency" in row},
        key=lambda place: (place[0] != "overhead", place),
    )
    systems = {row["system"] for row in rows}
    return [
        ratio_of(rows, measure, pair, place)
        for place in places
        for pair in pairs
        if set(pair) <= systems
        for measure in MEASURES
    ]


def medians(rows: Sequence[dict[str, Any]], key: str) -> dict[tuple[str, int, str], float | None]:
    """Return (part, concurrency, system) → the median over rounds of a figure."""
    found: dict[tuple[str, int, str], list[float]] = {}
    for row in rows:
        if "concurrency" in row:
            values = found.setdefault((row["part"], row["concurrency"], row["system"]), [])
            if row[key] is not None:
                values.append(float(row[key]))
    return {place: statistics.median(values) if values else None for place, values in found.items()}
