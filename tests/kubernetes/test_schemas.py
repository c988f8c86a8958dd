"""Every overlay renders, and every object is one that its API server would take, to the last field."""

import copy

import kubernetes_validate
import pytest
from jsonschema import Draft7Validator
from manifests import OVERLAYS, SCHEMAS, needs_kubectl, objects, ray_pods, rendered, secrets

pytestmark = needs_kubectl
EVERY = ["base", *OVERLAYS]
CLUSTERS = ("1.31", "1.37")


def faults(one):
    schema = {**SCHEMAS[one["kind"]], "definitions": SCHEMAS["definitions"]}
    return [
        f"{fault.json_path}: {fault.message}" for fault in Draft7Validator(schema).iter_errors(one)
    ]


def accept(one, version):
    kubernetes_validate.validate(one, version, strict=True)


def as_pod(template):
    metadata = {**template.get("metadata", {}), "name": "one"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


@pytest.mark.parametrize("version", CLUSTERS)
@pytest.mark.parametrize("name", EVERY)
def test_objects_of_kubernetes_are_valid(name, version):
    own = [one for one in rendered(name) if one["kind"] not in SCHEMAS]
    assert {one["kind"] for one in own} >= {"Namespace", "ConfigMap", "NetworkPolicy"}
    for one in own:
        accept(one, version)


@pytest.mark.parametrize("name", EVERY)
def test_objects_of_the_operators_are_valid(name):
    theirs = [one for one in rendered(name) if one["kind"] in SCHEMAS]
    assert {one["kind"] for one in theirs} == {"RayService", "PodMonitor", "PrometheusRule"}
    assert {one["metadata"]["name"]: faults(one) for one in theirs if faults(one)} == {}


@pytest.mark.parametrize("version", CLUSTERS)
@pytest.mark.parametrize("name", EVERY)
def test_pods_of_the_ray_cluster_are_valid(name, version):
    for template in ray_pods(name):
        accept(as_pod(template), version)


def test_the_example_secrets_are_valid():
    for one in secrets().values():
        accept(one, CLUSTERS[-1])
        assert set(one["stringData"].values()) <= {"REPLACE-ME", "[]"}


@pytest.mark.parametrize(
    ("kind", "path", "typo"),
    [
        ("RayService", ("spec", "rayClusterConfig", "authOptions"), "secret"),
        ("RayService", ("spec", "rayClusterConfig", "workerGroupSpecs", 0), "maxReplica"),
        ("PodMonitor", ("spec", "podMetricsEndpoints", 0), "scrape_interval"),
        ("PrometheusRule", ("spec", "groups", 0, "rules", 0), "fro"),
    ],
)
def test_a_typo_in_an_operators_object_is_a_fault(kind, path, typo):
    one = place = copy.deepcopy(next(iter(objects("base", kind).values())))
    assert faults(one) == []
    for key in path:
        place = place[key]
    place[typo] = "x"
    assert any(typo in fault for fault in faults(one))


def test_a_typo_in_a_pod_is_a_fault():
    template = copy.deepcopy(ray_pods("base")[0])
    template["spec"]["containers"][0]["enviromentFrom"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        accept(as_pod(template), CLUSTERS[-1])


@pytest.mark.parametrize("name", EVERY)
def test_a_large_object_still_fits_into_kubectls_annotation(name):
    for one in rendered(name):
        assert len(str(one)) < 262_144
