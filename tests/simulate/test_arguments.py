"""`jouleserve simulate`: what is refused, and with which words."""

import pytest
from typer.testing import CliRunner

from policies.core.errors import ConfigError
from serve_app.cli.main import app
from serve_app.simulator.specs import PolicySpec, parse_spec

PROFILE = "llama-3.1-8b-instruct@h100"


def refused(*arguments, traces=("chat-2023",), profile=PROFILE):
    command = ["simulate", *traces, "--profile", profile, "--duration-s", "5", *arguments]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, ConfigError), done.output
    return str(done.exception)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--policy", "nix"], ["policy name is 'nix'", "energy_slo", "clairvoyant"]),
        (["--policy", "energy_slo:"], None),
        (["--policy", "energy_slo:foo"], ["--policy 'energy_slo:foo'", "NAME:key=value"]),
        (["--policy", "energy_slo:foo=1"], ["unknown option foo", "hold_s"]),
        (["--policy", "energy_slo:packed=3"], ["packed is 3", "bool"]),
        (["--policy", "energy_slo:hold_s=0"], ["hold_s is 0", "0.1 to 3600"]),
        (["--policy", "energy_slo:min_replicas=x"], ["min_replicas is 'x'", "whole number"]),
        (["--policy", "energy_slo:slo_headroom_ratio=1"], ["slo_headroom_ratio", "below 1"]),
        (["--policy", "ray_default:hold_s=1"], ["hold_s", "target_ongoing_requests"]),
        (["--policy", "ray_default:target_ongoing_requests=-1"], ["Ray refuses"]),
        (["--policy", "fixed_limit:power_limit_watts=300,inner=x"], ["policy name is 'x'"]),
        (["--policy", "fixed_limit:power_limit_watts=300,inner.foo=1"], ["unknown option foo"]),
        (["--policy", "fixed_limit"], ["power_limit_watts"]),
        (["--policy", "only:knobs=speed"], ["'speed'", "power_limit"]),
        (["--policy", "dynamollm:forecast=oracle"], ["'oracle'", "trend, hindsight"]),
        (["--policy", "clairvoyant:load_ratio=0"], ["load_ratio", "above 0"]),
        (["--router", "round"], ["router is 'round'", "least, two, packed"]),
        (["--cap-response", "a100"], ["--cap-response 'a100'", "profile, h100"]),
        (["--power-limits-watts", "90"], ["--power-limits-watts 90", "94"]),
        (["--power-limits-watts", "a"], ["--power-limits-watts 'a'", "numbers"]),
        (["--belief-speed", "0"], ["--belief-speed 0", "above 0"]),
        (["--belief-energy", "-1"], ["--belief-energy -1", "above 0"]),
        (["--percentile", "99"], ["--percentile 99", "below 1"]),
        (["--tick-s", "0"], ["--tick-s 0", "above 0"]),
        (["--jitter", "-1"], ["--jitter -1", "0 or more"]),
        (["--max-num-seqs", "0"], ["--max-num-seqs 0", "1 or more"]),
        (["--min-replicas", "3", "--max-replicas", "2"], ["--min-replicas 3", "min <= max"]),
        (["--initial-replicas", "9", "--max-replicas", "2"], ["--initial-replicas 9", "0 to 2"]),
        (["--picture", "day.gif"], ["day.gif", ".png"]),
    ],
)  # fmt: skip
def test_bad_input_names_the_key_and_what_is_allowed(arguments, words, monkeypatch):
    if words is None:
        assert parse_spec(arguments[1]) == PolicySpec(name="energy_slo")
        return
    told = refused(*arguments)
    for word in words:
        assert word in told


def test_unknown_traces_and_profiles_are_named():
    assert "no such file" in refused(traces=["nowhere.csv"])
    assert "expected a file, a preset" in refused(traces=[" "])
    told = refused(profile="nix")
    assert told.startswith("--profile")
    assert PROFILE in told


def test_a_spec_is_read_back_from_its_text():
    text = "fixed_limit:power_limit_watts=300,inner=ray_default,inner.upscale_delay_s=0.5,min_replicas=2,router=two"
    spec = parse_spec(text)
    assert spec.text == text
    assert parse_spec(spec.text) == spec
    assert spec.fleet == {"min_replicas": 2}
    assert spec.within("inner") == {"upscale_delay_s": 0.5}
    assert (spec.router_name, parse_spec("energy_slo").router_name) == ("two", "packed")
    assert parse_spec("wva:tail=false,kv_capacity_tokens=none").options == {
        "tail": False,
        "kv_capacity_tokens": None,
    }
