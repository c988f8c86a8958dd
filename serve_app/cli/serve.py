"""`jouleserve serve FILE`: check the file, prepare its model, run it with Ray, stop it clean."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from policies.core.errors import EngineError
from serve_app.launch import (
    QUESTION,
    Deployment,
    Running,
    Timings,
    read_deployment,
    require_free_port,
)

app = typer.Typer(add_completion=False)
console = Console(stderr=True, highlight=False)


@app.command()
def serve(
    file: Annotated[Path, typer.Argument(help="A Ray Serve config file.")] = Path(
        "serve_config.yaml"
    ),
    *,
    log: Annotated[Path, typer.Option(help="Where Ray's and vLLM's output goes.")] = Path(
        ".jouleserve/serve.log"
    ),
    once: Annotated[
        bool, typer.Option("--once", help="Stop after the first answer (a smoke test).")
    ] = False,
) -> None:
    """Serve until Ctrl-C. Exit: 0 stopped, 1 serving failed, 2 the file is wrong."""
    timings = Timings()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop clean on SIGTERM too
    signal.signal(signal.SIGINT, signal.default_int_handler)  # even when started with it ignored
    deployment = read_deployment(file)
    require_free_port(deployment)
    with timings.part("model"):
        _prepare(deployment)
    _say(f"serving {file} with Ray Serve; all output goes to {log}")
    running = Running(deployment, log)
    try:
        with timings.part("start"):
            answer = running.wait_until_ready(_say)
        _greet(deployment, answer, timings)
        if not once:
            running.wait()
            raise typer.Exit(1)
    except EngineError as error:
        console.print(f"[bold red]jouleserve[/] {error}", markup=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        _say("stopping")
    finally:
        started_s = time.monotonic()
        running.stop()
        _say(f"stopped after {time.monotonic() - started_s:.0f} s; nothing is left running")


def _prepare(deployment: Deployment) -> None:
    """Make the models that come from a package; a Hugging Face id or a folder is Ray's to load."""
    from serve_app.models.prepare import PrepareOptions, prepare
    from serve_app.models.steps import Steps

    for source in deployment.sources:
        prepare(source, PrepareOptions(), Steps())


def _greet(deployment: Deployment, answer: dict[str, Any], timings: Timings) -> None:
    url = deployment.url.replace("127.0.0.1", deployment.host)
    split = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in timings.parts.items())
    console.print(f"\n[bold green]ready[/] ({split})")
    if answer:
        text = answer["choices"][0]["message"]["content"].strip()
        energy = answer.get("energy") or {}
        joules = energy.get("joules")
        cost = f"{joules:.2f} J, {energy['source']}" if joules is not None else "energy unavailable"
        console.print(f"  {QUESTION}  [bold]{text}[/]  ({cost})")
    else:
        console.print("  it asks for an API key; with one in JOULESERVE_API_KEY, a first question")
    console.print(f"  OpenAI API   {url}/v1    model {', '.join(deployment.models)}")
    console.print(f"  metrics      {url}/metrics    energy {url}/jouleserve/energy")
    console.print(f"  load         jouleserve bench --url {url} --rate 1 --duration 60")
    console.print("  Ctrl-C stops everything\n")


def _say(text: str) -> None:
    console.print(f"[bold]jouleserve[/] {text}")
