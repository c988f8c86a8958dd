"""What a policy is called with: `NAME[:key=value,...]`, and what of it is the run's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from policies.core.errors import ConfigError

ROUTERS = ("least", "two", "packed")
"""In the order of `policies.sim.fleet_state`."""
FLEET_KEYS = ("min_replicas", "max_replicas", "slo_headroom_ratio")
"""Settings of the run that a policy may be given for itself: tuning knobs that users have."""

Value = float | int | bool | str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicySpec:
    """A policy by name, its options, and its own settings of the fleet. Options of a policy within
    it are dotted: `inner.target_ongoing_requests`."""

    name: str
    options: Mapping[str, Value] = field(default_factory=dict)
    fleet: Mapping[str, Value] = field(default_factory=dict)
    router: str | None = None

    def __post_init__(self) -> None:
        if self.router is not None and self.router not in ROUTERS:
            raise ConfigError(f"router is {self.router!r}; allowed: {', '.join(ROUTERS)}")

    @property
    def router_name(self) -> str:
        """The router: its own, or `packed` for the policy that steers it and `least` for others."""
        return self.router or ("packed" if self.name == "energy_slo" else "least")

    @property
    def text(self) -> str:
        """As it is written on a command line; `parse_spec` reads it back."""
        given = {**self.options, **self.fleet}
        if self.router is not None:
            given["router"] = self.router
        parts = ",".join(f"{key}={_shown(value)}" for key, value in given.items())
        return f"{self.name}:{parts}" if parts else self.name

    def within(self, prefix: str) -> dict[str, Value]:
        """The options of the policy within it, their prefix taken off."""
        start = f"{prefix}."
        return {k[len(start) :]: v for k, v in self.options.items() if k.startswith(start)}

    def changed(self, **values: Value) -> PolicySpec:
        """The same with other options; `router` and the fleet's settings are found by name."""
        router = values.pop("router", self.router)
        fleet = {k: values.pop(k) for k in FLEET_KEYS if k in values}
        return PolicySpec(
            name=self.name,
            options={**self.options, **values},
            fleet={**self.fleet, **fleet},
            router=None if router is None else str(router),
        )


def parse_spec(text: str) -> PolicySpec:
    """`NAME[:key=value,...]`. Raises ConfigError."""
    name, _, rest = text.partition(":")
    spec = PolicySpec(name=name.strip())
    for part in rest.split(",") if rest else ():
        key, equals, value = part.partition("=")
        key = key.strip()
        if not equals or not key:
            raise ConfigError(f"--policy {text!r}: expected NAME or NAME:key=value,key=value")
        spec = spec.changed(**{key: _value(value.strip())})
    return spec


def _value(text: str) -> Value:
    words: dict[str, Value] = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for read in (int, float):
        try:
            found = read(text)
        except ValueError:
            continue
        if math.isfinite(found):
            return found
    return text


def _shown(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower()
