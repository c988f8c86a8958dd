"""A report as data: one JSON document, one CSV line per group, and the rows themselves."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from policies.core.errors import ConfigError
from serve_app.report.summary import Question, Report, selected
from serve_app.request_log.reader import ReadCounts
from serve_app.request_log.row import ENCODER, FIELDS, Row

FORMATS = (".parquet", ".csv", ".jsonl")
_BATCH = 10_000


def document(report: Report) -> dict[str, Any]:
    """The whole report; null is "not known"."""
    question, counts = report.question, report.counts
    tariff, slo = question.tariff, question.slo
    return {
        "folder": str(question.folder),
        "since": _iso(question.since),
        "until": _iso(question.until),
        "first": _iso(report.first),
        "last": _iso(report.last),
        "slo": None if slo is None else {"ttft_s": slo.ttft_s, "tpot_s": slo.tpot_s},
        "tariff": {
            "price_per_kwh": tariff.price_per_kwh,
            "currency": tariff.currency,
            "pue": tariff.pue,
        },
        "total": report.total.to_dict(tariff, slo),
        "by": list(question.by),
        "groups": _groups(report),
        "unavailable": dict(report.missing),
        "intensity_gap_joules": report.gaps.joules,
        "read": msgspec.to_builtins(counts),
    }


def table(report: Report) -> str:
    """The groups as CSV; an empty cell is "not known"."""
    groups = [_flat(group) for group in _groups(report)]
    names = (name for group in groups for name in group)
    columns = list(dict.fromkeys((*report.question.by, *names)))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(groups)
    return text.getvalue()


def _groups(report: Report) -> list[dict[str, Any]]:
    question = report.question
    return [
        {
            **dict(zip(question.by, key, strict=True)),
            **figures.to_dict(question.tariff, question.slo),
        }
        for key, figures in report.ordered()
    ]


def _flat(group: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in group.items():
        if isinstance(value, dict):
            flat |= {f"{kind}_joules": part for kind, part in value.items()}
        else:
            flat[name] = "+".join(value) if isinstance(value, list) else value
    return flat


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()


# ---- rows


def export_rows(question: Question, path: Path) -> int:
    """Write the rows of the period; returns how many. The ending says the format. Raises
    ConfigError."""
    if path.suffix not in FORMATS:
        raise ConfigError(f"--export {path}: allowed endings: {', '.join(FORMATS)}")
    write = {".parquet": _parquet, ".csv": _csv, ".jsonl": _jsonl}[path.suffix]
    partial = path.with_name(f"{path.name}.part")
    try:
        count = write(selected(question, ReadCounts()), partial)
        partial.replace(path)
    except OSError as error:
        raise ConfigError(f"--export {path}: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)
    return count


def _jsonl(rows: Iterator[Row], path: Path) -> int:
    count = 0
    with path.open("wb") as file:
        for batch in _batches(rows):
            file.write(ENCODER.encode_lines(batch))
            count += len(batch)
    return count


def _csv(rows: Iterator[Row], path: Path) -> int:
    count = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        for batch in _batches(rows):
            writer.writerows(_cells(row) for row in batch)
            count += len(batch)
    return count


def _parquet(rows: Iterator[Row], path: Path) -> int:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise ConfigError(
            "--export: Parquet needs pyarrow (pip install pyarrow), or export .csv or .jsonl"
        ) from None
    times = {"start", "first_token", "end"}
    whole = {"schema", "num_sequences", "prompt_tokens", "output_tokens", "cached_tokens"}
    text = set(_COLUMNS) - times - whole - _NUMBERS
    schema = pa.schema(
        [
            (name, pa.timestamp("us", "UTC") if name in times else
             pa.int64() if name in whole else pa.string() if name in text else pa.float64())
            for name in _COLUMNS
        ]
    )  # fmt: skip
    count = 0
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in _batches(rows):
            cells = [_cells(row) for row in batch]
            writer.write_batch(pa.RecordBatch.from_pylist(cells, schema=schema))
            count += len(batch)
    return count


_DEVICES = ("gpu", "cpu", "dram")
_COLUMNS = [
    column
    for name in FIELDS
    for column in (
        [f"{kind}_joules" for kind in _DEVICES] if name == "device_joules" else [name]
    )
]  # fmt: skip
_NUMBERS = {name for name in _COLUMNS if name.endswith(("_joules", "_s", "_ratio"))} | {"joules"}


def _cells(row: Row) -> dict[str, Any]:
    """A row with one value per column."""
    cells = {name: getattr(row, name) for name in FIELDS if name != "device_joules"}
    cells["engine_request_ids"] = " ".join(row.engine_request_ids)
    return {**cells, **{f"{kind}_joules": row.device_joules.get(kind) for kind in _DEVICES}}


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while batch := list(islice(iterator, _BATCH)):
        yield batch
