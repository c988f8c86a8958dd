"""Every policy by name. A new policy is one file and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any

from policies.agft import Agft
from policies.core.control import Policy
from policies.core.errors import ConfigError
from policies.dynamollm import DynamoLlm
from policies.energy_slo import EnergySlo
from policies.fixed_limit import FixedLimit
from policies.only import Only
from policies.pals import Pals
from policies.ray_default import RayDefault
from policies.static import Static
from policies.static_peak import StaticPeak
from policies.throttllem import ThrottLlem
from policies.wva import Wva

POLICIES: Mapping[str, type[Any]] = MappingProxyType(
    {
        "energy_slo": EnergySlo,
        "static": Static,
        "ray_default": RayDefault,
        "static_peak": StaticPeak,
        "fixed_limit": FixedLimit,
        "wva": Wva,
        "pals": Pals,
        "dynamollm": DynamoLlm,
        "throttllem": ThrottLlem,
        "agft": Agft,
        "only": Only,
    }
)
"""Each a frozen dataclass that implements `Policy`. Those that remember say so: a new one per
run."""


def make_policy(name: str, **options: Any) -> Policy:
    """The policy of that name; ConfigError names the allowed names, or the allowed options."""
    if name not in POLICIES:
        raise ConfigError(f"policy name is {name!r}; allowed: {', '.join(POLICIES)}")
    factory = POLICIES[name]
    allowed = [item.name for item in fields(factory) if item.init]
    for key in options:
        if key not in allowed:
            raise ConfigError(f"policy {name}: unknown option {key}; allowed: {', '.join(allowed)}")
    try:
        made: Policy = factory(**options)
    except TypeError as error:
        raise ConfigError(f"policy {name}: {error}; options: {', '.join(allowed)}") from error
    return made
