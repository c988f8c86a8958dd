"""docs/kubernetes.md speaks of the files as they are."""

import re

import yaml
from manifests import FOLDER, GPU_OVERLAYS, OVERLAYS, ROOT, folder_of, secrets

PAGE = (ROOT / "docs" / "kubernetes.md").read_text()


def test_the_table_names_every_overlay_with_its_bounds_and_mode():
    rows = dict(re.findall(r"^\| `([\w-]+)` \|(.*)\|$", PAGE, re.MULTILINE))
    assert {name for name in rows if (FOLDER / "overlays" / name).is_dir()} == set(OVERLAYS)
    for name in OVERLAYS:
        (one,) = yaml.safe_load((folder_of(name) / "serve.yaml").read_text())["applications"]
        (config,) = one["args"]["llm_configs"]
        bounds = config["deployment_config"]["autoscaling_config"]
        assert f"| {bounds['min_replicas']} to {bounds['max_replicas']} |" in rows[name]
        assert one["args"]["energy"]["policy"]["mode"] in rows[name]
        gpus = config["engine_kwargs"].get("tensor_parallel_size", 1)
        assert (f"{gpus} H100" in rows[name]) == (name in GPU_OVERLAYS)


def test_its_images_and_secrets_are_those_of_the_files():
    builds = set(re.findall(r"docker build .* \.", (ROOT / "Dockerfile").read_text()))
    assert {line for line in builds if line in PAGE} == builds
    made = re.findall(
        r"create secret generic (\S+) --from-(?:literal|file)=([\w.]+)",
        PAGE,
    )
    assert dict(made) == {name: next(iter(one["stringData"])) for name, one in secrets().items()}


def test_paths_that_it_names_are_there():
    named = set(re.findall(r"(configs/[\w./-]*\w)", PAGE)) | {
        f"configs/kubernetes/{path}" for path in re.findall(r"`(base/[\w.-]+)", PAGE)
    }
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == ["configs/prometheus"] * (
        not (ROOT / "configs" / "prometheus").is_dir()
    )
    for link in re.findall(r"\]\(([\w-]+\.md)\)", PAGE):
        assert (ROOT / "docs" / link).exists()
