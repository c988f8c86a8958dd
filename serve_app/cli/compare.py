"""`jouleserve compare`: JouleServe, stock `ray.serve.llm` and bare vLLM under the same load."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Annotated

import typer

from policies.core.errors import EngineError

app = typer.Typer(add_completion=False)


@app.command()
def compare(
    config: Annotated[Path, typer.Argument(help="A Serve config file of JouleServe.")] = Path(
        "serve_config.yaml"
    ),
    *,
    parts: Annotated[
        str, typer.Option(help="Comma-separated: overhead, direct, dynamic.")
    ] = "overhead,direct,dynamic",
    quick: Annotated[bool, typer.Option("--quick", help="A smoke run: one short round.")] = False,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds of the closed loops.")] = 3,
    concurrency: Annotated[str, typer.Option(help="Requests under way at once.")] = "1,8,32",
    cell: Annotated[float, typer.Option(help="About how many seconds a cell lasts.")] = 10.0,
    burst: Annotated[
        str, typer.Option(help="Dynamic load, BASE:PEAK:PERIOD[:DUTY], req/s and s.")
    ] = "0.2:3:300:0.4",
    duration: Annotated[float, typer.Option(help="Seconds of the dynamic load.")] = 300.0,
    dynamic_prompt_tokens: Annotated[
        str, typer.Option(help="Of the dynamic load: N, LOW:HIGH, or a CSV cdf_pct,tokens.")
    ] = "16",
    dynamic_output_tokens: Annotated[str, typer.Option(help="Likewise.")] = "32",
    stock_target: Annotated[
        list[float] | None,
        typer.Option(help="Run stock with this target_ongoing_requests too (repeatable)."),
    ] = None,
    profile: Annotated[str | None, typer.Option(help="Another profile than the file's.")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same prompts and arrivals.")] = 0,
    run_id: Annotated[
        str | None, typer.Option(help="Name of the results folder; one that exists is added to.")
    ] = None,
    update_readme: Annotated[
        bool, typer.Option("--update-readme", help="Rewrite the comparison block of README.md.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Compare under the same load; write docs/results/RUN_ID (manifest, every round, report).

    Exit status: 0 done, 1 a system failed or a request did, 2 bad input, 130 interrupted.
    """
    from rich.console import Console

    from serve_app.compare.options import CompareOptions, parse_concurrency, parse_parts
    from serve_app.compare.report import summary
    from serve_app.compare.results import (
        ResultFolder,
        new_run_id,
        require_markers,
    )
    from serve_app.compare.results import update_readme as rewrite
    from serve_app.compare.run import compare as run

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    options = CompareOptions(
        config=config,
        profile=profile,
        parts=parse_parts(parts),
        rounds=rounds,
        concurrency=parse_concurrency(concurrency),
        cell_s=cell,
        burst=burst,
        duration_s=duration,
        dynamic_prompt_tokens=dynamic_prompt_tokens,
        dynamic_output_tokens=dynamic_output_tokens,
        stock_targets=tuple(stock_target or ()),
        seed=seed,
    )
    readme = Path("README.md")
    if update_readme:
        require_markers(readme)
    folder = ResultFolder(run_id or new_run_id())
    # Also when started with SIGINT ignored, as a script's background jobs are: children inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with console.status("starting") as status:

        def say(text: str) -> None:
            status.update(text)
            console.print(f"[bold]jouleserve[/] {text}", markup=True)

        try:
            run(options.quick() if quick else options, folder, say)
        except EngineError as error:
            console.print(f"jouleserve: {error}", markup=False)
            raise typer.Exit(1) from None
    if update_readme:
        rewrite(readme, folder.rows, folder.path)
    if as_json:
        typer.echo(json.dumps(folder.document(), allow_nan=False))
    else:
        typer.echo("\n".join(summary(folder.rows)))
        typer.echo(f"written to {folder.path}")
    raise typer.Exit(1 if _failed(folder.rows) else 0)


def _failed(rows: list[dict[str, object]]) -> bool:
    """Whether a request of the run failed."""
    return any(
        bool(row.get("errors")) or bool(_section(row, "requests").get("failed")) for row in rows
    )


def _section(row: dict[str, object], name: str) -> dict[str, object]:
    found = row.get(name)
    return found if isinstance(found, dict) else {}
