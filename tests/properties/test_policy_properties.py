"""What must hold for every load, SLO, model and state, not only for the examples we thought of."""

import json
import math
import pickle
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from policies.core.control import decision_to_dict, state_from_dict, state_to_dict, tick
from policies.core.errors import ModelError
from policies.core.guard import GuardContext, cap_step, guard, safe_point
from policies.core.objective import (
    Question,
    at_limit,
    candidates,
    cheapest_feasible,
    cheapest_of,
)
from policies.core.types import (
    SLO,
    Bounds,
    ControlSettings,
    ControlState,
    Knob,
    Load,
    Mode,
    Observation,
    OperatingPoint,
    Reason,
    ReplicaObservation,
)
from policies.model.fitted import FittedModel
from policies.model.latency import LatencyModel
from policies.model.power import CapResponse, PowerModel

DATA = json.loads((Path(__file__).parents[1] / "data" / "h100_llama8b.json").read_text())
H100 = FittedModel.from_dict(DATA)
ALL = frozenset(Knob)
LIMITS = (300.0, 400.0, 500.0, 700.0)

any_float = st.floats(allow_nan=True, allow_infinity=True)
small = st.floats(0.0, 1e-3)
loads = st.builds(
    Load,
    arrival_rate_per_s=st.floats(0.01, 200.0),
    prompt_tokens=st.floats(0.0, 2000.0),
    output_tokens=st.floats(1.0, 1000.0),
)
slos = st.builds(
    SLO,
    ttft_s=st.floats(0.05, 5.0),
    tpot_s=st.floats(0.009, 0.2),
    percentile=st.sampled_from([0.5, 0.9, 0.95, 0.99]),
)
models = st.builds(
    replace,
    st.just(H100),
    latency=st.builds(
        LatencyModel,
        t0_s=st.floats(1e-4, 0.1),
        a_s_per_seq=small,
        b_s_per_kv_token=st.floats(0.0, 1e-6),
        c_s_per_prefill_token=st.floats(0.0, 1e-3),
    ),
    power=st.builds(
        PowerModel,
        idle_watts=st.floats(0.0, 300.0),
        e0_joules_per_step=st.floats(0.0, 20.0),
        e1_joules_per_seq=st.floats(0.0, 1.0),
        e2_joules_per_kv_token=st.floats(0.0, 1e-4),
        e3_joules_per_prefill_token=st.floats(0.0, 1.0),
        natural_draw_watts=st.one_of(st.none(), st.floats(300.0, 800.0)),
        cap_response=st.just(CapResponse(c0_watts=94.0, ck_watts=432.0, n=4.0, s_max=1.017)),
    ),
)
points = st.builds(
    OperatingPoint,
    num_replicas=st.integers(1, 16),
    max_num_active_seqs=st.integers(1, 256),
    power_limit_watts=st.one_of(st.none(), st.sampled_from(LIMITS)),
)
wild_points = st.builds(
    OperatingPoint,
    num_replicas=st.one_of(st.integers(-5, 500), any_float),
    max_num_active_seqs=st.one_of(st.integers(-5, 5000), any_float),
    power_limit_watts=st.one_of(st.none(), any_float),
)
all_bounds = st.builds(
    lambda low, more, caps, limits: Bounds(
        min_replicas=low,
        max_replicas=low + more,
        min_active_seqs=min(caps),
        max_num_seqs=max(caps),
        power_limits_watts=limits,
    ),
    st.integers(0, 4),
    st.integers(0, 12),
    st.tuples(st.integers(1, 256), st.integers(1, 256)),
    st.sampled_from([(), (400.0,), LIMITS]),
)
times = st.one_of(st.none(), st.floats(-100.0, 200.0), any_float)
states = st.builds(
    ControlState, last_move_up_s=times, last_move_down_s=times, last_cap_move_s=times,
    last_relief_s=times, last_relief_rate_per_s=times,
)  # fmt: skip
frees = st.frozensets(st.sampled_from(Knob))


def settings_of(bounds, slo=None, **kwargs):
    return ControlSettings(slo=slo or SLO(ttft_s=1.0, tpot_s=0.03), bounds=bounds, **kwargs)


def fleet(now, point, load, **kwargs):
    """An observation of `point` under an even share of `load`."""
    one = ReplicaObservation(
        replica="r", time_s=now, num_running=1.0, num_waiting=0.0,
        arrival_rate_per_s=load.arrival_rate_per_s / max(point.num_replicas, 1),
        prompt_tokens=load.prompt_tokens, output_tokens=load.output_tokens,
        max_num_active_seqs=point.max_num_active_seqs, power_limit_watts=point.power_limit_watts,
    )  # fmt: skip
    one = replace(one, **kwargs)
    return Observation(
        now_s=now,
        replicas=tuple(replace(one, replica=str(i)) for i in range(point.num_replicas)),
        observed_replicas=point.num_replicas,
        requested_replicas=point.num_replicas,
    )


# --- the model ----------------------------------------------------------------------------------


@given(models, points, loads, slos)
def test_predictions_are_finite_and_not_negative(model, point, load, slo):
    seen = model.predict(point, load, slo)
    for name in ("ttft_s", "tpot_s", "draw_watts", "joules_per_request", "utilization_ratio"):
        assert math.isfinite(getattr(seen, name))
        assert getattr(seen, name) >= 0.0
    assert model.full_batch_tpot_s(point, load, slo) > 0.0


@given(models, points, loads, slos, st.floats(1.0, 3.0))
def test_more_load_never_draws_less_and_is_never_faster(model, point, load, slo, factor):
    more = replace(load, arrival_rate_per_s=load.arrival_rate_per_s * factor)
    light, heavy = model.predict(point, load, slo), model.predict(point, more, slo)
    assert heavy.draw_watts >= light.draw_watts * (1 - 1e-9)
    assert heavy.tpot_s >= light.tpot_s * (1 - 1e-9)
    assert heavy.ttft_s >= light.ttft_s * (1 - 1e-9)
    assert heavy.utilization_ratio >= light.utilization_ratio


@given(models, points, loads, slos, st.integers(1, 256))
def test_a_smaller_cap_never_has_a_larger_tpot_nor_more_capacity(model, point, load, slo, cap):
    assume(cap < point.max_num_active_seqs)
    smaller = replace(point, max_num_active_seqs=cap)
    for measure in (
        lambda at: model.predict(at, load, slo).tpot_s,
        lambda at: model.full_batch_tpot_s(at, load, slo),
        lambda at: model.capacity_per_s(at, load),
    ):
        assert measure(smaller) <= measure(point) * (1 + 1e-9)


@given(models, points, loads, slos)
def test_a_lower_limit_never_draws_more_and_is_never_faster(model, point, load, slo):
    seen = [
        model.predict(replace(point, power_limit_watts=limit), load, slo)
        for limit in (*LIMITS, None)
    ]
    for lower, higher in pairwise(seen):
        assert lower.tpot_s >= higher.tpot_s * (1 - 1e-9)
        assert lower.ttft_s >= higher.ttft_s * (1 - 1e-9)


@given(models)
def test_a_model_survives_json_and_pickle(model):
    assert FittedModel.from_dict(json.loads(json.dumps(model.to_dict()))) == model
    assert pickle.loads(pickle.dumps(model)) == model


# --- the objective ------------------------------------------------------------------------------


def exhaustive(model, load, slo, box):
    """Every replica count and limit, and for each the largest cap that holds, by trying them all."""
    found = []
    for limit in box.limits:
        for replicas in range(box.replicas[0], box.replicas[1] + 1):
            best = box.caps[0]
            for cap in range(box.caps[0], box.caps[1] + 1):
                point = OperatingPoint(
                    num_replicas=replicas, max_num_active_seqs=cap, power_limit_watts=limit
                )
                if model.full_batch_tpot_s(point, load, slo) <= slo.tpot_s:
                    best = cap
            one = at_limit(
                Question(model=model, load=load, slo=slo),
                replace(box, caps=(best, best)),
                replicas,
                limit,
            )
            if one.feasible:
                found.append(one)
    return cheapest_of(found)


BOX = candidates(
    OperatingPoint(num_replicas=1, max_num_active_seqs=48),
    Bounds(max_replicas=6, max_num_seqs=48, power_limits_watts=(300.0, 450.0, 600.0)),
    ALL,
)


@given(loads, slos)
def test_search_equals_trying_everything_on_the_h100(load, slo):
    load = replace(load, arrival_rate_per_s=load.arrival_rate_per_s / 4)
    best = exhaustive(H100, load, slo, BOX)
    choice = cheapest_feasible(H100, load, slo, BOX)
    assert choice.feasible == (best is not None)
    if best is not None:
        assert choice == best


@given(models, loads, slos)
def test_search_is_as_good_as_trying_everything_on_any_model(model, load, slo):
    load = replace(load, arrival_rate_per_s=load.arrival_rate_per_s / 4)
    best = exhaustive(model, load, slo, BOX)
    choice = cheapest_feasible(model, load, slo, BOX)
    assert choice.feasible == (best is not None)
    if best is not None:
        limit = best.prediction.joules_per_request * 1.0051
        assert choice.prediction.joules_per_request <= limit


@given(loads, slos, st.floats(1.0, 2.0))
def test_more_load_never_asks_for_fewer_replicas(load, slo, factor):
    box = replace(BOX, replicas=(1, 64), caps=(1, 256), limits=(None,))
    more = replace(load, arrival_rate_per_s=load.arrival_rate_per_s * factor)
    few, many = (cheapest_feasible(H100, one, slo, box) for one in (load, more))
    assume(many.feasible)
    assert many.point.num_replicas >= few.point.num_replicas


@given(loads, slos, st.floats(0.3, 1.0), st.floats(0.3, 1.0))
def test_a_stricter_slo_is_never_cheaper(load, slo, ttft, tpot):
    box = replace(BOX, replicas=(1, 64), caps=(1, 256))
    strict = replace(slo, ttft_s=slo.ttft_s * ttft, tpot_s=slo.tpot_s * tpot)
    dear, cheap = (cheapest_feasible(H100, load, one, box) for one in (strict, slo))
    assume(dear.feasible)
    assert cheap.feasible
    assert cheap.prediction.joules_per_request <= dear.prediction.joules_per_request * 1.0051


@given(loads, slos)
def test_an_unattainable_target_does_not_ask_for_every_replica(load, slo):
    """No number of replicas can meet a TPOT below one step of a lone request."""
    box = replace(BOX, replicas=(1, 64), caps=(1, 256), limits=(None,))
    impossible = replace(slo, tpot_s=0.005)
    twice = replace(slo, tpot_s=2 * H100.latency.step_time_s(1, 0, 0) * 1.01)
    reachable = cheapest_feasible(H100, load, twice, box)
    assume(reachable.feasible)
    assume(reachable.point.num_replicas < 60)
    choice = cheapest_feasible(H100, load, impossible, box)
    assert not choice.feasible
    assert choice.point.num_replicas <= reachable.point.num_replicas + 2


# --- the guard ----------------------------------------------------------------------------------


def inside(point, bounds):
    limit, limits = point.power_limit_watts, bounds.power_limits_watts
    assert bounds.min_replicas <= point.num_replicas <= bounds.max_replicas
    assert bounds.min_active_seqs <= point.max_num_active_seqs <= bounds.max_num_seqs
    assert limit is None or not limits or limits[0] <= limit <= limits[-1]


@given(wild_points, points, all_bounds, states, any_float, st.booleans(), st.booleans())
def test_guard_stays_inside_moves_one_step_and_is_idempotent(
    wanted, present, bounds, state, now, urgent, exempt
):
    context = GuardContext(
        now_s=now, settings=settings_of(bounds), free=ALL, state=state, urgent=urgent, exempt=exempt
    )
    once = guard(wanted, present, context).point
    inside(once, bounds)
    assert guard(once, present, context).point == once
    if not exempt:
        start = min(max(present.max_num_active_seqs, bounds.min_active_seqs), bounds.max_num_seqs)
        assert abs(once.max_num_active_seqs - start) <= cap_step(context.settings)
        begin = min(max(present.num_replicas, bounds.min_replicas), bounds.max_replicas)
        assert once.num_replicas >= begin // 2
        if urgent:
            assert once.num_replicas >= begin


@given(wild_points, points, all_bounds, states, frees)
def test_guard_never_moves_a_knob_that_is_not_free(wanted, present, bounds, state, free):
    context = GuardContext(now_s=1e6, settings=settings_of(bounds), free=free, state=state)
    moved = guard(wanted, present, context).point
    if Knob.NUM_REPLICAS not in free:
        assert moved.num_replicas == present.num_replicas
    if Knob.MAX_NUM_ACTIVE_SEQS not in free:
        assert moved.max_num_active_seqs == present.max_num_active_seqs
    if Knob.POWER_LIMIT not in free or not bounds.power_limits_watts:
        assert moved.power_limit_watts == present.power_limit_watts


@given(points, all_bounds)
def test_the_safe_point_never_scales_down(present, bounds):
    safe = safe_point(present, bounds)
    assert safe.num_replicas >= present.num_replicas
    assert safe.power_limit_watts is None
    assert safe.max_num_active_seqs == bounds.max_num_seqs


# --- the tick -----------------------------------------------------------------------------------

wild_reports = st.builds(
    ReplicaObservation,
    replica=st.text(max_size=3),
    time_s=st.one_of(st.floats(95.0, 105.0), any_float),
    num_running=any_float,
    num_waiting=any_float,
    arrival_rate_per_s=st.one_of(st.floats(0.0, 50.0), any_float),
    prompt_tokens=st.one_of(st.none(), st.floats(0.0, 2000.0), any_float),
    output_tokens=st.one_of(st.none(), st.floats(0.0, 500.0), any_float),
    ttft_s=st.one_of(st.none(), any_float),
    tpot_s=st.one_of(st.none(), any_float),
    draw_watts=st.one_of(st.none(), any_float),
    max_num_active_seqs=st.one_of(st.none(), st.integers(-3, 300)),
    power_limit_watts=st.one_of(st.none(), any_float),
)
wild_observations = st.builds(
    Observation,
    now_s=st.one_of(st.just(100.0), any_float),
    replicas=st.lists(wild_reports, max_size=4).map(tuple),
    observed_replicas=st.integers(-1, 5),
    requested_replicas=st.integers(-1, 20),
)


@given(
    wild_observations, states, all_bounds, st.sampled_from(Mode), frees,
    st.one_of(st.none(), st.just(H100)),
)  # fmt: skip
def test_tick_never_fails_is_pure_and_respects_free_and_mode(
    observation, state, bounds, mode, free, model
):
    settings = settings_of(bounds, mode=mode)
    decision, after = tick(observation, state, settings, model, free)
    assert decision.reason is not Reason.ERROR, decision.notes
    again, after_again = tick(observation, state, settings, model, free)
    assert repr(again) == repr(decision)  # repr: NaN is not equal to itself
    assert repr(after_again) == repr(after)
    json.dumps(decision_to_dict(decision), allow_nan=False)
    assert repr(state_from_dict(json.loads(json.dumps(state_to_dict(after))))) == repr(after)
    old, new = decision.present, decision.chosen
    if mode is not Mode.ACTIVE:
        assert new == old
        assert repr(replace(after, last_decision=None)) == repr(state)
        return
    if Knob.NUM_REPLICAS in free:
        assert bounds.min_replicas <= new.num_replicas <= bounds.max_replicas
    else:
        assert new.num_replicas == old.num_replicas
    if Knob.MAX_NUM_ACTIVE_SEQS not in free:
        assert new.max_num_active_seqs == old.max_num_active_seqs
    if Knob.POWER_LIMIT not in free:
        assert new.power_limit_watts == old.power_limit_watts


class Broken:
    trusted = True

    def predict(self, point, load, slo):
        raise ZeroDivisionError("broken")

    full_batch_tpot_s = predict


@given(points, loads)
def test_a_failure_inside_holds_the_present_point(point, load):
    bounds = Bounds(max_replicas=16, power_limits_watts=LIMITS)
    observation = fleet(1.0, point, load)
    decision, _ = tick(observation, ControlState(), settings_of(bounds), Broken(), ALL)
    assert decision.reason is Reason.ERROR
    assert decision.chosen == decision.present == point
    assert "broken" in decision.notes[0]


@pytest.mark.slow
@given(loads, slos, points, frees)
def test_constant_load_reaches_a_fixed_point(load, slo, point, free):
    bounds = Bounds(max_replicas=16, max_num_seqs=256, power_limits_watts=LIMITS)
    settings, state, moves = settings_of(bounds, slo), ControlState(), []
    for step in range(120):
        decision, state = tick(fleet(step * 5.0, point, load), state, settings, H100, free)
        point = decision.chosen
        moves.append(decision.moves)
    assert not any(moves[-60:])


@pytest.mark.slow
@given(loads, slos, points, st.floats(0.97, 1.03))
@example(  # near saturation three percent of load doubles the wait
    Load(arrival_rate_per_s=107.0, prompt_tokens=1012.0, output_tokens=3.0),
    SLO(ttft_s=1.0, tpot_s=0.125, percentile=0.5),
    OperatingPoint(num_replicas=1, max_num_active_seqs=1),
    1.02734375,
)
def test_a_settled_point_ignores_noise_in_the_load(load, slo, point, noise):
    """A few percent more or less load may move a point once, not to and fro: it comes to rest."""
    bounds = Bounds(max_replicas=8, max_num_seqs=64)
    settings, state = settings_of(bounds, slo), ControlState()
    for step in range(60):
        decision, state = tick(fleet(step * 5.0, point, load), state, settings, H100, ALL)
        point = decision.chosen
    assume(decision.reason is not Reason.NO_FEASIBLE_POINT)
    seen = []
    for step in range(60, 180):
        rate = load.arrival_rate_per_s * (noise if step % 2 else 1.0)
        now = replace(load, arrival_rate_per_s=rate)
        decision, state = tick(fleet(step * 5.0, point, now), state, settings, H100, ALL)
        point = decision.chosen
        seen.append(point)
    assert len(set(seen[-60:])) <= 2


@given(points, loads, st.floats(0.0, 1.0))
def test_no_saving_and_no_need_no_move(point, load, threshold):
    """With the threshold out of reach only a need, or a cap that is too small, moves anything."""
    bounds = Bounds(max_replicas=16, power_limits_watts=LIMITS)
    settings = settings_of(bounds, min_saving_ratio=10.0 + threshold)
    decision, _ = tick(fleet(1.0, point, load), ControlState(), settings, H100, ALL)
    if decision.reason is Reason.CHEAPEST_FEASIBLE:  # the cap alone, upwards
        assert decision.chosen == replace(
            point, max_num_active_seqs=decision.chosen.max_num_active_seqs
        )
        assert decision.chosen.max_num_active_seqs > point.max_num_active_seqs
    elif decision.reason in {Reason.SAVING_TOO_SMALL, Reason.NO_BETTER_POINT}:
        assert not decision.moves
    else:
        assert decision.reason in {Reason.SLO_AT_RISK, Reason.NO_FEASIBLE_POINT}


def test_a_model_error_leads_to_the_safe_point_and_not_to_an_exception():
    load = Load(arrival_rate_per_s=5.0, prompt_tokens=100_000.0, output_tokens=100.0)
    with pytest.raises(ModelError):
        H100.predict(OperatingPoint(num_replicas=1, max_num_active_seqs=8), load, SLO())
    bounds = Bounds(max_replicas=4, max_num_seqs=64)
    present = OperatingPoint(num_replicas=2, max_num_active_seqs=8)
    decision, _ = tick(fleet(0.0, present, load), ControlState(), settings_of(bounds), H100, ALL)
    assert decision.reason is Reason.MODEL_UNTRUSTED
    assert decision.chosen == OperatingPoint(num_replicas=2, max_num_active_seqs=64)
