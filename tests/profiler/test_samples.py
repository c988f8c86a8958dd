from __future__ import annotations

from dataclasses import replace

import pytest

from policies.core.attribution import StepShare
from serve_app.engine.step_link import StepEvent
from serve_app.profiler.probe import is_crowded
from serve_app.profiler.samples import (
    Kind,
    Origin,
    Phase,
    Window,
    idle_sample,
    summarize,
    unlimited,
)
from serve_app.profiler.steps import Step, StepRecorder, drift_ratio, outliers

ORIGIN = Origin(point="p", kind=Kind.DECODE, phase=Phase.STEADY, repeat=1, device="d")


def steps(times, *, num_seqs=4, prefill_tokens=0, start_s=100.0):
    made = []
    for time_s in times:
        made.append(
            Step(
                start_s=start_s,
                end_s=start_s + time_s,
                num_seqs=num_seqs,
                kv_tokens=100 * num_seqs,
                prefill_tokens=prefill_tokens,
                max_context_tokens=100,
            )
        )
        start_s += time_s
    return made


def begin(time_s, *shares):
    return StepEvent(
        kind="b",
        time_s=time_s,
        shares=tuple(
            StepShare(request_id=str(k), prefill_tokens=p, decode_tokens=d, context_tokens=c)
            for k, (p, d, c) in enumerate(shares)
        ),
    )


def end(time_s):
    return StepEvent(kind="e", time_s=time_s)


def test_recorder_reads_a_step_from_its_events():
    recorder = StepRecorder()
    recorder.on_event(begin(1.0, (16, 0, 16), (0, 1, 40)))
    assert recorder.busy
    recorder.on_event(end(1.5))
    assert not recorder.busy
    assert recorder.steps == [
        Step(
            start_s=1.0,
            end_s=1.5,
            num_seqs=2,
            kv_tokens=56,
            prefill_tokens=16,
            max_context_tokens=40,
            attended_pairs=128.0,
        )
    ]


def test_a_step_scheduled_ahead_starts_when_the_one_before_ends():
    recorder = StepRecorder()
    for event in (begin(1.0, (0, 1, 5)), begin(1.1, (0, 1, 6)), end(2.0), end(2.5)):
        recorder.on_event(event)
    assert [(s.start_s, s.end_s) for s in recorder.steps] == [(1.0, 2.0), (2.0, 2.5)]


def test_recorder_pairs_up_again_after_lost_messages():
    recorder = StepRecorder()
    lost = StepEvent(kind="d", time_s=1.9)
    for event in (begin(1.0, (0, 1, 5)), lost, end(2.0), begin(2.0, (0, 1, 7)), end(2.2)):
        recorder.on_event(event)
    assert [s.kv_tokens for s in recorder.steps] == [7]


def test_all_energy_of_the_window_is_in_its_steps():
    """Borders inside of steps: 1.5 steps of 2 s in a window of 3 s."""
    window = Window(start_s=101.0, end_s=104.0, joules=30.0, source="counter", coverage_ratio=1.0)
    sample = summarize(ORIGIN, steps([2.0, 2.0, 2.0]), window)
    assert sample.steps == pytest.approx(1.5)
    assert sample.joules_per_step * sample.steps == pytest.approx(30.0)
    assert sample.draw_watts == pytest.approx(10.0)
    assert sample.step_time_s == pytest.approx(2.0)
    assert sample.gap_s_per_step == pytest.approx(0.0)


def test_time_between_steps_is_a_gap():
    made = steps([1.0], start_s=0.0) + steps([1.0], start_s=1.5)
    sample = summarize(ORIGIN, made, Window(start_s=0.0, end_s=3.0))
    assert sample.gap_s_per_step == pytest.approx(0.5)
    assert sample.joules_per_step is None


def test_composition_is_the_mean_over_the_window():
    made = steps([1.0, 1.0], num_seqs=2) + steps(
        [1.0, 1.0], num_seqs=3, prefill_tokens=64, start_s=102.0
    )
    sample = summarize(ORIGIN, made, Window(start_s=100.0, end_s=104.0))
    assert (sample.num_seqs, sample.kv_tokens, sample.prefill_tokens) == (2.5, 250.0, 32.0)


def test_a_window_without_steps_has_no_sample():
    assert summarize(ORIGIN, steps([1.0]), Window(start_s=200.0, end_s=201.0)) is None


def test_a_disturbed_step_is_found_and_left_out_of_the_mean():
    made = steps([0.03] * 20 + [0.3] + [0.03] * 20)
    assert [k for k, bad in enumerate(outliers(made)) if bad] == [20]
    sample = summarize(ORIGIN, made, Window(start_s=100.0, end_s=102.0))
    assert sample.step_time_s == pytest.approx(0.03)
    assert sample.outlier_steps == 1
    assert sample.steady


def test_a_long_step_of_another_composition_is_no_outlier():
    made = steps([0.03] * 20) + steps([0.3], prefill_tokens=200, start_s=100.6)
    assert not any(outliers(made))


def test_drift_makes_a_window_unsteady():
    made = steps([0.03] * 10 + [0.04] * 10)
    assert drift_ratio(made) == pytest.approx(1 / 3)
    assert not summarize(ORIGIN, made, Window(start_s=100.0, end_s=101.0)).steady
    assert drift_ratio(steps([0.03] * 20)) == pytest.approx(0.0)
    assert drift_ratio(steps([0.03] * 9)) is None
    assert drift_ratio([]) is None


def test_idle_sample_is_draw_over_time():
    window = Window(start_s=1.0, end_s=5.0, joules=8.0, source="counter")
    sample = idle_sample(ORIGIN, window)
    assert sample.draw_watts == 2.0
    assert sample.step_time_s is None
    assert idle_sample(ORIGIN, Window(start_s=1.0, end_s=5.0)).draw_watts is None


def test_a_sample_knows_its_power_limit_and_the_draw_of_the_gpus_alone():
    origin = replace(ORIGIN, power_limit_watts=300.0)
    window = Window(start_s=100.0, end_s=102.0, joules=900.0, gpu_joules=560.0, source="counter")
    for sample in (summarize(origin, steps([0.5] * 4), window), idle_sample(origin, window)):
        assert sample.power_limit_watts == 300.0
        assert (sample.gpu_draw_watts, sample.draw_watts) == (280.0, 450.0)
        assert unlimited([sample]) == []
    free = summarize(ORIGIN, steps([0.5] * 4), Window(start_s=100.0, end_s=102.0))
    assert (free.power_limit_watts, free.gpu_draw_watts) == (None, None)
    assert unlimited([free]) == [free]


def test_other_load_spoils_a_window_only_when_it_takes_cores_that_were_needed():
    assert is_crowded(cpu_s=1.0, foreign_s=0.9, core_s=2.0)
    assert not is_crowded(cpu_s=1.0, foreign_s=0.1, core_s=2.0)
    assert not is_crowded(cpu_s=1.0, foreign_s=8.0, core_s=64.0)
    assert not is_crowded(cpu_s=1.95, foreign_s=0.05, core_s=2.0)
    crowded = Window(start_s=100.0, end_s=101.0, crowded=True)
    assert not summarize(ORIGIN, steps([0.03] * 40), crowded).steady
    assert not idle_sample(ORIGIN, crowded).steady
