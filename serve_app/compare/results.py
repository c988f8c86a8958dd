"""The results folder of a comparison: manifest.json, rows.json, report.md; the README's block."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from policies.core.errors import ConfigError
from serve_app.compare.options import CompareOptions
from serve_app.compare.ratios import all_ratios
from serve_app.compare.report import markdown, summary
from serve_app.profiler.host import commit, host_facts, versions
from serve_app.repository import REPOSITORY
from serve_app.sections import require_section, write_section

RESULTS = Path("docs") / "results"
MANIFEST, ROWS, REPORT = "manifest.json", "rows.json", "report.md"
SECTION = "compare"
_RUN_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")

Section = dict[str, Any]


def new_run_id() -> str:
    """Return an id that sorts by time."""
    return datetime.now(tz=UTC).strftime("compare-%Y%m%dT%H%M%SZ")


class ResultFolder:
    """One run's folder, complete after every row. Opening one that exists adds rounds to it, in a
    session of its own. Raises ConfigError for a bad id."""

    def __init__(self, run_id: str, root: Path = RESULTS) -> None:
        if not _RUN_ID.match(run_id):
            raise ConfigError(f"--run-id {run_id!r}: expected letters, digits, '.', '_', '-'")
        self.path = root / run_id
        self.rows: list[Section] = []
        self.manifest: Section = {"schema_version": 1, "run_id": run_id, "sessions": []}
        if (self.path / MANIFEST).exists():
            self.manifest = _load(self.path / MANIFEST)
            self.rows = _load(self.path / ROWS) if (self.path / ROWS).exists() else []
        self._session: Section = {}

    def begin(self, options: CompareOptions) -> None:
        """Note a session: commit, machine, versions, options."""
        self._session = {
            "started_at": datetime.now(tz=UTC).isoformat(timespec="seconds"),
            "source": commit(REPOSITORY),
            "machine": host_facts(),
            "versions": versions(),
            "options": json.loads(json.dumps(asdict(options), default=str)),
            "interrupted": True,  # until it has ended
            "notes": [],
        }
        self.manifest["sessions"].append(self._session)
        self.write()

    def rounds_done(self, part: str) -> dict[int, int]:
        """Return concurrency → the last round that a part has there."""
        done: dict[int, int] = {}
        for row in self.rows:
            if row["part"] == part and "concurrency" in row:
                done[row["concurrency"]] = max(done.get(row["concurrency"], 0), row["round"])
        return done

    def note(self, name: str, value: Any) -> None:
        """Add something to the session: a config, the idle check."""
        self._session[name] = value

    def remark(self, text: str) -> None:
        """Add a sentence to the report's notes."""
        self._session["notes"].append(text)

    def add(self, row: Section) -> None:
        """Add a row and write it down at once."""
        self.rows.append(row)
        self.write()

    def end(self) -> None:
        """Note that the session ran to its end."""
        self._session["interrupted"] = False
        self.write()

    @property
    def facts(self) -> Section:
        """What the report says about the run."""
        sessions = self.manifest["sessions"]
        return {
            "run_id": self.manifest["run_id"],
            "machine": sessions[-1]["machine"] if sessions else {},
            "interrupted": any(session["interrupted"] for session in sessions),
            "notes": list(dict.fromkeys(note for s in sessions for note in s["notes"])),
        }

    def document(self) -> Section:
        """Return the run as one JSON document."""
        return {
            **self.manifest,
            "rows": self.rows,
            "ratios": [asdict(ratio) for ratio in all_ratios(self.rows)],
        }

    def write(self) -> None:
        """Write all three files."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._replace(MANIFEST, json.dumps(self.manifest, indent=2) + "\n")
        self._replace(ROWS, json.dumps(self.rows, indent=1) + "\n")
        self._replace(REPORT, markdown(self.rows, self.facts))

    def _replace(self, name: str, text: str) -> None:
        draft = self.path / f".{name}.part"
        draft.write_text(text, encoding="utf-8")
        draft.replace(self.path / name)


def require_markers(readme: Path) -> None:
    """Raise ConfigError unless the file has the block to rewrite, once and in order."""
    require_section(readme, SECTION)


def update_readme(readme: Path, rows: Sequence[Section], run: Path) -> None:
    """Rewrite the block between the markers; the rest stays. Raises ConfigError without them."""
    link = (
        f"All rounds, versions and configuration: [{run.as_posix()}]({run.as_posix()}/report.md)."
    )
    write_section(readme, SECTION, "\n".join([*summary(rows), link]))


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not readable as JSON: {error}") from error
