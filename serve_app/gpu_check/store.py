"""The results folder of a check: samples.csv, manifest.json, report.md and, if it can be drawn,
picture.png."""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from policies.core.errors import ConfigError
from serve_app.gpu_check.picture import draw
from serve_app.gpu_check.report import markdown
from serve_app.gpu_check.run import CheckOptions, CheckRun
from serve_app.gpu_check.sampling import Series
from serve_app.profiler.host import commit, host_facts, versions
from serve_app.repository import REPOSITORY

RESULTS = Path("docs") / "results"
SCHEMA_VERSION = 1
COLUMNS = ("time_s", "gpu", "phase", "counter_joules", "power_watts", "instant_watts")


def folder_of(run: CheckRun, now: datetime, out: Path | None) -> Path:
    """Return `out`, else docs/results/gpu-check-<gpu>-<date>."""
    if out is not None:
        return out
    names = sorted({gpu.name for gpu in run.gpus})
    words = re.sub(r"[^a-z0-9]+", "-", "-".join(names).lower().replace("nvidia", "")).strip("-")
    return RESULTS / f"gpu-check-{words}-{now:%Y%m%dT%H%M%SZ}"


def check_writable(folder: Path) -> None:
    """Make the folder. Raises ConfigError where that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {folder}: {error.strerror}") from error


def save(run: CheckRun, options: CheckOptions, out: Path | None) -> tuple[Path, dict[str, Any]]:
    """Write everything; return the folder and the manifest."""
    now = datetime.now(tz=UTC)
    folder = folder_of(run, now, out)
    check_writable(folder)
    begin_s = min((float(s.time_s[0]) for s in run.series.values() if len(s.time_s)), default=0.0)
    _write_samples(folder / "samples.csv", run, begin_s)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "date": now.isoformat(timespec="seconds"),
        "options": {**asdict(options), "gpus": [gpu.index for gpu in run.gpus]},
        "driver": run.driver,
        "machine": host_facts(),
        "versions": versions(),
        "source": commit(REPOSITORY),
        "picture": draw(run, begin_s, folder / "picture.png"),
        **run.result.to_dict(),
    }
    text = json.dumps(_plain(manifest), indent=2, allow_nan=False) + "\n"
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    (folder / "report.md").write_text(markdown(run.result, manifest), encoding="utf-8")
    return folder, manifest


def _plain(value: Any) -> Any:
    """Return the value as JSON can hold it: what is not a number becomes null."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_samples(path: Path, run: CheckRun, begin_s: float) -> None:
    """One row per sample in which something changed; the times count from the first sample."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for gpu in run.gpus:
            for index in _changes(series := run.series[gpu.uuid]):
                values = (series.joules, series.watts, series.instant_watts)
                writer.writerow(
                    (
                        f"{series.time_s[index] - begin_s:.4f}",
                        gpu.index,
                        series.phases[index],
                        *("" if math.isnan(v[index]) else f"{v[index]:.3f}" for v in values),
                    )
                )


def _changes(series: Series) -> list[int]:
    """Indices of the samples that differ from the one before, and of the first and the last."""
    rows = list(zip(series.phases, series.joules, series.watts, series.instant_watts, strict=True))
    inner = [i for i, (old, new) in enumerate(pairwise(rows), start=1) if not _same(old, new)]
    return sorted({0, *inner, len(rows) - 1}) if rows else []


def _same(old: tuple[Any, ...], new: tuple[Any, ...]) -> bool:
    """Whether two rows are equal, an unreadable value being equal to itself."""
    return all(a == b or (a != a and b != b) for a, b in zip(old, new, strict=True))  # noqa: PLR0124
