"""NVIDIA Dynamo's planner profiles: time between tokens over KV use and context, TTFT over prompts.

    ITL  = t0 + a n + b n context
    TTFT = r + c prompt + q prompt^2 / 2

The tables hold latency only. They tell what our form of the step misses on data-centre GPUs, and
how KV reads and attention scale, which the energy tables do not vary.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from policies.core.errors import ConfigError
from policies.model.latency import attended_pairs
from serve_app.profiler import regression

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from serve_app.profiler.regression import Floats


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """One fitted table of one tensor-parallel size. `coefficients`: as in the module's equations,
    seconds; errors relative: of the fit itself, and with the point left out."""

    name: str
    model: str
    gpu: str
    tensor_parallel: int
    points: int
    coefficients: tuple[float, ...]
    fitted_median_ratio: float
    fitted_p95_ratio: float
    unseen_median_ratio: float
    unseen_p95_ratio: float
    worst: str


def read_tables(folder: Path) -> list[Table]:
    """Both tables of a folder, `prefill.csv` and `decode.csv`, by tensor-parallel size."""
    tables = []
    for name, fields in (("decode.csv", _decode), ("prefill.csv", _prefill)):
        records = _records(folder / name)
        for size in sorted({int(r["tp"]) for r in records}):
            rows = [r for r in records if int(r["tp"]) == size]
            x, y, labels = fields(rows)
            tables.append(_table(name.removesuffix(".csv"), rows[0], (x, y), labels))
    return tables


def _records(path: Path) -> list[dict[str, str]]:
    try:
        records = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    if not records or "tp" not in records[0]:
        raise ConfigError(f"{path}: no rows with a column tp")
    return records


def _decode(rows: Sequence[dict[str, str]]) -> tuple[Floats, Floats, list[str]]:
    """A row's KV use times the cache's size is its context tokens, all sequences together. Rows
    beyond the first at which more sequences of one length no longer take longer are left out: the
    engine ran no more of them at once."""
    rows = _unsaturated(rows)
    kv = np.array([float(r["x_kv_usage"]) * float(r["max_kv_tokens"]) for r in rows])
    context = np.array([float(r["y_context_length"]) for r in rows])
    seqs = np.maximum(np.round(kv / context), 1.0)
    x = np.column_stack([np.ones(len(rows)), seqs, seqs * context])
    labels = [f"{n:.0f} sequences of {c:.0f} tokens" for n, c in zip(seqs, context, strict=True)]
    return x, np.array([float(r["z_itl"]) * 1e-3 for r in rows]), labels


def _unsaturated(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    kept = []
    slowest: dict[str, float] = {}
    full = set()
    for row in sorted(rows, key=lambda row: float(row["x_kv_usage"])):
        context, itl = row["y_context_length"], float(row["z_itl"])
        if itl <= slowest.get(context, 0.0):
            full.add(context)
        if context not in full:
            slowest[context] = itl
            kept.append(row)
    return kept


def _prefill(rows: Sequence[dict[str, str]]) -> tuple[Floats, Floats, list[str]]:
    prompt = [float(r["prefill_isl"]) for r in rows]
    x = np.array([(1.0, p, attended_pairs(p)) for p in prompt])
    return (
        x,
        np.array([float(r["prefill_ttft"]) * 1e-3 for r in rows]),
        [f"{p:.0f} prompt tokens" for p in prompt],
    )


def _table(
    name: str, first: dict[str, str], data: tuple[Floats, Floats], labels: Sequence[str]
) -> Table:
    x, y = data
    solved = regression.regress(x, y)
    errors = np.abs(solved.predict(x) - y) / y
    keys = [f"{k:04d}" for k in range(len(y))]
    held = regression.held_out(x, y, keys, folds=len(y), repeats=1)
    unseen = np.array([held.by_group[key] for key in keys])
    k = int(unseen.argmax())
    return Table(
        name=name,
        model=first["model"],
        gpu=first["gpu_type"],
        tensor_parallel=int(first["tp"]),
        points=len(y),
        coefficients=tuple(float(c) for c in solved.coefficients),
        fitted_median_ratio=float(np.median(errors)),
        fitted_p95_ratio=float(np.percentile(errors, 95)),
        unseen_median_ratio=float(np.median(unseen)),
        unseen_p95_ratio=float(np.percentile(unseen, 95)),
        worst=f"{labels[k]}: {unseen[k]:.0%}",
    )
