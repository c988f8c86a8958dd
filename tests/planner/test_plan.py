"""`jouleserve plan` from outside: the picks, their errors, prices, and what it refuses."""

import json
import math
from dataclasses import replace

import pytest
from planner_cases import CHAT, SMALL, answer, document, run, write_profile
from random_models import BANDS, H100

from policies.core.errors import ConfigError
from policies.core.objective import Candidates, cheapest_feasible
from policies.core.slo import tightened
from policies.core.types import SLO, Load, OperatingPoint
from serve_app.deciders import load_profile

LOAD = Load(arrival_rate_per_s=20.0, prompt_tokens=500.0, output_tokens=200.0)
TARGETS = SLO(ttft_s=1.0, tpot_s=0.03)
LIMITS = ("--power-limits", "600,400,500")


@pytest.fixture
def profile(tmp_path):
    return write_profile(tmp_path, bands=BANDS)


def test_the_pick_is_the_cheapest_of_asking_the_model_about_every_point(profile):
    found = answer(profile, *CHAT, *SMALL, *LIMITS)
    model, best = load_profile(str(profile)), None
    for limit in (None, 600.0, 500.0, 400.0):
        for replicas in range(1, 5):
            for cap in range(1, 161):
                point = OperatingPoint(
                    num_replicas=replicas, max_num_active_seqs=cap, power_limit_watts=limit
                )
                seen = model.predict(point, LOAD, TARGETS)
                if seen.feasible and (best is None or seen.joules_per_request < best):
                    best = seen.joules_per_request
    assert found["evaluated_points"] == 4 * 4 * 160
    assert found["cheapest"]["joules_per_request"] == pytest.approx(best, rel=1e-9)
    assert found["cheapest"]["joules_per_output_token"] == pytest.approx(best / 200, rel=1e-9)
    assert found["cheapest"]["binding"] == "none"


def test_the_policys_point_is_what_the_policy_chooses_with_its_headroom(profile):
    found = answer(profile, *CHAT, *SMALL, *LIMITS, "--slo-headroom-ratio", 0.2)
    box = Candidates(replicas=(1, 4), caps=(1, 160), limits=(None, 600.0, 500.0, 400.0))
    model = load_profile(str(profile))
    point = cheapest_feasible(model, LOAD, tightened(TARGETS, 0.2), box).point
    policy = found["policy"]
    assert policy["num_replicas"] == point.num_replicas
    assert policy["max_num_active_seqs"] == point.max_num_active_seqs
    assert policy["power_limit_watts"] == point.power_limit_watts
    joules = model.predict(point, LOAD, TARGETS).joules_per_request
    extra = joules / found["cheapest"]["joules_per_request"] - 1
    assert found["policy_extra_ratio"] == pytest.approx(extra, abs=1e-9)


def test_headroom_costs_what_the_table_says(profile):
    """At a TPOT target of 23.5 ms one replica only just holds it; the policy takes two."""
    tight = ("--tpot-ms", 23.5, *SMALL)
    found = answer(profile, *CHAT, *tight)
    assert found["cheapest"]["num_replicas"] == 1
    assert found["policy"]["num_replicas"] == 2
    told = run(profile, *CHAT, *tight).stdout
    assert f"takes {found['policy_extra_ratio']:+.2%} J/request" in told


def test_bands_say_which_points_hold_for_sure(profile):
    found = answer(profile, *CHAT, *SMALL, "--tpot-ms", 23.5)
    assert found["errors"] == {
        "step_time_ratio": 0.05,
        "prefill_ratio": 0.1,
        "energy_ratio": 0.04,
        "power_limit_ratio": 0.1,
        "from_residuals": [],
    }
    cheapest, sure = found["cheapest"], found["sure_cheapest"]
    assert cheapest["verdict"] == "holds, but within the error"
    assert cheapest["margins"]["tpot_s"]["high"] > 0.0235
    assert sure["verdict"] == "holds"
    assert sure["margins"]["tpot_s"]["high"] <= 0.0235
    assert sure["joules_per_request"] > cheapest["joules_per_request"]
    assert "mind the error" in run(profile, *CHAT, *SMALL, "--tpot-ms", 23.5).stdout


def test_the_error_of_energy_is_in_the_joules_and_idle_draw_has_none(tmp_path):
    power = replace(H100.power, idle_watts=0.0)
    point = answer(write_profile(tmp_path, bands=BANDS, power=power), *CHAT, *SMALL)["cheapest"]
    margins, joules = point["margins"]["joules_per_request"], point["joules_per_request"]
    assert margins["high"] == pytest.approx(1.04 * joules)
    assert margins["low"] == pytest.approx(joules / 1.04)


def test_a_limit_whose_error_is_not_known_never_holds_for_sure(tmp_path):
    """The bare H100 profile has no bands: residuals stand in, but not for the limit."""
    found = answer(write_profile(tmp_path), *CHAT, *SMALL, "--power-limits", 500)
    assert found["errors"]["from_residuals"] == [
        "step_time_ratio", "prefill_ratio", "energy_ratio",
    ]  # fmt: skip
    assert found["errors"]["step_time_ratio"] == 0.1
    assert found["errors"]["energy_ratio"] == pytest.approx(0.03 * 1.96 / 0.6745)
    assert found["cheapest"]["power_limit_watts"] == 500.0
    assert found["cheapest"]["verdict"] == "holds, error of the limit not known"
    assert found["cheapest"]["margins"] is None
    assert found["sure_cheapest"]["power_limit_watts"] is None


def test_arrivals_beyond_the_capacity_at_the_end_of_the_error_have_no_bound(tmp_path):
    bands = replace(BANDS, step_time_ratio=1.5)
    found = answer(write_profile(tmp_path, bands=bands), *CHAT, *SMALL)
    assert found["cheapest"]["margins"]["ttft_s"]["high"] is None


def test_shadow_prices_are_what_asking_again_gives(profile):
    found = answer(profile, *CHAT, *SMALL, *LIMITS, "--tpot-ms", 25)
    prices = {one["change"]: one for one in found["shadow_prices"]}
    for change, options in {
        "TPOT target +10 ms": ("--tpot-ms", 35),
        "TPOT target -10 ms": ("--tpot-ms", 15),
        "TTFT target +10%": ("--tpot-ms", 25, "--ttft-ms", 1100),
        "TTFT target -10%": ("--tpot-ms", 25, "--ttft-ms", 900),
        "rate +10%": ("--tpot-ms", 25, "--rate", 22),
        "rate -10%": ("--tpot-ms", 25, "--rate", 18),
    }.items():
        again = answer(profile, *CHAT, *SMALL, *LIMITS, *options)["cheapest"]
        ratio = again["joules_per_request"] / found["cheapest"]["joules_per_request"] - 1
        assert prices[change]["joules_per_request_ratio"] == pytest.approx(ratio, abs=1e-9)
    assert prices["TPOT target +10 ms"]["joules_per_request_ratio"] < 0.0
    assert prices["TPOT target -10 ms"]["joules_per_request_ratio"] > 0.0
    assert prices["rate +10%"]["draw_ratio"] >= 0.0 >= prices["rate -10%"]["draw_ratio"]
    planned = found["cheapest"]["num_replicas"]
    more = prices["one replica more"]
    assert more["choice"]["point"]["num_replicas"] == planned + 1
    assert more["joules_per_request_ratio"] > 0.0


def test_a_replica_fewer_that_nothing_holds_with_names_what_stops_it(profile):
    found = answer(profile, *CHAT, *SMALL, "--rate", 60)
    price = next(one for one in found["shadow_prices"] if one["change"] == "one replica fewer")
    assert (price["choice"], price["joules_per_request_ratio"]) == (None, None)
    assert price["binding"] in {"capacity", "ttft", "tpot"}
    assert f"nothing holds: {price['binding']}" in run(profile, *CHAT, *SMALL, "--rate", 60).stdout


def test_the_fronts_are_not_beaten_and_near_misses_are_cheaper(profile):
    found = answer(profile, *CHAT, *SMALL, *LIMITS)
    for latency, other, target in (
        ("ttft_s", "tpot_s", 0.03),
        ("tpot_s", "ttft_s", 1.0),
    ):
        line = found[f"{latency.removesuffix('_s')}_front"]
        assert all(one[other] <= target for one in line)
        steps = [(one[latency], one["joules_per_request"]) for one in line]
        assert steps == sorted(steps)
        assert [j for _, j in steps] == sorted((j for _, j in steps), reverse=True)
    best = found["cheapest"]["joules_per_request"]
    assert all(one["joules_per_request"] < best for one in found["near_misses"])
    assert all(one["verdict"].startswith("misses: ") for one in found["near_misses"])
    assert {one["power_limit_watts"] for one in found["by_limit"]} == {None, 600.0, 500.0, 400.0}


def test_nothing_that_holds_is_exit_1_with_the_least_bad_point_and_its_reason(profile, tmp_path):
    target = tmp_path / "serve.yaml"
    done = run(profile, *CHAT, *SMALL, "--tpot-ms", 7.05, "--write", target)
    assert done.exit_code == 1
    assert "nothing holds the targets; the least bad point, the policy's, misses: tpot" in (
        done.stdout
    )
    assert "is not written" in done.stderr
    assert not target.exists()
    found = answer(profile, *CHAT, *SMALL, "--tpot-ms", 7.05, code=1)
    assert (found["cheapest"], found["sure_cheapest"], found["policy_extra_ratio"]) == (None,) * 3
    assert found["policy"]["verdict"] == "misses: tpot"
    assert found["day"]["kept"] is None


def test_a_rate_beyond_every_replica_is_a_finding(profile):
    found = answer(profile, *CHAT, *SMALL, "--rate", 5000, code=1)
    assert found["feasible_points"] == 0
    assert found["policy"]["binding"] == "capacity"
    assert found["policy"]["num_replicas"] == 4


def test_what_the_profile_cannot_answer_is_said_and_not_extrapolated(profile):
    arguments = (*CHAT, "--max-replicas", 2, "--max-num-seqs", 400, "--power-limits", "90,400")
    found = answer(profile, *arguments)
    assert found["grid"]["max_num_active_seqs"][-1] == 307
    assert found["grid"]["power_limits_watts"] == [None, 400.0]
    told = run(profile, *arguments).stdout
    assert "not known: max_num_active_seqs 308 to 400; fitted: 1 to 256" in told
    assert "not known: power limit 90.0 W" in told


KEYS = {
    "document": "schema_version question best_profile profiles refusals sweep",
    "question": "load slo headroom_ratio min_replicas max_replicas max_num_seqs power_limits_watts "
    "price_per_kwh currency pue trace mean_load",
    "profile": "profile model device num_devices provenance errors evaluated_points "
    "feasible_points refused cheapest sure_cheapest policy policy_extra_ratio by_replicas by_limit "
    "near_misses ttft_front tpot_front shadow_prices day grid",
    "point": "num_replicas max_num_active_seqs power_limit_watts num_devices ttft_s tpot_s "
    "draw_watts joules_per_request utilization_ratio binding joules_per_output_token verdict "
    "margins",
    "price": "change choice binding joules_per_request_ratio draw_ratio",
    "day": "joules joules_per_request cost grams grams_known_ratio mean_replicas missed_slots "
    "unanswered_slots num_slots",
    "grid": "power_limits_watts num_replicas max_num_active_seqs ttft_s tpot_s full_batch_tpot_s "
    "draw_watts joules_per_request utilization_ratio binding sure",
}


def test_the_keys_of_the_document_are_those_that_are_relied_on(profile):
    found = document(profile, *CHAT, *SMALL)
    (one,) = found["profiles"]
    parts = {
        "document": found,
        "question": found["question"],
        "profile": one,
        "point": one["cheapest"],
        "price": one["shadow_prices"][0],
        "day": one["day"]["followed"],
        "grid": one["grid"],
    }
    assert {name: " ".join(part) for name, part in parts.items()} == KEYS
    assert found["schema_version"] == 1


def test_the_grid_holds_every_point(profile):
    found = answer(profile, *CHAT, *SMALL, *LIMITS)
    grid, best = found["grid"], found["cheapest"]
    place = [
        grid[axis].index(best[name])
        for axis, name in (
            ("power_limits_watts", "power_limit_watts"),
            ("num_replicas", "num_replicas"),
            ("max_num_active_seqs", "max_num_active_seqs"),
        )
    ]
    for name in ("ttft_s", "tpot_s", "joules_per_request", "binding"):
        limit, replicas, cap = place
        assert grid[name][limit][replicas][cap] == best[name]
    feasible = sum(b == "none" for by in grid["binding"] for row in by for b in row)
    assert feasible == found["feasible_points"]


def test_the_table_says_what_the_profile_is_and_what_it_chose(tmp_path):
    file = write_profile(tmp_path, bands=BANDS, provenance={"kind": "published"})
    told = run(file, *CHAT, *SMALL).stdout
    assert "h100: meta-llama/Llama-3.1-8B-Instruct on NVIDIA H100 80GB HBM3" in told
    assert "(profile published)" in told
    assert "error of the profile (95 %): step time 5.0%, prompts 10.0%" in told
    for title in ("cheapest", "the policy's", "by replicas", "Pareto, TTFT", "TPOT target +10 ms"):
        assert title in told
    assert "640 points evaluated" in told


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (["--rate", "0"], "--rate 0: allowed: a number above 0"),
        (["--rate", "nan"], "--rate nan: allowed"),
        (["--ttft-ms", "0"], "--ttft-ms 0: allowed: a number above 0"),
        (["--tpot-ms", "-5"], "--tpot-ms -5: allowed: a number above 0"),
        (["--percentile", "99"], "--percentile 99: allowed"),
        (["--output-tokens", "0"], "--output-tokens 0: allowed"),
        (["--prompt-tokens", "nan"], "--prompt-tokens nan"),
        (["--prompt-tokens", "90000"], "prompt_tokens is 90000"),
        (["--max-replicas", "0"], "--max-replicas 0: allowed: 1 <= min <= max"),
        (["--min-replicas", "5", "--max-replicas", "4"], "--min-replicas 5, --max-replicas 4"),
        (["--max-num-seqs", "0"], "--max-num-seqs 0: allowed: 1 or more"),
        (["--power-limits", "400,x"], "--power-limits '400,x': allowed: numbers"),
        (["--power-limits", "0"], "--power-limits 0: allowed"),
        (["--sweep-rates", "1,-2"], "--sweep-rates -2: allowed"),
        (["--slo-headroom-ratio", "1"], "--slo-headroom-ratio 1: allowed"),
        (["--price-per-kwh", "-1"], "--price-per-kwh -1: allowed"),
        (["--carbon-intensity", "grid"], "grid: no such file, and not a number"),
        (["--picture", "a.bmp"], "allowed endings: .png, .svg, .pdf"),
        (["--write", "a.txt"], "allowed endings: .yaml, .yml"),
        (["--write", "/no/such/a.yaml"], "no such folder /no/such"),
        (["--trace", "t.csv"], "--rate and --trace: give one of them"),
        (["no-such-profile"], "PROFILE: no file 'no-such-profile' (shipped profiles: "),
    ],
)
def test_bad_input_is_one_line(profile, change, line):
    done = run(profile, *CHAT, *change)
    assert done.exit_code != 0
    assert isinstance(done.exception, ConfigError)
    assert line in str(done.exception)
    assert "\n" not in str(done.exception)


def test_a_rate_needs_lengths_and_a_profile_is_named_once(profile):
    for arguments, line in (
        (["--rate", 1], "--rate: needs --prompt-tokens and --output-tokens"),
        (["--rate", 1, "--prompt-tokens", 5], "give both"),
        ([profile, *CHAT], "the name h100 is given twice"),
        ([], "--rate and --trace: give one of them"),
    ):
        done = run(profile, *arguments)
        assert isinstance(done.exception, ConfigError)
        assert line in str(done.exception)


def test_an_untrusted_profile_is_refused(tmp_path):
    residuals = replace(H100.residuals, energy_median_ratio=0.9)
    done = run(write_profile(tmp_path, residuals=residuals), *CHAT)
    assert "residuals" in str(done.exception)


def test_json_has_no_nan_even_for_a_device_that_draws_nothing(tmp_path):
    power = replace(
        H100.power, idle_watts=0.0, e0_joules_per_step=0.0, e1_joules_per_seq=0.0,
        e3_joules_per_prefill_token=0.0,
    )  # fmt: skip
    found = answer(write_profile(tmp_path, power=power), *CHAT, *SMALL)
    assert found["cheapest"]["joules_per_request"] == 0.0
    assert found["policy_extra_ratio"] is None
    assert not math.isnan(json.loads(json.dumps(found["policy"]["joules_per_request"])))
