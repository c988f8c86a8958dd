"""Published tables to profiles: what they hold is fitted, what they do not is transferred and said.

Fitted: step time and step energy over the batch (ML.ENERGY), and the part that prompts take.
Transferred, with wider bands: KV reads (by bytes per token and memory bandwidth), prompts (by
parameters and peak FLOPs) and attention from the latency tables; the effect of a power limit by the
ratio of the limits. From the gap between the mean step and the median time between tokens, which
only prompts make, follows the mean prompt length of the benchmark, which it does not publish.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from policies.core.errors import NotFitted
from policies.core.types import Load
from policies.model.fitted import Bands, FittedModel, Residuals, ValidRange
from policies.model.latency import LatencyModel, attended_pairs, mean_context_tokens
from policies.model.power import CapResponse, PowerModel
from serve_app.profiler.cap_response import compute_bound_response

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from serve_app.published.dynamo import Table
    from serve_app.published.facts import Facts, GpuFacts, LatencyFacts, ModelFacts
    from serve_app.published.mlenergy import Row, SteadyFit

_KV_BYTES = 2  # a 16-bit cache
_FP8_SPEEDUP = 2.0  # of dense products, on every GPU here
_ITL_BATCHES = 128.0  # up to here the median time between tokens is that of a step without prompts
PREFILL_BAND_RATIO = 0.5
POWER_LIMIT_BAND_RATIO = 0.25
OTHER_GPU_BAND_RATIO = 0.4  # of a power limit's effect, carried from another generation


@dataclass(frozen=True, kw_only=True, slots=True)
class Priors:
    """What is transferred to one model on its GPUs, seconds and watts."""

    b_s_per_kv_token: float
    c_s_per_prefill_token: float
    q_s_per_attended_pair: float
    cap_response: CapResponse
    idle_watts_per_gpu: float
    power_limit_band_ratio: float
    origin: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Steady:
    """The steady rows of one model on one kind and number of GPUs, fitted."""

    model: ModelFacts
    gpu: GpuFacts
    fp8: bool
    fit: SteadyFit

    @property
    def num_gpus(self) -> int:
        """GPUs of one replica."""
        return self.fit.rows[0].num_gpus

    @property
    def prompt_s(self) -> float:
        """Seconds that a prompt adds to the steps that compute it: mean step - median time between
        tokens = B / tout prompts per step, where fewer than half the steps hold one."""
        found = [
            (r.step_s - r.median_itl_s) * r.output_tokens / r.batch
            for r in self.fit.rows
            if r.batch <= _ITL_BATCHES
        ]
        return max(float(median(found)), 0.0)


def group(rows: Sequence[Row], task: str) -> dict[tuple[str, str, int], list[Row]]:
    """Rows of the task by model, GPU and number of GPUs."""
    found: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        if row.task == task:
            found.setdefault((row.model, row.gpu, row.num_gpus), []).append(row)
    return found


def priors(
    steady: Steady,
    facts: Facts,
    tables: Sequence[tuple[LatencyFacts, Table]],
    idle_watts: Mapping[str, float],
) -> Priors:
    """The transferred part of a profile. NotFitted where nothing near was measured."""
    origin, decode = _nearest(steady, facts, tables, "decode")
    _, prefill = _nearest(steady, facts, tables, "prefill")
    there, model_there = facts.gpus[origin.gpu], facts.models[origin.model]
    reads = kv_bytes(steady.model) / steady.num_gpus / steady.gpu.memory_bytes_per_s
    reads /= kv_bytes(model_there) / decode.tensor_parallel / there.memory_bytes_per_s
    work = steady.model.params_b / steady.num_gpus / steady.gpu.dense_flops_per_s
    work /= model_there.params_b / prefill.tensor_parallel / there.dense_flops_per_s
    work *= 1.0 if steady.fp8 else _FP8_SPEEDUP  # the tables are fp8
    curve_gpu = facts.gpus[facts.power_limit.gpu]
    response = compute_bound_response(facts.power_limit.speed_ratio)
    scale = steady.gpu.power_limit_watts / curve_gpu.power_limit_watts
    return Priors(
        b_s_per_kv_token=decode.coefficients[2] * reads,
        c_s_per_prefill_token=prefill.coefficients[1] * work,
        q_s_per_attended_pair=prefill.coefficients[2] * reads,
        cap_response=replace(
            response, c0_watts=scale * response.c0_watts, ck_watts=scale * response.ck_watts
        ),
        idle_watts_per_gpu=idle_watts.get(steady.gpu.device, scale * idle_watts[curve_gpu.device]),
        power_limit_band_ratio=POWER_LIMIT_BAND_RATIO
        if steady.gpu is curve_gpu
        else OTHER_GPU_BAND_RATIO,
        origin=f"{origin.folder}, tensor parallel {decode.tensor_parallel}",
    )


def _nearest(
    steady: Steady, facts: Facts, tables: Sequence[tuple[LatencyFacts, Table]], name: str
) -> tuple[LatencyFacts, Table]:
    """The latency table of the nearest model by parameters per GPU."""
    wanted = steady.model.params_b / steady.num_gpus

    def distance(found: tuple[LatencyFacts, Table]) -> float:
        origin, table = found
        return abs(math.log(facts.models[origin.model].params_b / table.tensor_parallel / wanted))

    named = [found for found in tables if found[1].name == name]
    if not named:
        raise NotFitted(f"no latency table {name}.csv")
    return min(named, key=distance)


def kv_bytes(model: ModelFacts) -> float:
    """Bytes of the KV cache per token: keys and values of all layers."""
    return 2.0 * model.layers * model.kv_heads * model.head_dim * _KV_BYTES


def prompt_tokens(found: Sequence[tuple[Steady, Priors]]) -> float:
    """Mean prompt length of the benchmark, tokens: the median over its models of prompt seconds
    over seconds per token."""
    return float(median(s.prompt_s / p.c_s_per_prefill_token for s, p in found))


def build(
    steady: Steady, prior: Priors, tokens: float, provenance: Mapping[str, str]
) -> FittedModel:
    """The profile. `tokens`: mean prompt length. What a sequence adds to a step is what is left of
    the fitted slope when the prompts' and the KV reads' part is taken off, not below zero."""
    fit, rows = steady.fit, steady.fit.rows
    output = float(np.mean([r.output_tokens for r in rows]))
    load = Load(arrival_rate_per_s=1.0, prompt_tokens=tokens, output_tokens=output)
    context, pairs = mean_context_tokens(load), attended_pairs(tokens)
    prompt_s, q_s = steady.prompt_s, prior.q_s_per_attended_pair
    c_s = max(prompt_s - q_s * pairs, 0.0) / tokens
    a_s = max(fit.seconds.per_seq - prior.b_s_per_kv_token * context - prompt_s / output, 0.0)
    watts = max(r.draw_watts for r in rows)  # prompts run at the highest draw there is
    e2 = prior.b_s_per_kv_token * fit.joules.per_seq / fit.seconds.per_seq
    e1 = max(fit.joules.per_seq - e2 * context - prompt_s * watts / output, 0.0)
    return FittedModel(
        name=f"{steady.model.name}@{_device_tag(steady)}",
        model=steady.model.name,
        device=f"{steady.num_gpus}x {steady.gpu.device}"
        if steady.num_gpus > 1
        else steady.gpu.device,
        latency=LatencyModel(
            t0_s=fit.seconds.base,
            a_s_per_seq=a_s,
            b_s_per_kv_token=prior.b_s_per_kv_token,
            c_s_per_prefill_token=c_s,
            q_s_per_attended_pair=q_s,
        ),
        power=PowerModel(
            idle_watts=prior.idle_watts_per_gpu * steady.num_gpus,
            e0_joules_per_step=fit.joules.base,
            e1_joules_per_seq=e1,
            e2_joules_per_kv_token=e2,
            e3_joules_per_prefill_token=c_s * watts,
            e4_joules_per_attended_pair=q_s * watts,
            natural_draw_watts=watts / steady.num_gpus,
            cap_response=prior.cap_response,
            num_devices=steady.num_gpus,
        ),
        valid=ValidRange(
            max_num_seqs=round(rows[-1].batch),
            max_context_tokens=min(steady.model.max_model_len, 8192),
            max_prompt_tokens=min(steady.model.max_model_len, 8192),
        ),
        residuals=Residuals(
            step_time_median_ratio=fit.seconds.median_ratio,
            step_time_p95_ratio=float(np.percentile(fit.seconds.errors, 95)),
            energy_median_ratio=fit.joules.median_ratio,
            samples=len(rows),
        ),
        bands=Bands(
            step_time_ratio=fit.seconds.worst_ratio,
            prefill_ratio=PREFILL_BAND_RATIO,
            energy_ratio=fit.joules.worst_ratio,
            power_limit_ratio=prior.power_limit_band_ratio,
        ),
        provenance=dict(provenance),
    )


def _device_tag(steady: Steady) -> str:
    name = steady.gpu.device.split()[1].lower()
    return name if steady.num_gpus == 1 else f"{name}-tp{steady.num_gpus}"
