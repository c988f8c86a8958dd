"""`plan --write`: a Serve config that the project itself accepts."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from planner_cases import CHAT, SMALL, answer, run, write_profile
from random_models import BANDS, H100

from policies.core.errors import ConfigError
from serve_app.deciders import load_profile
from serve_app.settings import parse_energy, read_yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture
def profile(tmp_path):
    return write_profile(tmp_path, bands=BANDS, provenance={"kind": "published"})


def written(file):
    (application,) = read_yaml(file)["applications"]
    (config,) = application["args"]["llm_configs"]
    return application, config


def test_the_file_holds_the_question_the_bounds_and_the_profile(profile, tmp_path):
    file = tmp_path / "serve.yaml"
    arguments = (*CHAT, "--max-num-seqs", 160, "--ttft-ms", 700, "--percentile", 0.95)
    done = run(profile, *arguments, "--write", file)
    assert done.exit_code == 0, done.output
    application, config = written(file)
    energy = parse_energy(application["args"]["energy"], str(file))
    assert (energy.slo.ttft_ms, energy.slo.tpot_ms, energy.slo.percentile) == (700, 30, 0.95)
    assert load_profile(energy.profile) == load_profile(str(profile))
    assert energy.policy.name == "energy_slo"
    assert application["import_path"] == "serve_app.app:build_openai_app"
    found = answer(profile, *arguments)
    most = max(found[name]["num_replicas"] for name in ("cheapest", "policy"))
    # Ray's place: under `deployments:` the bounds would drop the policy (ADR 0003).
    assert config["deployment_config"]["autoscaling_config"] == {
        "min_replicas": 1, "max_replicas": most,
    }  # fmt: skip
    assert all("autoscaling_config" not in one for one in application["deployments"])
    assert config["engine_kwargs"]["max_num_seqs"] == 160
    head = file.read_text().split("http_options")[0]
    assert "the profile is published" in head
    assert "20 requests/s of 500 + 200 tokens" in head


def test_a_gpu_profile_gets_a_gpu_engine(tmp_path):
    power = replace(H100.power, num_devices=4)
    profile = write_profile(tmp_path, bands=BANDS, power=power, device="4x NVIDIA H100 80GB HBM3")
    file = tmp_path / "serve.yaml"
    assert run(profile, *CHAT, *SMALL, "--write", file).exit_code == 0
    application, config = written(file)
    assert config["accelerator_type"] == "H100"
    assert config["engine_kwargs"] == {
        "tensor_parallel_size": 4, "max_model_len": 8192, "max_num_seqs": 160,
    }  # fmt: skip
    assert not {"accelerator_config", "placement_group_config", "runtime_env"} & set(config)
    assert config["model_loading_config"] == {
        "model_id": "llama-3.1-8b-instruct", "model_source": "meta-llama/Llama-3.1-8B-Instruct",
    }  # fmt: skip
    assert application["deployments"][0]["name"] == "EnergyLLMServer:llama-3_1-8b-instruct"


def test_a_cpu_profile_keeps_the_engine_of_the_projects_own_file(tmp_path):
    profile = write_profile(
        tmp_path, bands=BANDS, model="smollm2-135m-instruct", device="AMD EPYC (2 cores)"
    )
    file = tmp_path / "serve.yaml"
    assert run(profile, *CHAT, *SMALL, "--write", file).exit_code == 0
    _, config = written(file)
    _, own = written(ROOT / "serve_config.yaml")
    for key in ("accelerator_config", "placement_group_config", "runtime_env"):
        assert config[key] == own[key]
    assert config["engine_kwargs"]["dtype"] == own["engine_kwargs"]["dtype"]
    assert config["model_loading_config"] == own["model_loading_config"]


def test_asked_bounds_headroom_and_model_source_are_written(profile, tmp_path):
    file = tmp_path / "serve.yaml"
    options = ("--min-replicas", 2, "--max-replicas", 4, "--slo-headroom-ratio", 0.2)
    done = run(profile, *CHAT, *options, "--write", file, "--model-source", "/models/llama")
    assert done.exit_code == 0, done.output
    application, config = written(file)
    assert config["deployment_config"]["autoscaling_config"] == {
        "min_replicas": 2, "max_replicas": 4,
    }  # fmt: skip
    assert application["args"]["energy"]["policy"]["slo_headroom_ratio"] == 0.2
    assert config["model_loading_config"]["model_source"] == "/models/llama"


def test_a_model_name_that_no_engine_finds_is_said(tmp_path):
    profile = write_profile(tmp_path, bands=BANDS, model="llama-3.1-8b-instruct")
    done = run(profile, *CHAT, *SMALL, "--write", tmp_path / "serve.yaml")
    assert "--model-source" in done.stderr
    named = run(
        profile, *CHAT, *SMALL, "--write", tmp_path / "s.yaml", "--model-source", "org/name"
    )
    assert "--model-source" not in named.stderr


def test_a_power_limit_that_the_plan_counts_on_is_said(profile, tmp_path):
    file = tmp_path / "serve.yaml"
    assert run(profile, *CHAT, *SMALL, "--power-limits", 500, "--write", file).exit_code == 0
    assert "counts on a power limit of 500 W per GPU" in file.read_text()


def test_a_file_is_never_overwritten_without_force(profile, tmp_path):
    file = tmp_path / "serve.yaml"
    file.write_text("mine: true\n")
    done = run(profile, *CHAT, *SMALL, "--write", file)
    assert isinstance(done.exception, ConfigError)
    assert "--force overwrites it" in str(done.exception)
    assert file.read_text() == "mine: true\n"
    assert run(profile, *CHAT, *SMALL, "--write", file, "--force").exit_code == 0
    assert written(file)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []


def test_of_several_profiles_the_best_is_written(profile, tmp_path):
    dear = write_profile(
        tmp_path, "dear", bands=BANDS, power=replace(H100.power, e0_joules_per_step=30.0)
    )
    file = tmp_path / "serve.yaml"
    assert run(dear, profile, *CHAT, *SMALL, "--write", file).exit_code == 0
    application, _ = written(file)
    assert application["args"]["energy"]["profile"] == str(profile)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "profiles").glob("*.yaml")))
def test_the_file_names_a_shipped_profile_and_the_accelerator_as_ray_does(path, tmp_path):
    from ray.util.accelerators import accelerators

    file = tmp_path / "serve.yaml"
    lengths = ("--prompt-tokens", 100, "--output-tokens", 100)
    slo = ("--ttft-ms", 5000, "--tpot-ms", 500)
    done = run(path, "--rate", 0.2, *lengths, *slo, "--max-replicas", 2, "--write", file)
    assert done.exit_code == 0, (done.output, done.exception)
    application, config = written(file)
    assert application["args"]["energy"]["profile"] == path.stem
    known = {value for name, value in vars(accelerators).items() if name.isupper()}
    assert config.get("accelerator_type") in known | {None}
    assert ("accelerator_type" in config) == ("NVIDIA" in load_profile(path.stem).device)


@pytest.mark.vllm
@pytest.mark.timeout(180)
def test_ray_and_config_show_accept_the_file(profile, tmp_path):
    """ray.serve.llm imports vLLM; no engine is started."""
    from serve_app.resolve import resolve_file

    file = tmp_path / "serve.yaml"
    assert run(profile, *CHAT, *SMALL, "--write", file).exit_code == 0
    (application,) = resolve_file(file)["applications"]
    (config,) = application["args"]["llm_configs"]
    assert config["server_cls"].endswith("EnergyLLMServer")
    policy = config["deployment_config"]["autoscaling_config"]["policy"]
    assert policy["policy_function"] == "serve_app.ray_policy:EnergyPolicy"
    assert yaml.safe_load(file.read_text())
