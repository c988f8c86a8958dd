"""Builds the policy that settings ask for; the one place where both edges (controller and replica)
get their policy and their model, so that they cannot disagree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from policies.catalog import POLICIES, make_policy
from policies.core.control import Policy
from policies.core.errors import ConfigError
from policies.core.types import Observation
from policies.energy_slo import EnergySlo
from policies.joint.options import JointOptions
from policies.model.fitted import FittedModel
from policies.model.online import Correction
from serve_app.settings import EnergySettings, find_profile, read_yaml

__all__ = ["POLICIES", "RAY_DEFAULT", "Serving", "load_profile", "policy_for"]

RAY_DEFAULT = "ray_default"


@dataclass(frozen=True, kw_only=True, slots=True)
class Serving:
    """What the joint policy must know of the service around it: whether its router fills replicas
    in a fixed order, and the engine's token budget per step (None: not known)."""

    packed: bool = False
    max_num_batched_tokens: int | None = None


def load_profile(name: str | None) -> FittedModel | None:
    """The fitted model of a profile file; None when no profile is named. Raises ConfigError."""
    if name is None:
        return None
    path = find_profile(name)
    data: Any = read_yaml(path)
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping at the top, got {type(data).__name__}")
    return FittedModel.from_dict(data, source=str(path))


def policy_for(
    settings: EnergySettings,
    model: FittedModel | None,
    ray_default: Callable[[Observation], int] | None = None,
    correction: Correction | None = None,
    serving: Serving | None = None,
) -> Policy:
    """The policy named in `settings`, with the model as live steps correct it, for a service that
    is `serving` so. `ray_default` is Ray's own rule, handed in by the controller edge; a replica,
    which never chooses replicas, leaves it out."""
    choice = settings.policy
    if choice.name == "static":
        return make_policy(
            "static",
            num_replicas=choice.num_replicas,
            max_num_active_seqs=choice.max_num_active_seqs,
            power_limit_watts=None,
        )
    if choice.name == RAY_DEFAULT:
        if ray_default is None:
            return make_policy(
                "static", num_replicas=None, max_num_active_seqs=None, power_limit_watts=None
            )
        return make_policy(RAY_DEFAULT, desired_num_replicas=ray_default)
    options = _options(settings, serving or Serving())
    policy = EnergySlo(model=model, options=options)
    return policy if correction is None else policy.corrected(correction)


def _options(settings: EnergySettings, serving: Serving) -> JointOptions:
    options = JointOptions(cold_start_s=settings.policy.cold_start_s, packed=serving.packed)
    tokens = serving.max_num_batched_tokens
    return options if tokens is None else replace(options, max_num_batched_tokens=tokens)
