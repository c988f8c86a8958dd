"""What a fleet learns of its own steps, and that a wrong profile is no harm then."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from planted import CONTROL, MODEL

from policies.energy_slo import EnergySlo
from policies.model.online import Correction
from policies.sim.arrivals import Lengths, poisson
from policies.sim.beliefs import Correctable
from policies.sim.fleet import simulate
from policies.sim.outcome import SimSettings
from policies.static import Static

pytestmark = pytest.mark.slow  # compiling takes half a minute where it is done anew
TRACE = list(poisson(20.0, 240.0, Lengths.constant(300, 150), seed=1))


@dataclass(frozen=True)
class Noting:
    """A static fleet that believes `believed` and notes with what corrections it was asked."""

    believed: object
    correction: Correction = field(default_factory=Correction)
    asked: list = field(default_factory=list)
    name = "noting"

    def corrected(self, correction):
        return replace(self, correction=correction)

    def decide(self, observation, state, settings, free):
        fleet = len(observation.replicas) > 1
        self.asked.append((observation.now_s, fleet, self.correction.step_time_ratio))
        return Static(num_replicas=2).decide(observation, state, settings, free)


def ask(believed, **changes):
    policy = Noting(believed)
    settings = SimSettings(control=CONTROL, initial_replicas=2, **changes)
    simulate(TRACE, MODEL, policy, settings)
    return policy.asked


@pytest.mark.parametrize("ratio", [0.75, 1.3])
def test_every_replica_and_the_fleet_learn_how_far_the_steps_are_off(ratio):
    asked = ask(MODEL.corrected(step_time_ratio=ratio), jitter=0.05)
    first = [found for now_s, _, found in asked if now_s <= 2.0]
    assert set(first) == {None}
    late = {fleet: found for now_s, fleet, found in asked if now_s < 230.0}
    for fleet in (False, True):
        assert late[fleet] == pytest.approx(1.0 / ratio, rel=0.02)


def test_a_late_report_brings_a_late_correction():
    wrong = MODEL.corrected(step_time_ratio=1.3)
    begun = [
        min(now_s for now_s, fleet, found in ask(wrong, report_delay_s=delay_s) if fleet and found)
        for delay_s in (0.0, 20.0)
    ]
    assert begun[1] == pytest.approx(begun[0] + 20.0, abs=1.0)


def test_the_truth_needs_no_correction():
    assert {found for _, _, found in ask(MODEL)} == {None}
    assert isinstance(EnergySlo(model=MODEL), Correctable)
    assert not isinstance(Static(num_replicas=1), Correctable)


@pytest.mark.parametrize("ratio", [0.75, 1.3])
def test_a_wrong_profile_costs_little(ratio):
    def play(model):
        settings = SimSettings(control=CONTROL, initial_replicas=2, cold_start_s=30.0)
        return simulate(TRACE, MODEL, EnergySlo(model=model), settings)

    right, wrong = play(MODEL), play(MODEL.corrected(step_time_ratio=ratio))
    assert wrong.attainment_ratio >= 0.985
    assert wrong.joules <= 1.1 * right.joules
