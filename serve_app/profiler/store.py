"""The sample folder, written point by point so that a sweep cut short goes on where it stopped.

manifest.json, samples.csv (one row per window), steps.csv (every step), and the two tables as
Parquet where pyarrow is installed.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import typing
from typing import TYPE_CHECKING, Any

from policies.core.errors import ConfigError
from serve_app.profiler.samples import Kind, Phase, Sample, unlimited
from serve_app.profiler.steps import Step
from serve_app.profiler.yardstick import judged

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

MANIFEST, SAMPLES, STEPS = "manifest.json", "samples.csv", "steps.csv"
_SAMPLE_COLUMNS = tuple(f.name for f in dataclasses.fields(Sample))
_NEEDED_COLUMNS = frozenset(
    f.name for f in dataclasses.fields(Sample) if f.default is dataclasses.MISSING
)
_STEP_COLUMNS = ("point", "repeat", *(f.name for f in dataclasses.fields(Step)))
_SAMPLE_TYPES: dict[str, Any] = {}


def load_samples(folder: Path) -> list[Sample]:
    """All samples of a folder, in order. A last line that was cut short is left out, and a column
    that has a default may be absent, as in a folder that is older than it. ConfigError that names
    the file, line and column for anything else."""
    path = folder / SAMPLES
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    whole = text[: text.rfind("\n") + 1]
    reader = csv.DictReader(io.StringIO(whole))
    there = reader.fieldnames or ()
    columns = [name for name in _SAMPLE_COLUMNS if name in there]
    absent = [name for name in _SAMPLE_COLUMNS if name not in there]
    # Beside a column that nobody knows, one that may be absent is more likely misspelt.
    if (absent and set(there) - set(columns)) or _NEEDED_COLUMNS & set(absent):
        needed = ", ".join(_SAMPLE_COLUMNS)
        raise ConfigError(f"{path}: no column {', '.join(absent)}; needed: {needed}")
    return [
        Sample(**{name: _value(name, row[name], f"{path}:{line}") for name in columns})
        for line, row in enumerate(reader, start=2)
    ]


def load_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder; ConfigError if there is none that can be read."""
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a JSON object")
    return data


class SampleStore:
    """A sample folder that is being written. Opening one that exists resumes it: ConfigError if it
    belongs to another configuration (`manifest["config"]` or `["device"]` differ)."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.samples: list[Sample] = []
        if (folder / MANIFEST).exists():
            self._check(load_manifest(folder), manifest)
            if (folder / SAMPLES).exists():
                self.samples = load_samples(folder)
                self._widen()
        else:
            self._write(MANIFEST, json.dumps(manifest, indent=2, sort_keys=True) + "\n")
        self._cut_broken_lines()

    def _check(self, found: dict[str, Any], wanted: dict[str, Any]) -> None:
        for part in ("config", "device"):
            if found.get(part) != wanted.get(part):
                raise ConfigError(
                    f"{self.folder / MANIFEST}: {part} is {found.get(part)}, this run has "
                    f"{wanted.get(part)}: choose another --samples folder"
                )

    def describe(self, key: str, facts: dict[str, Any]) -> None:
        """Add what is known only now to the manifest."""
        manifest = load_manifest(self.folder) | {key: facts}
        self._write(MANIFEST, json.dumps(manifest, indent=2, sort_keys=True) + "\n")

    @property
    def done(self) -> set[tuple[str, int]]:
        """(point, repeat) of what is measured without a power limit; a disturbed run is not, and is
        tried again."""
        return {
            (s.point, s.repeat)
            for s in judged(unlimited(self.samples))
            if s.phase is Phase.STEADY and s.steady
        }

    def append(self, samples: Sequence[Sample], steps: Sequence[Step]) -> None:
        """Add one run: its steps first, so that a run with samples is always complete."""
        if not samples:
            return
        point, repeat, limit = samples[0].point, samples[0].repeat, samples[0].power_limit_watts
        label = point if limit is None else f"{point}@{limit:g}W"
        self._append(STEPS, _STEP_COLUMNS, ((label, repeat, *_row(step)) for step in steps))
        self._append(SAMPLES, _SAMPLE_COLUMNS, map(_row, samples))
        self.samples += samples

    def _append(self, name: str, columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
        path = self.folder / name
        is_new = not path.exists() or path.stat().st_size == 0
        with path.open("a", encoding="utf-8") as file:
            file.write(_csv([*([columns] if is_new else []), *rows]))
            file.flush()
            os.fsync(file.fileno())

    def _widen(self) -> None:
        """Give an older table the columns that it lacks, so that new rows fit."""
        with (self.folder / SAMPLES).open(encoding="utf-8") as file:
            header = file.readline()
        if header and header != _csv([_SAMPLE_COLUMNS]):
            self._write(SAMPLES, _csv([_SAMPLE_COLUMNS, *map(_row, self.samples)]))

    def _cut_broken_lines(self) -> None:
        for name in (SAMPLES, STEPS):
            path = self.folder / name
            if path.exists():
                text = path.read_text(encoding="utf-8")
                if text and not text.endswith("\n"):
                    self._write(name, text[: text.rfind("\n") + 1])

    def _write(self, name: str, text: str) -> None:
        draft = self.folder / f".{name}.part"
        draft.write_text(text, encoding="utf-8")
        draft.replace(self.folder / name)

    def write_parquet(self) -> bool:
        """Write both tables as Parquet beside the CSV; False where pyarrow is not installed."""
        try:
            from pyarrow import csv as arrow_csv
            from pyarrow import parquet
        except ImportError:
            return False
        for name in (SAMPLES, STEPS):
            path = self.folder / name
            if path.exists():
                parquet.write_table(arrow_csv.read_csv(path), path.with_suffix(".parquet"))
        return True


def _csv(rows: Iterable[Iterable[Any]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def _row(record: Sample | Step) -> list[Any]:
    values = (getattr(record, field.name) for field in dataclasses.fields(record))
    return ["" if v is None else int(v) if isinstance(v, bool) else v for v in values]


def _value(name: str, text: str | None, where: str) -> Any:
    """One cell as its column's type; an empty cell is None where the column allows it."""
    if not _SAMPLE_TYPES:
        _SAMPLE_TYPES.update(typing.get_type_hints(Sample))
    kind = _SAMPLE_TYPES[name]
    options = typing.get_args(kind)
    if options and not text:
        return None
    base = options[0] if options else kind
    try:
        if base is bool:
            return {"0": False, "1": True}[text or ""]
        return base(text)
    except (TypeError, ValueError, KeyError):
        allowed = ", ".join(base) if base in (Kind, Phase) else base.__name__
        raise ConfigError(f"{where}: {name} is {text!r}; allowed: {allowed}") from None
