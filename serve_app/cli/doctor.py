"""`jouleserve doctor`: what this host can meter and serve, and what to do about the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

_FINDING = 1


def doctor(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="A Serve config file.", show_default="serve_config.yaml where there is one"
        ),
    ] = None,
    *,
    powercap_root: Annotated[
        Path | None,
        typer.Option(help="Where the RAPL counters are, if not in /sys/class/powercap."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Say what each meter sees on this host, whether versions, model, port and Ray's settings fit,
    and what to do where they do not. Starts nothing and changes nothing.

    Exit status: 0 no problem, 1 a problem, 2 bad input.
    """
    from serve_app.doctor.findings import Level
    from serve_app.doctor.run import diagnose, scope_of

    diagnosis = diagnose(scope_of(file, powercap_root))
    if as_json:
        typer.echo(json.dumps(diagnosis.to_dict(), indent=2))
    else:
        from rich.console import Console

        from serve_app.doctor.show import show

        show(diagnosis, Console(highlight=False))
    raise typer.Exit(_FINDING if diagnosis.level is Level.PROBLEM else 0)
