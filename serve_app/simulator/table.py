"""Simulated runs as a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve_app.simulator.run import Run, row

if TYPE_CHECKING:
    from rich.table import Table


def table_of(runs: Sequence[Run]) -> Table:
    """One row per run; `?` is "not known"."""
    from rich.table import Table

    first = runs[0].scenario
    slo = first.slo
    table = Table(
        title=f"simulated: {first.truth.name}, p{slo.percentile * 100:g} TTFT "
        f"{slo.ttft_s * 1e3:g} ms, TPOT {slo.tpot_s * 1e3:g} ms",
        title_justify="left",
    )
    table.add_column("policy", overflow="fold", min_width=24)
    for column in (
        "trace", "requests", "J/request", "J/token", "attained", "TTFT p50 / p99, ms",
        "TPOT p50 / p99, ms", "replicas", "idle", "actions", "wall, s",
    ):  # fmt: skip
        table.add_column(column, justify="left" if column == "trace" else "right")
    for run in runs:
        table.add_row(*_cells(run, row(run)))
    return table


def _cells(run: Run, found: dict[str, Any]) -> list[str]:
    actions = (found["scale_actions"], found["limit_actions"], found["cap_actions"])
    return [
        found["policy"],
        Path(found["trace"]).name,
        f"{found['completed']:,}" + (f" of {run.result.arrived:,}" if _left(run) else ""),
        _number(found["joules_per_request"], 1.0, ".4g"),
        _number(found["joules_per_output_token"], 1.0, ".3g"),
        _number(found["slo_attainment_ratio"], 100.0, ".2f", " %"),
        f"{_number(found['ttft_p50_s'])} / {_number(found['ttft_p99_s'])}",
        f"{_number(found['tpot_p50_s'])} / {_number(found['tpot_p99_s'])}",
        f"{found['mean_replicas']:.2f}",
        _number(found["idle_joules_ratio"], 100.0, ".0f", " %"),
        " + ".join(f"{count:,}" for count in actions),
        f"{run.wall_s:.1f}",
    ]


def _left(run: Run) -> bool:
    return run.result.completed != run.result.arrived


def _number(value: float | None, factor: float = 1e3, form: str = ",.0f", unit: str = "") -> str:
    return "?" if value is None else f"{value * factor:{form}}{unit}"
