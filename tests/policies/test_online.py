"""What live steps say about a model: corrections, verdicts, the state that survives, the fleet."""

import json
import math
import random
from dataclasses import replace

import pytest
from control_cases import H100
from hypothesis import given
from hypothesis import strategies as st

from policies.core.control import decision_to_dict, state_from_dict, state_to_dict
from policies.core.errors import ConfigError
from policies.core.types import (
    SLO,
    Bounds,
    ControlSettings,
    ControlState,
    Knob,
    Load,
    Observation,
    OperatingPoint,
    Reason,
    ReplicaObservation,
)
from policies.energy_slo import EnergySlo
from policies.model.bias import CorrectionSettings
from policies.model.drift import DRIFT_HOLD_S, Verdict, assess
from policies.model.fitted import FittedModel
from policies.model.online import (
    Compared,
    Correction,
    CorrectionState,
    correction_of,
    fingerprint,
    fleet_correction,
    fresh,
    update,
)

SETTINGS = CorrectionSettings()
NOISE = 0.03


class Steps:
    """A replica whose steps are off by a factor, one window a second."""

    def __init__(self, seed=0):
        self.state, self.now_s, self._rng = fresh(H100), 1000.0, random.Random(seed)

    def run(self, seconds, time_ratio, energy_ratio=None):
        for _ in range(seconds):
            self.now_s += 1.0
            energy = None if energy_ratio is None else self._window(energy_ratio)
            self.state = update(
                self.state,
                SETTINGS,
                self.now_s,
                step_time=self._window(time_ratio),
                energy=energy,
            )
        return self

    def _window(self, ratio):
        noisy = ratio * math.exp(self._rng.gauss(0.0, NOISE))
        return Compared(measured=0.8 * noisy, modelled=0.8)

    def assess(self):
        return assess(self.state, SETTINGS, self.now_s)

    def correction(self):
        return correction_of(self.state, SETTINGS)


# --- corrections --------------------------------------------------------------------------------


def test_time_and_energy_are_learned_apart():
    steps = Steps().run(100, 1.3, 0.8)
    found = steps.correction()
    assert found.step_time_ratio == pytest.approx(1.3, rel=0.03)
    assert found.energy_ratio == pytest.approx(0.8, rel=0.03)
    model = found.apply(H100)
    before, after = H100.latency.step_time_s(8, 999, 50), model.latency.step_time_s(8, 999, 50)
    assert after == pytest.approx(found.step_time_ratio * before)
    assert model.power.idle_watts == H100.power.idle_watts


def test_what_nobody_measured_is_not_known_and_not_corrected():
    found = Steps().run(100, 1.3).correction()
    assert found.energy_ratio is None
    assert found.apply(H100).power == H100.power


def test_before_ten_windows_nothing_is_corrected():
    steps = Steps().run(9, 1.5)
    assert steps.correction() == Correction()
    assert steps.assess() is None
    assert steps.correction().apply(H100) is H100


def test_the_correction_stays_on_a_grid_so_that_noise_does_not_churn_decisions():
    steps = Steps().run(100, 1.0)
    seen = {steps.run(1, 1.0).correction().step_time_ratio for _ in range(300)}
    assert len(seen) <= 8
    assert 1.0 in seen


@given(
    st.lists(st.tuples(st.floats(), st.floats(), st.floats()), max_size=40),
    st.floats(1.001, 10.0),
)
def test_no_input_leads_to_a_correction_beyond_the_bound(seen, max_ratio):
    settings, state = CorrectionSettings(max_ratio=max_ratio), fresh(H100)
    for measured, modelled, now_s in seen * 3:
        window = Compared(measured=measured, modelled=modelled)
        state = update(state, settings, now_s, step_time=window, energy=window)
    found = correction_of(state, settings)
    for ratio in (found.step_time_ratio, found.energy_ratio):
        assert ratio is None or 1.0 / max_ratio <= ratio <= max_ratio
    assert math.isfinite(found.step_time_ratio or 1.0)
    assess(state, settings, 1.0)


# --- the bound: the model is not acted on -------------------------------------------------------


@pytest.mark.parametrize("ratio", [3.0, 0.3])
def test_beyond_the_bound_the_model_is_not_acted_on(ratio):
    steps = Steps().run(60, ratio)
    found = steps.correction()
    assert found.at_bound
    assert found.step_time_ratio in {SETTINGS.max_ratio, 1.0 / SETTINGS.max_ratio}
    assert found.apply(H100) is None
    seen = f"step time is {steps.state.step_time.ratio:.2f} x"  # the bias itself, not the bound
    assert seen in steps.assess().reason
    assert "beyond the bound of 2: the model is not acted on" in steps.assess().reason


def test_energy_alone_beyond_the_bound_is_enough():
    assert Steps().run(60, 1.0, 5.0).correction().at_bound


def test_near_the_bound_it_does_not_flap_and_comes_back_from_it():
    steps = Steps().run(60, 2.3)
    assert all(steps.run(1, 1.97).correction().at_bound for _ in range(60))
    steps.run(60, 1.5)
    assert not steps.correction().at_bound
    assert steps.correction().apply(H100) is not None


def observation(rate_per_s=20.0, cap=128):
    one = ReplicaObservation(
        replica="r", time_s=100.0, num_running=30.0, num_waiting=0.0,
        arrival_rate_per_s=rate_per_s, prompt_tokens=200.0, output_tokens=200.0,
        max_num_active_seqs=cap,
    )  # fmt: skip
    return Observation(now_s=100.0, replicas=(one,), observed_replicas=1, requested_replicas=1)


CONTROL = ControlSettings(slo=SLO(ttft_s=1.0, tpot_s=0.03), bounds=Bounds(max_num_seqs=256))
CAP = frozenset({Knob.MAX_NUM_ACTIVE_SEQS})


def decide(found, **kwargs):
    policy = EnergySlo(model=found.apply(H100), note=found.note)
    return policy.decide(observation(**kwargs), ControlState(), CONTROL, CAP)


def test_at_the_bound_the_policy_goes_to_its_safe_point_and_says_so():
    decision, _ = decide(Steps().run(60, 3.0).correction())
    assert decision.reason is Reason.MODEL_UNTRUSTED
    assert decision.chosen == OperatingPoint(num_replicas=1, max_num_active_seqs=256)
    assert decision.notes[-1] == (
        "model not acted on: live steps are beyond what may be corrected "
        "(step time x2.00, step energy x1.00)"
    )


def test_slower_steps_than_the_profile_says_lower_the_cap_and_the_record_says_why():
    found = Correction(step_time_ratio=1.25, energy_ratio=0.9)
    plain, _ = decide(Correction(), cap=256)
    decision, state = decide(found, cap=256)
    assert decision.proposed.max_num_active_seqs < plain.proposed.max_num_active_seqs
    note = "model corrected by live steps: step time x1.25, step energy x0.90"
    assert note in decision_to_dict(decision)["notes"]
    assert state_from_dict(json.loads(json.dumps(state_to_dict(state)))) == state
    assert state.last_decision == decision


loads = st.builds(
    Load,
    arrival_rate_per_s=st.floats(0.01, 200.0),
    prompt_tokens=st.floats(0.0, 2000.0),
    output_tokens=st.floats(1.0, 1000.0),
)


@given(
    loads,
    st.integers(1, 256),
    st.frozensets(st.sampled_from(Knob)),
    st.sampled_from([Correction(), Correction(step_time_ratio=1.0, energy_ratio=1.0)]),
)
def test_a_correction_by_one_changes_no_bit_of_a_decision(load, cap, free, found):
    seen = observation(rate_per_s=load.arrival_rate_per_s, cap=cap)
    one = replace(
        seen.replicas[0], prompt_tokens=load.prompt_tokens, output_tokens=load.output_tokens
    )
    seen = replace(seen, replicas=(one,))
    settings = replace(CONTROL, bounds=Bounds(max_num_seqs=256, max_replicas=8))
    plain = EnergySlo(model=H100).decide(seen, ControlState(), settings, free)
    corrected = EnergySlo(model=found.apply(H100), note=found.note)
    assert repr(corrected.decide(seen, ControlState(), settings, free)) == repr(plain)


# --- verdicts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("time_ratio", "energy_ratio", "verdict"),
    [
        (1.0, None, Verdict.FITS),
        (1.0, 1.02, Verdict.FITS),
        (1.15, 1.0, Verdict.CORRECTED),
        (1.0, 0.8, Verdict.CORRECTED),
        (1.0, 3.0, Verdict.REFIT_SUGGESTED),
    ],
)
def test_the_verdict_is_the_worse_of_the_two(time_ratio, energy_ratio, verdict):
    steps = Steps().run(100, time_ratio, energy_ratio)
    found = steps.assess()
    assert found.verdict is verdict
    assert f"step time is {steps.state.step_time.ratio:.2f} x the profile's (± " in found.reason
    assert ("step energy is" in found.reason) == (energy_ratio is not None)


def test_a_jump_is_drift_for_a_minute_and_then_corrected():
    steps = Steps().run(100, 1.0).run(12, 1.2)
    assert steps.assess().verdict is Verdict.DRIFTING
    assert "faster than the correction follows" in steps.assess().reason
    steps.run(int(DRIFT_HOLD_S) + 30, 1.2)
    assert steps.assess().verdict is Verdict.CORRECTED


def test_a_large_bias_suggests_a_refit_only_after_its_time_and_a_small_one_never():
    steps = Steps().run(100, 1.4)
    assert steps.assess().verdict is Verdict.CORRECTED
    steps.run(560, 1.4)
    found = steps.assess()
    assert found.verdict is Verdict.REFIT_SUGGESTED
    assert "off by more than 1.25 x for 6" in found.reason and "allowed: 600 s" in found.reason
    assert steps.correction().apply(H100) is not None  # it is still corrected and acted on
    steps.run(200, 1.0)
    assert steps.assess().verdict is Verdict.FITS
    assert Steps().run(1500, 1.2).assess().verdict is Verdict.CORRECTED


def test_a_model_whose_prefill_is_wrong_drifts_whenever_the_mix_changes():
    """Why one factor is enough to be safe: prefill takes twice its time, decode what it should."""
    steps = Steps().run(300, 1.0 + 0.1)  # prompts are a tenth of the modelled time
    assert steps.assess().verdict is Verdict.CORRECTED
    steps.run(30, 1.0 + 0.8)  # now most of it
    assert steps.assess().verdict is Verdict.DRIFTING
    assert steps.correction().step_time_ratio == pytest.approx(1.8, rel=0.05)


# --- the state ----------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.floats(0.0, 1e3), st.floats(0.0, 1e3), st.floats(0.0, 1e9)), max_size=40)
)
def test_every_state_survives_json_exactly(seen):
    state = fresh(H100)
    for measured, modelled, now_s in seen:
        window = Compared(measured=measured, modelled=modelled)
        state = update(state, SETTINGS, now_s, step_time=window, energy=window)
    for one in (state, state.resumed()):
        data = json.loads(json.dumps(one.to_dict()))
        assert CorrectionState.from_dict(data, profile=state.profile) == one


def test_the_state_is_small():
    assert len(json.dumps(Steps().run(100, 1.3, 0.8).state.to_dict())) < 1000


def test_a_resumed_state_corrects_at_once_and_is_not_judged_by_old_clocks():
    steps = Steps().run(700, 1.4, 0.9)
    again = steps.state.resumed()
    assert correction_of(again, SETTINGS) == steps.correction()
    assert assess(again, SETTINGS, 5.0).verdict is Verdict.CORRECTED
    unlike = Steps()
    unlike.state, unlike.now_s = again, 5.0
    assert unlike.run(20, 1.0).correction().step_time_ratio == pytest.approx(1.0, rel=0.05)


def test_a_state_of_another_profile_is_refused():
    state = Steps().run(100, 1.3).state
    other = replace(H100, latency=replace(H100.latency, t0_s=2.0 * H100.latency.t0_s))
    assert fingerprint(other) != fingerprint(H100) == state.profile
    assert fingerprint(FittedModel.from_dict(json.loads(json.dumps(H100.to_dict())))) == (
        state.profile
    )
    with pytest.raises(ConfigError, match=f"profile is {state.profile}; allowed: "):
        CorrectionState.from_dict(state.to_dict(), profile=fingerprint(other))


def changed(**parts):
    return fresh(H100).to_dict() | parts


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (None, "document is None; allowed: a mapping"),
        ([], "allowed: a mapping"),
        ({}, "missing key profile"),
        (changed(schema_version=9), "schema_version is 9; allowed: 1"),
        (changed(more=1), "unknown key more"),
        (changed(step_time=3), "step_time is 3; allowed: a mapping"),
        (changed(energy={"noise_ratio": 0.1, "ratio": "x"}), "energy.ratio is 'x'"),
        (changed(energy={"noise_ratio": 0.1, "ratio": math.nan}), "energy.ratio is nan"),
        (changed(energy={"noise_ratio": 0.1, "ratio": 0.0}), "energy.ratio is 0.0; allowed: "),
        (changed(energy={"noise_ratio": 7.0}), "energy.noise_ratio is 7.0; allowed: 0.01 to 0.5"),
        (changed(energy={"noise_ratio": 0.1, "windows": -1}), "energy.windows is -1"),
    ],
)
def test_nonsense_is_one_line_that_names_the_key(data, line):
    with pytest.raises(ConfigError) as caught:
        CorrectionState.from_dict(data, profile=fingerprint(H100), source="kept")
    assert str(caught.value).startswith("kept: ")
    assert line in str(caught.value) and "\n" not in str(caught.value)


# --- the fleet ----------------------------------------------------------------------------------


def corrections(*ratios, at_bound=()):
    return [
        Correction(step_time_ratio=ratio, at_bound=index in at_bound)
        for index, ratio in enumerate(ratios)
    ]


def test_a_replica_far_from_the_others_does_not_drag_the_fleet():
    found = fleet_correction(corrections(1.10, 1.12, 2.0, at_bound=(2,)), SETTINGS)
    assert found == Correction(step_time_ratio=1.12)
    assert fleet_correction(corrections(1.1, 1.2), SETTINGS).step_time_ratio == pytest.approx(
        math.sqrt(1.1 * 1.2)
    )


def test_a_replica_that_knows_nothing_yet_has_no_say():
    known = Correction(step_time_ratio=1.3, energy_ratio=0.9)
    assert fleet_correction([Correction(), known, Correction()], SETTINGS) == known
    assert fleet_correction([Correction(), Correction(at_bound=True)], SETTINGS) == Correction()
    beyond = Correction(step_time_ratio=2.0, at_bound=True)
    assert fleet_correction([Correction(), beyond, Correction()], SETTINGS) == beyond
    assert fleet_correction([], SETTINGS) == Correction()


def test_a_fleet_is_at_the_bound_when_most_of_it_is():
    assert fleet_correction(corrections(2.0, 2.0, 1.0, at_bound=(0, 1)), SETTINGS).at_bound
    assert not fleet_correction(corrections(2.0, 1.0, at_bound=(0,)), SETTINGS).at_bound
    assert fleet_correction(corrections(2.0, at_bound=(0,)), SETTINGS).at_bound


@given(st.lists(st.one_of(st.none(), st.floats()), max_size=7), st.floats(1.01, 10.0))
def test_whatever_replicas_report_the_fleet_stays_inside_the_bound(ratios, max_ratio):
    found = fleet_correction(corrections(*ratios), CorrectionSettings(max_ratio=max_ratio))
    ratio = found.step_time_ratio
    assert ratio is None or 1.0 / max_ratio * (1 - 1e-12) <= ratio <= max_ratio * (1 + 1e-12)


@given(st.lists(st.floats(0.6, 1.9), min_size=3, max_size=9), st.floats(0.01, 100.0))
def test_one_replica_moves_the_fleet_no_further_than_to_its_next(ratios, far):
    rest = sorted(ratios)
    found = fleet_correction(corrections(*ratios, far), SETTINGS).step_time_ratio
    middle = len(rest) // 2
    low, high = rest[max(middle - 1, 0)], rest[min(middle + 1, len(rest) - 1)]
    assert low * (1 - 1e-12) <= found <= high * (1 + 1e-12)
