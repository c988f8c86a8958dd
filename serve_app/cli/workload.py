"""`jouleserve workload`: what requests of given lengths cost, and what a trace is like."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from policies.core.errors import ConfigError

if TYPE_CHECKING:
    from policies.model.binned import NaiveEstimate


class DescribeByDefault(TyperGroup):
    """`jouleserve workload TRACE` is short for `jouleserve workload describe TRACE`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Return the command; `describe` where the first word is a file or folder instead."""
        if args[0] not in self.commands and Path(args[0]).exists():
            args = ["describe", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(cls=DescribeByDefault, no_args_is_help=True, add_completion=False)

_FINDING = 1
_Model = Annotated[
    str | None, typer.Option("--model", help="Which model, where the source holds several.")
]
_Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


@app.callback()
def workload() -> None:
    """Fit the energy of requests to their lengths; describe a trace and estimate its energy."""


@app.command()
def fit(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder of request logs, or CSV with the columns prompt_tokens, output_tokens, "
            "joules, run_time_s and, optionally, batch, model, device."
        ),
    ],
    *,
    model: _Model = None,
    as_json: _Json = False,
) -> None:
    """Fit joules and run time of a request to its prompt and output tokens and its batch.

    Exit status: 0 done, 1 some of the log could not be read (what could is fitted), 2 bad input.
    """
    from dataclasses import asdict

    from serve_app.workload.fit import fit_workload
    from serve_app.workload.fit_text import summary
    from serve_app.workload.observations import read_observations

    found = fit_workload(read_observations(source, model))
    typer.echo(json.dumps(asdict(found), allow_nan=False) if as_json else summary(found))
    raise typer.Exit(_FINDING if found.unreadable else 0)


@app.command()
def describe(
    trace: Annotated[
        Path,
        typer.Argument(help="Trace (CSV, Mooncake JSONL, rate curve) or folder of request logs."),
    ],
    *,
    profile: Annotated[
        str | None, typer.Option(help="Fitted profile, file or name: estimates the energy.")
    ] = None,
    batch: Annotated[
        float | None, typer.Option(help="Batch of every request.", show_default="by Little's law")
    ] = None,
    measured_joules: Annotated[
        float | None, typer.Option(help="What a meter gave for the whole trace.")
    ] = None,
    peak_tflops: Annotated[
        float | None, typer.Option(help="Rated dense TFLOP/s of all devices of a replica.")
    ] = None,
    tdp_watts: Annotated[float | None, typer.Option(help="Their rated draw, together.")] = None,
    params_b: Annotated[
        float | None, typer.Option(help="Active parameters of the model, billions.")
    ] = None,
    utilization: Annotated[
        float | None, typer.Option(help="Share of the peak, 0..1: a second naive estimate.")
    ] = None,
    model: _Model = None,
    picture: Annotated[
        Path | None, typer.Option(help="Draw it: a file .png, .svg or .pdf.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Bin a trace by length and batch, say how its requests arrive, and compare what its energy is
    by FLOPs and TDP, by a profile, and measured.

    Exit status: 0 done, 1 some of the log could not be read (what could is described), 2 bad input.
    """
    from serve_app.deciders import load_profile
    from serve_app.workload.describe import describe as describe_trace
    from serve_app.workload.describe import document
    from serve_app.workload.energy import EnergyQuestion

    if batch is not None and profile is None:
        raise ConfigError("--batch: needs --profile, whose request energy it is for")
    _check_above_0("--measured-joules", measured_joules)
    question = EnergyQuestion(
        profile=load_profile(profile),
        batch=batch,
        naive=_naive(peak_tflops, tdp_watts, params_b, utilization),
        measured_joules=measured_joules,
    )
    found = describe_trace(trace, question, model)
    if as_json:
        typer.echo(json.dumps(document(found), allow_nan=False))
    else:
        from serve_app.cli.tables import table_console
        from serve_app.workload.text import render

        table_console().print(render(found))
    if picture is not None:
        from serve_app.workload.picture import draw

        draw(found, picture)
        typer.echo(f"picture in {picture}", err=True)
    raise typer.Exit(_FINDING if found.workload.unreadable else 0)


def _naive(
    peak_tflops: float | None,
    tdp_watts: float | None,
    params_b: float | None,
    utilization: float | None,
) -> tuple[NaiveEstimate, ...]:
    from policies.model.binned import NaiveEstimate

    given = (peak_tflops, tdp_watts, params_b)
    for option, value in zip(("--peak-tflops", "--tdp-watts", "--params-b"), given, strict=True):
        _check_above_0(option, value)
    if utilization is not None and not 0.0 < utilization <= 1.0:
        raise ConfigError(f"--utilization {utilization:g}: allowed: a number above 0 and at most 1")
    if peak_tflops is None or tdp_watts is None or params_b is None:
        if any(value is not None for value in (*given, utilization)):
            raise ConfigError("--peak-tflops, --tdp-watts and --params-b: give all three")
        return ()
    return tuple(
        NaiveEstimate(
            params=params_b * 1e9,
            peak_flops_per_s=peak_tflops * 1e12,
            tdp_watts=tdp_watts,
            utilization_ratio=ratio,
        )
        for ratio in (1.0, utilization)
        if ratio is not None
    )


def _check_above_0(option: str, value: float | None) -> None:
    if value is not None and not 0.0 < value < math.inf:
        raise ConfigError(f"{option} {value:g}: allowed: a number above 0")
