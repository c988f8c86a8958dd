"""What would have been: on a log whose truth is the simulator's own model, and on too little."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from recorded import FLEET, MODEL, PROFILES, SETTINGS, records, seen

from policies.core.errors import ConfigError
from policies.core.types import Mode
from serve_app.decisions.counterfactual import counterfactual, sentences
from serve_app.decisions.log import Decisions
from serve_app.request_log.row import Row

NOW_S = 1.8e9 + 600.0
START = datetime.fromtimestamp(NOW_S - 590.0, UTC)


def row(number, per_s=4.0, **changes):
    start = START + timedelta(seconds=number / per_s)
    values = {
        "response_id": f"c{number}", "engine_request_ids": (), "num_sequences": 1,
        "start": start, "first_token": None, "end": start, "prompt_tokens": 600 + 40 * (number % 9),
        "output_tokens": 100 + 10 * (number % 7), "cached_tokens": 0, "ttft_s": 0.1,
        "tpot_s": 0.02, "queue_s": 0.0, "joules": 100.0, "idle_joules": None,
        "prefill_joules": None, "decode_joules": None, "device_joules": {}, "source": "counter",
        "unavailable": None, "method": None, "attribution_ratio": None, "coverage_ratio": None,
        "model": "m", "application": "llm", "deployment": "EnergyLLMServer:m", "replica": "r0",
        "tenant": None, "tenant_kind": None, "outcome": "completed", "finish_reason": "stop",
    }  # fmt: skip
    return Row(**{**values, **changes})


def logged(mode=Mode.ADVISORY, joules=None):
    """Decisions of ten minutes in this mode, and what came of them by the meter."""
    settings = replace(SETTINGS, mode=mode)
    found = Decisions()
    found.profiles.update(PROFILES)
    watched = [seen(60.0 * k, 4.0) for k in range(11)]
    fleet = [
        one.model_copy(update={"id": f"f{one.id}"})
        for one in records(watched, FLEET, settings=settings, correction=None)
    ]
    found.records.extend([*fleet, *records(watched, settings=settings, correction=None)])
    for one in fleet:
        found.outcomes[one.id] = {"for_s": 60.0, "joules": joules, "requests": 240.0}
    return found


def test_an_advisory_policy_hears_what_it_would_have_saved():
    rows = [row(k) for k in range(2000)]
    blind = counterfactual(logged(), rows, 10.0)
    assert blind.requests == 2000
    assert blind.ran.startswith("static")
    assert blind.instead == "energy_slo:router=packed"
    assert (blind.measured, blind.model_error_ratio) == (None, None)
    assert blind.joules_per_request == pytest.approx(blind.simulated_instead, rel=0.02)
    assert blind.simulated_instead < 0.9 * blind.simulated_ran  # limits save on a light load
    assert blind.attainment_instead_ratio > 0.99
    assert 0.0 < blind.error < 0.1 * blind.joules_per_request
    # A meter that shows a tenth more than the simulator: on its scale, and so much less sure.
    metered = 1.1 * blind.simulated_ran
    told = counterfactual(logged(joules=240.0 * metered), rows, 10.0)
    assert told.measured == pytest.approx(metered)
    assert told.model_error_ratio == pytest.approx(1 / 1.1 - 1.0, abs=0.02)
    assert told.joules_per_request == pytest.approx(1.1 * blind.joules_per_request, rel=0.02)
    assert told.error > 0.08 * told.joules_per_request
    words = " ".join(sentences(told))
    assert words.startswith("Had the policy been active, a request would have cost ")
    assert "-9 % off" in words
    assert "Without a meter" in " ".join(sentences(blind))


def test_an_active_policy_hears_what_would_have_been_without_it():
    found = counterfactual(logged(Mode.ACTIVE), [row(k) for k in range(2000)], 10.0)
    assert found.ran.startswith("energy_slo")
    assert found.instead == "static:num_replicas=1,max_num_active_seqs=256,power_limit_watts=none"
    assert found.simulated_instead > found.simulated_ran
    assert sentences(found)[0].startswith("Had everything stayed as it was found")


def test_only_what_was_answered_in_the_window_counts():
    rows = [row(k) for k in range(100)]
    rows += [row(k, outcome="aborted", output_tokens=None) for k in range(50)]
    rows += [row(k, deployment="another") for k in range(50)]
    rows += [row(k, start=START - timedelta(hours=1)) for k in range(50)]
    assert counterfactual(logged(), rows, 10.0).requests == 100


def test_the_time_before_the_service_came_up_is_not_played():
    """Else its idle joules would be simulated, and no meter has seen them."""
    rows = [row(k) for k in range(2000)]
    whole, asked = (counterfactual(logged(), rows, minutes) for minutes in (10.0, 30.0))
    assert (whole.minutes, asked.minutes) == (10.0, 10.0)
    assert asked.simulated_ran == whole.simulated_ran
    broken = logged()  # it was down from the second to the seventh minute
    broken.records[:] = [
        one for one in broken.records if not 90.0 < one.time_utc_s - NOW_S + 600.0 < 410.0
    ]
    assert counterfactual(broken, rows, 30.0).minutes == pytest.approx(3.0)


def test_too_little_is_an_error_that_says_what_is_missing():
    with pytest.raises(ConfigError, match="holds 3 completed requests of EnergyLLMServer:m in the"):
        counterfactual(logged(), [row(k) for k in range(3)], 10.0)
    with pytest.raises(ConfigError, match="no decision of a replica is recorded"):
        counterfactual(Decisions(), [], 10.0)
    without = logged()
    without.records[:] = [one.model_copy(update={"profile": None}) for one in without.records]
    with pytest.raises(ConfigError, match="without a model"):
        counterfactual(without, [], 10.0)
    assert MODEL.trusted
