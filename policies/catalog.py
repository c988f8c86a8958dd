"""Every policy by name. A new policy is one file and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any

from policies.core.control import Policy
from policies.core.errors import ConfigError
from policies.energy_slo import EnergySlo
from policies.ray_default import RayDefault
from policies.static import Static

POLICIES: Mapping[str, type[EnergySlo | Static | RayDefault]] = MappingProxyType(
    {"energy_slo": EnergySlo, "static": Static, "ray_default": RayDefault}
)


def make_policy(name: str, **options: Any) -> Policy:
    """The policy of that name; ConfigError names the allowed names, or the allowed options."""
    if name not in POLICIES:
        raise ConfigError(f"policy name is {name!r}; allowed: {', '.join(POLICIES)}")
    factory = POLICIES[name]
    allowed = [item.name for item in fields(factory)]
    for key in options:
        if key not in allowed:
            raise ConfigError(f"policy {name}: unknown option {key}; allowed: {', '.join(allowed)}")
    try:
        return factory(**options)
    except TypeError as error:
        raise ConfigError(f"policy {name}: {error}; options: {', '.join(allowed)}") from error
