"""configs/results/cells.yaml: the cells of the comparison, and their traces."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from policies.core.errors import ConfigError
from policies.core.types import SLO
from policies.sim.blocks import Block, joined
from serve_app.repository import REPOSITORY
from serve_app.settings import parse_model, read_yaml
from serve_app.simulator.models import belief_of, default_limits, truth_of
from serve_app.simulator.scenario import Scenario
from serve_app.traces.catalog import load_presets
from serve_app.traces.load import BurstOptions, TraceOptions, load_trace

CELLS_FILE = REPOSITORY / "configs" / "results" / "cells.yaml"
KV_ROUND_TOKENS = 10_000
QUICK_S = 3600.0
QUICK_EXCERPTS = ((600.0, 900.0),)
PUBLISHED = "arrivals and lengths generated from published figures"


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KvFacts(_Facts):
    """What the KV cache of a replica follows from."""

    gpus: PositiveInt
    gpu_bytes: PositiveFloat
    usable_ratio: float = Field(gt=0.0, le=1.0)
    activation_bytes: float = Field(ge=0.0)
    weight_bytes: PositiveFloat
    bytes_per_token: PositiveFloat

    @property
    def tokens(self) -> int:
        """By the formula in the file."""
        room = self.gpus * (self.gpu_bytes * self.usable_ratio - self.activation_bytes)
        return round((room - self.weight_bytes) / self.bytes_per_token / KV_ROUND_TOKENS) * (
            KV_ROUND_TOKENS
        )


class ModelFacts(_Facts):
    """A model on its GPUs, and the engine's start-time settings."""

    profile: str
    max_num_seqs: PositiveInt
    max_num_batched_tokens: PositiveInt
    kv: KvFacts


class FileFacts(_Facts):
    """A trace in the data folder; the paths are relative to it."""

    path: str
    prompt_cdf: str | None = None
    output_cdf: str | None = None
    begin_s: float = 0.0
    duration_s: float | None = None


class LoadFacts(_Facts):
    """One load."""

    what: str
    preset: str
    file: FileFacts | None = None
    rate_scale: PositiveFloat = 1.0
    seeds: PositiveInt = 1
    peer_seeds: PositiveInt | None = None
    excerpts: tuple[tuple[float, float], ...] = ()
    tick_s: PositiveFloat = 1.0
    sampled: bool = False
    study: bool = False


class SloFacts(_Facts):
    """The targets of every cell."""

    ttft_ms: PositiveFloat
    tpot_ms: PositiveFloat
    percentile: float = Field(gt=0.5, lt=1.0)


class CellsFile(_Facts):
    """The whole file."""

    slo: SloFacts
    jitter: float = Field(ge=0.0)
    cold_start_s: float = Field(ge=0.0)
    limit_settle_s: float = Field(ge=0.0)
    cap_responses: tuple[str, ...]
    models: dict[str, ModelFacts]
    loads: dict[str, LoadFacts]


@dataclass(frozen=True, kw_only=True, slots=True)
class Variation:
    """What is different from the cell: how fast the policy believes steps to be, the cold start,
    the age of reports, the height of bursts."""

    name: str = ""
    belief_speed: float = 1.0
    cold_start_s: float | None = None
    report_delay_s: float = 0.0
    burst_ratio: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One model under one load. `data` None: presets take the files' place. `quick`: at most an
    hour of it, one seed, settings searched on a quarter of an hour."""

    model: str
    load: str
    file: CellsFile
    data: Path | None = None
    quick: bool = False
    most_seeds: int | None = None

    @property
    def name(self) -> str:
        """model/load."""
        return f"{self.model}/{self.load}"

    @property
    def facts(self) -> LoadFacts:
        """Of its load."""
        return self.file.loads[self.load]

    @property
    def seeds(self) -> int:
        """How many times it is drawn."""
        own = self.facts.seeds
        return 1 if self.quick else min(own, self.most_seeds or own)

    @property
    def peer_seeds(self) -> int:
        """On how many of them peers and the clairvoyant run are played."""
        own = self.facts.peer_seeds
        return self.seeds if own is None else min(own, self.seeds)

    @property
    def excerpts(self) -> tuple[tuple[float, float], ...]:
        """On which settings are searched; empty: on all of it."""
        return QUICK_EXCERPTS if self.quick else self.facts.excerpts

    @property
    def sampled(self) -> bool:
        """Whether peers and the clairvoyant run are judged on the excerpts."""
        return self.facts.sampled and bool(self.excerpts)

    @property
    def recorded(self) -> bool:
        """Whether it is played from the data folder."""
        return self.facts.file is not None and self.data is not None

    @property
    def played(self) -> str:
        """What its requests come from."""
        if not self.recorded:
            return PUBLISHED
        curve = self.facts.file is not None and self.facts.file.prompt_cdf
        return "a recorded rate curve and recorded lengths" if curve else "recorded requests"

    @property
    def generated(self) -> bool:
        """Whether its arrivals are drawn, so that bursts can be made higher."""
        return not self.recorded or bool(self.facts.file and self.facts.file.prompt_cdf)

    def scenario(self, response: str, seed: int, variation: Variation) -> Scenario:
        """All but the fleet's sizes, which follow from the trace."""
        model, file = self.file.models[self.model], self.file
        truth = truth_of(model.profile, response)
        cold_start_s = variation.cold_start_s
        return Scenario(
            truth=truth,
            belief=belief_of(truth, variation.belief_speed),
            slo=SLO(
                ttft_s=file.slo.ttft_ms / 1e3,
                tpot_s=file.slo.tpot_ms / 1e3,
                percentile=file.slo.percentile,
            ),
            power_limits_watts=default_limits(truth),
            max_num_seqs=model.max_num_seqs,
            max_num_batched_tokens=model.max_num_batched_tokens,
            kv_capacity_tokens=model.kv.tokens,
            cold_start_s=file.cold_start_s if cold_start_s is None else cold_start_s,
            report_delay_s=variation.report_delay_s,
            tick_s=self.facts.tick_s,
            limit_settle_s=file.limit_settle_s,
            jitter=file.jitter,
            seed=seed,
        )

    def trace_facts(self, variation: Variation) -> tuple[str, TraceOptions]:
        """What `load_trace` is asked for."""
        facts, file = self.facts, self.facts.file
        options, spec = TraceOptions(rate_scale=facts.rate_scale), facts.preset
        if file is not None and self.data is not None:
            spec = str(self.data / file.path)
            options = replace(
                options,
                begin_s=file.begin_s,
                duration_s=file.duration_s,
                prompt_cdf=file.prompt_cdf and str(self.data / file.prompt_cdf),
                output_cdf=file.output_cdf and str(self.data / file.output_cdf),
            )
        if self.quick:
            # An hour that has load in it: the first excerpt's place, if there is one.
            begin_s = facts.excerpts[0][0] if facts.sampled else 0.0
            options = replace(options, begin_s=options.begin_s + begin_s, duration_s=QUICK_S)
        if variation.burst_ratio != 1.0 and self.generated:
            own = load_presets()[facts.preset].bursts.burst_factor
            bursts = BurstOptions(burst_factor=own * variation.burst_ratio)
            options = replace(options, bursts=bursts)
        return spec, options

    def block(self, seed: int, variation: Variation) -> Block:
        """The requests. Raises ConfigError."""
        return _block(*self.trace_facts(variation), seed)

    def digest(self, variation: Variation) -> str:
        """Of what its trace is made of: options and the contents of the files."""
        spec, options = self.trace_facts(variation)
        found = hashlib.sha256(repr((Path(spec).name, replace(options, prompt_cdf=None))).encode())
        for name in (spec, options.prompt_cdf, options.output_cdf):
            if name is not None and Path(name).is_file():
                found.update(Path(name).read_bytes())
        if self.facts.preset == spec:
            found.update(load_presets()[spec].model_dump_json().encode())
        return found.hexdigest()[:16]


@lru_cache(maxsize=4)  # a cell's seeds
def _block(spec: str, options: TraceOptions, seed: int) -> Block:
    return joined(load_trace(spec, options, seed=seed).blocks())


def load_cells(
    data: Path | None,
    *,
    quick: bool = False,
    wanted: str | None = None,
    path: Path = CELLS_FILE,
    seeds: int | None = None,
) -> list[Cell]:
    """All cells, or those that `wanted` names, MODEL/LOAD,...; a data folder that is not there
    counts as none. Raises ConfigError."""
    if seeds is not None and seeds < 1:
        raise ConfigError(f"--seeds {seeds}: allowed: 1 or more")
    raw: Any = read_yaml(path)
    file = parse_model(CellsFile, raw, str(path), "")
    folder = data if data is not None and data.is_dir() else None
    cells = [
        Cell(model=model, load=load, file=file, data=folder, quick=quick, most_seeds=seeds)
        for model in file.models
        for load in file.loads
    ]
    if wanted is None:
        return cells
    names = [name.strip() for name in wanted.split(",")]
    known = {cell.name: cell for cell in cells}
    for name in names:
        if name not in known:
            raise ConfigError(f"--cells {name!r}: allowed: {', '.join(known)}")
    return [known[name] for name in names]
