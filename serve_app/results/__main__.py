"""The comparison of policies: `python -m serve_app.results --out FOLDER`; `make results`.

Plays every policy on every cell of configs/results/cells.yaml, each baseline tuned in hindsight;
writes results.jsonl, report.md, pictures, a manifest, and the README's section. Every simulated run
is kept in runs.jsonl: the next time only what is missing is run, or what a change of code or of
settings has made stale.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from policies.core.errors import ConfigError, EnergyServeError
from serve_app.profiler.host import commit, host_facts, versions
from serve_app.repository import REPOSITORY
from serve_app.results.cells import CELLS_FILE, Cell, load_cells
from serve_app.results.figures import Results
from serve_app.results.pool import collect, run_tasks
from serve_app.results.report import LABELS, PICTURES, markdown, picture_of, shown_of, summary
from serve_app.results.tasks import Row, Task, tasks_of
from serve_app.sections import require_section, write_section
from serve_app.simulator.picture import Curve, Series, draw_curves

SECTION = "policies"
README = REPOSITORY / "README.md"


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing and write all; 0 done, 1 rows were left out for want of time, 2 bad
    input."""
    options = _parser().parse_args(arguments)
    try:
        left = _results(options)
    except EnergyServeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out / 'report.md'}" + (f"; {len(left)} rows left out" if left else ""))
    return 1 if left else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument(
        "--data", type=Path, default=REPOSITORY.parent / "shared" / "data",
        help="folder with traces/; without it, presets take their place",
    )  # fmt: skip
    parser.add_argument("--cells-file", type=Path, default=CELLS_FILE)
    parser.add_argument("--cells", help="MODEL/LOAD,...; all without it")
    parser.add_argument("--kinds", help="only these parts, such as baseline,ours,limit")
    parser.add_argument("--seeds", type=int, help="at most so many per cell")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--minutes", type=float, help="begin nothing new after so many")
    parser.add_argument("--stored", action="store_true", help="run nothing, write what is kept")
    parser.add_argument("--quick", action="store_true", help="an hour of each load, one seed")
    parser.add_argument(
        "--readme", type=Path, help=f"page whose section {SECTION!r} is written; none without it"
    )
    return parser


def _results(options: argparse.Namespace) -> list[Task]:
    if options.jobs < 1:
        raise ConfigError(f"--jobs {options.jobs}: allowed: 1 or more")
    if options.readme is not None:
        require_section(options.readme, SECTION)
    cells = load_cells(
        options.data, quick=options.quick, wanted=options.cells, path=options.cells_file,
        seeds=options.seeds,
    )  # fmt: skip
    tasks = _wanted(tasks_of(cells), options.kinds)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    began_s = time.monotonic()
    manifest = _manifest(options)
    rows: dict[str, list[Row]] = {}

    def keep(task: Task, found: list[Row]) -> None:
        rows[task.name] = found
        _write_rows(out / "results.jsonl", [row for held in rows.values() for row in held])

    runs = out / "runs.jsonl"
    if options.stored:
        left = collect(tasks, runs, keep)
        if not rows:
            raise ConfigError(f"--stored: {runs} holds no whole row of these cells and kinds")
    else:
        left = run_tasks(tasks, runs, options.jobs, keep, options.minutes)
    manifest["wall_s"] = round(time.monotonic() - began_s, 1)
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    results = read_results(out / "results.jsonl")
    write_pages(results, cells, out, _command(), len(left))
    if options.readme is not None:
        link = f"All policies, cells and settings: [{out.name}]({_relative(out)}/report.md)."
        write_section(options.readme, SECTION, summary(results, cells, link))
    return left


def write_pages(
    results: Results, cells: Sequence[Cell], out: Path, command: str, left_out: int
) -> None:
    """report.md and the pictures, from the rows alone."""
    page = markdown(results, cells, command, left_out)
    (out / "report.md").write_text(page, encoding="utf-8")
    (out / PICTURES).mkdir(exist_ok=True)
    for cell in cells:
        curves = _curves(results, cell)
        if curves:
            draw_curves(curves, out / picture_of(cell), f"{cell.name}, simulated")


def read_results(path: Path) -> Results:
    """The rows of a result file. Raises ConfigError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    return Results(json.loads(line) for line in lines)


def _wanted(tasks: list[Task], kinds: str | None) -> list[Task]:
    if kinds is None:
        return tasks
    names = {name.strip() for name in kinds.split(",")}
    known = {task.kind for task in tasks}
    if not names <= known:
        raise ConfigError(f"--kinds {kinds!r}: allowed: {', '.join(sorted(known))}")
    return [task for task in tasks if task.kind in names]


def _curves(results: Results, cell: Cell) -> list[Curve]:
    found = []
    for role, row in shown_of(results, cell).items():
        held = {
            name: np.array([math.nan if one is None else one for one in values])
            for name, values in row["series"].items()
        }
        found.append(
            Curve(
                column=f"{cell.name}, simulated",
                label=LABELS[role].replace("*", ""),
                series=Series(**held),
                percentile=cell.file.slo.percentile,
            )
        )
    return found


def _write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Whole or not at all: a reader never sees half of them."""
    new = path.with_suffix(".new")
    new.write_text("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
    new.replace(path)


def _manifest(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "simulated": True,
        "started_at": datetime.now(tz=UTC).isoformat(timespec="seconds"),
        "command": _command(),
        "source": commit(REPOSITORY),
        "machine": host_facts(),
        "versions": versions(),
        "options": json.loads(json.dumps(vars(options), default=str)),
    }


def _command() -> str:
    return " ".join(["python -m serve_app.results", *sys.argv[1:]])


def _relative(out: Path) -> str:
    try:
        return str(out.resolve().relative_to(REPOSITORY))
    except ValueError:
        return str(out)


if __name__ == "__main__":
    sys.exit(main())
