from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profiler_planted import IDLE_WATTS, LATENCY, POWER, planted_samples

from policies.core.errors import ConfigError, NotFitted
from serve_app.profiler.fit import Identity, fit
from serve_app.profiler.samples import Kind

WHO = Identity(name="planted@cpu", model="planted", provenance={"kind": "planted"})


def latency_of(result):
    model = result.model.latency
    return (
        model.t0_s,
        model.a_s_per_seq,
        model.b_s_per_kv_token,
        model.c_s_per_prefill_token,
    )


def power_of(result):
    model = result.model.power
    return (
        model.e0_joules_per_step,
        model.e1_joules_per_seq,
        model.e2_joules_per_kv_token,
        model.e3_joules_per_prefill_token,
    )


def test_exact_samples_give_the_planted_model():
    result = fit(planted_samples(), WHO)
    assert latency_of(result) == pytest.approx(LATENCY, rel=1e-4)
    assert power_of(result) == pytest.approx(POWER, rel=1e-4)
    assert result.model.power.idle_watts == IDLE_WATTS
    assert result.model.residuals.step_time_p95_ratio < 1e-3
    assert result.model.trusted


@pytest.mark.slow
@settings(max_examples=4)
@given(
    t0=st.floats(0.002, 0.1),
    a=st.floats(2e-4, 5e-3),
    b=st.floats(1e-6, 2e-5),
    c=st.floats(1e-4, 5e-3),
    seed=st.integers(0, 100),
)
def test_planted_model_is_predicted_under_noise_and_outliers(t0, a, b, c, seed):
    """2 % noise and 8 % of the rows three times too slow: predictions stay within 10 %."""
    planted = (t0, a, b, c)
    result = fit(planted_samples(planted, noise=0.02, outliers=0.08, seed=seed), WHO)
    model = result.model.latency
    for n, kv, prefill in ((1, 64, 0), (8, 4000, 0), (64, 8000, 0), (16, 2000, 128), (1, 500, 500)):
        true_s = t0 + a * n + b * kv + c * prefill
        assert model.step_time_s(n, kv, prefill) == pytest.approx(true_s, rel=0.1)


@pytest.mark.slow
def test_held_out_errors_show_the_noise_and_count_the_outliers():
    clean = fit(planted_samples(noise=0.02, seed=3), WHO).model.residuals
    dirty = fit(planted_samples(noise=0.02, outliers=0.15, seed=3), WHO)
    assert 0.005 < clean.step_time_median_ratio < 0.04
    assert dirty.model.residuals.step_time_p95_ratio > 0.3
    assert dirty.latency.trimmed
    assert dirty.latency.worst[0].held_out_error_ratio == max(
        w.held_out_error_ratio for w in dirty.latency.worst
    )


def test_energy_between_steps_is_not_charged_to_steps():
    samples = planted_samples()
    longer = [
        s
        if s.kind is Kind.IDLE
        else replace(
            s, gap_s_per_step=0.5, joules_per_step=s.joules_per_step + IDLE_WATTS * (0.5 - 0.002)
        )
        for s in samples
    ]
    assert power_of(fit(longer, WHO)) == pytest.approx(POWER, rel=1e-3)


def test_valid_range_is_what_was_seen():
    valid = fit(planted_samples(max_num_seqs=32), WHO).model.valid
    assert valid.max_num_seqs == 32
    assert valid.max_context_tokens == 1792 + 40
    assert valid.max_prompt_tokens == 1792


def test_unsteady_samples_are_left_out_and_named():
    samples = planted_samples()
    spoilt = replace(samples[5], steady=False, step_time_s=10 * samples[5].step_time_s)
    result = fit([*samples[:5], spoilt, *samples[6:]], WHO)
    assert latency_of(result) == pytest.approx(LATENCY, rel=1e-4)
    assert result.unsteady == (f"{spoilt.point} #{spoilt.repeat}",)


def test_samples_under_a_power_limit_do_not_enter():
    samples = planted_samples()
    limited = [
        replace(s, power_limit_watts=300.0, step_time_s=2 * s.step_time_s)
        for s in samples
        if s.kind is Kind.DECODE
    ]
    assert fit([*samples, *limited], WHO) == fit(samples, WHO)


def test_natural_draw_is_each_gpus_own_and_known_only_from_its_sensor():
    samples = planted_samples()
    assert fit(samples, WHO).model.power.natural_draw_watts is None
    sensed = [replace(s, gpu_draw_watts=100.0 * s.draw_watts) for s in samples]
    most = max(s.gpu_draw_watts for s in sensed if s.kind is not Kind.IDLE)
    power = fit(sensed, replace(WHO, num_devices=4)).model.power
    assert power.natural_draw_watts == pytest.approx(most / 4)
    assert power.num_devices == 4


def only(*kinds):
    return [s for s in planted_samples() if s.kind in {Kind.IDLE, *kinds}]


def changed(**fields):
    samples = planted_samples()
    k = next(i for i, s in enumerate(samples) if s.kind is Kind.DECODE)
    return [*samples[:k], replace(samples[k], **fields), *samples[k + 1 :]]


def in_milliseconds():
    return [
        s if s.kind is Kind.IDLE else replace(s, step_time_s=1e3 * s.step_time_s)
        for s in planted_samples()
    ]


def in_millijoules():
    return [
        s if s.kind is Kind.IDLE else replace(s, joules_per_step=1e6 * s.joules_per_step)
        for s in planted_samples()
    ]


def backwards():
    samples = planted_samples()
    decode = [s for s in samples if s.kind is Kind.DECODE]
    times = sorted((s.step_time_s for s in decode), reverse=True)
    ordered = sorted(decode, key=lambda s: s.num_seqs)
    swapped = [replace(s, step_time_s=t) for s, t in zip(ordered, times, strict=True)]
    return [s for s in samples if s.kind is not Kind.DECODE] + swapped


REFUSED = {
    "nothing": ([], NotFitted, "no samples"),
    "too few points": (planted_samples()[:6], NotFitted, "distinct points"),
    "no prefill": (only(Kind.DECODE), NotFitted, "prefill sizes"),
    "one batch size": (
        [s for s in planted_samples() if s.kind is not Kind.DECODE or s.num_seqs == 8],
        NotFitted,
        "batch size",
    ),
    "one context": (
        [s for s in planted_samples() if s.kind is not Kind.DECODE or "ctx32" in s.point],
        NotFitted,
        "one context length",
    ),
    "NaN": (changed(step_time_s=math.nan), ConfigError, "step_time_s is nan"),
    "infinite": (changed(kv_tokens=math.inf), ConfigError, "kv_tokens is inf"),
    "negative energy": (changed(joules_per_step=-1.0), ConfigError, "joules_per_step is -1"),
    "no time": (changed(step_time_s=None), ConfigError, "step_time_s is missing"),
    "milliseconds": (in_milliseconds(), ConfigError, "milliseconds"),
    "millijoules": (in_millijoules(), ConfigError, "millijoules"),
    "mixed devices": (changed(device="another"), ConfigError, "another, planted"),
    "time falls with the batch": (backwards(), ConfigError, "step time falls"),
    "no meter": (
        [
            replace(s, joules_per_step=None, draw_watts=None, reason="rapl: no powercap")
            for s in planted_samples()
        ],
        NotFitted,
        "rapl: no powercap",
    ),
    "no idle sample": (
        [s for s in planted_samples() if s.kind is not Kind.IDLE],
        NotFitted,
        "idle draw",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_nonsense_is_refused_with_the_reason(case):
    samples, error, reason = REFUSED[case]
    with pytest.raises(error, match=reason):
        fit(samples, WHO)


def test_a_step_that_costs_nothing_itself_is_refused():
    with pytest.raises(NotFitted, match="t0_s is 0"):
        fit(planted_samples(latency=(0.0, 1.2e-3, 3.0e-6, 1.4e-3)), WHO)


def test_disturbed_samples_are_refused_or_allowed_on_request():
    samples = [replace(s, steady=False) for s in planted_samples()]
    with pytest.raises(NotFitted, match="quiet machine"):
        fit(samples, WHO)
    result = fit(samples, WHO, allow_disturbed=True)
    assert latency_of(result) == pytest.approx(LATENCY, rel=1e-4)
    assert len(result.unsteady) == sum(s.kind is not Kind.IDLE for s in samples)


@pytest.mark.slow
@settings(max_examples=3)
@given(knee=st.sampled_from([8.0, 16.0, 32.0]), seed=st.integers(0, 100))
def test_a_knee_is_found_where_there_is_one(knee, seed):
    beyond = 0.8 * LATENCY[0] / knee
    result = fit(planted_samples(beyond=beyond, knee=knee, noise=0.01, seed=seed), WHO)
    assert result.latency.knee_tokens == pytest.approx(knee, rel=0.51)
    model = result.model.latency
    for n in (2, 6, 12, 40, 64):
        true_s = LATENCY[0] + n * LATENCY[1] + beyond * max(0.0, n - knee)
        assert model.step_time_s(n, 0, 0) == pytest.approx(true_s, rel=0.1)


@pytest.mark.slow
def test_a_straight_line_has_no_knee_and_no_attention_term():
    for seed in range(3):
        result = fit(planted_samples(noise=0.02, seed=seed), WHO)
        assert result.latency.knee_tokens is None
        assert [term.name for term in result.latency.terms] == [
            "t0_s", "a_s_per_seq", "b_s_per_kv_token", "c_s_per_prefill_token",
        ]  # fmt: skip


def test_attention_of_long_prompts_is_found():
    planted = fit(planted_samples(per_pair=2e-6, noise=0.01), WHO).model.latency
    assert planted.q_s_per_attended_pair == pytest.approx(2e-6, rel=0.1)


def test_a_fit_of_the_first_third_is_nearly_as_good():
    result = fit(planted_samples(noise=0.02, seed=1), WHO)
    third = result.learned[0]
    assert third.points + third.unseen_points == result.latency.points
    assert third.unseen_median_ratio < 0.05


def test_regions_name_what_is_not_to_be_trusted():
    samples = [
        replace(s, step_time_s=s.step_time_s * (1.0 + 0.6 * (s.repeat % 2)))
        if s.kind is Kind.MIXED
        else s
        for s in planted_samples(noise=0.01)
    ]
    result = fit(samples, WHO)
    doubtful = [region.name for region in result.regions if region.doubtful]
    assert doubtful == ["decode and a prompt in one step"]
    assert result.model.provenance["doubtful"] == doubtful[0]
