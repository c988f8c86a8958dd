"""A grid says of every point what `predict` says of it."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_models import H100, LIMITS, boxes, loads, models, slos

from policies.core.errors import NotFitted, OutOfRange
from policies.core.objective import Candidates
from policies.core.types import SLO, Load, OperatingPoint, Prediction
from policies.model.grid import evaluate

CHAT = Load(arrival_rate_per_s=10.0, prompt_tokens=200.0, output_tokens=200.0)
SLO_CHAT = SLO(ttft_s=1.0, tpot_s=0.03)
BOX = Candidates(replicas=(1, 3), caps=(1, 64), limits=LIMITS)
NUMBERS = [field.name for field in fields(Prediction) if field.name != "binding"]


def points(box):
    for i, limit in enumerate(box.limits):
        for j, replicas in enumerate(range(box.replicas[0], box.replicas[1] + 1)):
            for k, cap in enumerate(range(box.caps[0], box.caps[1] + 1)):
                yield (
                    (i, j, k),
                    OperatingPoint(
                        num_replicas=replicas, max_num_active_seqs=cap, power_limit_watts=limit
                    ),
                )


@given(models, loads, slos, boxes)
def test_every_point_of_a_grid_is_what_predict_says(model, load, slo, box):
    grid = evaluate(model, load, slo, box)
    shape = (len(box.limits), box.replicas[1] - box.replicas[0] + 1, box.caps[1] - box.caps[0] + 1)
    assert grid.feasible.shape == shape
    for place, point in points(box):
        seen, choice = model.predict(point, load, slo), grid.choice(place)
        assert choice.point == point
        assert choice.prediction.binding is seen.binding
        for name in NUMBERS:
            expected = pytest.approx(getattr(seen, name), rel=1e-9, abs=1e-12)
            assert getattr(choice.prediction, name) == expected
        full = model.full_batch_tpot_s(point, load, slo)
        assert grid.values.full_batch_tpot_s[place] == pytest.approx(full, rel=1e-9)


@given(models, loads, slos, boxes)
def test_the_pick_of_a_grid_is_that_of_trying_all_points_one_by_one(model, load, slo, box):
    grid = evaluate(model, load, slo, box)
    picked = grid.cheapest(grid.feasible)
    found = (model.predict(point, load, slo) for _, point in points(box))
    joules = min((one.joules_per_request for one in found if one.feasible), default=None)
    if joules is None:
        assert picked is None
    else:
        assert picked.feasible
        assert picked.prediction.joules_per_request == pytest.approx(joules, rel=1e-9, abs=1e-12)


@given(models, loads, slos, boxes, st.floats(0.2, 1.0), st.floats(0.2, 1.0))
def test_a_tighter_slo_never_costs_less(model, load, slo, box, ttft, tpot):
    tight = replace(slo, ttft_s=slo.ttft_s * ttft, tpot_s=slo.tpot_s * tpot)
    grid = evaluate(model, load, slo, box)
    cheap, dear = (one.cheapest(one.feasible) for one in (grid, grid.at_targets(tight)))
    if dear is not None:
        least = cheap.prediction.joules_per_request
        assert least <= dear.prediction.joules_per_request * (1 + 1e-9)


@given(models, loads, slos, boxes, st.sampled_from([0.6, 0.9, 0.99]))
def test_a_higher_percentile_never_costs_less(model, load, slo, box, percentile):
    looser = replace(slo, percentile=min(percentile, slo.percentile))
    cheap, dear = (evaluate(model, load, one, box) for one in (looser, slo))
    assert not (dear.feasible & ~cheap.feasible).any()


@given(models, loads, slos, boxes, st.floats(1.0, 5.0))
def test_more_load_never_needs_fewer_joules_per_second(model, load, slo, box, factor):
    more = replace(load, arrival_rate_per_s=load.arrival_rate_per_s * factor)
    light, heavy = (evaluate(model, one, slo, box) for one in (load, more))
    less, much = (one.cheapest(one.feasible) for one in (light, heavy))
    if much is not None:
        assert less is not None
        assert less.prediction.draw_watts <= much.prediction.draw_watts * (1 + 1e-9)


@given(models, loads, slos, boxes, st.floats(0.1, 5.0))
def test_other_targets_judge_the_same_points(model, load, slo, box, factor):
    other = replace(slo, ttft_s=slo.ttft_s * factor, tpot_s=slo.tpot_s * factor)
    moved = evaluate(model, load, slo, box).at_targets(other)
    assert (moved.binding == evaluate(model, load, other, box).binding).all()


def test_of_equal_points_the_fewest_replicas_then_the_largest_cap_then_the_first_limit():
    """A device that always draws 100 W costs the same whatever the cap and the limit."""
    power = replace(
        H100.power, idle_watts=100.0, e0_joules_per_step=0.0, e1_joules_per_seq=0.0,
        e3_joules_per_prefill_token=0.0,
    )  # fmt: skip
    grid = evaluate(replace(H100, power=power), CHAT, SLO_CHAT, BOX)
    assert grid.cheapest(grid.feasible).point == OperatingPoint(
        num_replicas=1, max_num_active_seqs=64, power_limit_watts=None
    )


def test_what_the_model_cannot_answer_is_left_out_and_named():
    blind = replace(H100, power=replace(H100.power, cap_response=None))
    grid = evaluate(blind, CHAT, SLO_CHAT, replace(BOX, caps=(300, 400)))
    assert grid.limits == (None, 700.0)
    assert grid.caps[-1] == 307
    assert [line.split(";")[0] for line in grid.refused] == [
        "max_num_active_seqs 308 to 400",
        "power limit 500.0 W",
        "power limit 400.0 W",
        "power limit 300.0 W",
    ]
    low = evaluate(H100, CHAT, SLO_CHAT, replace(BOX, limits=(300.0, 90.0)))
    assert low.limits == (300.0,)
    with pytest.raises(OutOfRange, match="90"):
        evaluate(H100, CHAT, SLO_CHAT, replace(BOX, limits=(90.0,)))


@pytest.mark.parametrize(
    ("load", "box"),
    [
        (replace(CHAT, arrival_rate_per_s=0.0), BOX),
        (replace(CHAT, arrival_rate_per_s=math.nan), BOX),
        (replace(CHAT, prompt_tokens=9000.0), BOX),
        (CHAT, replace(BOX, replicas=(0, 3))),
        (CHAT, replace(BOX, caps=(308, 310))),
    ],
)
def test_a_question_that_predict_refuses_is_refused_as_a_whole(load, box):
    with pytest.raises(OutOfRange, match="fitted"):
        evaluate(H100, load, SLO_CHAT, box)


def test_an_untrusted_model_has_no_grid_and_a_grid_no_other_percentile():
    bad = replace(H100, residuals=replace(H100.residuals, energy_median_ratio=0.9))
    with pytest.raises(NotFitted, match="residuals"):
        evaluate(bad, CHAT, SLO_CHAT, BOX)
    with pytest.raises(OutOfRange, match="percentile"):
        evaluate(H100, CHAT, SLO_CHAT, BOX).at_targets(replace(SLO_CHAT, percentile=0.9))


def test_an_empty_choice_is_none():
    grid = evaluate(H100, CHAT, replace(SLO_CHAT, ttft_s=1e-6), BOX)
    assert grid.cheapest(grid.feasible) is None
    assert not np.isnan(grid.values.joules_per_request).any()
