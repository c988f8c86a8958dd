"""Who is compared with: the baselines are as good as a search on excerpts and the whole can make them.

The loads here are planted: what a setting comes to is a formula, on the excerpts and on the whole.
"""

from types import SimpleNamespace

import pytest

from serve_app.results.contest import screened_target, tuned_ray, tuned_static
from serve_app.results.tuning import Outcome

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
