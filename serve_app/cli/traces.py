"""`jouleserve traces`: the loads that there are by name, what they are like, and their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from policies.core.errors import ConfigError

if TYPE_CHECKING:
    from serve_app.traces.figures import TraceFigures
    from serve_app.traces.load import Trace

app = typer.Typer(no_args_is_help=True, add_completion=False)

_Spec = Annotated[
    str,
    typer.Argument(
        help="A file, a preset or a downloaded trace; several joined by +, each with a factor on "
        "its rate where wanted: 2*chat-2023+code-2024."
    ),
]
_Seed = Annotated[int, typer.Option("--seed", help="Of everything that is drawn.")]
_RateScale = Annotated[
    float, typer.Option(help="So many times the requests, at the same time scale.")
]
_TimeScale = Annotated[float, typer.Option(help="Factor on the arrival times.")]
_Begin = Annotated[float, typer.Option(help="Leave out what comes before.")]
_Duration = Annotated[float | None, typer.Option(help="Only so many seconds.", show_default="all")]
_Shift = Annotated[
    float | None,
    typer.Option(
        help="How far --rate-scale moves copies of a file, seconds.",
        show_default="a minute or more",
    ),
]
_PromptCdf = Annotated[
    str | None, typer.Option(help="Prompt lengths of a rate curve: N, LOW:HIGH or a CDF file.")
]
_OutputCdf = Annotated[str | None, typer.Option(help="Output lengths, likewise.")]
_Interpolate = Annotated[
    bool | None,
    typer.Option(
        "--interpolate/--steps",
        help="A rate curve as lines or steps.",
        show_default="lines from 5 minutes a step on",
    ),
]
_OWN = "the trace's own"
_GapCv = Annotated[
    float | None,
    typer.Option(help="Spread over mean of the gaps at a constant rate.", show_default=_OWN),
]
_RateCv = Annotated[
    float | None, typer.Option(help="Spread over mean of the rate itself.", show_default=_OWN)
]
_Correlation = Annotated[
    float | None, typer.Option(help="For how long it stays up or down.", show_default=_OWN)
]
_BurstFactor = Annotated[
    float | None, typer.Option(help="Rate of bursts over the rate between.", show_default=_OWN)
]
_BurstS = Annotated[float | None, typer.Option(help="Mean length of a burst.", show_default=_OWN)]
_GapS = Annotated[float | None, typer.Option(help="Mean gap between them.", show_default=_OWN)]
_Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


@app.callback()
def traces() -> None:
    """List, describe, write and download traces.

    Exit status: 0 done, 2 bad input or a failed download.
    """


@app.command("list")
def list_traces(*, as_json: _Json = False) -> None:
    """List the presets, generated from published figures, and the public traces to download."""
    from serve_app.traces.catalog import load_catalog, load_presets
    from serve_app.traces.load import public_file

    presets, public = load_presets(), load_catalog()
    here = {name: public_file(name) for name in public if public_file(name).is_file()}
    if as_json:
        document = {
            "presets": {name: one.model_dump(mode="json") for name, one in presets.items()},
            "public": {
                name: one.model_dump(mode="json")
                | {"path": str(here[name]) if name in here else None}
                for name, one in public.items()
            },
        }
        typer.echo(json.dumps(document, allow_nan=False))
        return
    from rich.table import Table

    from serve_app.cli.tables import table_console

    generated = Table(title="presets: generated, nothing to download", title_justify="left")
    for column in ("name", "req/s", "hours", "what", "figures from"):
        generated.add_column(column, justify="right" if column in {"req/s", "hours"} else "left")
    for name, one in presets.items():
        rate, hours = one.arrivals.mean_per_s, one.arrivals.hours
        generated.add_row(name, f"{rate:g}", f"{hours:.3g}", one.what, one.citation)
    files = Table(title="public traces: jouleserve traces download NAME", title_justify="left")
    for column in ("name", "here", "what", "licence", "cite"):
        files.add_column(column)
    for name, trace in public.items():
        at_hand = "yes" if name in here else "no"
        files.add_row(name, at_hand, trace.what, trace.licence, trace.citation)
    table_console().print(generated, files)


@app.command()
def describe(
    spec: _Spec,
    *,
    seed: _Seed = 0,
    rate_scale: _RateScale = 1.0,
    time_scale: _TimeScale = 1.0,
    begin_s: _Begin = 0.0,
    duration_s: _Duration = None,
    shift_s: _Shift = None,
    prompt_cdf: _PromptCdf = None,
    output_cdf: _OutputCdf = None,
    interpolate: _Interpolate = None,
    interarrival_cv: _GapCv = None,
    rate_cv: _RateCv = None,
    correlation_s: _Correlation = None,
    burst_factor: _BurstFactor = None,
    burst_s: _BurstS = None,
    gap_s: _GapS = None,
    as_json: _Json = False,
) -> None:
    """Say what a trace is like: its rate, how bursty its arrivals are, and its lengths."""
    from serve_app.traces.figures import document, figures_of

    found = figures_of(_load(locals()))
    if as_json:
        typer.echo(json.dumps(document(found), allow_nan=False))
    else:
        _print(found)


@app.command()
def write(
    spec: _Spec,
    out: Annotated[Path, typer.Argument(help="CSV: TIMESTAMP,ContextTokens,GeneratedTokens.")],
    *,
    seed: _Seed = 0,
    rate_scale: _RateScale = 1.0,
    time_scale: _TimeScale = 1.0,
    begin_s: _Begin = 0.0,
    duration_s: _Duration = None,
    shift_s: _Shift = None,
    prompt_cdf: _PromptCdf = None,
    output_cdf: _OutputCdf = None,
    interpolate: _Interpolate = None,
    interarrival_cv: _GapCv = None,
    rate_cv: _RateCv = None,
    correlation_s: _Correlation = None,
    burst_factor: _BurstFactor = None,
    burst_s: _BurstS = None,
    gap_s: _GapS = None,
) -> None:
    """Write a trace to a file that every command takes."""
    from serve_app.traces.write import write_trace

    rows = write_trace(_load(locals()), out)
    typer.echo(f"{rows:,} requests in {out}", err=True)


@app.command()
def download(
    name: Annotated[str, typer.Argument(help="A public trace of `jouleserve traces list`.")],
    *,
    to: Annotated[
        Path | None, typer.Option("--to", help="Folder.", show_default="the user's cache")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Another address, such as a mirror.", show_default="its own")
    ] = None,
) -> None:
    """Download a public trace, check it, and print its checksum, licence and citation."""
    from serve_app.traces.catalog import public_trace
    from serve_app.traces.download import download as fetch
    from serve_app.traces.load import public_file

    trace = public_trace(name)
    path = public_file(name) if to is None else to / trace.file
    with _progress() as bar:
        task = bar.add_task(trace.file, total=None)
        found = fetch(
            trace,
            path,
            lambda here, total: bar.update(task, completed=here, total=total),
            address=url,
        )
    typer.echo(f"{'downloaded' if found.fetched else 'was here'}: {found.path}")
    typer.echo(f"{found.size_bytes:,} bytes, sha256 {found.sha256}")
    typer.echo(f"licence {trace.licence}; cite: {trace.citation}")


def _progress() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    return Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
        console=Console(stderr=True), transient=True,
    )  # fmt: skip


def _load(given: dict[str, Any]) -> Trace:
    """The trace of a command's arguments, which bear the names of the options' fields."""
    from dataclasses import fields

    from serve_app.traces.load import BurstOptions, TraceOptions, load_trace

    bursts = BurstOptions(**{one.name: given[one.name] for one in fields(BurstOptions)})
    own = (one.name for one in fields(TraceOptions) if one.name != "bursts")
    options = TraceOptions(**{name: given[name] for name in own}, bursts=bursts)
    if not given["spec"].strip():
        raise ConfigError("SPEC: empty; expected a file, a preset or a public trace")
    return load_trace(given["spec"], options, seed=given["seed"])


def _print(found: TraceFigures) -> None:
    from serve_app.cli.tables import table_console
    from serve_app.traces.figures import sparkline
    from serve_app.workload.text import render

    console = table_console()
    console.print(render(found.described))
    ratio = found.peak_to_trough_ratio
    shown = "unavailable" if ratio is None else f"{ratio:.2f}"
    console.print(f"highest over lowest rate of {found.spread_window_s:g} s windows: {shown}")
    console.print(
        f"rate over {found.duration_s:,.0f} s, up to {max(found.rates_per_s):.4g} req/s:",
        style="bold",
    )
    console.print(f"|{sparkline(found.rates_per_s)}|")
