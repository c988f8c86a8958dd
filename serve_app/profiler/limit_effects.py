"""From the samples of a limit sweep to what each limit did to each point. Pure.

Samples are in the order in which they were measured. Those under the highest limit are the
reference: there the limits are as they were found. A sample's step time is compared with the mean
of the nearest reference before and after it, of the same point.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean, median
from typing import TYPE_CHECKING

from policies.core.errors import NotFitted
from serve_app.profiler.samples import Kind, Phase

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from policies.model.fitted import FittedModel
    from policies.model.latency import LatencyModel
    from serve_app.profiler.samples import Sample

FASTER_RATIO = 1.05  # between two limits: more is not noise
OVER_LIMIT_RATIO = 1.1  # a limit overshoots by about 9 W (MMBT)
FAR_BELOW_RATIO = 0.85  # of the limit: clocks come in steps, but not in such steps


@dataclass(frozen=True, kw_only=True, slots=True)
class LimitEffect:
    """One point under one limit: medians over its runs.

    `speed_ratio`: step time without the limit over step time with it. `draw_watts` under the limit
    and `natural_draw_watts` without it: per GPU. `compute_share`: of the step's time without a
    limit, what slows as prefill does (`LatencyModel.slowed`), 0..1.
    """

    point: str
    kind: Kind
    limit_watts: float
    speed_ratio: float
    draw_watts: float
    natural_draw_watts: float
    compute_share: float
    runs: int

    @property
    def binds(self) -> bool:
        """Whether the point would draw more if it could."""
        return self.natural_draw_watts > self.limit_watts


def brackets(samples: Sequence[Sample]) -> dict[int, tuple[Sample, Sample]]:
    """By index of a steady sample under a limit: the nearest reference before and after it. One
    without both is absent."""
    usable = [(k, s) for k, s in enumerate(samples) if _is_usable(s)]
    reference = max((s.power_limit_watts or 0.0 for _, s in usable), default=0.0)
    found = {}
    for index, sample in usable:
        same = [(k, s) for k, s in usable if s.point == sample.point]
        marks = [(k, s) for k, s in same if s.power_limit_watts == reference]
        before = [s for k, s in marks if k < index]
        after = [s for k, s in marks if k > index]
        if sample.power_limit_watts != reference and before and after:
            found[index] = (before[-1], after[0])
    return found


def _is_usable(sample: Sample) -> bool:
    limited = sample.power_limit_watts is not None
    return limited and sample.phase is Phase.STEADY and sample.steady


def limit_effects(samples: Sequence[Sample], model: FittedModel) -> tuple[LimitEffect, ...]:
    """Every point under every limit that was measured below the reference; the highest limit first.

    `model`: of the same points without a limit. NotFitted: no sample between two references, no GPU
    draw, or effects that a limit in force cannot have.
    """
    runs: dict[tuple[str, float], dict[int, tuple[Sample, Sample, Sample]]] = {}
    for index, around in brackets(samples).items():
        sample = samples[index]
        key = (sample.point, sample.power_limit_watts or 0.0)
        runs.setdefault(key, {})[sample.repeat] = (sample, *around)  # a run made again replaces
    if not runs:
        raise NotFitted("no steady sample under a power limit between two without one")
    gpus = model.power.num_devices
    effects = [_effect(list(found.values()), model.latency, gpus) for found in runs.values()]
    effects.sort(key=lambda effect: (-effect.limit_watts, effect.point))
    for effect in effects:
        _check_draw(effect)
    for point in dict.fromkeys(effect.point for effect in effects):
        _check_order([effect for effect in effects if effect.point == point])
    return tuple(effects)


def _effect(
    runs: Sequence[tuple[Sample, Sample, Sample]], latency: LatencyModel, gpus: int
) -> LimitEffect:
    sample = runs[0][0]
    references = [one for _, *around in runs for one in around]
    return LimitEffect(
        point=sample.point,
        kind=sample.kind,
        limit_watts=sample.power_limit_watts or 0.0,
        speed_ratio=median(
            fmean(_step_time_s(one) for one in around) / _step_time_s(limited)
            for limited, *around in runs
        ),
        draw_watts=_draw_watts(limited for limited, *_ in runs) / gpus,
        natural_draw_watts=_draw_watts(references) / gpus,
        compute_share=_compute_share(references[0], latency),
        runs=len(runs),
    )


def _step_time_s(sample: Sample) -> float:
    if not sample.step_time_s:
        raise NotFitted(f"{sample.point} at {sample.power_limit_watts:g} W: no step time")
    return sample.step_time_s


def _draw_watts(samples: Iterable[Sample]) -> float:
    draws = []
    for sample in samples:
        if not sample.gpu_draw_watts:
            why = sample.reason or "no GPU is metered"
            raise NotFitted(
                f"{sample.point} at {sample.power_limit_watts:g} W: the draw of the GPUs is not "
                f"known ({why}), so neither is whether the limit binds"
            )
        draws.append(sample.gpu_draw_watts)
    return median(draws)


def _compute_share(sample: Sample, latency: LatencyModel) -> float:
    batch = (
        sample.num_seqs or 0.0,
        sample.kv_tokens or 0.0,
        sample.prefill_tokens or 0.0,
        sample.attended_pairs or 0.0,
    )
    # At half the speed, what is compute takes its own time once more.
    halved = latency.slowed(prefill_speed_ratio=0.5, decode_speed_ratio=1.0)
    return halved.step_time_s(*batch) / latency.step_time_s(*batch) - 1.0


def _check_draw(effect: LimitEffect) -> None:
    where = f"{effect.point} draws {effect.draw_watts:.0f} W per GPU under a limit of "
    where += f"{effect.limit_watts:g} W"
    if effect.draw_watts > OVER_LIMIT_RATIO * effect.limit_watts:
        raise NotFitted(f"{where}: the limit was not in force")
    if effect.binds and effect.draw_watts < FAR_BELOW_RATIO * effect.limit_watts:
        raise NotFitted(
            f"{where} and {effect.natural_draw_watts:.0f} W without: it was not this limit that "
            "held it back"
        )


def _check_order(effects: Sequence[LimitEffect]) -> None:
    """Speed never rises as the limit falls. `effects` of one point, the highest limit first."""
    least, at = 1.0, "no limit"
    for effect in effects:
        if effect.speed_ratio > FASTER_RATIO * least:
            raise NotFitted(
                f"{effect.point} runs at {effect.speed_ratio:.2f} of its speed under "
                f"{effect.limit_watts:g} W and at {least:.2f} under {at}: speed rises as the limit "
                "falls"
            )
        if effect.speed_ratio < least:
            least, at = effect.speed_ratio, f"{effect.limit_watts:g} W"
