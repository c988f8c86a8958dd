"""Who is compared with: the baselines are as good as a search on excerpts and the whole can make them.

The loads here are planted: what a setting comes to is a formula, on the excerpts and on the whole.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from serve_app.results.contest import screened_target, tuned_limit, tuned_ray, tuned_static
from serve_app.results.tuning import Outcome, Tuned
from serve_app.simulator.specs import parse_spec

TARGET = 0.99


class PlantedLab:
    """A day that needs `day` replicas and excerpts of its busy hours that need `busy`. A Ray rule
    with a target of at most 9 scales; it saves in the valleys, which only the whole day holds."""

    def __init__(self, day, busy, estimate):
        self.day, self.busy, self.estimate = day, busy, estimate
        self.full = []

    def peak_replicas(self, bench):
        return self.estimate

    def excerpts(self, bench, spec):
        return self._outcome(spec, self.busy, valleys=False)

    def outcome(self, bench, spec):
        self.full.append(spec.text)
        return self._outcome(spec, self.day, valleys=True)

    def _outcome(self, spec, needed, *, valleys):
        if spec.name == "static_peak":
            count = spec.options["num_replicas"]
            return Outcome(
                joules_per_request=100.0 + count, attained=0.99 + 0.002 * (count - needed)
            )
        floor = spec.fleet.get("min_replicas", 1)
        scales = spec.options["target_ongoing_requests"] <= 9
        if not scales:
            return Outcome(
                joules_per_request=100.5 + floor, attained=0.99 + 0.002 * (floor - needed)
            )
        saved = 0.5 * (self.day - floor) if valleys else -5.0
        return Outcome(
            joules_per_request=100.0 + self.day - saved, attained=0.995 if floor >= 5 else 0.9
        )


def bench(excerpts=((0.0, 1.0),)):
    return SimpleNamespace(cell=SimpleNamespace(excerpts=excerpts), target=TARGET)


@pytest.mark.parametrize(("day", "busy"), [(13, 15), (30, 28), (9, 9), (1, 1)])
def test_a_static_fleet_is_the_smallest_that_attains_on_the_whole(day, busy):
    found = tuned_static(PlantedLab(day, busy, estimate=20), bench())
    assert found.spec.options["num_replicas"] == day
    assert found.attains


def test_where_no_static_fleet_attains_the_largest_is_said_to_miss():
    found = tuned_static(PlantedLab(50, 50, estimate=4), bench())
    assert found.spec.options["num_replicas"] == 12
    assert not found.attains


def test_harder_excerpts_ask_for_what_the_static_fleet_does_there():
    lab = PlantedLab(13, 15, estimate=20)
    static = tuned_static(lab, bench())
    assert screened_target(lab, bench(), static) == pytest.approx(0.986)
    easier = PlantedLab(15, 13, estimate=20)
    assert screened_target(easier, bench(), tuned_static(easier, bench())) == TARGET
    assert screened_target(lab, bench(excerpts=()), static) == TARGET


def test_a_rule_that_saves_where_the_excerpts_do_not_look_is_found():
    lab = PlantedLab(13, 15, estimate=20)
    ray = tuned_ray(lab, bench(), tuned_static(lab, bench()))
    assert ray.attains
    assert ray.spec.options["target_ongoing_requests"] <= 9
    assert 5 <= ray.spec.fleet["min_replicas"] < 13
    assert ray.outcome.joules_per_request < 113.0  # the static fleet's


class LimitLab:
    """Fixed fleets under limits: the excerpts are content with 10 replicas, the whole is with 12
    under 400 W and with 11 at full power; 300 W never does."""

    def excerpts(self, bench, spec):
        return self._outcome(spec, 10)

    def outcome(self, bench, spec):
        watts = spec.options["power_limit_watts"]
        return self._outcome(spec, {300.0: 99, 400.0: 12, 700.0: 11}[watts])

    def _outcome(self, spec, needed):
        watts = spec.options["power_limit_watts"]
        count = spec.fleet.get("min_replicas", 1)
        attained = 0.99 + 0.002 * (count - needed)
        if watts == 300.0:
            attained = 0.9
        if spec.options["inner.target_ongoing_requests"] < 1e5:  # a rule that scales: never enough
            attained = 0.95
        return Outcome(joules_per_request=count * (60.0 + watts / 10.0), attained=attained)


def test_a_limit_is_found_though_the_excerpts_choose_too_few_replicas():
    fixed = parse_spec("static_peak:num_replicas=11")
    ray = parse_spec("ray_default:target_ongoing_requests=100000").changed(min_replicas=11)
    tuned = [
        Tuned(spec=one, outcome=Outcome(joules_per_request=1430.0, attained=0.99), attains=True,
              tried=1, verified=1)
        for one in (fixed, ray)
    ]  # fmt: skip
    scenario = SimpleNamespace(power_limits_watts=(300.0, 400.0, 700.0))
    cell = SimpleNamespace(excerpts=(), scenario=lambda *_: scenario)
    here = SimpleNamespace(cell=cell, target=TARGET, response="profile", variation=None)
    found = tuned_limit(LimitLab(), here, *tuned)
    assert found.attains
    assert found.spec.options["power_limit_watts"] == 400.0
    assert found.spec.fleet["min_replicas"] == 12
    assert found.outcome.joules_per_request < 1430.0
    cheap = replace(tuned[1], outcome=Outcome(joules_per_request=1100.0, attained=0.99))
    without = tuned_limit(LimitLab(), here, tuned[0], cheap)
    assert (without.spec, without.outcome, without.attains) == (ray, cheap.outcome, True)
