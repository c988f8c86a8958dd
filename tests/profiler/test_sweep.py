from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.core.errors import ConfigError
from serve_app.profiler.plan import MAX_WINDOW_S, MIN_WINDOW_S, Timing, run_seconds, window_seconds
from serve_app.profiler.samples import Kind
from serve_app.profiler.sweep import SweepSettings, batches, design, schedule

sizes = st.builds(
    SweepSettings,
    max_num_seqs=st.integers(2, 256),
    max_model_len=st.integers(128, 32768),
    max_num_batched_tokens=st.integers(256, 8192),
    kv_capacity_tokens=st.integers(20_000, 1 << 22),
    repeats=st.integers(1, 3),
    seed=st.integers(0, 5),
)


@given(sizes)
def test_every_point_fits_into_the_engine(settings):
    for point in design(settings):
        assert point.num_seqs <= settings.max_num_seqs
        assert point.context_tokens < settings.max_model_len
        assert point.prompt_tokens < settings.max_model_len
        assert point.prompt_tokens + point.num_seqs <= settings.max_num_batched_tokens
        assert point.fill_tokens <= settings.kv_capacity_tokens
        if point.kind is Kind.MIXED:
            assert point.num_seqs < settings.max_num_seqs


@given(sizes)
def test_names_identify_points(settings):
    points = design(settings)
    assert len({point.name for point in points}) == len(points)


@given(sizes)
def test_each_repeat_is_a_permutation_that_begins_idle(settings):
    runs = schedule(settings)
    points = design(settings)
    assert len(runs) == settings.repeats * len(points)
    for repeat in range(settings.repeats):
        part = runs[repeat * len(points) : (repeat + 1) * len(points)]
        assert {run.repeat for run in part} == {repeat + 1}
        assert {run.point for run in part} == set(points)
        assert part[0].point.kind is Kind.IDLE


def test_order_depends_on_the_seed_alone():
    assert schedule(SweepSettings(seed=1)) == schedule(SweepSettings(seed=1))
    assert schedule(SweepSettings(seed=1)) != schedule(SweepSettings(seed=2))
    first, second = schedule(SweepSettings())[:30], schedule(SweepSettings())[30:]
    assert [r.point for r in first] != [r.point for r in second][: len(first)]


def test_design_covers_all_kinds_and_both_contexts():
    points = design(SweepSettings())
    assert {point.kind for point in points} == set(Kind)
    decode = [(p.num_seqs, p.context_tokens) for p in points if p.kind is Kind.DECODE]
    assert {batch for batch, context in decode if context == 32} == set(batches(64))
    assert {batch for batch, context in decode if context > 32} >= {1, 2, 8, 16, 32, 48, 64}


def test_batches_hold_the_largest():
    assert batches(64) == [1, 2, 4, 8, 12, 16, 24, 32, 48, 64]
    assert batches(40) == [1, 2, 4, 8, 12, 16, 24, 32, 40]


@pytest.mark.parametrize(
    ("field", "value"), [("max_num_seqs", 1), ("max_model_len", 64), ("repeats", 0)]
)
def test_settings_out_of_range_name_the_option(field, value):
    with pytest.raises(ConfigError, match=f"--{field.replace('_', '-')}"):
        SweepSettings(**{field: value})


def test_window_fits_the_budget():
    runs = schedule(SweepSettings())
    timing = Timing(prefill_tokens_per_s=700.0, budget_s=420.0)
    window_s = window_seconds(runs, timing)
    total_s = sum(run_seconds(run, timing, window_s) for run in runs)
    assert MIN_WINDOW_S < window_s < MAX_WINDOW_S
    assert 0.9 * 420 < total_s <= 420


@given(st.floats(100, 1e5), st.floats(10, 2000))
def test_window_stays_in_range_and_grows_with_the_budget(speed, budget_s):
    runs = schedule(SweepSettings())
    windows = [
        window_seconds(runs, Timing(prefill_tokens_per_s=speed, budget_s=b))
        for b in (budget_s, 2 * budget_s)
    ]
    assert MIN_WINDOW_S <= windows[0] <= windows[1] <= MAX_WINDOW_S
