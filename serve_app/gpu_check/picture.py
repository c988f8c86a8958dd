"""The samples as a picture, where matplotlib is installed."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from serve_app.gpu_check.analysis import Curve
from serve_app.gpu_check.run import CheckRun
from serve_app.gpu_check.sampling import Series


def draw(run: CheckRun, begin_s: float, path: Path) -> str | None:
    """Draw every GPU's power by both sensors; return the file's name, None without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return None
    importlib.import_module("matplotlib").use("Agg")  # draws to files: needs no display
    plt = importlib.import_module("matplotlib.pyplot")
    figure, axes = plt.subplots(
        len(run.gpus), 1, figsize=(11, 3.2 * len(run.gpus)), squeeze=False, sharex=True
    )
    for axis, gpu in zip(axes[:, 0], run.gpus, strict=True):
        _draw_gpu(axis, run.series[gpu.uuid], begin_s)
        axis.set_title(f"GPU {gpu.index}, {gpu.name}", loc="left", fontsize=9)
    axes[-1, 0].set_xlabel("seconds")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path.name


def _draw_gpu(axis: Any, series: Series, begin_s: float) -> None:
    curve = Curve.of(series.time_s, series.joules)
    if curve is not None:
        draws = np.diff(curve.joules) / np.diff(curve.time_s)
        axis.step(
            curve.time_s[1:] - begin_s, draws, lw=0.7, color="0.6", where="pre", label="counter"
        )
    axis.plot(series.time_s - begin_s, series.watts, lw=1.0, label="power (averaged)")
    if not np.isnan(series.instant_watts).all():
        axis.plot(series.time_s - begin_s, series.instant_watts, lw=0.7, label="power (instant)")
    starts = np.flatnonzero(series.phases[1:] != series.phases[:-1]) + 1
    for index in (0, *starts):
        axis.axvline(series.time_s[index] - begin_s, color="0.85", lw=0.8)
        axis.annotate(
            str(series.phases[index]),
            (series.time_s[index] - begin_s, 1.0),
            xycoords=("data", "axes fraction"),
            fontsize=7,
            va="top",
        )
    axis.set_ylabel("W")
    axis.legend(loc="upper right", fontsize=7)
