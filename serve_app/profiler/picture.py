"""A fit as one picture: step time over the batch and over the prompt, and what the model misses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from serve_app.drawing import check_format, matplotlib, save
from serve_app.profiler.samples import Kind, Phase, Sample, unlimited
from serve_app.profiler.yardstick import judged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from policies.model.latency import LatencyModel
    from serve_app.profiler.fit import FitResult

_COLOURS = {Kind.DECODE: "#4477aa", Kind.PREFILL: "#ee6677", Kind.MIXED: "#228833"}  # P. Tol's
_GREY = "#999999"


def draw(result: FitResult, samples: Sequence[Sample], path: Path) -> None:
    """Write the picture; the ending says the format. Raises ConfigError."""
    check_format(path)
    rows = [
        s for s in judged(unlimited(samples)) if s.kind is not Kind.IDLE and s.phase is Phase.STEADY
    ]
    figure = matplotlib("figure").Figure(figsize=(11, 7.5), layout="constrained", dpi=120)
    model = result.model
    figure.suptitle(
        f"{model.model} on {model.device}: step time, measured and fitted; held-out error "
        f"{model.residuals.step_time_median_ratio:.1%} median, "
        f"{model.residuals.step_time_p95_ratio:.1%} p95",
        fontsize=11,
    )
    (batch, prompt), (ratio, energy) = figure.subplots(2, 2)
    _over_batch(batch, model.latency, [s for s in rows if s.kind is Kind.DECODE])
    _over_prompt(prompt, model.latency, [s for s in rows if s.kind is Kind.PREFILL])
    _ratios(ratio, rows, [_fitted_s(model.latency, s) for s in rows], "step time")
    metered = [s for s in rows if s.joules_per_step]
    joules = [
        model.power.step_joules(*_composition(s)) + model.power.idle_watts * s.gap_s_per_step
        for s in metered
    ]
    _ratios(energy, metered, joules, "step energy")
    save(figure, path, "jouleserve fit")


def _over_batch(axes: Any, latency: LatencyModel, rows: Sequence[Sample]) -> None:
    """Decode steps: a line through the short contexts, a ring where a long one is fitted."""
    short = [s for s in rows if _context(s) <= 2 * min(_context(r) for r in rows)]
    long = [s for s in rows if s not in short]
    context = float(np.median([_context(s) for s in short]))
    sizes = np.linspace(1.0, max(s.num_seqs or 1.0 for s in rows), 100)
    fitted = [latency.step_time_s(n, n * context, 0.0) for n in sizes]
    label = f"fitted, {context:.0f} tokens each"
    axes.plot(sizes, 1e3 * np.array(fitted), "-", color=_GREY, lw=1.2, label=label)
    axes.plot(
        [s.num_seqs for s in long],
        [1e3 * _fitted_s(latency, s) for s in long],
        "o",
        ms=8,
        mfc="none",
        mec=_GREY,
        label="fitted, long contexts",
    )
    _points(axes, [s.num_seqs for s in rows], [s.step_time_s for s in rows], rows)
    axes.set_xlabel("sequences in the step")
    axes.set_ylabel("decode step, ms")
    axes.legend(fontsize=8)


def _over_prompt(axes: Any, latency: LatencyModel, rows: Sequence[Sample]) -> None:
    sizes = np.geomspace(8.0, max(s.prefill_tokens or 8.0 for s in rows), 100)
    fitted = [latency.step_time_s(1.0, p, p, 0.5 * p * p) for p in sizes]
    axes.plot(sizes, 1e3 * np.array(fitted), "-", color=_GREY, lw=1.2, label="fitted")
    _points(axes, [s.prefill_tokens for s in rows], [s.step_time_s for s in rows], rows)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("prompt tokens in the step")
    axes.set_ylabel("prefill step, ms")
    axes.legend(fontsize=8)


def _points(axes: Any, x: Sequence[Any], seconds: Sequence[Any], rows: Sequence[Sample]) -> None:
    """Milliseconds, as dots; disturbed samples as crosses."""
    for marker, steady in (("o", True), ("x", False)):
        chosen = [k for k, s in enumerate(rows) if s.steady is steady]
        axes.plot(
            [x[k] for k in chosen],
            [1e3 * seconds[k] for k in chosen],
            marker,
            ms=4,
            color=_COLOURS[rows[0].kind],
            label=None if steady or not chosen else "disturbed, not fitted",
        )


def _ratios(axes: Any, rows: Sequence[Sample], fitted: Sequence[float], name: str) -> None:
    """Measured over fitted, against the fitted value, by kind of step."""
    scale, unit = (1e3, "ms") if name == "step time" else (1.0, "J")
    for kind, colour in _COLOURS.items():
        chosen = [k for k, s in enumerate(rows) if s.kind is kind and s.steady]
        measured = [
            rows[k].step_time_s if unit == "ms" else rows[k].joules_per_step for k in chosen
        ]
        axes.plot(
            [scale * fitted[k] for k in chosen],
            [(m or 0.0) / fitted[k] for m, k in zip(measured, chosen, strict=True)],
            "o",
            ms=4,
            color=colour,
            label=kind.value,
        )
    axes.axhline(1.0, color=_GREY, lw=1.0)
    axes.set_xscale("log")
    axes.set_xlabel(f"{name} fitted, {unit}")
    axes.set_ylabel("measured / fitted")
    axes.legend(fontsize=8)


def _context(sample: Sample) -> float:
    return (sample.kv_tokens or 0.0) / (sample.num_seqs or 1.0)


def _composition(sample: Sample) -> tuple[float, float, float, float]:
    return (
        sample.num_seqs or 0.0,
        sample.kv_tokens or 0.0,
        sample.prefill_tokens or 0.0,
        sample.attended_pairs or 0.0,
    )


def _fitted_s(latency: LatencyModel, sample: Sample) -> float:
    return latency.step_time_s(*_composition(sample))
