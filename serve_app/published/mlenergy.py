"""Steady-state rows of the ML.ENERGY benchmark (v3): read, fitted over the batch, and judged.

One row is one run of vLLM at a steady batch. With B sequences, T output tokens/s and e joules per
output token (prefill included), a mean step takes B / T seconds and B e joules.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from policies.core.errors import ConfigError, NotFitted
from serve_app.profiler import regression
from serve_app.profiler.regression import Floats

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MEDIAN_LIMIT_RATIO = 0.06  # of joules per token, with that batch left out
WORST_LIMIT_RATIO = 0.12
MIN_BATCHES = 6
_NUMBERS = (
    "num_gpus",
    "avg_batch_size",
    "avg_output_len",
    "energy_per_token_joules",
    "output_throughput_tokens_per_sec",
    "avg_power_watts",
    "median_itl_ms",
)
_TEXTS = ("model_id", "gpu_model", "task", "precision")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One steady batch. `draw_watts`: of all GPUs together."""

    model: str
    gpu: str
    num_gpus: int
    task: str
    precision: str
    batch: float
    output_tokens: float
    joules_per_token: float
    tokens_per_s: float
    draw_watts: float
    median_itl_s: float

    @property
    def step_s(self) -> float:
        """Mean step, seconds."""
        return self.batch / self.tokens_per_s

    @property
    def step_joules(self) -> float:
        """Mean step, joules of all GPUs."""
        return self.batch * self.joules_per_token


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """y = base + per_seq B over the batch. `errors`: |predicted - measured| / measured of each
    batch, from a fit without it."""

    base: float
    per_seq: float
    errors: tuple[float, ...]

    @property
    def median_ratio(self) -> float:
        """Median of the errors."""
        return float(np.median(self.errors))

    @property
    def worst_ratio(self) -> float:
        """Largest of the errors."""
        return max(self.errors)


@dataclass(frozen=True, kw_only=True, slots=True)
class SteadyFit:
    """Step time and step energy of the rows up to the largest batch that the form holds for."""

    rows: tuple[Row, ...]
    seconds: Line
    joules: Line
    left_out: tuple[float, ...]


def read_rows(path: Path) -> list[Row]:
    """All rows of the CSV. ConfigError names file, line and column."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    reader = csv.DictReader(text.splitlines())
    missing = [name for name in (*_TEXTS, *_NUMBERS) if name not in (reader.fieldnames or ())]
    if missing:
        raise ConfigError(f"{path}: no column {', '.join(missing)}")
    return [_row(record, f"{path}:{line}") for line, record in enumerate(reader, start=2)]


def _row(record: dict[str, str], where: str) -> Row:
    numbers = {}
    for name in _NUMBERS:
        try:
            numbers[name] = float(record[name])
        except ValueError:
            numbers[name] = float("nan")
        if not (np.isfinite(numbers[name]) and numbers[name] > 0.0):
            raise ConfigError(f"{where}: {name} is {record[name]!r}; allowed: a number > 0")
    return Row(
        model=record["model_id"],
        gpu=record["gpu_model"],
        num_gpus=round(numbers["num_gpus"]),
        task=record["task"],
        precision=record["precision"],
        batch=numbers["avg_batch_size"],
        output_tokens=numbers["avg_output_len"],
        joules_per_token=numbers["energy_per_token_joules"],
        tokens_per_s=numbers["output_throughput_tokens_per_sec"],
        draw_watts=numbers["avg_power_watts"],
        median_itl_s=numbers["median_itl_ms"] * 1e-3,
    )


def fit_steady(rows: Sequence[Row]) -> SteadyFit:
    """Fit up to the largest batch at which leaving any one batch out still predicts its joules per
    token within 6 % (median) and 12 % (worst). NotFitted where fewer than six batches do."""
    rows = sorted(rows, key=lambda row: row.batch)
    for size in range(len(rows), MIN_BATCHES - 1, -1):
        part = rows[:size]
        joules = fit_line([r.batch for r in part], [r.step_joules for r in part])
        if joules.median_ratio <= MEDIAN_LIMIT_RATIO and joules.worst_ratio <= WORST_LIMIT_RATIO:
            return SteadyFit(
                rows=tuple(part),
                seconds=fit_line([r.batch for r in part], [r.step_s for r in part]),
                joules=joules,
                left_out=tuple(row.batch for row in rows[size:]),
            )
    if len(rows) < MIN_BATCHES:
        raise NotFitted(f"{len(rows)} batches; needed: {MIN_BATCHES}")
    first = rows[:MIN_BATCHES]
    line = fit_line([r.batch for r in first], [r.step_joules for r in first])
    raise NotFitted(
        f"joules per token do not follow e0/B + e1: leaving one of the first {MIN_BATCHES} batches "
        f"out misses it by {line.median_ratio:.1%} (median) and {line.worst_ratio:.1%} (worst); "
        f"allowed: {MEDIAN_LIMIT_RATIO:.0%} and {WORST_LIMIT_RATIO:.0%}"
    )


def fit_line(batch: Sequence[float], y: Sequence[float]) -> Line:
    """The line through (batch, y), non-negative, in relative terms, with leave-one-out errors."""
    x, values = np.column_stack([np.ones(len(batch)), batch]), np.array(y, dtype=np.float64)
    base, per_seq = (float(c) for c in regression.regress(x, values).coefficients)
    return Line(base=base, per_seq=per_seq, errors=tuple(_leave_one_out(x, values)))


def _leave_one_out(x: Floats, y: Floats) -> list[float]:
    held = regression.held_out(x, y, [str(k) for k in range(len(y))], folds=len(y), repeats=1)
    return [held.by_group[str(k)] for k in range(len(y))]
