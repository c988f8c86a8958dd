"""The sweep loop with an engine whose coefficients are known in place of the real one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from profiler_planted import LATENCY, ProgressLog, planted_samples

from serve_app.profiler import sweep_run
from serve_app.profiler.fit import Identity, fit
from serve_app.profiler.plan import Timing
from serve_app.profiler.steps import Step
from serve_app.profiler.store import SampleStore, load_samples
from serve_app.profiler.sweep import SweepSettings

MANIFEST = {"device": "planted", "config": {}}


class PlantedProber:
    """Answers every run from planted samples; `spoil` makes the first try at these points unsteady."""

    def __init__(self, *, speed=700.0, spoil=()):
        self.window_s = 1.0
        self.measured = []
        self.speed = speed
        self._spoil = set(spoil)
        self._samples = {(s.point, s.repeat): s for s in planted_samples(repeats=3)}

    def wait_for_calm(self, slow_s):
        pass

    def measure(self, run):
        name = run.point.name
        first = (name, run.repeat) not in self.measured
        self.measured.append((name, run.repeat))
        sample = self._samples[name, run.repeat]
        if first and name in self._spoil:
            sample = replace(sample, steady=False, drift_ratio=0.5)
        return [sample], [Step(start_s=0.0, end_s=1.0, num_seqs=1, kv_tokens=1, prefill_tokens=0)]


def sweep(tmp_path, prober, *, budget_s=3000.0, repeats=1, target=1e-9):
    log = ProgressLog()
    outcome = sweep_run.sweep(
        SweepSettings(max_num_batched_tokens=2048, kv_capacity_tokens=46_592, repeats=repeats),
        Timing(prefill_tokens_per_s=prober.speed, budget_s=budget_s),
        sweep_run.SweepEnding(target_error_ratio=target),
        prober,
        SampleStore(tmp_path, MANIFEST),
        log,
    )
    assert 0.0 < log.total_s <= budget_s
    return outcome


def test_a_sweep_leaves_a_folder_that_fits(tmp_path):
    outcome = sweep(tmp_path, PlantedProber())
    assert outcome.skipped == ()
    result = fit(load_samples(tmp_path), Identity(name="n", model="m", provenance={}))
    assert result.model.latency.t0_s == pytest.approx(LATENCY[0], rel=1e-3)


def test_a_second_run_measures_only_what_is_missing(tmp_path):
    first = sweep(tmp_path, PlantedProber())
    prober = PlantedProber()
    second = sweep(tmp_path, prober, repeats=2)
    assert (second.resumed, second.measured) == (first.measured, first.measured)
    assert {repeat for _, repeat in prober.measured} == {2}


def test_what_does_not_fit_the_budget_is_left_out_and_named(tmp_path):
    outcome = sweep(tmp_path, PlantedProber(speed=10.0), budget_s=60.0)
    assert outcome.measured > 0
    assert any(name.startswith("decode-n64") for name in outcome.skipped)
    assert not any(
        name.startswith("decode-n64") for s in load_samples(tmp_path) for name in [s.point]
    )


def test_an_unsteady_run_is_repeated_once_and_the_steadier_kept(tmp_path):
    prober = PlantedProber(spoil=["decode-n8-ctx32"])
    sweep(tmp_path, prober)
    assert prober.measured.count(("decode-n8-ctx32", 1)) == 2
    assert prober.measured.count(("decode-n4-ctx32", 1)) == 1
    kept = [s for s in load_samples(tmp_path) if s.point == "decode-n8-ctx32"]
    assert [s.steady for s in kept] == [True]


def test_a_run_that_stays_disturbed_is_named(tmp_path):
    class Crowded(PlantedProber):
        def measure(self, run):
            samples, steps = super().measure(run)
            return [replace(s, steady=run.point.num_seqs != 8) for s in samples], steps

    outcome = sweep(tmp_path, Crowded())
    assert set(outcome.disturbed) == {
        "decode-n8-ctx32 #1",
        "decode-n8-ctx1024 #1",
        "mixed-n8-ctx64-p256 #1",
    }


def test_a_sweep_ends_early_when_the_model_is_known_well_enough(tmp_path):
    outcome = sweep(tmp_path, PlantedProber(), repeats=3, target=0.05)
    assert outcome.spared > 0
    assert outcome.half_width_ratio <= 0.05
    result = fit(load_samples(tmp_path), Identity(name="n", model="m", provenance={}))
    assert result.model.latency.t0_s == pytest.approx(LATENCY[0], rel=1e-3)
