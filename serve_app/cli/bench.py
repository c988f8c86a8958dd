"""`jouleserve bench`: options in, table or JSON out. The work is in `serve_app.bench`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from policies.core.errors import ConfigError
from policies.core.types import SLO

if TYPE_CHECKING:
    from serve_app.bench.preflight import Progress
    from serve_app.bench.records import RequestRecord

app = typer.Typer(help="Send load to a server; report latency and energy.")

_DEFAULT_SLO = SLO()
_REFRESH_S = 0.25
_LENGTH_HELP = "N, a range LOW:HIGH, or a CSV file cdf_pct,tokens."


@app.command()
def bench(
    *,
    url: Annotated[str, typer.Option(help="Base URL.")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="Default: the first one listed.")] = None,
    endpoint: Annotated[str, typer.Option(help="chat or completions.")] = "chat",
    rate: Annotated[float, typer.Option(help="Poisson arrivals, requests per second.")] = 1.0,
    duration: Annotated[
        float | None, typer.Option(help="Seconds. Default: 60, or the whole trace.")
    ] = None,
    burst: Annotated[
        str | None,
        typer.Option(
            help="BASE:PEAK:PERIOD[:DUTY], req/s and s: each period goes base, peak, base; the "
            "peak takes the share DUTY (1/3)."
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="CSV TIMESTAMP,ContextTokens,GeneratedTokens, Mooncake JSONL, or a rate curve "
            "minute,rps."
        ),
    ] = None,
    time_scale: Annotated[
        float, typer.Option(help="Multiplies a trace's times; 0.5 is twice as fast.")
    ] = 1.0,
    prompt_tokens: Annotated[str, typer.Option(help=_LENGTH_HELP)] = "128",
    output_tokens: Annotated[str, typer.Option(help=_LENGTH_HELP)] = "64",
    max_requests: Annotated[int | None, typer.Option(help="Stop after so many.")] = None,
    ttft_ms: Annotated[float, typer.Option(help="TTFT target.")] = _DEFAULT_SLO.ttft_s * 1e3,
    tpot_ms: Annotated[float, typer.Option(help="TPOT target.")] = _DEFAULT_SLO.tpot_s * 1e3,
    seed: Annotated[int, typer.Option(help="Same seed, same load.")] = 0,
    tokenizer: Annotated[
        Path | None, typer.Option(help="tokenizer.json or its folder. Default: the model's.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds per request.")] = 300.0,
    api_key: Annotated[
        str | None, typer.Option(envvar="OPENAI_API_KEY", help="Sent as the bearer token.")
    ] = None,
    save_requests: Annotated[
        Path | None, typer.Option(help="One JSON object per request, a JSONL file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Send open-loop load to an OpenAI-compatible server; report latency and energy.

    Requests go out at their planned time, whatever the server does. Exit status: 0 every request
    completed, 1 some failed, 2 bad input or no server.
    """
    # Imported here, so that help stays quick.
    from serve_app.bench.options import BenchOptions, Endpoint, parse_burst
    from serve_app.bench.preflight import Progress
    from serve_app.bench.runner import run_bench

    try:
        chosen = Endpoint(endpoint)
    except ValueError:
        raise ConfigError(f"--endpoint {endpoint!r}: expected chat or completions") from None
    options = BenchOptions(
        url=url,
        model=model,
        endpoint=chosen,
        rate_per_s=rate,
        duration_s=duration,
        burst=None if burst is None else parse_burst(burst),
        trace=trace,
        time_scale=time_scale,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        max_requests=max_requests,
        slo=SLO(ttft_s=ttft_ms / 1e3, tpot_s=tpot_ms / 1e3),
        seed=seed,
        tokenizer=tokenizer,
        timeout_s=timeout,
        api_key=api_key,
    )
    if save_requests is not None:
        _check_writable(save_requests)
    progress = Progress()
    with _shown(progress):
        result = run_bench(options, progress)
    if save_requests is not None:
        _save(save_requests, result.records)
    if as_json:
        typer.echo(json.dumps(result.to_dict(), allow_nan=False))
    else:
        from rich.console import Console

        from serve_app.bench.report import table_of

        Console().print(table_of(result))
    raise typer.Exit(1 if result.errors else 0)


@contextmanager
def _shown(progress: Progress) -> Iterator[None]:
    """Show the live counts on stderr: a bar on a terminal, the notes anywhere."""
    from rich.console import Console

    from serve_app.cli.live import live_bar

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        with live_bar(progress, console, _REFRESH_S):
            yield
    finally:
        for note in progress.notes:
            print(f"note: {note}", file=sys.stderr)


def _check_writable(path: Path) -> None:
    try:
        path.open("a", encoding="utf-8").close()
    except OSError as error:
        raise ConfigError(f"--save-requests {path}: {error.strerror}") from error


def _save(path: Path, records: tuple[RequestRecord, ...]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(asdict(record), allow_nan=False) + "\n")
