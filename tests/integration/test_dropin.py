"""A file written for `ray.serve.llm` moves over by its import path alone, and a wrong one is told."""

from __future__ import annotations

import copy
import logging
import os
import subprocess
from pathlib import Path

import pytest
import yaml
from running_service import BIN, PROFILE, REPOSITORY, Service

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(180)]
PLAIN = REPOSITORY / "tests" / "data" / "ray_serve_llm.yaml"


def plain_application():
    return yaml.safe_load(PLAIN.read_text())["applications"][0]


def default_application():
    """serve_config.yaml's application with a profile that is there."""
    application = yaml.safe_load((REPOSITORY / "serve_config.yaml").read_text())["applications"][0]
    application["args"]["energy"]["profile"] = str(PROFILE)
    return application


def built(builder, application):
    """What Serve would deploy: deployment name → Deployment."""
    from ray.serve._private.build_app import build_app

    app = builder(copy.deepcopy(application["args"]))
    return {d.name: d for d in build_app(app, name="app").deployments}


def options(deployment):
    from ray.serve.deployment import deployment_to_schema

    return deployment_to_schema(deployment).model_dump(exclude_unset=True)


@pytest.fixture(scope="module", autouse=True)
def no_cluster_left():
    """Building needs the default model, which is made on first use, and makes Ray start a cluster in
    this process, which would run through all other tests."""
    prepare = [BIN / "jouleserve", "model", "prepare", "smollm2-135m-instruct"]
    subprocess.run(prepare, check=True, timeout=170)
    yield
    import ray

    ray.shutdown()


@pytest.fixture(scope="module")
def rays(no_cluster_left):
    from ray.serve.llm import build_openai_app

    return built(build_openai_app, plain_application())


@pytest.fixture(scope="module")
def ours(no_cluster_left):
    from serve_app.app import build_openai_app

    return built(build_openai_app, plain_application())


# ---- by import path alone


def test_the_deployments_keep_rays_names(rays, ours):
    assert set(ours) == set(rays)
    overridden = {item["name"] for item in plain_application()["deployments"]}
    assert overridden <= set(ours)  # Serve refuses options for a deployment that is not there


def test_every_option_is_what_ray_makes_of_the_file(rays, ours):
    for name, deployment in rays.items():
        assert options(ours[name]) == options(deployment)
    scaling = options(ours["LLMServer:org--plain-1_5"])["autoscaling_config"]
    assert scaling["max_replicas"] == 3
    assert scaling["downscale_delay_s"] == 120
    assert "policy" not in scaling


def test_only_our_hooks_differ_in_the_model(rays, ours):
    from serve_app.server import LLMServer

    def config(deployments):
        return deployments["LLMServer:org--plain-1_5"].init_kwargs["llm_config"]

    plain, mine = config(rays).model_dump(), config(ours).model_dump()
    assert mine.pop("server_cls") is LLMServer
    plain.pop("server_cls")
    assert (
        mine["engine_kwargs"].pop("scheduler_cls") == "serve_app.engine.scheduler.capped_scheduler"
    )
    added = mine["experimental_configs"].pop("jouleserve")
    assert added["energy"]["policy"]["mode"] == "off"
    assert mine == plain


def test_the_ingress_is_rays_with_two_routes_more(rays, ours):
    from ray.serve.llm.ingress import OpenAiIngress

    ingress = ours["OpenAiIngress"]
    assert issubclass(ingress.func_or_class, OpenAiIngress)
    for name in ("model_cards", "lora_paths", "llm_deployments"):
        assert ingress.init_kwargs[name].keys() == rays["OpenAiIngress"].init_kwargs[name].keys()


@pytest.fixture
def said(monkeypatch):
    """Says what goes to Serve's logger, whose handlers Ray throws out when it sets the logger up."""
    logger, lines = logging.getLogger("ray.serve"), []
    handle = logger.handle

    def heard(record):
        lines.append(record.getMessage())
        handle(record)

    monkeypatch.setattr(logger, "handle", heard)
    return lambda: "\n".join(lines)


def test_what_the_user_chose_stays(said):
    from serve_app.app import build_openai_app

    application = default_application()
    model = application["args"]["llm_configs"][0]
    model["engine_kwargs"]["scheduler_cls"] = "vllm.v1.core.sched.scheduler.Scheduler"
    scaling = model["deployment_config"]["autoscaling_config"]
    scaling |= {"downscale_delay_s": 77.0, "policy": {"policy_function": "os:getcwd"}}
    config = built(build_openai_app, application)["EnergyLLMServer:smollm2-135m-instruct"]
    assert "does not choose replicas" in said()
    assert options(config)["autoscaling_config"]["downscale_delay_s"] == 77.0
    kept = config.init_kwargs["llm_config"].engine_kwargs["scheduler_cls"]
    assert kept == "vllm.v1.core.sched.scheduler.Scheduler"


def test_the_energy_block_brings_policy_and_neutral_delays():
    from serve_app.app import build_openai_app

    deployments = built(build_openai_app, default_application())
    scaling = options(deployments["EnergyLLMServer:smollm2-135m-instruct"])["autoscaling_config"]
    assert (scaling["upscale_delay_s"], scaling["downscale_delay_s"]) == (0.0, 0.0)
    assert scaling["policy"]["policy_function"] == "serve_app.ray_policy:EnergyPolicy"
    given = scaling["policy"]["policy_kwargs"]
    assert given["profile"]["name"] == "planted"
    again = options(
        built(build_openai_app, default_application())["EnergyLLMServer:smollm2-135m-instruct"]
    )["autoscaling_config"]["policy"]["policy_kwargs"]
    # Else Ray, building an unchanged application again, would never ask the policy any more.
    assert again.pop("built_ns") > given.pop("built_ns")
    assert again == given


# ---- Ray's own commands


def serve(*arguments, cwd=REPOSITORY, timeout_s=120):
    environment = {**os.environ, "PYTHONPATH": str(cwd), "RAY_ADDRESS": "local", "NO_COLOR": "1"}
    return subprocess.run(
        [BIN / "serve", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def test_the_default_file_is_a_serve_deploy_file():
    from ray.serve.schema import ServeDeploySchema

    for path in (REPOSITORY / "serve_config.yaml", PLAIN):
        ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))


def test_serve_build_writes_a_file_that_serve_deploy_takes(tmp_path):
    """`serve build` takes the import path of an application and writes its config file."""
    from ray.serve.schema import ServeDeploySchema

    (tmp_path / "args.yaml").write_text(yaml.safe_dump(default_application()["args"]))
    (tmp_path / "my_app.py").write_text(
        "import yaml\n"
        "from serve_app.app import build_openai_app\n"
        "app = build_openai_app(yaml.safe_load(open('args.yaml')))\n"
    )
    done = serve("build", "my_app:app", "-o", "built.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    text = (tmp_path / "built.yaml").read_text()
    schema = ServeDeploySchema.model_validate(yaml.safe_load(text))
    (application,) = schema.applications
    assert application.import_path == "my_app:app"
    by_name = {d.name: d for d in application.deployments}
    scaling = by_name["EnergyLLMServer:smollm2-135m-instruct"].autoscaling_config
    policy = scaling["policy"] if isinstance(scaling, dict) else scaling.policy
    assert "EnergyPolicy" in str(policy)
    assert "OpenAiIngress" in by_name


# ---- a wrong file


def typo_file(tmp_path) -> Path:
    config = yaml.safe_load((REPOSITORY / "serve_config.yaml").read_text())
    config["applications"][0]["args"]["energy"]["slo"] = {"ttft_mss": 800}
    path = tmp_path / "typo.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def jouleserve(*arguments):
    return subprocess.run(
        [BIN / "jouleserve", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("command", [("serve",), ("config", "show")])
def test_a_typo_stops_our_commands_with_one_line(tmp_path, command):
    path = typo_file(tmp_path)
    done = jouleserve(*command, str(path))
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line == (
        f"jouleserve: {path}: energy.slo.ttft_mss: unknown key "
        "(allowed: ttft_ms, tpot_ms, percentile)"
    )


def test_a_wrong_live_setting_stops_our_command_before_anything_starts(tmp_path):
    config = yaml.safe_load((REPOSITORY / "serve_config.yaml").read_text())
    config["applications"][0]["deployments"][0]["user_config"] = {"max_num_active_seqz": 4}
    config["applications"][0]["args"]["energy"].pop("profile")
    path = tmp_path / "live.yaml"
    path.write_text(yaml.safe_dump(config))
    done = jouleserve("serve", str(path))
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "user_config.max_num_active_seqz: unknown key (allowed: slo, mode," in line


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_fault_in_rays_part_ends_our_command(tmp_path):
    """`serve run` itself would go on for ever with an application that cannot be built."""

    def misspell(config):
        config["applications"][0]["args"]["llm_configs"][0]["model_loading_confg"] = {}

    service = Service(tmp_path, misspell)
    try:
        assert service.process.wait(timeout=200) == 1
        output = service.output.read_text()
        (line,) = [line for line in output.splitlines() if "serving failed" in line]
        assert line.endswith(
            "application args: llm_configs.model_loading_confg: Extra inputs are not permitted"
        )
        assert service.processes() == []
    finally:
        service.stop()
