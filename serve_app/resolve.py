"""What a Serve config file means once JouleServe has filled in its parts: `config show`'s
answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from policies.core.errors import ConfigError
from serve_app.settings import parse_energy, parse_live, read_yaml

IMPORT_PATH = "serve_app.app:build_openai_app"


def resolve_file(path: Path) -> dict[str, Any]:
    """The resolved file as plain data. Raises ConfigError (file, key, choices)."""
    data = read_yaml(path)
    applications = data.get("applications") if isinstance(data, dict) else None
    if not isinstance(applications, list) or not applications:
        raise ConfigError(f"{path}: applications: expected a list with at least one application")
    return {**data, "applications": [_application(item, path) for item in applications]}


def _application(application: dict[str, Any], path: Path) -> dict[str, Any]:
    if application.get("import_path") != IMPORT_PATH:
        return application
    arguments = application.get("args") or {}
    energy = parse_energy(arguments["energy"], str(path)) if "energy" in arguments else None
    for deployment in application.get("deployments") or []:
        if str(deployment.get("name", "")).startswith("EnergyLLMServer:"):
            parse_live(deployment.get("user_config") or {}, str(path), energy)
    return {**application, "args": _arguments(arguments, path)}


def _arguments(arguments: dict[str, Any], path: Path) -> dict[str, Any]:
    from serve_app.app import SOURCE, equip_all

    try:
        serving, energy = equip_all(arguments)
    except ConfigError as error:
        raise ConfigError(str(error).replace(f"{SOURCE}: ", f"{path}: ", 1)) from None
    return {
        **arguments,
        "llm_configs": [_plain(config) for config in serving.llm_configs],
        "energy": energy.model_dump(mode="json"),
    }


def _plain(config: Any) -> dict[str, Any]:
    """One LLMConfig with what JouleServe filled in; the profile by name, not by content."""
    server_cls = config.server_cls
    callback = config.callback_config.callback_class
    deployment = dict(config.deployment_config)
    autoscaling = deployment.get("autoscaling_config")
    if isinstance(autoscaling, dict) and isinstance(autoscaling.get("policy"), dict):
        policy = {"policy_function": autoscaling["policy"]["policy_function"]}
        deployment["autoscaling_config"] = {**autoscaling, "policy": policy}
    return {
        "model_loading_config": config.model_loading_config.model_dump(exclude_none=True),
        "server_cls": f"{server_cls.__module__}.{server_cls.__name__}",
        "callback_class": f"{callback.__module__}.{callback.__name__}",
        "engine_kwargs": dict(config.engine_kwargs),
        "deployment_config": deployment,
        "runtime_env": config.runtime_env,
        "placement_group_config": config.placement_group_config,
    }
