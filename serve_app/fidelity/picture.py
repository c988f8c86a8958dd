"""Measured and simulated latencies as distributions, side by side per load."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from serve_app.drawing import check_format, matplotlib, save
from serve_app.fidelity.outcome import Outcome

_MEASURED, _SIMULATED, _OUT = "#4477aa", "#ee6677", "#bbbbbb"  # P. Tol's


def draw(outcome: Outcome, path: Path) -> None:
    """Write the picture: per load a row, TTFT and TPOT; runs that do not count are grey. Raises
    ConfigError."""
    check_format(path)
    rows = len(outcome.loads)
    figure = matplotlib("figure").Figure(figsize=(11, 3.2 * rows), layout="constrained", dpi=120)
    axes = figure.subplots(rows, 2, squeeze=False)
    for (left, right), load in zip(axes, outcome.loads, strict=True):
        for one in sorted(outcome.compared, key=lambda c: not c.reasons):
            if one.run.load != load.name:
                continue
            true = [(r.ttft_s, r.tpot_s) for r in one.run.requests]
            if one.reasons:
                _cdf(left, (t for t, _ in true), _OUT, "measured, not counted")
                _cdf(right, (t for _, t in true), _OUT, "measured, not counted")
                continue
            _cdf(left, (t for t, _ in true), _MEASURED, "measured")
            _cdf(right, (t for _, t in true), _MEASURED, "measured")
            _cdf(left, one.played.ttft_s, _SIMULATED, "simulated")
            _cdf(right, one.played.tpot_s, _SIMULATED, "simulated")
        for plot, what in ((left, "TTFT"), (right, "TPOT")):
            plot.set_title(f"{load.name}: {load.verdict}", fontsize=9)
            plot.set_xlabel(f"{what}, ms")
            plot.set_ylabel("share of requests")
            plot.set_ylim(0.0, 1.01)
            plot.grid(alpha=0.3)
            _legend(plot)
    save(figure, path, "fidelity")


def _cdf(axes: Any, values: Iterable[float | None], colour: str, label: str) -> None:
    known = np.sort([v * 1e3 for v in values if v is not None and not math.isnan(v)])
    shares = np.arange(1, len(known) + 1) / len(known)
    axes.step(known, shares, where="post", color=colour, lw=1.1, label=label)


def _legend(axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    each = dict(zip(labels, handles, strict=True))
    axes.legend(each.values(), each.keys(), fontsize=8, loc="lower right")
