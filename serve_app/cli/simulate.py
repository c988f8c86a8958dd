"""`jouleserve simulate TRACE...`: what policies would make of a load, joules and latency."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from policies.core.errors import ConfigError
from policies.core.types import SLO

if TYPE_CHECKING:
    from policies.sim.blocks import Block
    from serve_app.simulator.run import Run
    from serve_app.simulator.scenario import Scenario
    from serve_app.simulator.specs import PolicySpec
    from serve_app.traces.load import TraceOptions

_Number = TypeVar("_Number", int, float)
_SLO = SLO()
_AS_PROFILE = "as the profile's response to limits allows"


def simulate(
    traces: Annotated[
        list[str],
        typer.Argument(metavar="TRACE...", help="Files, presets or downloads; see docs/traces.md."),
    ],
    *,
    profile: Annotated[str, typer.Option(help="Fitted profile, file or name: the truth.")],
    policy: Annotated[
        list[str] | None,
        typer.Option(help="NAME[:key=value,...]; once per policy.", show_default="energy_slo"),
    ] = None,
    ttft_ms: Annotated[float, typer.Option(help="TTFT target.")] = _SLO.ttft_s * 1e3,
    tpot_ms: Annotated[float, typer.Option(help="TPOT target.")] = _SLO.tpot_s * 1e3,
    percentile: Annotated[float, typer.Option(help="Share of requests.")] = _SLO.percentile,
    min_replicas: Annotated[int, typer.Option(help="Fewest replicas.")] = 1,
    max_replicas: Annotated[
        int | None, typer.Option(help="Most replicas.", show_default="twice the peak's and four")
    ] = None,
    initial_replicas: Annotated[
        int | None,
        typer.Option(help="Replicas at the start.", show_default="what the mean load needs"),
    ] = None,
    power_limits_watts: Annotated[
        str | None,
        typer.Option(
            help="W per GPU that may be set, A,B,...; none: no limit.", show_default=_AS_PROFILE
        ),
    ] = None,
    cold_start_s: Annotated[float, typer.Option(help="Until a new replica serves.")] = 60.0,
    cold_start_watts: Annotated[
        float | None, typer.Option(help="Its draw meanwhile.", show_default="the idle draw")
    ] = None,
    report_delay_s: Annotated[
        float, typer.Option(help="How old reports are when the fleet decides.")
    ] = 0.0,
    tick_s: Annotated[float, typer.Option(help="Between decisions.")] = 1.0,
    limit_settle_s: Annotated[float, typer.Option(help="Until a power limit holds.")] = 2.0,
    router: Annotated[
        str | None,
        typer.Option(
            help="least (outstanding), two (choices) or packed.",
            show_default="packed for energy_slo, least for others",
        ),
    ] = None,
    max_num_seqs: Annotated[int, typer.Option(help="The engine's largest batch.")] = 256,
    max_num_batched_tokens: Annotated[int, typer.Option(help="Its tokens per step.")] = 2048,
    kv_capacity_tokens: Annotated[
        int | None, typer.Option(help="What its KV cache holds.", show_default="any")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    jitter: Annotated[
        float, typer.Option(help="Standard deviation of the log of a step's time.")
    ] = 0.0,
    belief_speed: Annotated[
        float, typer.Option(help="The policy's model: so many times the true speed.")
    ] = 1.0,
    belief_energy: Annotated[float, typer.Option(help="And so many times the joules.")] = 1.0,
    cap_response: Annotated[
        str, typer.Option(help="Decode under a limit: profile, or h100's prior.")
    ] = "profile",
    rate_scale: Annotated[float, typer.Option(help="So many times the requests.")] = 1.0,
    begin_s: Annotated[
        float, typer.Option("--begin-s", "--begin", help="Leave out what comes before.")
    ] = 0.0,
    duration_s: Annotated[
        float | None,
        typer.Option("--duration-s", "--duration", help="Only so many s.", show_default="all"),
    ] = None,
    prompt_cdf: Annotated[
        str | None, typer.Option(help="Prompt lengths of a rate curve: N, LOW:HIGH or a CDF file.")
    ] = None,
    output_cdf: Annotated[str | None, typer.Option(help="Output lengths, likewise.")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Draw the runs over time: .png, .svg or .pdf.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Play traces under policies in the simulator: joules, latency, replicas, actions.

    Policies and their options: docs/simulate.md. Exit status: 0 done, 2 bad input.
    """
    from serve_app.drawing import check_format
    from serve_app.planner.question import slo_of
    from serve_app.simulator.make import check_all
    from serve_app.simulator.models import belief_of, truth_of
    from serve_app.simulator.scenario import Scenario
    from serve_app.simulator.specs import parse_spec
    from serve_app.traces.load import TraceOptions

    if picture is not None:
        check_format(picture)
    specs = check_all(_routed(parse_spec(one), router) for one in (policy or ["energy_slo"]))
    truth = truth_of(profile, cap_response)
    scenario = Scenario(
        truth=truth,
        belief=belief_of(truth, belief_speed, belief_energy),
        slo=slo_of(ttft_ms, tpot_ms, percentile),
        power_limits_watts=_limits(power_limits_watts, truth),
        min_replicas=min_replicas,
        max_replicas=max_replicas,
        initial_replicas=initial_replicas,
        max_num_seqs=_at_least("--max-num-seqs", max_num_seqs, 1),
        max_num_batched_tokens=_at_least("--max-num-batched-tokens", max_num_batched_tokens, 1),
        kv_capacity_tokens=(
            1 << 40
            if kv_capacity_tokens is None
            else _at_least("--kv-capacity-tokens", kv_capacity_tokens, 1)
        ),
        cold_start_s=_at_least("--cold-start-s", cold_start_s, 0),
        cold_start_watts=cold_start_watts,
        report_delay_s=_at_least("--report-delay-s", report_delay_s, 0),
        tick_s=_above_0("--tick-s", tick_s),
        limit_settle_s=_at_least("--limit-settle-s", limit_settle_s, 0),
        jitter=_at_least("--jitter", jitter, 0),
        seed=_at_least("--seed", seed, 0),
    )
    options = TraceOptions(
        rate_scale=rate_scale, begin_s=begin_s, duration_s=duration_s,
        prompt_cdf=prompt_cdf, output_cdf=output_cdf,
    )  # fmt: skip
    runs = _run([_read(one, options, seed) for one in traces], specs, scenario)
    for run in runs:
        if run.errors:
            told = f"{run.errors} decisions failed and held: {run.first_error}"
            typer.echo(f"{run.spec.name} on {run.trace}: {told}", err=True)
    _show(runs, cap_response, as_json=as_json)
    if picture is not None:
        from serve_app.simulator.picture import draw

        draw(runs, picture)
        typer.echo(f"picture in {picture}", err=True)


def _routed(spec: PolicySpec, router: str | None) -> PolicySpec:
    """The policy's own router goes before the one for all."""
    return spec if router is None or spec.router is not None else spec.changed(router=router)


def _limits(text: str | None, truth: Any) -> tuple[float, ...]:
    from serve_app.planner.question import parse_list
    from serve_app.simulator.models import default_limits

    if text is None:
        return default_limits(truth)
    if text.strip().lower() == "none":
        return ()
    limits = parse_list("--power-limits-watts", text)
    for watts in limits:
        try:
            truth.power.speeds(watts)
        except Exception as error:
            raise ConfigError(f"--power-limits-watts {watts:g}: {error}") from None
    return limits


def _read(name: str, options: TraceOptions, seed: int) -> tuple[str, Block]:
    from policies.sim.blocks import joined
    from serve_app.traces.load import load_trace

    if not name.strip():
        raise ConfigError("TRACE: empty; expected a file, a preset or a public trace")
    block = joined(load_trace(name, options, seed=seed).blocks())
    if not block.rows:
        raise ConfigError(f"TRACE {name}: no request; raise the rate or the duration")
    return name, block


def _run(traces: list[tuple[str, Block]], specs: Any, scenario: Scenario) -> list[Run]:
    """Every policy on every trace, with the place on stderr."""
    from serve_app.simulator.make import build
    from serve_app.simulator.run import context_of, simulate_trace

    for _, block in traces:  # says now what is wrong with an option
        context = context_of(block, scenario)
        for spec in specs:
            build(spec, context)
            context.scenario.control(spec)
    runs: list[Run] = []
    total = len(traces) * len(specs)
    with _progress() as bar:
        task = bar.add_task("compiling, once per version", total=total)
        for trace in traces:
            for spec in specs:
                if runs:
                    bar.update(task, description=f"{spec.name} on {trace[0]}")
                runs.append(simulate_trace(trace, spec, scenario))
                bar.update(task, advance=1)
    return runs


def _progress() -> Any:
    from rich.console import Console
    from rich.progress import Progress

    return Progress(console=Console(stderr=True), transient=True)


def _show(runs: list[Run], cap_response: str, *, as_json: bool) -> None:
    from serve_app.simulator.run import row

    if as_json:
        rows = [{**row(run), "cap_response": cap_response} for run in runs]
        document = {"schema_version": 1, "simulated": True, "rows": rows}
        typer.echo(json.dumps(document, allow_nan=False))
        return
    from serve_app.cli.tables import table_console
    from serve_app.simulator.table import table_of

    table_console().print(table_of(runs))


def _at_least(option: str, value: _Number, least: float) -> _Number:
    if not least <= value < float("inf"):
        raise ConfigError(f"{option} {value:g}: allowed: {least:g} or more")
    return value


def _above_0(option: str, value: float) -> float:
    from serve_app.planner.question import above_0

    return above_0(option, value)
