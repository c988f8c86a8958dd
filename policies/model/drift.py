"""The verdict on a fitted model by its live steps: fits, corrected, drifting, or time to refit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from policies.model.bias import Bias, CorrectionSettings
from policies.model.online import CorrectionState

FITS_RATIO = 1.05  # a bias below this is no news: profiles of one machine differ by as much
DRIFT_HOLD_S = 60.0  # how long a drift alarm is told after the last one


class Verdict(StrEnum):
    """From good to bad; a metric label, so the set is closed."""

    FITS = "fits"  # measured and modelled agree within 5 %
    CORRECTED = "corrected"  # they do not, and the correction makes up for it
    DRIFTING = "drifting"  # the bias moves faster than the correction follows, or has just jumped
    REFIT_SUGGESTED = "refit_suggested"  # too far off for too long, or beyond the bound


@dataclass(frozen=True, kw_only=True, slots=True)
class Assessment:
    """A verdict, and the reason in words, with the figures."""

    verdict: Verdict
    reason: str


def assess(state: CorrectionState, settings: CorrectionSettings, now_s: float) -> Assessment | None:
    """The worst verdict of step time and step energy at `now_s`; None while neither is known.

    `now_s`: the clock that `update` was given. The reason names every quantity that is known.
    """
    found = [
        _judge(name, bias, settings, now_s)
        for name, bias in (("step time", state.step_time), ("step energy", state.energy))
        if bias.known
    ]
    if not found:
        return None
    order = list(Verdict)
    worst = max(found, key=lambda one: order.index(one.verdict))
    return Assessment(verdict=worst.verdict, reason="; ".join(one.reason for one in found))


def _judge(name: str, bias: Bias, settings: CorrectionSettings, now_s: float) -> Assessment:
    seen = f"{name} is {bias.ratio:.2f} x the profile's (± {bias.band_ratio:.0%})"
    if bias.bound_windows > 0:
        return Assessment(
            verdict=Verdict.REFIT_SUGGESTED,
            reason=f"{seen}, beyond the bound of {settings.max_ratio:g}: the model is not acted on",
        )
    high_s = 0.0 if bias.high_since_s is None else now_s - bias.high_since_s
    if high_s > settings.refit_after_s:
        return Assessment(
            verdict=Verdict.REFIT_SUGGESTED,
            reason=f"{seen}, off by more than {settings.refit_ratio:g} x for {high_s:.0f} s "
            f"(allowed: {settings.refit_after_s:g} s)",
        )
    if bias.drift_s is not None and now_s - bias.drift_s <= DRIFT_HOLD_S:
        return Assessment(
            verdict=Verdict.DRIFTING,
            reason=f"{seen} and was on the move {max(now_s - bias.drift_s, 0.0):.0f} s ago, "
            "faster than the correction follows",
        )
    if abs(math.log(bias.ratio)) > math.log(FITS_RATIO):
        return Assessment(verdict=Verdict.CORRECTED, reason=f"{seen}, corrected")
    return Assessment(verdict=Verdict.FITS, reason=f"{seen}, fits")
