"""Names that one object uses of another are there: Secrets, ConfigMaps, labels, ports, the socket."""

from pathlib import Path

import pytest
import yaml
from manifests import (
    GPU_OVERLAYS,
    OVERLAYS,
    needs_kubectl,
    objects,
    pods,
    ray_cluster,
    ray_pods,
    rendered,
    secrets,
)

from serve_app.models.cache import CACHE_VARIABLE
from serve_app.power_agent.agent import parser
from serve_app.power_agent.client import SOCKET
from serve_app.settings import parse_energy

pytestmark = needs_kubectl
EVERY = ["base", *OVERLAYS]
WITH_AGENT = ["base", *GPU_OVERLAYS]
# What KubeRay puts on the pods of a Ray cluster.
KUBERAY_LABELS = {"ray.io/is-ray-node": {"yes"}, "ray.io/node-type": {"head", "worker"}}


def references(spec, kind):
    """(name, optional) of each ConfigMap or Secret that a pod uses."""
    source, volume, key = (
        ("secretRef", "secret", "secretName")
        if kind == "Secret"
        else ("configMapRef", "configMap", "name")
    )
    found = [one[volume] for one in spec.get("volumes", ()) if volume in one]
    yield from ((one[key], one.get("optional", False)) for one in found)
    for container in spec["containers"]:
        yield from (
            (one[source]["name"], one[source].get("optional", False))
            for one in container.get("envFrom", ())
            if source in one
        )


@pytest.mark.parametrize("name", EVERY)
def test_all_live_in_one_namespace(name):
    (namespace,) = objects(name, "Namespace")
    inside = {
        one["metadata"].get("namespace") for one in rendered(name) if one["kind"] != "Namespace"
    }
    assert inside == {namespace}
    assert {one["metadata"]["namespace"] for one in secrets().values()} == {namespace}


@pytest.mark.parametrize("name", EVERY)
def test_config_maps_and_secrets_that_pods_use_are_there(name):
    for template in pods(name):
        spec = template["spec"]
        assert {used for used, _ in references(spec, "ConfigMap")} <= objects(
            name, "ConfigMap"
        ).keys()
        for used, optional in references(spec, "Secret"):
            assert used in secrets()
            assert optional == (used == "jouleserve-huggingface")


@pytest.mark.parametrize("name", EVERY)
def test_every_process_of_ray_has_the_token_and_nobody_sets_the_mode_aside(name):
    options = ray_cluster(name)["authOptions"]
    assert options["mode"] == "token"
    assert "auth_token" in secrets()[options["secretName"]]["stringData"]  # the key KubeRay reads
    values = [one["data"] for one in objects(name, "ConfigMap").values()]
    assert not any(key.startswith("RAY_AUTH") for data in values for key in data)
    for template in ray_pods(name):
        assert not any("env" in container for container in template["spec"]["containers"])


@pytest.mark.parametrize("name", EVERY)
def test_head_and_workers_have_the_same_environment_keys_and_user(name):
    head, *workers = (one["spec"]["containers"][0] for one in ray_pods(name))
    for worker in workers:
        assert head["envFrom"][0] == worker["envFrom"][0]
        assert head["image"] == worker["image"]
        keys = [one for one in head["volumeMounts"] if one["name"] == "api-keys"]
        assert keys == [one for one in worker["volumeMounts"] if one["name"] == "api-keys"] != []


@pytest.mark.parametrize("name", EVERY)
def test_no_container_of_ray_is_more_than_it_must_be(name):
    autoscaler = ray_cluster(name)["autoscalerOptions"]
    containers = [one for template in ray_pods(name) for one in template["spec"]["containers"]]
    for one in (autoscaler, *containers):
        context = one["securityContext"]
        assert context["runAsNonRoot"]
        assert (context["runAsUser"], context["runAsGroup"]) == (1000, 1000)
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert "memory" in one["resources"]["limits"]


def test_the_head_shares_its_logs_with_the_autoscaler_under_kuberays_name():
    """Under any other name the autoscaler's container would get a /tmp/ray of its own."""
    mounts = ray_pods("base")[0]["spec"]["containers"][0]["volumeMounts"]
    assert {one["name"] for one in mounts if one["mountPath"] == "/tmp/ray"} == {"ray-logs"}


@pytest.mark.parametrize("name", EVERY)
def test_volumes_and_mounts_match(name):
    for template in pods(name):
        volumes = {one["name"] for one in template["spec"].get("volumes", ())}
        for container in template["spec"]["containers"]:
            mounted = [one["name"] for one in container.get("volumeMounts", ())]
            assert set(mounted) <= volumes
            assert len(set(mounted)) == len(mounted)
        assert volumes == {
            one["name"]
            for container in template["spec"]["containers"]
            for one in container.get("volumeMounts", ())
        }


@pytest.mark.parametrize("name", WITH_AGENT)
def test_workers_reach_the_agents_socket_and_are_in_its_group(name):
    (agent,) = objects(name, "DaemonSet").values()
    (container,) = agent["spec"]["template"]["spec"]["containers"]
    options = parser().parse_args(container["args"])
    served = {
        one["name"]: one["hostPath"]["path"] for one in agent["spec"]["template"]["spec"]["volumes"]
    }
    _, worker = ray_pods(name)
    (mount,) = [
        m for m in worker["spec"]["containers"][0]["volumeMounts"] if m["name"] == "power-agent"
    ]
    (volume,) = [v for v in worker["spec"]["volumes"] if v["name"] == "power-agent"]
    assert Path(mount["mountPath"]) == options.socket.parent == SOCKET.parent
    assert volume["hostPath"]["path"] == served["run"]
    assert worker["spec"]["securityContext"]["supplementalGroups"] == [int(options.group)]


@pytest.mark.parametrize("name", WITH_AGENT)
def test_the_agent_is_where_workers_are(name):
    """A worker's node has the label and bears the taint that the agent goes by."""
    (agent,) = objects(name, "DaemonSet").values()
    _, worker = ray_pods(name)
    assert agent["spec"]["template"]["spec"]["tolerations"] == worker["spec"]["tolerations"]
    chosen = worker["spec"].get("nodeSelector", {})
    assert chosen.keys() <= {"nvidia.com/gpu.product"}


def test_without_gpus_there_is_no_agent_no_host_path_and_nothing_privileged():
    assert objects("cpu-tryout", "DaemonSet") == {}
    (namespace,) = objects("cpu-tryout", "Namespace").values()
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for template in pods("cpu-tryout"):
        assert not any("hostPath" in one for one in template["spec"]["volumes"])
        assert "runtimeClassName" not in template["spec"]


@pytest.mark.parametrize("name", WITH_AGENT)
def test_api_keys_are_asked_for_from_where_they_are_mounted(name):
    (service,) = objects(name, "RayService").values()
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    energy = parse_energy(application["args"]["energy"], name)
    for template in ray_pods(name):
        (volume,) = [v for v in template["spec"]["volumes"] if v["name"] == "api-keys"]
        mounts = template["spec"]["containers"][0]["volumeMounts"]
        (folder,) = [m["mountPath"] for m in mounts if m["name"] == "api-keys"]
        (key,) = secrets()[volume["secret"]["secretName"]]["stringData"]
        assert energy.security.api_keys_file == Path(folder, key)
    assert energy.security.protect == ("openai", "energy")


@pytest.mark.parametrize("name", EVERY)
def test_prometheus_has_a_key(name):
    (endpoint,) = objects(name, "PodMonitor")["jouleserve"]["spec"]["podMetricsEndpoints"]
    credentials = endpoint["authorization"]["credentials"]
    assert credentials["key"] in secrets()[credentials["name"]]["stringData"]


def labels_of(name):
    """Of every pod, as KubeRay completes them."""
    head, *workers = (one["metadata"]["labels"] for one in ray_pods(name))
    node = {"ray.io/is-ray-node": "yes"}
    ray = [{**head, **node, "ray.io/node-type": "head"}]
    ray += [{**one, **node, "ray.io/node-type": "worker"} for one in workers]
    agents = [
        one["spec"]["template"]["metadata"]["labels"] for one in objects(name, "DaemonSet").values()
    ]
    return ray, agents


def selected(selector, labels):
    return selector["matchLabels"].items() <= labels.items()


def port_names(template):
    return {port["name"] for one in template["spec"]["containers"] for port in one.get("ports", ())}


@pytest.mark.parametrize("name", EVERY)
def test_the_application_is_scraped_once_and_under_the_name_that_alerts_use(name):
    monitors = objects(name, "PodMonitor")
    (head, *workers), agents = labels_of(name)
    ours, rays = monitors["jouleserve"]["spec"], monitors["jouleserve-ray"]["spec"]
    assert selected(ours["selector"], head)
    assert not any(selected(ours["selector"], one) for one in (*workers, *agents))
    assert head[ours["jobLabel"]] == "jouleserve"
    (endpoint,) = ours["podMetricsEndpoints"]
    assert endpoint["path"] == "/jouleserve/metrics"
    assert endpoint["port"] in port_names(ray_pods(name)[0])
    assert all(selected(rays["selector"], one) for one in (head, *workers))
    assert not any(selected(rays["selector"], one) for one in agents)
    (endpoint,) = rays["podMetricsEndpoints"]
    assert all(endpoint["port"] in port_names(one) for one in ray_pods(name))
    assert "jobLabel" not in rays  # else "jouleserve" would be Ray's job as well


@pytest.mark.parametrize("name", EVERY)
def test_network_policies_select_pods_and_ports_that_there_are(name):
    ray, agents = labels_of(name)
    for policy in objects(name, "NetworkPolicy").values():
        spec = policy["spec"]
        chosen = [one for one in (*ray, *agents) if selected(spec["podSelector"], one)]
        assert chosen, policy["metadata"]["name"]
        for rule in spec.get("ingress", ()):
            for port in rule.get("ports", ()):
                assert port["port"] in port_names(ray_pods(name)[0])
    covered = [one["spec"]["podSelector"] for one in objects(name, "NetworkPolicy").values()]
    assert all(any(selected(one, labels) for one in covered) for labels in (*ray, *agents))


@pytest.mark.parametrize("name", EVERY)
def test_dashboards_are_where_grafanas_sidecar_looks(name):
    boards = objects(name, "ConfigMap")["jouleserve-dashboards"]
    assert boards["metadata"]["labels"] == {"grafana_dashboard": "1"}
    assert boards["data"].keys() == {"jouleserve-fleet.json", "jouleserve-replica.json"}


def test_ray_labels_that_selectors_use_are_those_of_kuberay():
    used = [
        one["spec"]["podSelector"]["matchLabels"]
        for one in objects("base", "NetworkPolicy").values()
    ]
    used += [
        one["spec"]["selector"]["matchLabels"] for one in objects("base", "PodMonitor").values()
    ]
    ray = [(key, value) for one in used for key, value in one.items() if key.startswith("ray.io/")]
    assert ray
    assert all(value in KUBERAY_LABELS[key] for key, value in ray)


def test_the_models_folder_is_a_volume_of_the_workers():
    home = objects("base", "ConfigMap")["jouleserve-environment"]["data"]["HF_HOME"]
    _, worker = ray_pods("base")
    assert home in {one["mountPath"] for one in worker["spec"]["containers"][0]["volumeMounts"]}
    assert CACHE_VARIABLE not in objects("base", "ConfigMap")["jouleserve-environment"]["data"]
