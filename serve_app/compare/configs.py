"""From one Serve config file to the systems compared: same model, same engine arguments.

Stock and bare vLLM run without our vLLM plugin: it is installed in the same environment, and vLLM
would load it into any engine.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from policies.core.errors import ConfigError
from serve_app.models import resolve_model
from serve_app.resolve import IMPORT_PATH
from serve_app.settings import find_profile, parse_energy, read_yaml

STOCK_IMPORT_PATH = "ray.serve.llm:build_openai_app"
OUR_PLUGIN = "jouleserve"

Section = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """One model of a Serve config file; every system is derived from it.

    `llm_config` has the model's folder in place of its name, so that all load the same files.
    """

    path: Path
    model: str
    source: str
    llm_config: Section
    ingress: Section
    energy: Section


@dataclass(frozen=True, kw_only=True, slots=True)
class AppPlan:
    """One application of a cluster. `target_ongoing_requests`: None leaves Ray's own default."""

    name: str
    ours: bool
    max_replicas: int = 1
    mode: str | None = None  # `user_config.mode`: None leaves what the file says
    target_ongoing_requests: float | None = None
    direct: bool = False
    profile: str | None = None


def read_base(path: Path) -> Base:
    """Return the first JouleServe model of a Serve config file.

    Raises ConfigError that names the file and key when there is none, or its `energy:` is wrong.
    """
    return _base(path, _arguments(path))


def read_energy(path: Path) -> Section:
    """The `energy:` block of the same application, as it stands; the model need not be there.

    Raises ConfigError as `read_base` does.
    """
    energy: Section = _arguments(path).get("energy") or {}
    parse_energy(energy, str(path))
    return energy


def _arguments(path: Path) -> Section:
    data = read_yaml(path)
    applications = (data.get("applications") if isinstance(data, dict) else None) or []
    for application in applications:
        if application.get("import_path") == IMPORT_PATH:
            return application.get("args") or {}
    raise ConfigError(f"{path}: applications: none has import_path {IMPORT_PATH}")


def _base(path: Path, arguments: Section) -> Base:
    configs = arguments.get("llm_configs") or []
    if len(configs) != 1 or not isinstance(configs[0], dict):
        raise ConfigError(f"{path}: args.llm_configs: expected exactly one model, a mapping")
    config = copy.deepcopy(configs[0])
    loading = config.get("model_loading_config") or {}
    if "model_id" not in loading:
        raise ConfigError(f"{path}: args.llm_configs[0].model_loading_config.model_id: missing")
    source = resolve_model(str(loading.get("model_source") or loading["model_id"]))
    config["model_loading_config"] = {**loading, "model_source": source}
    energy = arguments.get("energy") or {}
    parse_energy(energy, str(path))
    return Base(
        path=path,
        model=str(loading["model_id"]),
        source=source,
        llm_config=config,
        ingress=copy.deepcopy(arguments.get("ingress_deployment_config") or {}),
        energy=copy.deepcopy(energy),
    )


def cluster_config(base: Base, apps: Iterable[AppPlan], port: int) -> Section:
    """Return the Serve config of one Ray cluster with each app under the prefix of its name."""
    return {
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [_application(base, app) for app in apps],
    }


def _application(base: Base, app: AppPlan) -> Section:
    config = copy.deepcopy(base.llm_config)
    deployment = config.setdefault("deployment_config", {})
    deployment.pop("num_replicas", None)
    deployment["autoscaling_config"] = {"min_replicas": 1, "max_replicas": app.max_replicas}
    arguments: Section = {"llm_configs": [config]}
    if base.ingress and not app.direct:
        arguments["ingress_deployment_config"] = copy.deepcopy(base.ingress)
    found: Section = {
        "name": app.name,
        "route_prefix": f"/{app.name}",
        "import_path": IMPORT_PATH if app.ours else STOCK_IMPORT_PATH,
        "args": arguments,
    }
    if app.ours:
        arguments["energy"] = _energy(base, app)
        live = {} if app.mode is None else {"mode": app.mode}
        name = base.model.replace("/", "--").replace(".", "_")
        found["deployments"] = [{"name": f"EnergyLLMServer:{name}", "user_config": live}]
    else:
        _without_plugin(config)
        if app.target_ongoing_requests is not None:
            autoscaling = deployment["autoscaling_config"]
            autoscaling["target_ongoing_requests"] = app.target_ongoing_requests
    return found


def _energy(base: Base, app: AppPlan) -> Section:
    """Return the file's block, with its profile (or the other one asked for) as a full path."""
    energy = copy.deepcopy(base.energy)
    profile = app.profile or energy.get("profile")
    if profile is not None:
        energy["profile"] = str(find_profile(profile))
    return energy


def _without_plugin(config: Section) -> None:
    environment = config.setdefault("runtime_env", {}).setdefault("env_vars", {})
    environment.setdefault("VLLM_PLUGINS", other_plugins())


def other_plugins() -> str:
    """Return vLLM's list of plugins to load: all that are installed but ours."""
    found = entry_points()
    names = {
        plugin.name
        for group in found.groups
        if group.startswith("vllm.")
        for plugin in found.select(group=group)
    }
    return ",".join(sorted(names - {OUR_PLUGIN}))


def bare_arguments(base: Base, port: int) -> list[str]:
    """Return the arguments of vLLM's own API server for the same engine."""
    arguments = ["--model", base.source, "--served-model-name", base.model]
    for name, value in (base.llm_config.get("engine_kwargs") or {}).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            arguments += [f"--{flag}", text]
    return [*arguments, "--host", "127.0.0.1", "--port", str(port)]


def bare_environment(base: Base) -> dict[str, str]:
    """Return the environment of the model's replicas, without our plugin."""
    given = (base.llm_config.get("runtime_env") or {}).get("env_vars") or {}
    return {"VLLM_PLUGINS": other_plugins(), **{k: str(v) for k, v in given.items()}}
