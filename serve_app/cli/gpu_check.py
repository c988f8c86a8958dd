"""`jouleserve gpu-check`: whether counter and power sensor of these GPUs are to be trusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)

_FINDING = 1


@app.command()
def gpu_check(
    *,
    gpus: Annotated[
        str | None,
        typer.Option(help="Comma-separated indices or UUIDs.", show_default="what CUDA shows"),
    ] = None,
    load: Annotated[
        str | None,
        typer.Option(
            help="A command that keeps the GPUs busy; it is stopped and continued by signals.",
            show_default="matrix products by torch, where it has CUDA",
        ),
    ] = None,
    load_warm_up: Annotated[
        float, typer.Option(help="Seconds until the load command computes.")
    ] = 10.0,
    quick: Annotated[bool, typer.Option("--quick", help="About 20 s, with less to say.")] = False,
    duration: Annotated[
        float | None, typer.Option(help="Seconds of all phases together.", show_default="200")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder.", show_default="docs/results/gpu-check-GPU-DATE")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Measure how often counter and power of each GPU move, over how long power is averaged, what a
    reading costs, and whether counter and integrated power agree at idle, in bursts and at full
    load. Only reads: no clock, limit or mode is changed. Writes samples and a report.

    Exit status: 0 they agree as stated, 1 a finding (also: no GPU here), 2 bad input.
    """
    from policies.core.errors import MeterError
    from serve_app.gpu_check.plan import FULL_S, QUICK_S
    from serve_app.gpu_check.progress import CheckProgress
    from serve_app.gpu_check.report import markdown
    from serve_app.gpu_check.run import CheckOptions, run_check
    from serve_app.gpu_check.store import check_writable, save

    options = CheckOptions(
        duration_s=duration if duration is not None else QUICK_S if quick else FULL_S,
        gpus=None if gpus is None else tuple(part.strip() for part in gpus.split(",")),
        load_command=load,
        warm_up_s=load_warm_up,
    )
    if out is not None:
        check_writable(out)
    try:
        with CheckProgress() as progress:
            run = run_check(options, progress)
    except MeterError as error:
        typer.echo(f"jouleserve gpu-check: no GPU to check: {error}", err=True)
        raise typer.Exit(_FINDING) from None
    folder, manifest = save(run, options, out)
    typer.echo(json.dumps(manifest) if as_json else markdown(run.result, manifest))
    typer.echo(f"wrote {folder}", err=True)
    raise typer.Exit(_FINDING if run.result.findings() else 0)
