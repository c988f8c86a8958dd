"""The composition root: read this file to see how JouleServe is wired.

`build_openai_app` takes what `ray.serve.llm:build_openai_app` takes, plus one optional block
`energy:`. It validates the block, turns it into the hooks that Ray and vLLM offer, and lets
Ray's own builders make the application:

    energy.slo, policy, profile → autoscaling policy (controller), control loop (replica) and
                                  request router (ingress)
    energy.meter                → the meter of each replica
    energy.security             → the gate in front of the HTTP API (ingress, or replica)
    llm_configs[*]              → server_cls, scheduler_cls, callback_config filled in where empty

Without the block: Ray's behaviour, Ray's deployment names, plus a meter.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.llm import LLMServingArgs, build_llm_deployment
from ray.serve.llm import build_openai_app as ray_build_openai_app

from policies.core.errors import ConfigError
from policies.core.types import Mode
from serve_app.api_errors import use_openai_errors
from serve_app.deciders import load_profile
from serve_app.engine import ray_server
from serve_app.ingress import ENDPOINTS, EnergyIngress
from serve_app.models import resolve_model
from serve_app.packing import STATS_PERIOD_S
from serve_app.security.gate import GateMiddleware
from serve_app.security.key_file import read_keys
from serve_app.security.report import gate_options
from serve_app.security.settings import NO_SECURITY
from serve_app.server import SETTINGS_KEY, EnergyLLMServer, LLMServer
from serve_app.settings import EnergySettings, PolicySettings, parse_energy

log = logging.getLogger("ray.serve")

SCHEDULER = "serve_app.engine.scheduler.capped_scheduler"
POLICY = "serve_app.ray_policy:EnergyPolicy"
ROUTER = {
    "request_router_class": "serve_app.packed_router:PackedRouter",
    "request_routing_stats_period_s": STATS_PERIOD_S,
}
# Ray smooths what a policy says; ours has its own dwell, and hysteresis is applied once (ADR 0003).
NEUTRAL_AUTOSCALING = {
    "upscale_delay_s": 0.0,
    "downscale_delay_s": 0.0,
    "metrics_interval_s": 1.0,
    "look_back_period_s": 5.0,
}
SOURCE = "application args"


class Refused(ConfigError, RayServeException):  # type: ignore[misc]  # Ray ships no types for it
    """Wrong arguments. Serve shows the message of its own exceptions as it is, and does not try to
    build again; any other exception is tried four times and ends as a traceback."""


def build_openai_app(args: dict[str, Any]) -> serve.Application:
    """The Ray Serve application for Ray's own arguments plus `energy:`. Raises ConfigError with one
    readable line when they are wrong."""
    try:
        serving, energy = equip_all(args)
        direct = ray_server.direct_streaming()
        ours = direct or serving.ingress_cls_config.ingress_cls is _RAY_INGRESS
        check_keys(serving, energy, gated=ours)
    except ConfigError as error:
        raise Refused(str(error)) from None
    if direct or not ours:
        return ray_build_openai_app(dict(serving))
    return _behind_our_ingress(serving, energy)


def check_keys(serving: LLMServingArgs, energy: EnergySettings, *, gated: bool) -> None:
    """Raise ConfigError where keys are asked for and nobody could ask, or their file is wrong."""
    path = energy.security.api_keys_file
    if path is None:
        return
    where = f"{SOURCE}: energy.security.api_keys_file"
    if not gated:
        raise ConfigError(f"{where}: not with an ingress_cls of your own, which has no gate")
    own = [c for c in serving.llm_configs if not _is_ours(c.server_cls)]
    if own and ray_server.direct_streaming():
        raise ConfigError(f"{where}: not with a server_cls of your own, which has no gate")
    try:
        read_keys(path)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _is_ours(server_cls: Any) -> bool:
    return isinstance(server_cls, type) and issubclass(server_cls, EnergyLLMServer)


def equip_all(args: dict[str, Any]) -> tuple[LLMServingArgs, EnergySettings]:
    """Ray's arguments with our hooks in every model, and the settings in force. Needs no cluster.
    Raises ConfigError that names the key."""
    given = dict(args)
    block = given.pop("energy", None)
    energy = parse_energy(block, SOURCE) if block is not None else metering_only()
    try:
        serving = LLMServingArgs.model_validate(given)
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(str(part) for part in fault["loc"])
        raise ConfigError(f"{SOURCE}: {key}: {fault['msg']}") from None
    profile = load_profile(energy.profile)
    for config in serving.llm_configs:
        equip(config, energy, profile.to_dict() if profile else None, named=block is not None)
    return serving, energy


def metering_only() -> EnergySettings:
    """What applies without an `energy:` block: meter, decide nothing, refuse nothing."""
    return EnergySettings(policy=PolicySettings(mode=Mode.OFF), security=NO_SECURITY)


def equip(
    config: Any, energy: EnergySettings, profile: dict[str, Any] | None, *, named: bool
) -> None:
    """Fill our hooks into one LLMConfig (in place). What the user set stays."""
    loading = config.model_loading_config
    if isinstance(loading.model_source, str):
        loading.model_source = resolve_model(loading.model_source)
        if (
            Path(loading.model_source).is_dir()
            and config.callback_config.callback_class is ray_server.NO_CALLBACK
        ):
            config.callback_config.callback_class = ray_server.SkipDownload
    if config.server_cls is not None:
        log.warning(
            "model %s has its own server_cls %s: JouleServe neither meters nor controls it",
            config.model_id,
            config.server_cls,
        )
        return
    config.server_cls = EnergyLLMServer if named else LLMServer
    config.engine_kwargs.setdefault("scheduler_cls", SCHEDULER)
    settings = energy.model_dump(mode="json")
    given: dict[str, Any] = {"settings": settings, "profile": profile, "packed": False}
    if not energy.metering_only:
        if energy.policy.name == "energy_slo":
            given["packed"] = _let_router_pack(config.deployment_config)
        _let_policy_scale(config.deployment_config, given)
    config.experimental_configs[SETTINGS_KEY] = {
        "energy": settings,
        "profile": profile,
        "packed": given["packed"],
    }


def _let_router_pack(deployment: dict[str, Any]) -> bool:
    """Put our request router under the user's options. A router of the user's own stays theirs, and
    so does an object of Ray's, which always names one. Returns whether ours is in place."""
    options = deployment.get("request_router_config") or {}
    if not isinstance(options, dict) or "request_router_class" in options:
        log.info("request_router_config has a class: JouleServe does not choose among replicas")
        return False
    deployment["request_router_config"] = {**ROUTER, **options}
    return True


def _let_policy_scale(deployment: dict[str, Any], given: dict[str, Any]) -> None:
    """Put our policy and neutral delays under the user's autoscaling bounds. A fixed `num_replicas`
    stays fixed; a policy of the user's own stays theirs."""
    if isinstance(deployment.get("num_replicas"), int):
        return
    autoscaling = dict(deployment.get("autoscaling_config") or {})
    if "policy" in autoscaling:
        log.warning("autoscaling_config.policy is set: JouleServe does not choose replicas")
        return
    # Ray drops the policy of an application that it builds again, and takes it up again only where
    # the deployment is another one (ADR 0015): so no two builds are the same.
    policy = {
        "policy_function": POLICY,
        "policy_kwargs": {**given, "built_ns": time.time_ns()},
    }
    deployment["autoscaling_config"] = {**NEUTRAL_AUTOSCALING, **autoscaling, "policy": policy}


def _behind_our_ingress(serving: Any, energy: EnergySettings) -> serve.Application:
    """What Ray's builder does, with our ingress class in place of Ray's, and the gate before it."""
    configs = serving.llm_configs
    options = ray_server.ingress_options(EnergyIngress, configs, serving.ingress_deployment_config)
    app = use_openai_errors(ray_server.new_ingress_app())
    if energy.security != NO_SECURITY:
        app.add_middleware(GateMiddleware, **gate_options(energy))  # the last is the outermost
    ingress = ray_server.make_fastapi_ingress(EnergyIngress, endpoint_map=ENDPOINTS, app=app)
    lora_paths = {
        c.model_id: c.lora_config.dynamic_lora_loading_path for c in configs if c.lora_config
    }
    # Ray's name: a file may hold options for it under `deployments:`.
    return serve.deployment(ingress, **{"name": _RAY_INGRESS.__name__, **options}).bind(
        llm_deployments={c.model_id: build_llm_deployment(c) for c in configs},
        model_cards=ray_server.model_cards(configs),
        lora_paths=lora_paths,
        **serving.ingress_cls_config.ingress_extra_kwargs,
    )


_RAY_INGRESS = LLMServingArgs.model_fields["ingress_cls_config"].default_factory().ingress_cls

__all__ = ["build_openai_app", "equip"]
