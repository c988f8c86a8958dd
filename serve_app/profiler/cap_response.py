"""The effect of a power limit on speed, fitted: the curve of `CapResponse`, decode on top. Pure.

What is fitted is what the policy will compute: a step of which the share s is compute runs under a
limit at

    1 / ((1 - s) / decode ratio + s / prefill ratio)    of its speed

(`LatencyModel.slowed` with `PowerModel.speeds`). Prompts give the prefill ratios and, through them,
the curve; with the curve, decode gives its knee and exponent. Prompts hold a little of what decode
is made of, so the two are repeated until they agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import fmean

import numpy as np
from scipy.optimize import least_squares

from policies.core.errors import NotFitted
from policies.model.fitted import FittedModel
from policies.model.power import CapResponse, PowerModel
from serve_app.profiler.limit_effects import LimitEffect, limit_effects
from serve_app.profiler.limits import MIN_LIMITS
from serve_app.profiler.regression import Floats
from serve_app.profiler.samples import Kind, Sample

WIDE_GAP_RATIO = 0.6  # of the natural draw: the curve bends between here and there
_ROUNDS = 6  # the share that the two have in common is small: they agree after two or three
_AGREED = 1e-3  # of a speed: far below what is measured
_DECODE_BOUNDS = ((0.2, 0.0), (1.0, 4.0))  # of knee and exponent
# A knee that passes a measured clock bends the sum of squares: there are several minima.
_DECODE_STARTS = tuple(product(np.linspace(0.4, 1.0, 13), (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)))
_REFINED_STARTS = 3


@dataclass(frozen=True, kw_only=True)
class HeldOutLimit:
    """The worst relative error of speed and draw under a limit that the fit had not seen."""

    limit_watts: float
    speed_error_ratio: float
    draw_error_ratio: float


@dataclass(frozen=True, kw_only=True)
class CapFit:
    """A fitted response. `natural_draw_watts`: per GPU, the most at any point without a limit;
    `effects`: all that was measured, inert limits too, which are not fitted; `band_ratio`: what
    95 % of the held-out errors of speed and draw stay within; `notes`: what else to know."""

    response: CapResponse
    natural_draw_watts: float
    effects: tuple[LimitEffect, ...]
    held_out: tuple[HeldOutLimit, ...]
    band_ratio: float
    notes: tuple[str, ...]


def fit_cap_response(samples: Sequence[Sample], model: FittedModel) -> CapFit:
    """The response that a limit sweep shows. `model`: fitted to the samples without a limit.

    NotFitted: as `limit_effects`, no prompts or no decode measured, or fewer than three limits that
    bind. A limit at or above the natural draw is inert and left out.
    """
    effects = limit_effects(samples, model)
    natural_watts = max(effect.natural_draw_watts for effect in effects)
    binding = _binding(effects, natural_watts)
    power = replace(model.power, natural_draw_watts=natural_watts)
    lowest_watts = min(effect.limit_watts for effect in binding)
    response = _fit(binding, power, lowest_watts)
    held_out, errors = _leave_one_out(binding, power, lowest_watts)
    return CapFit(
        response=response,
        natural_draw_watts=natural_watts,
        effects=effects,
        held_out=held_out,
        band_ratio=float(np.percentile(errors, 95)),
        notes=_notes(effects, binding, natural_watts),
    )


def with_cap_response(model: FittedModel, fit: CapFit) -> FittedModel:
    """The model with the response, the natural draw and the band of this fit."""
    limits = ", ".join(f"{held.limit_watts:g}" for held in fit.held_out)
    return replace(
        model,
        power=replace(
            model.power,
            natural_draw_watts=fit.natural_draw_watts,
            cap_response=fit.response,
        ),
        bands=replace(model.bands, power_limit_ratio=fit.band_ratio),
        provenance={**model.provenance, "power_limit": f"measured at {limits} W"},
    )


def compute_bound_response(
    speed_ratio: Mapping[float, float], lowest_watts: float | None = None
) -> CapResponse:
    """The curve of `CapResponse` through (watts, share of the speed), by least squares.

    `lowest_watts`: a lower limit, not among them, that the curve must answer.
    """
    watts = np.array(list(speed_ratio), dtype=np.float64)
    speeds = np.array(list(speed_ratio.values()), dtype=np.float64)
    highest = float(watts.max())
    low = min(float(watts.min()), lowest_watts or np.inf)
    # c0 below ck, whatever limits there are.
    c0_most, ck_least = min(0.95 * low, 0.29 * highest), min(low, 0.3 * highest)

    def misses(parameters: Floats) -> Floats:
        c0, ck, n, s_max = parameters
        x = np.maximum((watts - c0) / (ck - c0), 1e-9)
        return np.asarray(s_max * x / (1.0 + x**n) ** (1.0 / n) - speeds)

    found = least_squares(
        misses,
        (min(0.5 * low, 0.9 * c0_most), max(0.6 * highest, 1.1 * ck_least), 4.0, 1.0),
        bounds=((0.0, ck_least, 1.0, 1.0), (c0_most, highest, 16.0, 1.2)),
    ).x
    return CapResponse(
        c0_watts=float(found[0]), ck_watts=float(found[1]), n=float(found[2]), s_max=float(found[3])
    )


def _binding(effects: Sequence[LimitEffect], natural_watts: float) -> list[LimitEffect]:
    """The effects of the limits that bind and were measured at prompts and at decode. NotFitted:
    too few."""
    limits = {e.limit_watts for e in effects}
    for kind in (Kind.PREFILL, Kind.DECODE):
        here = {effect.limit_watts for effect in effects if effect.kind is kind}
        if not here:
            raise NotFitted(f"no {kind.value} point was measured under a power limit")
        limits &= here
    binding = sorted(watts for watts in limits if watts < natural_watts)
    if len(binding) < MIN_LIMITS:
        listed = ", ".join(f"{watts:g}" for watts in sorted(limits)) or "(none)"
        raise NotFitted(
            f"{len(binding)} of the power limits {listed} W bind: without one the GPU draws "
            f"{natural_watts:.0f} W at most; needed: {MIN_LIMITS} below that"
        )
    return [effect for effect in effects if effect.limit_watts in binding]


def _fit(effects: Sequence[LimitEffect], power: PowerModel, lowest_watts: float) -> CapResponse:
    prefill = [effect for effect in effects if effect.kind is Kind.PREFILL]
    decode = [effect for effect in effects if effect.kind is Kind.DECODE]
    ratios = np.array([effect.speed_ratio for effect in prefill])
    for _ in range(_ROUNDS):
        curve = {effect.limit_watts: float(r) for effect, r in zip(prefill, ratios, strict=True)}
        curve[power.natural_draw_watts or np.inf] = 1.0
        response = _with_decode(compute_bound_response(curve, lowest_watts), decode, power)
        before, ratios = ratios, _prefill_ratios(prefill, replace(power, cap_response=response))
        if float(np.abs(ratios - before).max()) < _AGREED:
            break
    return response


def _with_decode(
    response: CapResponse, decode: Sequence[LimitEffect], power: PowerModel
) -> CapResponse:
    """The response with the knee and the exponent that miss the decode points least."""
    measured = np.log([effect.speed_ratio for effect in decode])

    def of(parameters: Floats) -> CapResponse:
        knee, exponent = (float(value) for value in parameters)
        return replace(response, decode_knee=knee, decode_exponent=exponent)

    def misses(parameters: Floats) -> Floats:
        limited = replace(power, cap_response=of(parameters))
        return np.asarray(np.log(_speed_ratios(decode, limited)) - measured)

    starts = sorted(_DECODE_STARTS, key=lambda start: float((misses(np.array(start)) ** 2).sum()))
    tried = [
        least_squares(misses, start, bounds=_DECODE_BOUNDS) for start in starts[:_REFINED_STARTS]
    ]
    return of(min(tried, key=lambda found: float(found.cost)).x)


def _speed_ratios(effects: Sequence[LimitEffect], power: PowerModel) -> Floats:
    """The speed of each point under its limit, as the policy would compute it."""
    speeds = {watts: power.speeds(watts) for watts in {e.limit_watts for e in effects}}
    decode = np.array([speeds[effect.limit_watts].decode_ratio for effect in effects])
    prefill = np.array([speeds[effect.limit_watts].prefill_ratio for effect in effects])
    compute = np.array([effect.compute_share for effect in effects])
    return np.asarray(1.0 / ((1.0 - compute) / decode + compute / prefill))


def _prefill_ratios(prefill: Sequence[LimitEffect], power: PowerModel) -> Floats:
    """The speed of the compute alone in points that hold other work as well."""
    ratios = []
    for effect in prefill:
        rest = (1.0 - effect.compute_share) / power.speeds(effect.limit_watts).decode_ratio
        ratios.append(effect.compute_share / max(1.0 / effect.speed_ratio - rest, 1e-9))
    return np.minimum(ratios, 1.0)


def _leave_one_out(
    effects: Sequence[LimitEffect], power: PowerModel, lowest_watts: float
) -> tuple[tuple[HeldOutLimit, ...], list[float]]:
    """Per limit, highest first, the worst errors of a fit without it; and all errors.

    The draw under a limit is taken to be the limit, or the natural draw where that is lower.
    """
    found, errors = [], []
    for watts in dict.fromkeys(effect.limit_watts for effect in effects):
        unseen = [effect for effect in effects if effect.limit_watts == watts]
        seen = [effect for effect in effects if effect.limit_watts != watts]
        limited = replace(power, cap_response=_fit(seen, power, lowest_watts))
        ratios = zip(_speed_ratios(unseen, limited), unseen, strict=True)
        speeds = [abs(float(ratio) / effect.speed_ratio - 1.0) for ratio, effect in ratios]
        draws = [abs(min(e.natural_draw_watts, watts) / e.draw_watts - 1.0) for e in unseen]
        errors += [*speeds, *draws]
        found.append(
            HeldOutLimit(
                limit_watts=watts, speed_error_ratio=max(speeds), draw_error_ratio=max(draws)
            )
        )
    return tuple(found), errors


def _notes(
    effects: Sequence[LimitEffect], binding: Sequence[LimitEffect], natural_watts: float
) -> tuple[str, ...]:
    notes = []
    fitted = {effect.limit_watts for effect in binding}
    for watts in dict.fromkeys(effect.limit_watts for effect in effects):
        here = [effect for effect in effects if effect.limit_watts == watts]
        if watts not in fitted:
            draw_watts = max(effect.natural_draw_watts for effect in here)
            speed = fmean(effect.speed_ratio for effect in here)
            notes.append(
                f"{watts:g} W is left out: inert, or not measured at prompts and decode (natural "
                f"draw {draw_watts:.0f} W, mean speed {speed:.2f})"
            )
    highest_watts = max(fitted)
    if highest_watts < WIDE_GAP_RATIO * natural_watts:
        notes.append(
            f"between {highest_watts:g} W and the natural draw of {natural_watts:.0f} W nothing "
            "was measured: the band does not hold there"
        )
    if not any(effect.kind is Kind.DECODE and effect.compute_share > 0.0 for effect in effects):
        notes.append("no decode point lies beyond the knee of the step time")
    return tuple(notes)
