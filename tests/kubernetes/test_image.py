"""The Dockerfile: linted, pinned, nobody's root, and what the manifests and KubeRay ask of it."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from manifests import OVERLAYS, ROOT, needs_kubectl, pods, ray_pods

DOCKERFILE = ROOT / "Dockerfile"
HADOLINT = Path(sys.executable).parent / "hadolint"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
_STAGE = re.compile(r"^FROM (\S+) AS (\S+)$", re.MULTILINE)


def joined():
    """The instructions, one a line."""
    text = re.sub(r"\\\n\s*", " ", DOCKERFILE.read_text())
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def stages():
    """name → its instructions, in order."""
    found, name = {}, None
    for line in joined():
        if line.startswith("FROM "):
            name = _STAGE.match(line)[2]
            found[name] = []
        elif name is not None:
            found[name].append(line)
    return found


@pytest.mark.skipif(not HADOLINT.exists(), reason="no hadolint here")
def test_hadolint_finds_nothing():
    command = [str(HADOLINT), "--failure-threshold", "style", str(DOCKERFILE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_base_is_one_pinned_version_of_a_python_that_the_project_takes():
    (base,) = (line for line in joined() if line.startswith("ARG BASE="))
    version = re.fullmatch(r"ARG BASE=python:(\d+\.\d+)\.\d+-slim-\w+", base)[1]
    assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]
    bases = {name: base for base, name in _STAGE.findall(DOCKERFILE.read_text())}
    assert set(bases.values()) <= {"${BASE}", *bases}


def test_what_is_installed_is_pinned():
    pip = [line for lines in stages().values() for line in lines if "pip install" in line]
    for line in pip:
        for package in re.findall(r"pip install --no-cache-dir (\S+)", line):
            assert re.fullmatch(r"[\w-]+==[\d.]+", package)
    (engines,) = (line for line in pip if "--extra" in line)
    extras = re.findall(r"--extra (\w+)", engines)
    assert sorted(extras) == ["cpu", "gpu"]
    assert set(extras) <= PROJECT["optional-dependencies"].keys()
    assert "--constraint requirements/cpu-constraints.txt" in engines
    assert '--exclude-newer "$RESOLVED_ON"' in engines
    constraints = (ROOT / "requirements" / "cpu-constraints.txt").read_text()
    assert re.search(r"nvidia-ml-py==[\d.]+", DOCKERFILE.read_text())[0] in constraints.split()


def test_nobody_is_root_by_default():
    for name in ("serve", "power-agent"):
        users = [line for line in stages()[name] if line.startswith("USER ")]
        assert re.fullmatch(r"USER [1-9]\d*:[1-9]\d*", users[-1]), name
    assert list(stages())[-1] == "serve"


def test_what_is_copied_is_there_and_is_all_that_docker_is_sent():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    sent = {line[1:] for line in rules if line.startswith("!")}
    copied = {
        source
        for lines in stages().values()
        for line in lines
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    }
    assert copied == sent
    assert all((ROOT / source).exists() for source in copied)


def test_the_agents_image_holds_no_more_than_the_agent_needs():
    (install,) = (line for line in stages()["power-agent"] if "install" in line)
    assert re.findall(r"([\w-]+)==", install) == ["nvidia-ml-py"]
    assert 'ENTRYPOINT ["python", "-m", "serve_app.power_agent"]' in stages()["power-agent"]


def test_kuberay_finds_what_its_probes_and_start_commands_call():
    (apt,) = (line for line in stages()["system"] if "apt-get" in line)
    assert {"wget", "libnuma1", "gcc"} <= set(apt.split())
    assert "COPY --from=build /usr/local /usr/local" in stages()["serve"]  # ray on everybody's PATH


@needs_kubectl
def test_pods_run_as_the_user_of_the_image():
    (user,) = (line.split()[1] for line in stages()["serve"] if line.startswith("USER "))
    for template in ray_pods("base"):
        context = template["spec"]["containers"][0]["securityContext"]
        assert f"{context['runAsUser']}:{context['runAsGroup']}" == user


@needs_kubectl
def test_manifests_name_images_that_the_dockerfile_says_how_to_build():
    built = set(re.findall(r"-t (\S+) \.", DOCKERFILE.read_text()))
    used = {
        container["image"]
        for name in OVERLAYS
        for template in pods(name)
        for container in template["spec"]["containers"]
    }
    assert used == built
    assert all(image.split(":")[1].startswith(PROJECT["version"]) for image in used)
