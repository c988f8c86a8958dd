"""What serveConfigV2 holds is what this product takes, and its replicas fit into the worker pods, as
Ray's own autoscaler sees them."""

import copy
import shutil

import pytest
import yaml
from manifests import (
    FOLDER,
    OVERLAYS,
    ROOT,
    folder_of,
    kustomize,
    needs_kubectl,
    objects,
    ray_cluster,
)

from policies.core.errors import ConfigError
from policies.core.types import Mode
from serve_app.app import equip_all
from serve_app.launch import read_deployment
from serve_app.models.catalog import KNOWN_MODELS
from serve_app.resolve import IMPORT_PATH
from serve_app.settings import parse_energy

pytestmark = needs_kubectl
EVERY = ["base", *OVERLAYS]


def serve_config(name):
    (service,) = objects(name, "RayService").values()
    return service["spec"]["serveConfigV2"]


def application(name):
    (one,) = yaml.safe_load(serve_config(name))["applications"]
    return one


def checked(text, folder):
    """What `jouleserve serve` finds in the file, where its keys file is there."""
    keys = folder / "keys.yaml"
    keys.write_text("[]")
    path = folder / "serve.yaml"
    path.write_text(text.replace("/etc/jouleserve/api-keys/keys.yaml", str(keys)))
    return read_deployment(path)


@pytest.mark.parametrize("name", EVERY)
def test_each_overlay_serves_its_own_file(name, tmp_path):
    assert serve_config(name) == (folder_of(name) / "serve.yaml").read_text()
    deployment = checked(serve_config(name), tmp_path)
    assert (deployment.host, deployment.port) == ("0.0.0.0", 8000)
    assert len(deployment.models) == 1
    one = application(name)
    assert one["import_path"] == IMPORT_PATH
    assert [d["name"] for d in one["deployments"]] == [f"EnergyLLMServer:{deployment.models[0]}"]


def test_a_typo_in_the_energy_block_is_a_fault(tmp_path):
    good = serve_config("h100-8b")
    for typo in (good.replace("tpot_ms", "tpot_s"), good.replace("actuator", "actor")):
        assert typo != good
        with pytest.raises(ConfigError, match="unknown key"):
            checked(typo, tmp_path)
    with pytest.raises(ConfigError, match="no file"):
        checked(good.replace("qwen3-8b@h100", "qwen3-9b@h100"), tmp_path)


def test_only_what_was_run_is_active_from_the_start():
    """The GPU overlays begin with advice: nothing of theirs has been run on a real GPU."""
    modes = {
        name: parse_energy(application(name)["args"]["energy"], name).policy.mode for name in EVERY
    }
    assert modes.pop("cpu-tryout") is Mode.ACTIVE
    assert set(modes.values()) == {Mode.ADVISORY}


@pytest.mark.parametrize("name", EVERY)
def test_an_actuator_that_is_asked_for_is_there(name):
    energy = parse_energy(application(name)["args"]["energy"], name)
    if energy.power.actuator == "agent":
        assert objects(name, "DaemonSet")
        assert energy.power.socket is None  # where the agent makes it, which is what pods mount


def test_the_tryout_is_the_quick_start_reachable_from_other_pods():
    ours = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    theirs = yaml.safe_load(serve_config("cpu-tryout"))
    assert ours.pop("http_options")["port"] == theirs.pop("http_options")["port"]
    assert ours == theirs


def test_what_plan_writes_can_take_the_place_of_the_file(tmp_path):
    """An overlay of one's own is a copy of one of ours with another Serve file."""
    (tmp_path / "base").symlink_to(FOLDER / "base")
    overlay = tmp_path / "overlays" / "mine"
    overlay.mkdir(parents=True)
    shutil.copy(folder_of("h100-8b") / "kustomization.yaml", overlay)
    planned = serve_config("h100-8b").replace("max_replicas: 4", "max_replicas: 3")
    (overlay / "serve.yaml").write_text(planned)
    (service,) = (one for one in kustomize(overlay) if one["kind"] == "RayService")
    assert service["spec"]["serveConfigV2"] == planned


@pytest.fixture(scope="module")
def equipped(tmp_path_factory):
    """The overlay's LLMConfig as the product hands it to Ray; a packaged model needs only a folder."""
    folder = tmp_path_factory.mktemp("model")

    def of(name):
        arguments = copy.deepcopy(application(name)["args"])
        for config in arguments["llm_configs"]:
            loading = config["model_loading_config"]
            if loading["model_source"] in KNOWN_MODELS:
                loading["model_source"] = str(folder)
        serving, _ = equip_all(arguments)
        (config,) = serving.llm_configs
        return serving, config

    return of


def node_types(name):
    from ray.autoscaler._private.kuberay.autoscaling_config import (
        _derive_autoscaling_config_from_ray_cr,
    )

    cluster = {"metadata": {"name": name, "namespace": "jouleserve"}, "spec": ray_cluster(name)}
    return _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]


def bundles_of(config):
    """What Ray reserves for one replica: its engine's workers and its actor."""
    from ray.llm._internal.serve.core.server.llm_server import (
        _merge_replica_actor_and_child_actor_bundles as merged,
    )

    actor = config.deployment_config.get("ray_actor_options", {})
    return merged(config.get_engine_config().placement_bundles, {"CPU": actor.get("num_cpus", 1)})


@pytest.mark.parametrize("name", EVERY)
def test_all_replicas_and_the_ingress_fit_into_the_worker_pods(name, equipped):
    serving, config = equipped(name)
    bundles = bundles_of(config)
    most = config.deployment_config["autoscaling_config"]["max_replicas"]
    totals = {key: sum(one.get(key, 0) for one in bundles) for bundle in bundles for key in bundle}
    needs = {key: amount for key, amount in totals.items() if amount}
    types = node_types(name)
    assert types["headgroup"]["resources"]["CPU"] == 0
    pod, pods = types["engines"]["resources"], types["engines"]["max_workers"]
    assert needs.keys() <= pod.keys(), "what no worker pod has is never scheduled"
    assert all(needs[key] <= pod[key] for key in needs), "tensor parallel stays within a pod"
    per_pod = min(int(pod[key] // needs[key]) for key in needs)
    assert per_pod * pods >= most
    ingress = serving.ingress_deployment_config
    spare = pod["CPU"] * pods - needs["CPU"] * most
    assert ingress["num_replicas"] * ingress["ray_actor_options"]["num_cpus"] <= spare


@pytest.mark.parametrize("name", [n for n in EVERY if n.startswith("h100")])
def test_a_profile_fits_the_gpus_of_a_replica_and_knows_limits(name, equipped):
    from serve_app.deciders import load_profile

    energy = application(name)["args"]["energy"]
    profile = load_profile(energy["profile"])
    _, config = equipped(name)
    assert profile.power.num_devices == config.engine_kwargs.get("tensor_parallel_size", 1)
    assert profile.power.cap_response is not None
    assert config.engine_kwargs["max_num_seqs"] <= profile.valid.max_num_seqs
    assert config.engine_kwargs["max_model_len"] <= profile.valid.max_context_tokens


def test_ray_is_the_version_that_the_product_asks_for():
    import ray

    assert {ray_cluster(name)["rayVersion"] for name in EVERY} == {ray.__version__}
