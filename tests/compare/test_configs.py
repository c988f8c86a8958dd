"""The systems differ in what they should differ in, and in nothing else."""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path

import pytest
import yaml

from policies.core.errors import ConfigError
from serve_app.compare import configs
from serve_app.compare.configs import (
    AppPlan,
    bare_arguments,
    bare_environment,
    cluster_config,
    read_base,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def file(tmp_path):
    """The project's own config file, with a model folder and a profile that exist."""
    data = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    arguments = data["applications"][0]["args"]
    model = tmp_path / "model"
    model.mkdir()
    arguments["llm_configs"][0]["model_loading_config"]["model_source"] = str(model)
    profile = tmp_path / "p.yaml"
    profile.write_text("name: p\n")
    arguments["energy"]["profile"] = str(profile)
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def apps(base, *plans):
    found = cluster_config(base, plans, 1234)
    return {app["name"]: app for app in found["applications"]}


def test_stock_and_ours_have_the_same_engine_and_bounds(file):
    base = read_base(file)
    both = apps(
        base, AppPlan(name="stock", ours=False), AppPlan(name="ours", ours=True, mode="off")
    )
    stock, ours = (both[name]["args"]["llm_configs"][0] for name in ("stock", "ours"))
    without = copy.deepcopy(stock)
    assert "jouleserve" not in without["runtime_env"]["env_vars"].pop("VLLM_PLUGINS")
    assert without == ours
    assert ours["deployment_config"]["autoscaling_config"] == {"min_replicas": 1, "max_replicas": 1}
    assert ours["engine_kwargs"] == base.llm_config["engine_kwargs"]


def test_only_ours_has_our_import_path_energy_and_live_mode(file):
    both = apps(
        read_base(file),
        AppPlan(name="stock", ours=False),
        AppPlan(name="ours", ours=True, mode="off"),
    )
    assert both["stock"]["import_path"] == "ray.serve.llm:build_openai_app"
    assert both["ours"]["import_path"] == "serve_app.app:build_openai_app"
    assert "energy" not in both["stock"]["args"]
    assert "deployments" not in both["stock"]
    assert both["ours"]["args"]["energy"]["policy"]["mode"] == "active"
    (live,) = both["ours"]["deployments"]
    assert live == {
        "name": "EnergyLLMServer:smollm2-135m-instruct",
        "user_config": {"mode": "off"},
    }
    assert {app["route_prefix"] for app in both.values()} == {"/stock", "/ours"}


def test_direct_streaming_allows_no_ingress_options(file):
    base = read_base(file)
    plain = apps(base, AppPlan(name="stock", ours=False))["stock"]
    direct = apps(base, AppPlan(name="stock", ours=False, direct=True))["stock"]
    assert plain["args"]["ingress_deployment_config"]["num_replicas"] == 1
    assert "ingress_deployment_config" not in direct["args"]


def test_a_fixed_replica_count_gives_way_to_the_bounds_and_a_target_is_stocks(file):
    base = read_base(file)
    base.llm_config["deployment_config"]["num_replicas"] = 3
    found = apps(
        base, AppPlan(name="stock", ours=False, max_replicas=2, target_ongoing_requests=4.0)
    )
    deployment = found["stock"]["args"]["llm_configs"][0]["deployment_config"]
    assert "num_replicas" not in deployment
    assert deployment["autoscaling_config"] == {
        "min_replicas": 1,
        "max_replicas": 2,
        "target_ongoing_requests": 4.0,
    }
    assert base.llm_config["deployment_config"]["num_replicas"] == 3


def test_bare_vllm_gets_the_engine_arguments_as_flags(file):
    base = read_base(file)
    base.llm_config["engine_kwargs"] |= {"enable_prefix_caching": False, "override": {"a": 1}}
    arguments = bare_arguments(base, 8001)
    assert arguments[:4] == ["--model", base.source, "--served-model-name", base.model]
    assert "--enforce-eager" in arguments
    assert "--no-enable-prefix-caching" in arguments
    assert arguments[arguments.index("--max-num-seqs") + 1] == "64"
    assert arguments[arguments.index("--override") + 1] == '{"a": 1}'
    assert arguments[-2:] == ["--port", "8001"]
    environment = bare_environment(base)
    assert environment["OMP_NUM_THREADS"] == "1"
    assert "jouleserve" not in environment["VLLM_PLUGINS"]


def test_our_plugins_name_is_the_one_that_is_left_out():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert configs.OUR_PLUGIN in project["entry-points"]["vllm.stat_logger_plugins"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["applications"][0].update(import_path="x:y"), "none has import_path"),
        (lambda d: d["applications"][0]["args"].update(llm_configs=[]), "exactly one model"),
        (
            lambda d: d["applications"][0]["args"]["energy"].update(slow={}),
            "energy.slow: unknown key",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(file, change, message):
    data = yaml.safe_load(file.read_text())
    change(data)
    file.write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError, match=message) as raised:
        read_base(file)
    assert str(file) in str(raised.value)
