"""The manifests as kustomize renders them."""

import functools
import json
import subprocess
from pathlib import Path

import pytest
import yaml
from installed import installed

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs" / "kubernetes"
OVERLAYS = sorted(path.parent.name for path in FOLDER.glob("overlays/*/kustomization.yaml"))
GPU_OVERLAYS = [name for name in OVERLAYS if name.startswith("h100")]
KUBECTL = installed("kubectl")
SCHEMAS = json.loads((ROOT / "tests" / "data" / "kubernetes" / "schemas.json").read_text())
needs_kubectl = pytest.mark.skipif(KUBECTL is None, reason="no kubectl here to render overlays")


def folder_of(name):
    return FOLDER / name if name == "base" else FOLDER / "overlays" / name


def kustomize(folder):
    """What `kubectl kustomize` makes of a folder; its words as an AssertionError."""
    done = subprocess.run(
        [KUBECTL, "kustomize", str(folder)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@functools.cache
def rendered(name):
    """All objects of an overlay, or of the base. Not to be changed."""
    return kustomize(folder_of(name))


def objects(name, kind):
    """The overlay's objects of a kind by name."""
    return {one["metadata"]["name"]: one for one in rendered(name) if one["kind"] == kind}


def ray_cluster(name):
    (service,) = objects(name, "RayService").values()
    return service["spec"]["rayClusterConfig"]


def ray_pods(name):
    """Pod templates of the Ray cluster: head, then each worker group."""
    cluster = ray_cluster(name)
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def pods(name):
    """All pod templates."""
    return ray_pods(name) + [one["spec"]["template"] for one in objects(name, "DaemonSet").values()]


def secrets():
    """The example Secrets by name."""
    documents = yaml.safe_load_all((FOLDER / "secrets.example.yaml").read_text())
    return {one["metadata"]["name"]: one for one in documents}
