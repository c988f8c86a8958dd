"""Settings in hindsight: the cheapest that attains on the whole trace is found."""

import math

import pytest

from serve_app.results.tuning import Outcome, axis, candidates, moved, scaled, tune, verified
from serve_app.simulator.specs import PolicySpec, parse_spec

TARGET = 0.99


def outcome(joules, attained=1.0):
    return Outcome(joules_per_request=joules, attained=attained)


def test_attaining_goes_before_cheap_and_attaining_more_before_less():
    ranked = [
        outcome(5.0),
        outcome(9.0),
        outcome(1.0, 0.98),
        outcome(0.5, 0.9),
        outcome(math.inf, 0.0),
    ]
    mixed = [ranked[place] for place in (3, 1, 4, 0, 2)]
    assert sorted(mixed, key=lambda one: one.rank(TARGET)) == ranked


def bowl(spec):
    """Cheapest at target 12 with floor 3; a target above 20 or a floor below 3 misses."""
    target = spec.options["target"]
    floor = spec.fleet.get("min_replicas", 1)
    joules = 100.0 + (target - 12.0) ** 2 + 5.0 * (floor - 3) ** 2
    held = target <= 20 and floor >= 3
    return outcome(joules, 0.995 if held else 0.9)


def test_the_search_finds_the_bottom_of_a_bowl():
    starts = [PolicySpec(name="p", options={"target": value}) for value in (2.0, 10.0, 30.0)]
    axes = [
        axis("min_replicas", (2, 3, 4)),
        scaled("target", (0.8, 1.2, 1.5), 1.0),
        moved("min_replicas", (-1, 1), 1),
    ]
    found = tune(starts, axes, bowl, bowl, TARGET)
    assert found.attains
    assert found.spec.options == {"target": 12.0}
    assert found.spec.fleet == {"min_replicas": 3}
    assert found.outcome.joules_per_request == 100.0


def test_what_only_attains_on_the_excerpts_is_not_taken():
    specs = [PolicySpec(name="p", options={"x": value}) for value in range(6)]

    def screen(spec):
        return outcome(10.0 + spec.options["x"], 0.995)

    def whole(spec):
        return outcome(20.0 + spec.options["x"], 0.97 if spec.options["x"] < 2 else 0.992)

    found = tune(specs, [], screen, whole, TARGET)
    assert (found.spec.options["x"], found.attains, found.tried) == (2, True, 6)
    assert found.verified == 4  # two that miss, the one that attains, and one more


def test_the_order_of_the_excerpts_may_be_wrong_by_one():
    specs = [PolicySpec(name="p", options={"x": value}) for value in (0, 1, 2)]
    tried = [(spec, outcome(10.0 + spec.options["x"])) for spec in specs]
    joules = {0: 50.0, 1: 40.0, 2: 30.0}
    found = verified(tried, lambda spec: outcome(joules[spec.options["x"]]), TARGET)
    assert found.spec.options["x"] == 1
    always = verified(tried, lambda spec: outcome(joules[spec.options["x"]]), TARGET, [specs[2]])
    assert always.spec.options["x"] == 2


def test_where_nothing_attains_the_one_that_attains_most_is_said_to_miss():
    specs = [PolicySpec(name="p", options={"x": value}) for value in range(4)]
    found = tune(
        specs,
        [],
        lambda spec: outcome(1.0, 0.5),
        lambda s: outcome(1.0, 0.5 + s.options["x"] / 100),
        TARGET,
    )
    assert not found.attains
    assert found.outcome.attained == max(0.5 + spec.options["x"] / 100 for spec in specs[:3])


def test_candidates_end_with_the_safest():
    tried = [(PolicySpec(name=str(k)), outcome(10.0 - k, 0.98 - k / 100)) for k in range(5)]
    assert [spec.name for spec in candidates(tried, TARGET)] == ["0", "1", "2"]


@pytest.mark.parametrize("text", ["ray_default:target_ongoing_requests=4"])
def test_axes_keep_the_rest(text):
    spec = parse_spec(text)
    assert [one.text for one in scaled("target_ongoing_requests", (0.5, 2.0), 2.0)(spec)] == [
        "ray_default:target_ongoing_requests=2",
        "ray_default:target_ongoing_requests=8",
    ]
    assert [one.fleet["min_replicas"] for one in moved("min_replicas", (-3, 2), 1)(spec)] == [1, 3]
    assert axis("router", ("two",))(spec)[0].router_name == "two"
