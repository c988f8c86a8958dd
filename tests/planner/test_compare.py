"""Several profiles: which one is the cheapest, at one rate and over many."""

from dataclasses import replace

import pytest
from planner_cases import CHAT, SMALL, document, run, write_profile
from random_models import BANDS, H100

from policies.core.errors import ConfigError

# Always on and cheap per token, against nothing when idle and dear per token.
STEADY = replace(H100.power, idle_watts=200.0, e0_joules_per_step=2.0)
FRUGAL = replace(H100.power, idle_watts=20.0, e0_joules_per_step=4.0)
RATES = ("--sweep-rates", "0.01,0.1,1,10")


@pytest.fixture
def two(tmp_path):
    return (
        write_profile(tmp_path, "steady", power=STEADY, bands=BANDS),
        write_profile(tmp_path, "frugal", power=FRUGAL, bands=BANDS),
    )


def cheapest(profile, rate):
    (found,) = document(profile, *CHAT, *SMALL, "--rate", rate)["profiles"]
    return found["cheapest"]["joules_per_request"]


def test_the_best_profile_is_the_one_with_the_fewest_joules(two):
    for rate in (0.01, 10):
        found = document(*two, *CHAT, *SMALL, "--rate", rate)
        joules = {
            one["profile"]: one["cheapest"]["joules_per_request"] for one in found["profiles"]
        }
        assert found["best_profile"] == min(joules, key=joules.get)
        assert joules == {p.stem: pytest.approx(cheapest(p, rate)) for p in two}


def test_the_crossover_is_where_the_order_changes(two):
    found = document(*two, *CHAT, *SMALL, *RATES)["sweep"]
    assert [one["rate_per_s"] for one in found["rates"]] == [0.01, 0.1, 1.0, 10.0]
    (change,) = found["crossovers"]
    assert (change["below"], change["above"]) == ("frugal", "steady")
    steady, frugal = two
    for rate, order in ((0.98 * change["rate_per_s"], 1), (1.01 * change["rate_per_s"], -1)):
        assert (cheapest(steady, rate) - cheapest(frugal, rate)) * order > 0
    told = run(*two, *CHAT, *SMALL, *RATES).stdout
    assert f"{change['rate_per_s']:.3g} requests/s steady is the cheapest (below: frugal)" in told


def test_a_sweep_says_from_which_rate_nothing_holds(two):
    found = document(*two, *CHAT, *SMALL, "--sweep-rates", "10,1000")["sweep"]
    assert found["rates"][-1]["cheapest"] is None
    assert found["rates"][-1]["choices"] == [None, None]
    assert found["crossovers"][-1]["above"] is None
    assert 10 < found["crossovers"][-1]["rate_per_s"] < 1000
    assert "nothing holds" in run(*two, *CHAT, *SMALL, "--sweep-rates", "10,1000").stdout


def test_equal_profiles_have_no_crossover(tmp_path):
    same = [write_profile(tmp_path, name) for name in ("a", "b")]
    found = document(*same, *CHAT, *SMALL, *RATES)["sweep"]
    assert found["crossovers"] == []
    assert {one["cheapest"] for one in found["rates"]} == {"a"}


def test_a_small_difference_is_called_within_the_error(tmp_path):
    dearer = replace(H100.power, e0_joules_per_step=1.02 * H100.power.e0_joules_per_step)
    files = [
        write_profile(tmp_path, "a", bands=BANDS),
        write_profile(tmp_path, "b", bands=BANDS, power=dearer),
    ]
    assert ", within the error" in run(*files, *CHAT, *SMALL).stdout
    far = write_profile(tmp_path, "c", bands=BANDS, power=replace(H100.power, e0_joules_per_step=9))
    assert ", within the error" not in run(files[0], far, *CHAT, *SMALL).stdout


def test_different_models_are_compared_with_a_warning_about_quality(tmp_path, two):
    large = write_profile(tmp_path, "large", model="meta-llama/Llama-3.1-70B-Instruct")
    warning = "different models: their answers differ in quality"
    assert warning in run(two[0], large, *CHAT, *SMALL).stdout
    assert warning not in run(*two, *CHAT, *SMALL).stdout


def test_a_profile_without_an_answer_does_not_stop_the_others(tmp_path, two):
    short = write_profile(tmp_path, "short", valid=replace(H100.valid, max_prompt_tokens=100))
    found = document(two[0], short, *CHAT, *SMALL)
    assert [one["profile"] for one in found["profiles"]] == ["steady"]
    assert found["refusals"] == ["profile short: prompt_tokens is 500.0; fitted: 0 to 100"]
    assert "not known: profile short" in run(two[0], short, *CHAT, *SMALL).stdout
    alone = run(short, *CHAT, *SMALL)
    assert isinstance(alone.exception, ConfigError)


@pytest.mark.slow
def test_the_picture_is_drawn(two, tmp_path):
    pytest.importorskip("matplotlib")
    both, one = (*two, *CHAT, *SMALL, *RATES), (two[0], *CHAT, *SMALL)
    for ending, magic, plan in (
        (".png", b"\x89PNG", both),
        (".svg", b"<?xml", one),
        (".pdf", b"%PDF", one),
    ):
        file = tmp_path / f"plan{ending}"
        done = run(*plan, "--picture", file)
        assert done.exit_code == 0, done.output
        assert file.read_bytes().startswith(magic)
        assert str(file) in done.stderr


def test_a_picture_of_a_plan_that_nothing_holds_is_drawn_too(two, tmp_path):
    pytest.importorskip("matplotlib")
    file = tmp_path / "plan.png"
    done = run(two[0], *CHAT, *SMALL, "--rate", 5000, "--picture", file)
    assert done.exit_code == 1
    assert file.read_bytes().startswith(b"\x89PNG")
