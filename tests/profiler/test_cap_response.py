from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_limits import (
    LIMITS,
    NATURAL_WATTS,
    POINTS,
    RESPONSE,
    natural_watts,
    planted_model,
    planted_sweep,
)

from policies.core.errors import NotFitted
from policies.model.fitted import FittedModel
from policies.model.power import CapResponse
from serve_app.profiler.cap_response import fit_cap_response, with_cap_response
from serve_app.profiler.limits_text import limit_lines
from serve_app.profiler.samples import Kind

PLANTED = planted_model(RESPONSE)
BASE = planted_model()
BETWEEN = (250.0, 275.0, 350.0, 450.0, 550.0, 650.0)


def speeds(model, limit_watts):
    found = model.power.speeds(limit_watts)
    return found.prefill_ratio, found.decode_ratio


def fitted(samples, base=BASE):
    return with_cap_response(base, fit_cap_response(samples, base))


def test_exact_samples_give_the_planted_response():
    model = fitted(planted_sweep(PLANTED))
    assert model.power.natural_draw_watts == NATURAL_WATTS
    for watts in BETWEEN:
        assert speeds(model, watts) == pytest.approx(speeds(PLANTED, watts), rel=0.01)
    assert model.bands.power_limit_ratio < 0.05


@settings(max_examples=8)
@given(
    c0=st.floats(50.0, 180.0),
    ck=st.floats(300.0, 550.0),
    n=st.floats(2.0, 6.0),
    s_max=st.floats(1.0, 1.05),
    knee=st.floats(0.6, 0.95),
    exponent=st.floats(0.3, 1.5),
    seed=st.integers(0, 100),
)
def test_a_planted_response_is_predicted_under_noise_and_drift(
    c0, ck, n, s_max, knee, exponent, seed
):
    """1 % noise and a machine that gets 10 % slower: speeds under the limits measured stay within
    8 %, and speed never rises as the limit falls, so it lies between those elsewhere."""
    planted = planted_model(
        CapResponse(
            c0_watts=c0,
            ck_watts=ck,
            n=n,
            s_max=s_max,
            decode_knee=knee,
            decode_exponent=exponent,
        )
    )
    model = fitted(planted_sweep(planted, noise=0.01, drift=0.1, seed=seed))
    for watts in LIMITS:
        assert speeds(model, watts) == pytest.approx(speeds(planted, watts), rel=0.08)
    rising = [speeds(model, watts) for watts in (*range(240, 720, 20), NATURAL_WATTS)]
    assert rising == sorted(rising)
    assert rising[-1] == (1.0, 1.0)


def test_a_drift_of_the_machine_does_not_look_like_a_limit():
    still, drifting = (
        fit_cap_response(planted_sweep(PLANTED, drift=drift), BASE) for drift in (0.0, 0.3)
    )
    for one, other in zip(still.effects, drifting.effects, strict=True):
        assert one.speed_ratio == pytest.approx(other.speed_ratio, rel=0.01)


def test_the_model_with_a_response_comes_back_from_its_profile():
    model = fitted(planted_sweep(PLANTED, noise=0.01))
    assert FittedModel.from_dict(model.to_dict()) == model
    assert model.provenance["power_limit"] == "measured at 600, 500, 400, 300, 250 W"


def test_held_out_limits_show_the_noise():
    clean, noisy = (
        fit_cap_response(planted_sweep(PLANTED, noise=noise, seed=1), BASE) for noise in (0.0, 0.04)
    )
    assert [held.limit_watts for held in clean.held_out] == sorted(LIMITS, reverse=True)
    assert max(held.draw_error_ratio for held in clean.held_out) < 1e-9
    assert clean.band_ratio < noisy.band_ratio
    assert 0.02 < noisy.band_ratio < 0.3


def test_a_limit_is_judged_by_a_fit_that_has_not_seen_it():
    slow = [
        replace(s, step_time_s=1.1 * s.step_time_s) if s.power_limit_watts == 400.0 else s
        for s in planted_sweep(PLANTED)
    ]
    held = {h.limit_watts: h for h in fit_cap_response(slow, BASE).held_out}
    assert held[400.0].speed_error_ratio == pytest.approx(0.1, abs=0.005)


def test_a_curve_that_is_not_of_this_form_has_a_wide_band():
    samples = planted_sweep(PLANTED)
    bent = [
        replace(s, step_time_s=1.5 * s.step_time_s) if (s.power_limit_watts or 0) < 450 else s
        for s in samples
    ]
    assert fit_cap_response(bent, BASE).band_ratio > 0.1


def test_draws_are_per_gpu_and_without_the_host():
    pair = planted_model(RESPONSE, num_devices=2)
    base = planted_model(num_devices=2)
    fit = fit_cap_response(planted_sweep(pair), base)
    assert fit.natural_draw_watts == NATURAL_WATTS
    assert {(e.limit_watts, e.draw_watts) for e in fit.effects if e.kind is Kind.PREFILL} == {
        (watts, watts) for watts in LIMITS
    }


def test_a_limit_above_the_natural_draw_is_left_out_and_said():
    samples = [
        replace(s, gpu_draw_watts=min(s.gpu_draw_watts, 560.0)) for s in planted_sweep(PLANTED)
    ]
    fit = fit_cap_response(samples, BASE)
    assert fit.natural_draw_watts == 560.0
    assert [held.limit_watts for held in fit.held_out] == [500.0, 400.0, 300.0, 250.0]
    assert {effect.limit_watts for effect in fit.effects} == set(LIMITS)
    (note,) = fit.notes
    assert note.startswith("600 W is left out: inert")


@pytest.mark.parametrize("kind", [Kind.PREFILL, Kind.DECODE])
def test_a_limit_that_was_measured_at_one_kind_of_point_is_left_out_and_said(kind):
    samples = [s for s in planted_sweep(PLANTED) if (s.kind, s.power_limit_watts) != (kind, 400.0)]
    fit = fit_cap_response(samples, BASE)
    assert [held.limit_watts for held in fit.held_out] == [600.0, 500.0, 300.0, 250.0]
    (note,) = fit.notes
    assert note.startswith("400 W is left out")


def test_a_sweep_that_stays_below_the_knee_says_so():
    small = [point for point in POINTS if point.num_seqs != 256]
    fit = fit_cap_response(planted_sweep(PLANTED, points=small), BASE)
    assert fit.notes == ("no decode point lies beyond the knee of the step time",)


def test_limits_that_leave_a_wide_gap_below_the_natural_draw_are_noted():
    fit = fit_cap_response(planted_sweep(PLANTED, limits=(200.0, 250.0, 300.0)), BASE)
    (note,) = fit.notes
    assert note.startswith("between 300 W and the natural draw of 700 W nothing was measured")


def test_a_point_binds_below_its_own_draw():
    fit = fit_cap_response(planted_sweep(PLANTED), BASE)
    binding = {(e.point, e.limit_watts) for e in fit.effects if e.binds}
    assert binding == {
        (point.name, watts) for point in POINTS for watts in LIMITS if watts < natural_watts(point)
    }


def test_disturbed_runs_and_those_without_a_reference_are_left_out():
    samples = planted_sweep(PLANTED)
    last = samples[-len(POINTS) - 1].power_limit_watts
    disturbed = next(watts for watts in LIMITS if watts != last)
    spoilt = [
        replace(s, steady=False, step_time_s=9.0)
        if (s.repeat, s.power_limit_watts) == (1, disturbed)
        else s
        for s in samples
    ]
    fit, exact = (
        fit_cap_response(some, BASE) for some in (spoilt[: len(spoilt) - len(POINTS)], samples)
    )
    assert {effect.limit_watts: effect.runs for effect in fit.effects} == {
        watts: 1 if watts in {last, disturbed} else 2 for watts in LIMITS
    }
    for effect, true in zip(fit.effects, exact.effects, strict=True):
        assert effect.speed_ratio == pytest.approx(true.speed_ratio, rel=1e-6)


def test_a_run_made_again_replaces_the_first():
    samples = planted_sweep(PLANTED)
    wrong = [replace(s, step_time_s=2 * s.step_time_s) for s in samples]
    again = fit_cap_response([*wrong, *samples], BASE)
    assert again.response == fit_cap_response(samples, BASE).response


def test_people_read_the_curve_the_effects_and_the_errors():
    text = "\n".join(limit_lines(fit_cap_response(planted_sweep(PLANTED), BASE)))
    assert "natural draw 700 W per GPU" in text
    assert "x = (limit - 94.01 W) / 338 W" in text
    assert "decode: (that / 0.9)^1.2" in text
    assert text.count("prefill-p2048") == len(LIMITS)
    assert "* decode-n16-ctx512" in text
    assert "95 % of the held-out errors stay within 0.0%" in text


# ---- refusals


def changed(match, **fields):
    return [replace(s, **fields) if match(s) else s for s in planted_sweep(PLANTED)]


def limited(watts, kind=None):
    return lambda s: s.power_limit_watts == watts and kind in {None, s.kind}


def slowest_at(watts):
    return [
        replace(s, step_time_s=2 * s.step_time_s) if s.power_limit_watts == watts else s
        for s in planted_sweep(PLANTED)
    ]


REFUSED = {
    "no limit": ([], "no steady sample under a power limit"),
    "no reference": (
        [s for s in planted_sweep(PLANTED) if s.power_limit_watts != 700.0][:4],
        "between two without one",
    ),
    "two limits": (planted_sweep(PLANTED, limits=LIMITS[:2]), "2 of the power limits 250, 300 W"),
    "no limit binds": (
        [replace(s, gpu_draw_watts=240.0) for s in planted_sweep(PLANTED)],
        "0 of the power limits .* the GPU draws 240 W at most; needed: 3",
    ),
    "no prompts": (
        [s for s in planted_sweep(PLANTED) if s.kind is not Kind.PREFILL],
        "no prefill point was measured",
    ),
    "no decode": (
        [s for s in planted_sweep(PLANTED) if s.kind is Kind.PREFILL],
        "no decode point was measured",
    ),
    "no draw": (
        changed(limited(400.0), gpu_draw_watts=None, reason="nvml: no driver"),
        "at 400 W: the draw of the GPUs is not known .nvml: no driver.",
    ),
    "a limit that was not in force": (
        changed(limited(300.0, Kind.PREFILL), gpu_draw_watts=690.0),
        "prefill-p2048 draws 690 W per GPU under a limit of 300 W: the limit was not in force",
    ),
    "held back by something else": (
        changed(limited(500.0, Kind.PREFILL), gpu_draw_watts=350.0),
        "draws 350 W per GPU under a limit of 500 W and 700 W without",
    ),
    "speed rises as the limit falls": (
        slowest_at(400.0),
        "under 300 W and at .* under 400 W: speed rises as the limit falls",
    ),
    "faster than without a limit": (
        changed(limited(250.0), step_time_s=1e-3),
        "under 250 W and at .*: speed rises as the limit falls",
    ),
    "no step time": (changed(limited(250.0), step_time_s=None), "at 250 W: no step time"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_nonsense_is_refused_with_the_reason(case):
    samples, reason = REFUSED[case]
    with pytest.raises(NotFitted, match=reason):
        fit_cap_response(samples, BASE)
