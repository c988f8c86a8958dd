"""Samples of an engine whose coefficients are known."""

from __future__ import annotations

import numpy as np

from serve_app.profiler.samples import Kind, Phase, Sample
from serve_app.profiler.sweep import SweepSettings, schedule

LATENCY = (0.025, 1.2e-3, 3.0e-6, 1.4e-3)
POWER = (0.16, 7.0e-3, 1.5e-5, 8.0e-3)
IDLE_WATTS = 1.8


def planted_samples(
    latency=LATENCY, power=POWER, *, noise=0.0, outliers=0.0, seed=0, repeats=2, max_num_seqs=64,
    beyond=0.0, knee=0.0, per_pair=0.0,
):  # fmt: skip
    """One sample per run of the real sweep; `outliers`: share of rows that took three times as long.
    `beyond`, `knee`, `per_pair`: the optional terms of the step time."""
    rng = np.random.default_rng(seed)
    samples = []
    for run in schedule(SweepSettings(repeats=repeats, max_num_seqs=max_num_seqs, seed=seed)):
        point = run.point
        if point.kind is Kind.IDLE:
            samples.append(_idle(run.repeat))
            continue
        prompts = 1 if point.prompt_tokens else 0
        num_seqs = point.num_seqs + prompts
        kv = point.num_seqs * (point.context_tokens + 20) + point.prompt_tokens
        x = np.array([1.0, num_seqs, kv, point.prompt_tokens])
        slow = 3.0 if rng.random() < outliers else 1.0
        true_s = float(x @ latency) + per_pair * 0.5 * point.prompt_tokens**2
        true_s += beyond * max(0.0, num_seqs + point.prompt_tokens - knee)
        time_s = true_s * slow * (1 + noise * rng.standard_normal())
        gap_s = 0.002
        joules = float(x @ power) * (1 + noise * rng.standard_normal()) + IDLE_WATTS * gap_s
        steps = 40.0
        samples.append(
            Sample(
                point=point.name,
                kind=point.kind,
                phase=Phase.STEADY,
                repeat=run.repeat,
                device="planted",
                window_s=steps * (time_s + gap_s),
                num_seqs=float(num_seqs),
                kv_tokens=float(kv),
                prefill_tokens=float(point.prompt_tokens),
                attended_pairs=0.5 * point.prompt_tokens**2,
                max_context_tokens=max(point.context_tokens + 40, point.prompt_tokens),
                steps=steps,
                step_time_s=time_s,
                step_time_p95_s=1.1 * time_s,
                gap_s_per_step=gap_s,
                joules_per_step=joules,
                draw_watts=joules / (time_s + gap_s),
                source="estimated",
                coverage_ratio=1.0,
            )
        )
    return samples


def _idle(repeat):
    return Sample(
        point="idle",
        kind=Kind.IDLE,
        phase=Phase.STEADY,
        repeat=repeat,
        device="planted",
        window_s=4.0,
        draw_watts=IDLE_WATTS,
        source="estimated",
        coverage_ratio=1.0,
    )


class ProgressLog:
    """Adds up what a sweep tells its progress bar."""

    def __init__(self):
        self.total_s = self.done_s = 0.0

    def say(self, text):
        pass

    def begin(self, total_s):
        self.total_s = total_s

    def advance(self, done_s, text):
        self.done_s += done_s
