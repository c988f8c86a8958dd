"""From a folder of published tables to profiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from policies.core.errors import NotFitted
from serve_app.published import build
from serve_app.published.dynamo import Table, read_tables
from serve_app.published.facts import Facts, LatencyFacts, idle_watts, load_facts
from serve_app.published.mlenergy import fit_steady, read_rows

if TYPE_CHECKING:
    from pathlib import Path

    from policies.model.fitted import FittedModel

ENERGY_FILE = "energy/mlenergy_v3_steady_state.csv"
IDLE_FILE = "energy/idle_power_by_phase.csv"
LATENCY_FOLDER = "latency"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """`fitted` and `models` go together; `refused`: what was not fitted → why."""

    facts: Facts
    fitted: tuple[tuple[build.Steady, build.Priors], ...]
    models: tuple[FittedModel, ...]
    refused: dict[str, str]
    tables: tuple[tuple[LatencyFacts, Table], ...]
    prompt_tokens: float


def fit_published(folder: Path, date: str) -> Outcome:
    """Fit every model that configs/published.yaml names. ConfigError for a table that cannot be
    read; NotFitted where no model could be fitted."""
    facts = load_facts()
    tables = tuple(
        (origin, table)
        for origin in facts.latency
        for table in read_tables(folder / LATENCY_FOLDER / origin.folder)
    )
    idle = idle_watts(folder / IDLE_FILE)
    fitted, refused = [], {}
    for (name, gpu, count), rows in build.group(
        read_rows(folder / ENERGY_FILE), facts.task
    ).items():
        if name not in facts.models or gpu not in facts.gpus:
            continue
        try:
            steady = build.Steady(
                model=facts.models[name],
                gpu=facts.gpus[gpu],
                fp8=rows[0].precision == "fp8",
                fit=fit_steady(rows),
            )
        except NotFitted as error:
            refused[f"{name}, {count} x {gpu}"] = str(error)
            continue
        fitted.append((steady, build.priors(steady, facts, tables, idle)))
    if not fitted:
        raise NotFitted("; ".join(f"{name}: {why}" for name, why in refused.items()) or "no rows")
    tokens = build.prompt_tokens(fitted)
    return Outcome(
        facts=facts,
        fitted=tuple(fitted),
        models=tuple(
            build.build(steady, prior, tokens, _provenance(facts, steady, prior, date))
            for steady, prior in fitted
        ),
        refused=refused,
        tables=tables,
        prompt_tokens=tokens,
    )


def _provenance(
    facts: Facts, steady: build.Steady, prior: build.Priors, date: str
) -> dict[str, str]:
    measured_idle = steady.gpu is facts.gpus[facts.power_limit.gpu]
    return {
        "kind": "published",
        "date": date,
        "energy": f"{facts.sources.energy}; GPUs only; task {facts.task}",
        "kv_and_prompts": f"transferred prior: {facts.sources.latency}, {prior.origin}, scaled by "
        "bytes per token, bandwidth, parameters and peak FLOPs",
        "power_limit": f"transferred prior: {facts.power_limit.source}"
        + ("" if measured_idle else ", scaled by the GPU's limit"),
        "idle": facts.sources.idle if measured_idle else "transferred prior: scaled by the limit",
        "hardware": steady.gpu.source,
        "doubtful": "batches below 8 and contexts far from the benchmark's were not measured",
    }
