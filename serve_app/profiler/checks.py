"""Refuses samples that no honest model can be fitted to, and says why. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from policies.core.errors import ConfigError, NotFitted
from serve_app.profiler.samples import Kind, Phase, Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MIN_POINTS = 8
MAX_STEP_TIME_S = 60.0  # the slowest steps measured anywhere are a few seconds
MIN_STEP_TIME_S = 2e-5
MAX_DRAW_WATTS = 50_000.0  # a full rack; beyond it the joules are millijoules
MIN_LEVER = 8.0  # between sizes closer than this, noise may hide what the size costs
MIN_GROWTH_RATIO = 0.8  # the larger of two such sizes may be this much faster by noise, not more


def check_samples(samples: Sequence[Sample]) -> None:
    """Returns if the samples can be fitted. ConfigError: a value is impossible or the rows do not
    belong together; NotFitted: too little was measured."""
    if not samples:
        raise NotFitted("no samples: the folder holds no finished point")
    devices = sorted({sample.device for sample in samples})
    if len(devices) > 1:
        raise ConfigError(f"samples of {len(devices)} devices in one folder: {', '.join(devices)}")
    for sample in samples:
        _check_values(sample)
    stepping = [s for s in samples if s.kind is not Kind.IDLE]
    points = {s.point for s in stepping}
    if len(points) < MIN_POINTS:
        raise NotFitted(f"{len(points)} distinct points with steps; needed: {MIN_POINTS}")
    _check_spread(stepping)
    _check_monotone(stepping)


def _check_values(sample: Sample) -> None:
    where = f"sample {sample.point} (repeat {sample.repeat})"
    for name in _NUMBERS:
        value = getattr(sample, name)
        if value is not None and not (math.isfinite(value) and value >= 0.0):
            raise ConfigError(f"{where}: {name} is {value}; allowed: finite, >= 0")
    if sample.kind is Kind.IDLE:
        return
    for name in ("num_seqs", "kv_tokens", "prefill_tokens", "step_time_s"):
        if getattr(sample, name) is None:
            raise ConfigError(f"{where}: {name} is missing")
    time_s = sample.step_time_s or 0.0
    if not MIN_STEP_TIME_S <= time_s <= MAX_STEP_TIME_S:
        raise ConfigError(
            f"{where}: step_time_s is {time_s:g}; allowed: {MIN_STEP_TIME_S:g} to "
            f"{MAX_STEP_TIME_S:g} s. Is the unit milliseconds or microseconds?"
        )
    if not (sample.num_seqs or 0.0) > 0.0:
        raise ConfigError(f"{where}: num_seqs is {sample.num_seqs}; a step has at least one")
    joules = sample.joules_per_step
    if joules is not None and not 0.0 < joules / time_s <= MAX_DRAW_WATTS:
        raise ConfigError(
            f"{where}: {joules:g} J in {time_s:g} s is {joules / time_s:g} W; allowed: above 0 to "
            f"{MAX_DRAW_WATTS:g} W. Is the unit millijoules or microjoules?"
        )


_NUMBERS = (
    "window_s",
    "num_seqs",
    "kv_tokens",
    "prefill_tokens",
    "steps",
    "step_time_s",
    "gap_s_per_step",
    "joules_per_step",
    "draw_watts",
)


def _check_spread(samples: Sequence[Sample]) -> None:
    """Each coefficient needs its column to vary."""
    decode = _steady(samples, Kind.DECODE)
    sizes = {round(s.num_seqs or 0.0) for s in decode}
    if len(sizes) < 2:
        raise NotFitted(
            f"decode was measured at {len(sizes)} batch size(s) {sorted(sizes)}; needed: 2 or more"
        )
    contexts = {s.point: (s.kv_tokens or 0.0) / (s.num_seqs or 1.0) for s in decode}
    if max(contexts.values()) < 1.5 * min(contexts.values()):
        raise NotFitted("decode was measured at one context length; needed: 2 or more")
    lengths = {round(s.prefill_tokens or 0.0) for s in samples if s.prefill_tokens}
    if len(lengths) < 2:
        raise NotFitted(f"{len(lengths)} distinct prefill sizes were measured; needed: 2 or more")


def _check_monotone(samples: Sequence[Sample]) -> None:
    """More sequences or more prompt tokens never make a step much faster."""
    tests: tuple[tuple[str, Kind, Callable[[Sample], float]], ...] = (
        ("num_seqs", Kind.DECODE, lambda s: s.num_seqs or 0.0),
        ("prefill_tokens", Kind.PREFILL, lambda s: s.prefill_tokens or 0.0),
    )
    for name, kind, key in tests:
        rows = sorted(_steady(samples, kind), key=key)
        if len(rows) < 2 or key(rows[-1]) < MIN_LEVER * key(rows[0]):
            continue
        smallest = _fastest(rows, key, key(rows[0]))
        largest = _fastest(rows, key, key(rows[-1]))
        if largest < MIN_GROWTH_RATIO * smallest:
            raise ConfigError(
                f"step time falls from {smallest:g} s at {name} {key(rows[0]):g} to {largest:g} s "
                f"at {key(rows[-1]):g}: columns mixed up, or the machine was busy"
            )


def _fastest(rows: Sequence[Sample], key: Callable[[Sample], float], at: float) -> float:
    return min(s.step_time_s or 0.0 for s in rows if math.isclose(key(s), at, rel_tol=0.02))


def _steady(samples: Sequence[Sample], kind: Kind) -> list[Sample]:
    return [s for s in samples if s.kind is kind and s.phase is Phase.STEADY]
