"""`jouleserve published`: profiles from tables that others have measured."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from serve_app.cli.fit import command_line


def published(
    tables: Annotated[
        Path, typer.Argument(help="Folder with energy/ and latency/ (see configs/published.yaml).")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the profiles.")] = Path(
        "configs/profiles"
    ),
    report: Annotated[Path | None, typer.Option("--report", help="Page to write, NAME.md.")] = None,
) -> None:
    """Fit profiles to published steady-state measurements: energy and latency over the batch, with
    prompts, KV reads and power limits transferred and marked so.

    Exit status: 0 done, 2 bad input.
    """
    from serve_app.profiler.report import write_profile
    from serve_app.published.report import markdown
    from serve_app.published.run import fit_published

    outcome = fit_published(tables, datetime.now(UTC).date().isoformat())
    page = markdown(outcome, command_line())
    for model in outcome.models:
        basis = f"{model.residuals.samples} published steady-state batches"
        write_profile(model, out / f"{model.name}.yaml", command_line(), basis)
        typer.echo(f"wrote {out / model.name}.yaml", err=True)
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(page, encoding="utf-8")
    typer.echo(page)
