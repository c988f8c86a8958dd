"""The energy: block: what is accepted, and one clear line for what is not."""

from pathlib import Path

import pytest
import yaml

from policies.core.errors import ConfigError
from policies.core.types import Bounds, Mode
from serve_app.settings import (
    EnergySettings,
    LiveSettings,
    find_profile,
    parse_energy,
    parse_live,
    read_yaml,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("block", "line"),
    [
        (
            {"slo": {"ttft_mss": 1}},
            "f.yaml: energy.slo.ttft_mss: unknown key (allowed: ttft_ms, tpot_ms, percentile)",
        ),
        ({"slow": {}}, "f.yaml: energy.slow: unknown key (allowed: slo, policy, profile, meter"),
        ({"policy": {"mode": "of"}}, "f.yaml: energy.policy.mode: Input should be 'active'"),
        ({"slo": {"ttft_ms": -5}}, "f.yaml: energy.slo.ttft_ms: Input should be greater than 0"),
        ({"meter": {"estimated": {"watts": 1}}}, "unknown key (allowed: watts_per_busy_core, idle"),
        ({"power": {"actuator": "dcgm"}}, "energy.power.actuator: Input should be 'none', 'agent'"),
        ({"power": {"fleet_budget_watts": 9000}}, "energy.power: Value error, fleet_budget_watts"),
        (
            {"model_correction": {"max": 3}},
            "model_correction.max: unknown key (allowed: enabled, max_ratio, refit_ratio, refit_",
        ),
        (
            {"model_correction": {"max_ratio": 1.0}},
            "model_correction.max_ratio: Input should be gr",
        ),
        ({"model_correction": {"refit_after_s": float("inf")}}, "model_correction.refit_after_s"),
        ([], "f.yaml: energy: expected a mapping, got list"),
    ],
)
def test_a_fault_is_one_line_with_file_key_and_choices(block, line):
    with pytest.raises(ConfigError) as caught:
        parse_energy(block, "f.yaml")
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_faults_are_counted():
    with pytest.raises(ConfigError, match=r"\(and 1 more\)"):
        parse_energy({"slo": {"a": 1, "b": 2}}, "f.yaml")


def test_live_settings_override_only_what_they_name():
    base = parse_energy({"slo": {"ttft_ms": 900, "tpot_ms": 90}}, "f")
    live = parse_live({"slo": {"ttft_ms": 800}, "mode": "advisory"}, "f")
    inforce = live.over(base)
    assert (inforce.slo.ttft_ms, inforce.slo.tpot_ms) == (800, 90)
    assert inforce.policy.mode is Mode.ADVISORY
    assert LiveSettings().over(base) == base


def test_a_budget_comes_live_where_somebody_keeps_it():
    live = {"fleet_budget_watts": 5000, "over_budget": "refuse"}
    kept = parse_energy({"power": {"actuator": "agent", "fleet_budget_watts": 9000}}, "f")
    power = parse_live(live, "f", kept).over(kept).power
    assert (power.fleet_budget_watts, power.over_budget) == (5000.0, "refuse")
    assert power.actuator == "agent"
    line = "user_config.fleet_budget_watts: fleet_budget_watts needs an actuator"
    with pytest.raises(ConfigError, match=line):
        parse_live(live, "f.yaml", EnergySettings())
    with pytest.raises(ConfigError, match="user_config.over_budget: Input should be 'queue' or"):
        parse_live({"over_budget": "drop"}, "f.yaml", kept)


def test_a_plain_off_in_yaml_is_the_mode():
    assert parse_energy(yaml.safe_load("policy: {mode: off}"), "f").policy.mode is Mode.OFF
    assert parse_live(yaml.safe_load("mode: off"), "f").mode is Mode.OFF
    with pytest.raises(ConfigError, match="user_config.mode: Input should be 'active'"):
        parse_live({"mode": True}, "f")


def test_a_typo_in_user_config_names_the_choices():
    with pytest.raises(ConfigError, match=r"user_config.slo.tpot: unknown key \(allowed: ttft_ms"):
        parse_live({"slo": {"tpot": 5}}, "f.yaml")


def test_milliseconds_become_seconds_once():
    control = parse_energy({"slo": {"ttft_ms": 250, "tpot_ms": 40}}, "f").to_control_settings(
        Bounds(max_replicas=3)
    )
    assert (control.slo.ttft_s, control.slo.tpot_s) == (0.25, 0.04)
    assert control.bounds.max_replicas == 3


def test_every_default_survives_a_json_round_trip():
    settings = EnergySettings()
    assert parse_energy(settings.model_dump(mode="json"), "f") == settings


def test_an_unknown_profile_lists_the_shipped_ones():
    with pytest.raises(ConfigError, match="shipped profiles:"):
        find_profile("no-such-profile")


def test_yaml_faults_name_the_file(tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1,")
    with pytest.raises(ConfigError, match="broken.yaml: not readable as YAML"):
        read_yaml(broken)
    with pytest.raises(ConfigError, match="no such file"):
        read_yaml(tmp_path / "absent.yaml")


def test_the_default_serve_config_is_valid_and_its_profile_is_shipped():
    data = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    (application,) = data["applications"]
    energy = parse_energy(application["args"]["energy"], "serve_config.yaml")
    assert find_profile(energy.profile).is_file()
    for deployment in application["deployments"]:
        parse_live(deployment["user_config"], "serve_config.yaml")
