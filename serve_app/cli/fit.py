"""`jouleserve fit`: from a folder of samples to a profile."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from policies.model.fitted import FittedModel

FINDING = 1


def fit(
    samples: Annotated[Path, typer.Argument(help="Folder that `jouleserve profile` has written.")],
    out: Annotated[Path, typer.Option("--out", help="Profile to write, NAME.yaml.")],
    allow_disturbed: Annotated[
        bool,
        typer.Option("--allow-disturbed", help="Also fit what other load disturbed (for a trial)."),
    ] = False,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Draw the fit: .png, .svg or .pdf.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout.")
    ] = False,
) -> None:
    """Fit the latency and power model to samples and write the profile.

    Exit status: 0 done, 1 written but too inexact for the policy to act on, 2 bad input.
    """
    model = fit_folder(
        samples, out, picture=picture, as_json=as_json, allow_disturbed=allow_disturbed
    )
    if not model.trusted:
        raise typer.Exit(FINDING)


def fit_folder(
    folder: Path,
    out: Path,
    *,
    as_json: bool,
    picture: Path | None = None,
    allow_disturbed: bool = False,
) -> FittedModel:
    """Fit, write, draw, print; returns the model. ConfigError or NotFitted with the reason."""
    from serve_app.profiler import report
    from serve_app.profiler.limited_fit import fit_all
    from serve_app.profiler.store import load_manifest, load_samples

    samples = load_samples(folder)
    identity = report.identity_of(out.stem, load_manifest(folder), samples, folder)
    whole = fit_all(samples, identity, allow_disturbed=allow_disturbed)
    result = whole.base
    if picture is not None:
        from serve_app.profiler.picture import draw

        draw(result, samples, picture)
    basis = f"{result.latency.rows} samples of {result.latency.points} points"
    report.write_profile(result.model, out, command_line(), basis)
    typer.echo(json.dumps(report.as_json(whole), indent=2) if as_json else report.summary(whole))
    typer.echo(f"wrote {out}", err=True)
    return result.model


def command_line() -> str:
    """The command as the user typed it."""
    return shlex.join(["jouleserve", *sys.argv[1:]]).replace(os.fspath(Path.home()), "~")
