"""`jouleserve simulate` plays, and what it prints adds up."""

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from policies.catalog import POLICIES
from serve_app.cli.main import app

pytestmark = pytest.mark.slow  # compiling takes half a minute where it is done anew

PAGE = (Path(__file__).parents[2] / "docs" / "simulate.md").read_text()
COMMANDS = re.findall(r"^jouleserve simulate (.*)$", PAGE, re.MULTILINE)
KEYS = {
    "policy", "trace", "profile", "slo", "requests", "completed", "joules_per_request",
    "joules_per_output_token", "slo_attainment_ratio", "ttft_p50_s", "ttft_p99_s", "tpot_p50_s",
    "tpot_p99_s", "mean_replicas", "scale_actions", "wall_s",
}  # fmt: skip
SHORT = ("--profile", "llama-3.1-8b-instruct@h100", "--duration-s", "90", "--jitter", "0.05")


def play(*arguments):
    done = CliRunner().invoke(app, ["simulate", *arguments])
    assert done.exit_code == 0, (done.output, done.exception)
    return done


def rows_of(*arguments):
    return json.loads(play(*arguments, "--json").stdout)["rows"]


def test_rows_hold_the_keys_that_outsiders_rely_on_and_repeat():
    arguments = ("4*chat-2023", *SHORT, "--policy", "energy_slo", "--policy", "ray_default")
    first, again = rows_of(*arguments), rows_of(*arguments)
    assert [row["policy"] for row in first] == ["energy_slo", "ray_default"]
    for one, other in zip(first, again, strict=True):
        assert set(one) >= KEYS
        assert one.pop("wall_s") > 0
        other.pop("wall_s")
        assert one == other
        assert one["completed"] == one["requests"] > 0
        assert one["joules"] == pytest.approx(one["joules_per_request"] * one["completed"])
        assert one["joules_per_output_token"] == pytest.approx(one["joules"] / one["output_tokens"])
        shares = (one[f"{part}_joules_ratio"] for part in ("active", "idle", "start"))
        assert sum(shares) == pytest.approx(1.0)
        assert one["policy_errors"] == 0
    assert rows_of(*arguments, "--seed", "1")[0]["joules"] != first[0]["joules"]


def test_energy_is_the_integral_of_what_is_drawn():
    from policies.sim.blocks import joined
    from serve_app.simulator.models import truth_of
    from serve_app.simulator.picture import series_of
    from serve_app.simulator.run import simulate_trace
    from serve_app.simulator.scenario import Scenario
    from serve_app.simulator.specs import parse_spec
    from serve_app.traces.load import TraceOptions, load_trace

    truth = truth_of("llama-3.1-8b-instruct@h100")
    block = joined(load_trace("4*chat-2023", TraceOptions(duration_s=120.0)).blocks())
    scenario = Scenario(truth=truth, belief=truth, power_limits_watts=(300.0, 400.0))
    run = simulate_trace(("chat", block), parse_spec("energy_slo"), scenario)
    moments = list(run.result.moments)
    drawn = sum(one.draw_watts * one.span_s for one in moments)
    assert drawn == pytest.approx(run.result.joules, rel=1e-9)
    series = series_of(moments)
    assert series.draw_watts.mean() == pytest.approx(drawn / run.result.duration_s, rel=0.02)
    assert series.arrivals_per_s.mean() == pytest.approx(
        run.result.arrived / run.result.duration_s, rel=0.02
    )


def test_every_policy_plays(tmp_path):
    options = {
        "static": "", "fixed_limit": ":power_limit_watts=400",
        "pals": ":replicas=static_peak", "agft": ":replicas=wva",
    }  # fmt: skip
    chosen = [f"{name}{options.get(name, '')}" for name in (*POLICIES, "clairvoyant")]
    arguments = [part for one in chosen for part in ("--policy", one)]
    picture = tmp_path / "day.png"
    rows = rows_of("2*chat-2023", *SHORT, *arguments, "--picture", str(picture))
    assert [row["policy"] for row in rows] == chosen
    assert picture.stat().st_size > 10_000
    for row in rows:
        assert row["completed"] == row["requests"], row["policy"]
        assert row["policy_errors"] == 0, row["policy"]


def test_a_wrong_belief_a_response_and_a_limit_change_the_outcome():
    plain = rows_of("4*chat-2023", *SHORT)[0]
    slow = rows_of("4*chat-2023", *SHORT, "--belief-speed", "0.8")[0]
    prior = rows_of("4*chat-2023", *SHORT, "--cap-response", "h100")[0]
    free = rows_of("4*chat-2023", *SHORT, "--power-limits-watts", "none")[0]
    assert len({row["joules"] for row in (plain, slow, prior, free)}) == 4
    assert prior["cap_response"] == "h100"
    assert free["limit_actions"] == 0 < plain["limit_actions"]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_page_work(command):
    play(*shlex.split(command))


def test_the_page_names_every_policy_option_and_key():
    import typer

    from serve_app.cli import simulate
    from serve_app.simulator.run import ROW_KEYS

    assert set(ROW_KEYS) == KEYS
    for name in (*POLICIES, "clairvoyant", *KEYS):
        assert f"`{name}`" in PAGE, name
    made = typer.Typer(add_completion=False)
    made.command()(simulate.simulate)
    command = typer.main.get_command(made)
    options = {one for param in command.params for one in param.opts if one.startswith("--")}
    missing = {one for one in options if one not in PAGE} - {"--begin", "--duration", "--help"}
    assert not missing
