"""`jouleserve plan PROFILE...`: what a load will cost, and what to run for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from policies.core.errors import ConfigError
from policies.core.types import SLO, ControlSettings

if TYPE_CHECKING:
    from policies.model.fitted import FittedModel
    from serve_app.planner.demand import Demand
    from serve_app.planner.plan import Plan

_FINDING = 1
_DEFAULT_SLO = SLO()


def plan(
    profiles: Annotated[
        list[str], typer.Argument(metavar="PROFILE...", help="Fitted profiles, files or names.")
    ],
    *,
    rate: Annotated[float | None, typer.Option(help="Requests per second of the fleet.")] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="Instead of a rate: a trace (CSV, Mooncake JSONL, rate curve) or a folder of "
            "request logs."
        ),
    ] = None,
    trace_percentile_rate: Annotated[
        float, typer.Option(help="Plan for this share of a trace's minutes.")
    ] = 0.99,
    model: Annotated[
        str | None, typer.Option(help="Which model, where the request logs hold several.")
    ] = None,
    prompt_tokens: Annotated[float | None, typer.Option(help="Mean prompt, tokens.")] = None,
    output_tokens: Annotated[float | None, typer.Option(help="Mean output, tokens.")] = None,
    ttft_ms: Annotated[float, typer.Option(help="TTFT target.")] = _DEFAULT_SLO.ttft_s * 1e3,
    tpot_ms: Annotated[float, typer.Option(help="TPOT target.")] = _DEFAULT_SLO.tpot_s * 1e3,
    percentile: Annotated[
        float, typer.Option(help="Share of requests that both targets are for.")
    ] = _DEFAULT_SLO.percentile,
    slo_headroom_ratio: Annotated[
        float, typer.Option(help="What the policy keeps free of each target.")
    ] = ControlSettings().slo_headroom_ratio,
    min_replicas: Annotated[int, typer.Option(help="Fewest replicas.")] = 1,
    max_replicas: Annotated[
        int | None, typer.Option(help="Most replicas; without it 64 are searched.")
    ] = None,
    max_num_seqs: Annotated[
        int | None, typer.Option(help="Largest batch cap; without it the profile's.")
    ] = None,
    power_limits: Annotated[
        str | None, typer.Option(help="W per device that may be set, A,B,... beside the default.")
    ] = None,
    sweep_rates: Annotated[
        str | None, typer.Option(help="Compare the profiles at these rates, R1,R2,...")
    ] = None,
    price_per_kwh: Annotated[
        float | None,
        typer.Option("--price-per-kwh", "--electricity-price", help="Price of a kWh."),
    ] = None,
    currency: Annotated[str, typer.Option(help="What the price is in.")] = "$",
    gco2_per_kwh: Annotated[
        str | None,
        typer.Option(
            "--gco2-per-kwh",
            "--carbon-intensity",
            help="Carbon intensity: a number, or a CSV file time,gCO2_per_kWh.",
        ),
    ] = None,
    pue: Annotated[float, typer.Option(help="Power usage effectiveness of the site.")] = 1.0,
    write: Annotated[
        Path | None, typer.Option(help="Write a Serve config for the cheapest profile.")
    ] = None,
    model_source: Annotated[
        str | None,
        typer.Option(help="For --write: the folder or org/name that the engine loads."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Let --write overwrite.")] = False,
    picture: Annotated[
        Path | None, typer.Option(help="Draw it: a file .png, .svg or .pdf.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Plan replicas, batch cap and power limit for a load: the fewest joules that hold the targets.

    Several profiles are compared: GPUs, model variants, engine features. Exit status: 0 done,
    1 nothing holds the targets (the least bad point is shown), 2 bad input.
    """
    from serve_app.cli.report import tariff_of
    from serve_app.drawing import check_format
    from serve_app.planner.plan import make_plan
    from serve_app.planner.question import Question, parse_list, slo_of
    from serve_app.planner.serve_file import check_target

    if write is not None:
        check_target(write, force=force)
    if picture is not None:
        check_format(picture)
    lengths = _lengths(prompt_tokens, output_tokens)
    demand = _demand(rate, lengths, trace, trace_percentile_rate, model)
    question = Question(
        load=demand.peak,
        slo=slo_of(ttft_ms, tpot_ms, percentile),
        headroom_ratio=slo_headroom_ratio,
        min_replicas=min_replicas,
        max_replicas=max_replicas,
        max_num_seqs=max_num_seqs,
        power_limits_watts=parse_list("--power-limits", power_limits),
        tariff=tariff_of(price_per_kwh, currency, gco2_per_kwh, pue),
    )
    models = _load(profiles)
    rates = parse_list("--sweep-rates", sweep_rates)
    found = make_plan(list(models), question, demand, rates)
    _show(found, as_json=as_json)
    if picture is not None:
        from serve_app.planner.picture import draw

        draw(found, picture)
        typer.echo(f"picture in {picture}", err=True)
    if write is not None:
        _write(found, write, models, model_source)
    raise typer.Exit(0 if found.best is not None else _FINDING)


def _load(names: list[str]) -> dict[FittedModel, Path]:
    """The profiles with their files, in the order given."""
    from serve_app.deciders import load_profile
    from serve_app.settings import find_profile

    models: dict[FittedModel, Path] = {}
    for name in names:
        try:
            path = find_profile(name)
        except ConfigError as error:
            raise ConfigError(str(error).replace("energy.profile", "PROFILE", 1)) from None
        model = load_profile(str(path))
        assert model is not None, "a named profile is loaded"
        if any(model.name == other.name for other in models):
            raise ConfigError(f"PROFILE {name}: the name {model.name} is given twice")
        models[model] = path
    return models


def _lengths(prompt: float | None, output: float | None) -> tuple[float, float] | None:
    if (prompt is None) != (output is None):
        raise ConfigError("--prompt-tokens and --output-tokens: give both")
    if prompt is None or output is None:
        return None
    if not (prompt >= 0.0 and output >= 1.0):
        raise ConfigError(
            f"--prompt-tokens {prompt:g}, --output-tokens {output:g}: allowed: numbers, "
            "prompt >= 0 and output >= 1"
        )
    return prompt, output


def _demand(
    rate: float | None,
    lengths: tuple[float, float] | None,
    trace: Path | None,
    percentile_rate: float,
    model: str | None,
) -> Demand:
    from policies.core.types import Load
    from serve_app.planner.demand import constant, read_demand
    from serve_app.planner.question import above_0

    if (rate is None) == (trace is None):
        raise ConfigError("--rate and --trace: give one of them")
    if trace is not None:
        return read_demand(trace, percentile_rate, lengths, model)
    if model is not None:
        raise ConfigError("--model: chooses from the request logs of --trace")
    if rate is None or lengths is None:
        raise ConfigError("--rate: needs --prompt-tokens and --output-tokens")
    return constant(
        Load(
            arrival_rate_per_s=above_0("--rate", rate),
            prompt_tokens=lengths[0],
            output_tokens=lengths[1],
        )
    )


def _show(found: Plan, *, as_json: bool) -> None:
    if as_json:
        from serve_app.planner.document import document

        typer.echo(json.dumps(document(found), allow_nan=False))
        return
    from serve_app.cli.tables import table_console
    from serve_app.planner.text import render

    table_console().print(render(found))


def _write(
    found: Plan, path: Path, models: dict[FittedModel, Path], model_source: str | None
) -> None:
    from serve_app.cli.fit import command_line
    from serve_app.planner.serve_file import Origin, loadable, write

    best = found.best
    if best is None:
        typer.echo(f"nothing holds the targets: {path} is not written", err=True)
        return
    origin = Origin(profile=models[best.model], command=command_line(), model_source=model_source)
    write(path, best.solution, origin)
    typer.echo(f"wrote {path}", err=True)
    source = model_source or best.model.model
    if not loadable(source):
        typer.echo(
            f"note: model_source is {source}, which no engine finds by that name; give "
            "--model-source, a folder or org/name",
            err=True,
        )
