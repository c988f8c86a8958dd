"""Requests to fit: from a request log or a CSV file, checked for values that nobody measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from policies.core.errors import ConfigError
from policies.model.batch import Floats
from policies.sim.trace_cells import fail, number_of, rows_of, tokens_of
from serve_app.profiler.checks import MAX_DRAW_WATTS
from serve_app.text_files import read_lines
from serve_app.workload.log import read_log, shared_batches

CSV_COLUMNS = ("prompt_tokens", "output_tokens", "joules", "run_time_s")
OPTIONAL_COLUMNS = ("batch", "model", "device")
FROM_OVERLAPS = "the times of the log: sequences that ran on the replica at the same time"
FROM_COLUMN = "the column batch"

# Of the median request. Beyond these a unit is wrong, whatever the device: engines take from 10 us
# (a prompt token on a large GPU) to 0.5 s (an output token on a small CPU) per token.
MIN_S_PER_TOKEN, MAX_S_PER_TOKEN = 1e-6, 1.0
MIN_DRAW_WATTS = 0.01  # a 64th of the smallest computer; a GPU's watt-hours fall below


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Observations:
    """Measured requests of one model on one device, as columns of one length.

    `joules` and `run_time_s` are NaN where not known. `batch` is None where nothing is known of it;
    `batch_from` says where it comes from. `left_out` counts what was not taken, by why.
    """

    source: str
    model: str
    device: str
    prompt_tokens: Floats
    output_tokens: Floats
    joules: Floats
    run_time_s: Floats
    batch: Floats | None
    batch_from: str | None
    left_out: Counter[str]
    unreadable: int = 0


def read_observations(source: Path, model: str | None = None) -> Observations:
    """The requests of a folder of request logs or of a CSV file. Raises ConfigError: a value, unit,
    model or device that cannot be."""
    found = _from_log(source, model) if source.is_dir() else _from_csv(source, model)
    _check_units(found)
    return found


def _from_log(folder: Path, model: str | None) -> Observations:
    table = read_log(folder, model)
    if len(table.devices) > 1:
        names = ", ".join(f"{kind} ({count} requests)" for kind, count in table.devices.items())
        raise ConfigError(
            f"{folder}: energy of {len(table.devices)} sets of devices in one log: {names}; fit "
            "replicas of one kind"
        )
    chosen, left_out = table.single()
    columns = table.columns
    joules = table.metered_joules()
    left_out.update({"without energy, or metered in part": int((np.isnan(joules) & chosen).sum())})
    run_time_s = columns["end_s"] - columns["begin_s"]
    # A prompt token from the prefix cache is not computed, so its joules are not among these.
    computed = columns["prompt_tokens"] - np.nan_to_num(columns["cached_tokens"])
    return Observations(
        source=str(folder),
        model=table.model,
        device=", ".join(table.devices) or "unknown",
        prompt_tokens=np.maximum(computed, 1.0)[chosen],
        output_tokens=columns["output_tokens"][chosen],
        joules=joules[chosen],
        run_time_s=np.where(run_time_s > 0.0, run_time_s, np.nan)[chosen],
        batch=shared_batches(table)[chosen],
        batch_from=FROM_OVERLAPS,
        left_out=+left_out,
        unreadable=table.counts.bad_rows + len(table.counts.bad_files),
    )


def _from_csv(path: Path, model: str | None) -> Observations:
    name, lines = str(path), read_lines(path)
    header = next((line for line in lines if line.lstrip("\ufeff").strip()), "")
    present = {cell.strip("\ufeff \r\n") for cell in header.split(",")}
    optional = tuple(column for column in OPTIONAL_COLUMNS if column in present)
    rows: list[tuple[float, ...]] = []
    labels: dict[str, Counter[str]] = {"model": Counter(), "device": Counter()}
    for number, cells in rows_of(lines, (*CSV_COLUMNS, *optional), name):
        for column, seen in labels.items():
            if column in optional:
                seen[cells[column]] += 1
        if model is None or model == cells.get("model"):
            rows.append(_row(cells, number, name))
    if model is not None and not rows:
        raise ConfigError(f"--model {model}: {_allowed(name, labels['model'])}")
    for column, seen in labels.items():
        if len(seen) > 1 and not (column == "model" and model is not None):
            raise ConfigError(f"{name}: {len(seen)} {column}s in one file: {_counted(seen)}")
    if not rows:
        raise ConfigError(f"{name}: no rows; expected {','.join(CSV_COLUMNS)}")
    columns = np.array(rows).T
    unmetered = int(np.isnan(columns[2]).sum())
    return Observations(
        source=name,
        model=model or next(iter(labels["model"]), "unknown"),
        device=next(iter(labels["device"]), "unknown"),
        prompt_tokens=columns[0],
        output_tokens=columns[1],
        joules=columns[2],
        run_time_s=columns[3],
        batch=columns[4] if "batch" in optional else None,
        batch_from=FROM_COLUMN if "batch" in optional else None,
        left_out=+Counter({"without energy": unmetered}),
    )


def _row(cells: Mapping[str, str], number: int, name: str) -> tuple[float, ...]:
    where = f"{name}: line {number}:"
    found: list[float] = [
        tokens_of(cells[column], f"{where} {column}") for column in CSV_COLUMNS[:2]
    ]
    for column in CSV_COLUMNS[2:]:
        text = cells[column]
        value = number_of(text, f"{where} {column}") if text else float("nan")
        if value <= 0.0:
            fail(name, number, f"{column} {text}; expected a number > 0, empty where not known")
        found.append(value)
    if "batch" in cells:
        batch = number_of(cells["batch"], f"{where} batch")
        if batch < 1.0:
            fail(name, number, f"batch {cells['batch']}; expected a number >= 1")
        found.append(batch)
    return tuple(found)


def _allowed(name: str, models: Counter[str]) -> str:
    if not models:
        return f"{name} has no column model"
    return f"allowed, in {name}: {_counted(models)}"


def _counted(seen: Counter[str]) -> str:
    return ", ".join(f"{label} ({count} rows)" for label, count in sorted(seen.items()))


def _check_units(found: Observations) -> None:
    """The median request must be one that some machine can have run."""
    per_token = found.run_time_s / (found.prompt_tokens + found.output_tokens)
    draws = found.joules / found.run_time_s
    if found.batch is not None:
        draws = draws * found.batch
    checks: Sequence[tuple[Floats, float, float, str, str]] = (
        (per_token, MIN_S_PER_TOKEN, MAX_S_PER_TOKEN, "s per token",
         "Is run_time_s in milliseconds or hours?"),
        (draws, MIN_DRAW_WATTS, MAX_DRAW_WATTS, "W",
         "Is joules in millijoules, kilojoules or watt-hours?"),
    )  # fmt: skip
    for values, least, most, unit, question in checks:
        known = values[~np.isnan(values)]
        median = float(np.median(known)) if len(known) else least
        if not least <= median <= most:
            raise ConfigError(
                f"{found.source}: the median request is {median:.3g} {unit}; allowed: {least:g} to "
                f"{most:g} {unit}. {question}"
            )
