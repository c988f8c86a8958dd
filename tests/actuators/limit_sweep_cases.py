"""A sweep over power limits of fake GPUs, run by test_power_limit.py under the fake NVML library. The
engine's speed follows the limit that the library has in force; everything else is real."""

from dataclasses import dataclass, field

import pytest
from fake_nvml import uuid_of
from planted_limits import LIMITS, POINTS, RESPONSE, planted_model, planted_sample
from profiler_planted import ProgressLog

from policies.core.errors import ActuationError, ConfigError
from serve_app.actuators.limited_gpus import LimitedGpus
from serve_app.profiler.cap_response import fit_cap_response, with_cap_response
from serve_app.profiler.limit_sweep import LimitSweep, sweep_limits
from serve_app.profiler.plan import Timing
from serve_app.profiler.samples import unlimited
from serve_app.profiler.store import SampleStore, load_samples

MANIFEST = {"device": "planted", "config": {}}
BOTH = (uuid_of(0), uuid_of(1))


@dataclass
class PlantedProber:
    """Runs take a second; `then` is done in each. The speed is that of the more limited GPU."""

    fake: object
    then: object = lambda runs: None
    power_limit_watts: float | None = None
    window_s: float = 1.0
    now_s: float = 0.0
    runs: list = field(default_factory=list)

    def measure(self, run):
        self.now_s += 1.0
        self.runs.append((run.point, self.power_limit_watts))
        self.then(self.runs)
        in_force = min(self.fake.state.dev[index].limit_mw for index in range(2)) / 1e3
        model = planted_model(RESPONSE, num_devices=2)
        sample = planted_sample(
            model, run.point, in_force, run.repeat, power_limit_watts=self.power_limit_watts
        )
        return [sample], []


@pytest.fixture
def measure(fake, tmp_path):
    def run(prober, *, repeats=1, budget_s=1e4):
        store = SampleStore(tmp_path / "samples", MANIFEST)
        timing = Timing(prefill_tokens_per_s=40_000.0, budget_s=budget_s)
        sweep = LimitSweep(limits_watts=LIMITS, points=POINTS, timing=timing, repeats=repeats)
        log = ProgressLog()
        state_file = tmp_path / "limits.json"
        gpus = LimitedGpus(BOTH, say=log.say, state_file=state_file, sleep=lambda seconds: None)
        with gpus:
            outcome = sweep_limits(prober, store, gpus, sweep, log, lambda: prober.now_s)
        return outcome, load_samples(tmp_path / "samples"), log

    return run


def test_a_sweep_leaves_samples_that_give_the_planted_response(fake, measure):
    outcome, samples, log = measure(PlantedProber(fake), repeats=2)
    assert outcome.measured == len(samples) == (2 * 2 * len(LIMITS) + 1) * len(POINTS)
    assert (outcome.skipped, outcome.disturbed) == ((), ())
    assert log.done_s == pytest.approx(log.total_s)
    assert unlimited(samples) == []
    base, planted = planted_model(num_devices=2), planted_model(RESPONSE, num_devices=2)
    model = with_cap_response(base, fit_cap_response(samples, base))
    for watts in (250.0, 350.0, 550.0):
        found, true = model.power.speeds(watts), planted.power.speeds(watts)
        assert found.prefill_ratio == pytest.approx(true.prefill_ratio, rel=0.01)
        assert found.decode_ratio == pytest.approx(true.decode_ratio, rel=0.01)
    assert [fake.state.dev[index].limit_mw for index in range(2)] == [700_000, 700_000]


def test_samples_carry_the_limit_that_was_in_force(fake, measure):
    prober = PlantedProber(fake)
    seen = []
    prober.then = lambda runs: seen.append((fake.state.dev[0].limit_mw / 1e3, runs[-1][1]))
    measure(prober)
    assert {in_force == told for in_force, told in seen} == {True}
    assert {told for _, told in seen} == {*LIMITS, 700.0}
    assert prober.power_limit_watts is None


def test_the_first_run_after_a_change_is_made_twice_and_kept_once(fake, measure):
    prober = PlantedProber(fake)
    _, samples, _ = measure(prober)
    assert len(prober.runs) == len(samples) + 2 * len(LIMITS) + 1


def test_a_writer_who_interferes_ends_the_sweep_and_spoils_no_sample(fake, measure, tmp_path):
    def interfere(runs):
        if len(runs) == 13:
            fake.state.dev[1].limit_mw = 650_000

    with pytest.raises(ActuationError, match="another program"):
        measure(PlantedProber(fake, then=interfere))
    assert [fake.state.dev[index].limit_mw for index in range(2)] == [700_000, 650_000]
    assert len(load_samples(tmp_path / "samples")) == 9  # two blocks of four, and one


def test_a_sweep_cut_short_goes_on(fake, measure, tmp_path):
    def stop(runs):
        if len(runs) == 18:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(PlantedProber(fake, then=stop))
    assert fake.state.dev[0].limit_mw == 700_000
    outcome, samples, _ = measure(PlantedProber(fake))
    done = [s.power_limit_watts for s in samples if s.power_limit_watts != 700.0]
    assert {done.count(watts) for watts in LIMITS} == {len(POINTS), len(POINTS) + 1}
    assert outcome.measured == (2 * (len(LIMITS) - 1) + 1) * len(POINTS)
    again, same, _ = measure(PlantedProber(fake))
    assert (again.measured, same) == (0, samples)


def test_limits_that_do_not_fit_the_budget_are_left_out_and_named(fake, measure):
    outcome, samples, _ = measure(PlantedProber(fake), budget_s=60.0)
    assert 0 < len(outcome.skipped) < len(LIMITS)
    complete = {s.power_limit_watts for s in samples} - {700.0}
    assert len(complete) + len(outcome.skipped) == len(LIMITS)
    assert samples[-1].power_limit_watts == 700.0


def test_a_folder_with_another_reference_is_refused(fake, measure):
    measure(PlantedProber(fake))
    fake.state.dev[0].limit_mw = 650_000
    with pytest.raises(ConfigError, match="against 700 W, and now 650 W is set"):
        measure(PlantedProber(fake))
