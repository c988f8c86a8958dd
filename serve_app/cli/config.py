"""`jouleserve config show FILE`: the resolved configuration, or the first fault in one line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def config() -> None:
    """Look at Ray Serve config files as JouleServe reads them."""


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A Ray Serve config file.")] = Path(
        "serve_config.yaml"
    ),
    *,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Print every setting in force, defaults included, and what is handed to Ray and vLLM.

    Exit status: 0 the file is good, 2 it is not (one line says where and what is allowed).
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # its log would mix into stdout
    from serve_app.resolve import resolve_file

    resolved: dict[str, Any] = resolve_file(file)
    if as_json:
        typer.echo(json.dumps(resolved, indent=2))
    else:
        typer.echo(yaml.safe_dump(resolved, sort_keys=False, width=100), nl=False)
