"""`jouleserve fit`: from a folder of samples to a profile."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from policies.core.errors import EnergyServeError

FINDING, BAD_INPUT = 1, 2


def fit(
    samples: Annotated[Path, typer.Argument(help="Folder that `jouleserve profile` has written.")],
    out: Annotated[Path, typer.Option("--out", help="Profile to write, NAME.yaml.")],
    allow_disturbed: Annotated[
        bool,
        typer.Option("--allow-disturbed", help="Also fit what other load disturbed (for a trial)."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout.")
    ] = False,
) -> None:
    """Fit the latency and power model to samples and write the profile.

    Exit status: 0 done, 1 written but too inexact for the policy to act on, 2 bad input.
    """
    try:
        code = fit_folder(samples, out, as_json=as_json, allow_disturbed=allow_disturbed)
    except EnergyServeError as error:
        typer.echo(f"jouleserve fit: {error}", err=True)
        raise typer.Exit(BAD_INPUT) from None
    raise typer.Exit(code)


def fit_folder(folder: Path, out: Path, *, as_json: bool, allow_disturbed: bool = False) -> int:
    """Fit, write, print; returns the exit status."""
    from serve_app.profiler import report
    from serve_app.profiler.fit import fit as fit_samples
    from serve_app.profiler.store import load_manifest, load_samples

    samples = load_samples(folder)
    identity = report.identity_of(out.stem, load_manifest(folder), samples, folder)
    result = fit_samples(samples, identity, allow_disturbed=allow_disturbed)
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}.part")
    draft.write_text(report.profile_yaml(result, command_line()), encoding="utf-8")
    draft.replace(out)
    typer.echo(json.dumps(report.as_json(result), indent=2) if as_json else report.summary(result))
    typer.echo(f"wrote {out}", err=True)
    return 0 if result.model.trusted else FINDING


def command_line() -> str:
    """The command as the user typed it."""
    return shlex.join(["jouleserve", *sys.argv[1:]]).replace(os.fspath(Path.home()), "~")
