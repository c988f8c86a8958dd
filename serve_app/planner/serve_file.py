"""A plan as a Serve config file: `serve_config.yaml` with the planned model, bounds and targets.

The file holds no operating point: the policy chooses that, live, within the bounds.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from policies.core.errors import ConfigError
from policies.model.fitted import FittedModel
from serve_app.models.catalog import KNOWN_MODELS
from serve_app.planner.solve import Solution
from serve_app.planner.words import kind_of, load_text
from serve_app.repository import REPOSITORY
from serve_app.resolve import IMPORT_PATH
from serve_app.settings import PROFILE_DIR, PolicySettings, parse_energy, read_yaml

Section = dict[str, Any]
TEMPLATE = REPOSITORY / "serve_config.yaml"
# What the template's CPU engine needs and a GPU engine does not.
_CPU_KEYS = ("accelerator_config", "placement_group_config", "runtime_env")
_ACCELERATOR = re.compile(r"\b([A-Z]{1,2}\d{2,3}[A-Z]?)\b")  # of a device's name: H100, B200, L40S


def check_target(path: Path, *, force: bool) -> None:
    """Refuse, before any work, a file that must not be written. Raises ConfigError."""
    if path.suffix not in {".yaml", ".yml"}:
        raise ConfigError(f"--write {path}: allowed endings: .yaml, .yml")
    if path.exists() and not force:
        raise ConfigError(f"--write {path}: exists; --force overwrites it")
    if not path.parent.is_dir():
        raise ConfigError(f"--write {path}: no such folder {path.parent}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where a file comes from: the profile's file, the command, and what the engine is to load,
    None = what the profile calls the model."""

    profile: Path
    command: str
    model_source: str | None = None


def write(path: Path, solution: Solution, origin: Origin) -> None:
    """Write the file for a solution that holds. Raises ConfigError."""
    config = yaml.safe_dump(serve_config(solution, origin), sort_keys=False, width=100)
    head = "".join(f"# {line}\n" for line in _head(solution, origin.command))
    draft = path.with_name(f".{path.name}.part")
    try:
        draft.write_text(head + config, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise ConfigError(f"--write {path}: {error.strerror or error}") from None


def loadable(name: str) -> bool:
    """Whether an engine finds the model by this name: a known one, a folder, or org/name."""
    return name in KNOWN_MODELS or "/" in name or Path(name).is_dir()


def serve_config(solution: Solution, origin: Origin) -> Section:
    """The file's data: one application with the model of the solution's profile."""
    data = copy.deepcopy(read_yaml(TEMPLATE))
    application = next(a for a in data["applications"] if a["import_path"] == IMPORT_PATH)
    arguments, model, question = application["args"], solution.model, solution.question
    model_id = model.model.rsplit("/", 1)[-1].lower()
    capacity = question.capacity_of(model)
    config = _engine(arguments["llm_configs"][0], model, capacity)
    source = origin.model_source or model.model
    config["model_loading_config"] = {"model_id": model_id, "model_source": source}
    bounds = {"min_replicas": question.min_replicas, "max_replicas": max_replicas(solution)}
    deployment = config["deployment_config"]
    deployment["max_ongoing_requests"] = 2 * capacity  # a full batch, and as many that wait
    deployment["max_queued_requests"] = 4 * capacity
    deployment["autoscaling_config"] = bounds
    arguments["llm_configs"] = [config]
    ingress = arguments["ingress_deployment_config"]
    fleet = bounds["max_replicas"] * deployment["max_ongoing_requests"]
    ingress["max_ongoing_requests"] = max(ingress["max_ongoing_requests"], fleet)
    arguments["energy"] = _energy(arguments["energy"], solution, origin.profile)
    deployed = model_id.replace(".", "_")  # as Ray names deployments
    application["deployments"] = [{"name": f"EnergyLLMServer:{deployed}", "user_config": {}}]
    return {**data, "applications": [application]}


def max_replicas(solution: Solution) -> int:
    """What was asked for; else what the planned load needs, by the plan or by the policy."""
    asked = solution.question.max_replicas
    if asked is not None:
        return asked
    points = [solution.policy.point]
    if solution.cheapest is not None:
        points.append(solution.cheapest.point)
    return max(point.num_replicas for point in points)


def _engine(template: Section, model: FittedModel, capacity: int) -> Section:
    config = copy.deepcopy(template)
    sizes = {"max_model_len": model.valid.max_context_tokens, "max_num_seqs": capacity}
    accelerator = _ACCELERATOR.search(model.device)
    if accelerator is None and "NVIDIA" not in model.device:
        config["engine_kwargs"] |= sizes
        return config
    for key in _CPU_KEYS:
        config.pop(key, None)
    config["deployment_config"].pop("ray_actor_options", None)
    config["engine_kwargs"] = {"tensor_parallel_size": model.power.num_devices, **sizes}
    return config if accelerator is None else {"accelerator_type": accelerator[1], **config}


def _energy(template: Section, solution: Solution, profile: Path) -> Section:
    slo, headroom = solution.question.slo, solution.question.headroom_ratio
    policy = dict(template["policy"])
    if headroom != PolicySettings().slo_headroom_ratio:
        policy["slo_headroom_ratio"] = headroom
    shipped = profile.parent == REPOSITORY / PROFILE_DIR
    energy = template | {
        "slo": {
            "ttft_ms": round(slo.ttft_s * 1e3, 6),
            "tpot_ms": round(slo.tpot_s * 1e3, 6),
            "percentile": slo.percentile,
        },
        "policy": policy,
        "profile": profile.stem if shipped else str(profile),
    }
    parse_energy(energy, str(TEMPLATE))
    return energy


def _head(solution: Solution, command: str) -> list[str]:
    """What the file was planned for, as comments."""
    load, cheapest = solution.question.load, solution.cheapest
    assert cheapest is not None, "only what holds is written"
    point, predicted = cheapest.point, cheapest.prediction
    planned = (
        f"{point.num_replicas} replicas, batch cap {point.max_num_active_seqs}: "
        f"{predicted.joules_per_request:.4g} J/request"
    )
    lines = [
        f"Written by `{command}`.",
        f"For {load_text(load)}; the profile is {kind_of(solution.model)}.",
        f"Cheapest point: {planned}. The policy chooses live.",
    ]
    if point.power_limit_watts is not None:
        lines.append(
            f"It counts on a power limit of {point.power_limit_watts:g} W per GPU, which "
            "`power.actuator: none` leaves to whoever runs the node."
        )
    return lines
