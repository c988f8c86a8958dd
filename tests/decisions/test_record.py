"""A record, through JSON and back, decides the same again."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import FLEET, MODEL, PROFILES, REPLICA, SETTINGS, records, seen

from policies.core.errors import ConfigError
from policies.core.types import Load
from serve_app.decisions.record import (
    alternatives_of,
    differences,
    point_of,
    read_record,
    replayed,
)
from serve_app.settings import PolicySettings

loads = st.lists(
    st.tuples(st.floats(0.01, 400.0), st.integers(1, 8), st.floats(0.0, 5.0)),
    min_size=2,
    max_size=6,
)


@given(loads, st.sampled_from([FLEET, REPLICA]))
def test_every_decision_is_made_again_bit_for_bit_from_its_line(moves, free):
    watched, late = [], 0.0
    for number, (rate, replicas, missed) in enumerate(moves):
        late += missed
        count = replicas if free == FLEET else 1
        watched.append(seen(10.0 * number, rate, replicas=count, late=late))
    for record in records(watched, free):
        again = read_record(record.model_dump_json())
        assert again == record
        assert differences(again, replayed(again, PROFILES)) == []


def test_another_world_gives_another_decision_and_the_keys_tell_which():
    one = records([seen(100.0, 30.0)])[0]
    changed = one.model_copy(
        update={"settings": replace(SETTINGS, slo=replace(SETTINGS.slo, ttft_s=0.03))}
    )
    told = differences(changed, replayed(changed, PROFILES))
    assert {"chosen_pack_tokens", "proposed_pack_tokens"} <= set(told)


def test_infinity_survives_and_the_line_is_json_for_everybody():
    one = records([seen(float(k), 60.0) for k in range(3)])[-1]
    last = one.state.last_decision
    endless = replace(last.predicted_chosen, ttft_s=math.inf)
    state = replace(one.state, last_decision=replace(last, predicted_chosen=endless))
    line = one.model_copy(update={"state": state}).model_dump_json()
    json.loads(line, parse_constant=lambda word: pytest.fail(word))
    again = read_record(line)
    assert again.state.last_decision.predicted_chosen.ttft_s == math.inf
    assert differences(again, replayed(again, PROFILES)) == []


def test_without_a_model_it_is_the_safe_point_again_and_there_is_nothing_to_compare():
    (one,) = records([seen(0.0, 10.0)], model=None, correction=None)
    assert differences(one, replayed(one, {})) == []
    assert alternatives_of(one, {}) == []


def test_a_profile_that_is_not_at_hand_is_named():
    (one,) = records([seen(0.0, 10.0)])
    with pytest.raises(ConfigError, match=f"its profile {one.profile} is not at hand"):
        replayed(one, {})
    assert alternatives_of(one, {}) == []


def test_rays_own_rule_cannot_be_replayed_and_says_so():
    (one,) = records([seen(0.0, 10.0)], FLEET)
    rays = one.model_copy(update={"policy": PolicySettings(name="ray_default")})
    with pytest.raises(ConfigError, match="Ray's own rule"):
        replayed(rays, PROFILES)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda data: data.update(schema_version=2), "schema_version"),
        (lambda data: data.update(surprise=1), "surprise"),
        (lambda data: data["observation"].pop("now_s"), "observation.now_s"),
        (lambda data: data["settings"]["slo"].update(ttft_s="soon"), "settings.slo.ttft_s"),
    ],
)
def test_a_line_that_is_not_a_record_names_the_key(change, key):
    data = json.loads(records([seen(0.0, 10.0)])[0].model_dump_json())
    change(data)
    with pytest.raises(ConfigError, match=f"decision record: {key}: "):
        read_record(json.dumps(data))
    with pytest.raises(ConfigError, match="decision record: "):
        read_record("{")


def test_alternatives_differ_in_one_knob_and_those_that_hold_come_first_by_their_joules():
    one = records([seen(float(k), 60.0) for k in range(3)])[-1]
    rows = alternatives_of(one, PROFILES)
    chosen = point_of(one.decision, "chosen")
    assert {row["knob"] for row in rows} <= {"power_limit", "max_num_active_seqs"}
    for row in rows:
        values = {name: getattr(chosen, name) for name in row if hasattr(chosen, name)}
        assert sum(row[name] != value for name, value in values.items()) == 1
    holding = [row["joules_per_request"] for row in rows if row["binding"] == "none"]
    assert holding == sorted(holding)
    assert [row["binding"] == "none" for row in rows] == sorted(
        (row["binding"] == "none" for row in rows), reverse=True
    )
    # The corrected model speaks, not the profile.
    first = rows[0]
    load = Load(**{name: one.decision[f"load_{name}"] for name in Load.__dataclass_fields__})
    point = replace(chosen, **{first["knob"] + "_watts": first["power_limit_watts"]})
    believed = one.correction.apply(MODEL).predict(point, load, SETTINGS.slo)
    assert first["knob"] == "power_limit"
    assert first["joules_per_request"] == believed.joules_per_request
