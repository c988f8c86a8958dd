"""A joint policy with some of its knobs nailed down: what each lever does alone, and each pair.

The inner policy sees bounds in which a nailed knob has one value, so it plans with what will be in
force, and the remaining knobs are as good as they can be alone. This is an ablation, not a peer of
its own: `Only(inner=EnergySlo(...), knobs={NUM_REPLICAS})` is "replicas only", and so on.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import ClassVar

from policies.core.control import Policy
from policies.core.errors import ConfigError
from policies.core.types import (
    Bounds,
    ControlSettings,
    ControlState,
    Knob,
    Observation,
    OperatingPoint,
)
from policies.peer_parts import Ask, Peer, Result, delegated, limit_at_least


@dataclass(frozen=True, kw_only=True, slots=True)
class Only(Peer):
    """Lets `inner` move the named `knobs` only (`Knob`s or their names).

    The others stay: replicas at `num_replicas` (required where the inner policy may not choose
    them), the batch cap full, the power limit at `power_limit_watts` (None: full power), no
    packing.
    """

    NAME: ClassVar[str] = "only"

    inner: Policy
    knobs: Collection[Knob | str]
    num_replicas: int | None = None
    power_limit_watts: float | None = None

    def __post_init__(self) -> None:
        allowed = ", ".join(Knob)
        for knob in self.knobs:
            if knob not in tuple(Knob):
                raise ConfigError(f"policy only: knobs holds {knob!r}; allowed: {allowed}")
        chosen = Knob.NUM_REPLICAS in self.knobs
        if chosen == (self.num_replicas is not None):
            wanted = "nothing" if chosen else "a number of 1 or more"
            raise ConfigError(
                f"policy only: num_replicas is {self.num_replicas}; allowed with the knobs "
                f"{', '.join(self.knobs) or '(none)'}: {wanted}"
            )
        if self.num_replicas is not None and not self.num_replicas >= 1:
            raise ConfigError(
                f"policy only: num_replicas is {self.num_replicas}; allowed: 1 or more"
            )

    def _answer(self, ask: Ask) -> Result:
        bounds = ask.bounds
        limit = limit_at_least(self.power_limit_watts, bounds)
        nailed = _Nailed(inner=self.inner, bounds=self._bounds(bounds, limit), only=self)
        return delegated(self.NAME, ask, nailed, lambda point: self._nail(point, bounds, limit))

    def moves(self, knob: Knob) -> bool:
        """Whether the inner policy may move this knob."""
        return knob in self.knobs

    def _bounds(self, bounds: Bounds, limit: float | None) -> Bounds:
        if self.num_replicas is not None:
            bounds = replace(bounds, min_replicas=self.num_replicas, max_replicas=self.num_replicas)
        if not self.moves(Knob.MAX_NUM_ACTIVE_SEQS):
            bounds = replace(bounds, min_active_seqs=bounds.max_num_seqs)
        if not self.moves(Knob.POWER_LIMIT):
            bounds = replace(bounds, power_limits_watts=() if limit is None else (limit,))
        return bounds

    def _nail(self, point: OperatingPoint, bounds: Bounds, limit: float | None) -> OperatingPoint:
        if self.num_replicas is not None:
            point = replace(point, num_replicas=self.num_replicas)
        if not self.moves(Knob.MAX_NUM_ACTIVE_SEQS):
            point = replace(point, max_num_active_seqs=bounds.max_num_seqs)
        if not self.moves(Knob.POWER_LIMIT):
            point = replace(point, power_limit_watts=limit)
        if not self.moves(Knob.PACK_SEQS):
            point = replace(point, pack_seqs=None, pack_tokens=None)
        return point


@dataclass(frozen=True, kw_only=True, slots=True)
class _Nailed:
    """The inner policy under the nailed bounds, with the nailed knobs not free."""

    inner: Policy
    bounds: Bounds
    only: Only

    @property
    def name(self) -> str:
        return self.inner.name

    def decide(
        self,
        observation: Observation,
        state: ControlState,
        settings: ControlSettings,
        free: frozenset[Knob],
    ) -> Result:
        free = frozenset(knob for knob in free if self.only.moves(knob))
        return self.inner.decide(observation, state, replace(settings, bounds=self.bounds), free)
