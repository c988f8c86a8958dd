"""What the peers share: one decision from one wish, another policy's replicas, allowed limits.

Peers act at once: their own rules hold what hysteresis they have, so the guard keeps them inside
bounds and to the free knobs, and nothing else. A peer that remembers (history, learned values)
keeps that in its policy object: make one object per run. What belongs to a replica is kept under
the replica's name.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from policies.core.control import Policy, conclude, hold
from policies.core.errors import ModelError
from policies.core.guard import GuardContext, guard
from policies.core.observe import View, observe
from policies.core.slo import tightened
from policies.core.types import (
    SLO,
    Bounds,
    ControlSettings,
    ControlState,
    Decision,
    Knob,
    Load,
    Mode,
    Observation,
    OperatingPoint,
    Reason,
    ReplicaObservation,
)
from policies.model.curve import StepCurve
from policies.model.fitted import FittedModel
from policies.peer_memory import number

RATE_GRID = 1.02  # loads closer than this share an answer; the rate is rounded up
LENGTH_GRID = 1.04  # and the lengths to the nearest

Result = tuple[Decision, ControlState]
Limit = float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """The arguments of `Policy.decide`."""

    observation: Observation
    state: ControlState
    settings: ControlSettings
    free: frozenset[Knob]

    @property
    def bounds(self) -> Bounds:
        """What may be chosen from."""
        return self.settings.bounds

    @property
    def chooses_replicas(self) -> bool:
        """Whether this is a tick of the fleet, not one of a replica."""
        return Knob.NUM_REPLICAS in self.free

    @property
    def slo(self) -> SLO:
        """The targets less the headroom that the settings ask for, the same for every policy."""
        return tightened(self.settings.slo, self.settings.slo_headroom_ratio)


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """Where a peer wants to go, and why."""

    point: OperatingPoint
    reason: Reason
    notes: tuple[str, ...] = ()


def decided(name: str, ask: Ask, choose: Callable[[Ask, View], Wish]) -> Result:
    """The wish as a decision, inside bounds and free knobs. Never raises: an error holds."""
    try:
        view = _sane(observe(ask.observation, ask.state, ask.settings))
        wish = choose(ask, view)
        decision = Decision(
            time_s=view.now_s,
            policy=name,
            reason=wish.reason,
            present=view.present,
            proposed=wish.point,
            chosen=_inside(wish.point, view.present, ask),
            load=view.load,
            notes=wish.notes,
        )
        return conclude(decision, ask.state, ask.settings)
    except Exception as error:
        return hold(ask.observation, ask.state, ask.settings, (name, error))


def delegated(
    name: str, ask: Ask, inner: Policy, rewrite: Callable[[OperatingPoint], OperatingPoint]
) -> Result:
    """The decision of `inner` for `ask`, with its points rewritten. Never raises.

    `rewrite` sees what the inner policy proposed and what its guard let through. What the inner
    policy predicted for another point than the one chosen is left out.
    """
    try:
        decision, state = inner.decide(ask.observation, ask.state, ask.settings, ask.free)
        chosen = decision.present
        if ask.settings.mode is Mode.ACTIVE and decision.reason is not Reason.ERROR:
            chosen = _inside(rewrite(decision.chosen), decision.present, ask)
        same = chosen == decision.chosen
        decision = replace(
            decision,
            policy=name,
            proposed=rewrite(decision.proposed),
            chosen=chosen,
            predicted_chosen=decision.predicted_chosen if same else None,
        )
        return decision, replace(state, last_decision=decision)
    except Exception as error:
        return hold(ask.observation, ask.state, ask.settings, (name, error))


def with_replicas_of(
    name: str, ask: Ask, inner: Policy | None, choose: Callable[[Ask, View], Wish]
) -> Result:
    """`choose` for batch cap and limit; the replicas are those of `inner`, or stay (None)."""
    if inner is None or not ask.chooses_replicas:
        return decided(name, ask, choose)
    rest = ask.free - {Knob.NUM_REPLICAS}
    if not rest:
        return delegated(name, ask, inner, lambda point: point)
    own, _ = decided(name, replace(ask, free=rest), choose)
    narrow = replace(ask, free=frozenset({Knob.NUM_REPLICAS}))
    decision, state = delegated(name, narrow, inner, lambda point: point)
    chosen = replace(own.chosen, num_replicas=decision.chosen.num_replicas)
    decision = replace(decision, chosen=chosen, predicted_chosen=None)
    return decision, replace(state, last_decision=decision)


class Peer(ABC):
    """A policy that is asked for the fleet or for one replica. `NAME`: in the catalog."""

    __slots__ = ()
    NAME: ClassVar[str]

    @property
    def name(self) -> str:
        """The name in the catalog."""
        return self.NAME

    def decide(
        self,
        observation: Observation,
        state: ControlState,
        settings: ControlSettings,
        free: frozenset[Knob],
    ) -> Result:
        """What is wished for, inside bounds and free knobs. Never raises."""
        return self._answer(Ask(observation=observation, state=state, settings=settings, free=free))

    @abstractmethod
    def _answer(self, ask: Ask) -> Result:
        """The decision."""


class WishingPeer(Peer):
    """A peer that says in `_wish` where it wants to go. Whoever follows another policy in some
    knobs says so in `_answer`."""

    __slots__ = ()

    def _answer(self, ask: Ask) -> Result:
        return decided(self.NAME, ask, self._wish)

    @abstractmethod
    def _wish(self, ask: Ask, view: View) -> Wish:
        """Where to go, and why."""


def full_point(present: OperatingPoint, bounds: Bounds, limit: Limit = None) -> OperatingPoint:
    """The present replicas with the full batch, at full power (None) or under a limit."""
    return replace(present, max_num_active_seqs=bounds.max_num_seqs, power_limit_watts=limit)


def stay(view: View, reason: Reason, note: str = "") -> Wish:
    """The present point."""
    return Wish(point=view.present, reason=reason, notes=(note,) if note else ())


def limit_at_least(watts: Limit, bounds: Bounds) -> Limit:
    """The lowest allowed limit that is not below `watts`; None (full power) where there is none."""
    if watts is None:
        return None
    return min((one for one in bounds.power_limits_watts if one >= watts), default=None)


def known_limits(model: FittedModel, bounds: Bounds) -> tuple[Limit, ...]:
    """Full power (None), then the allowed limits that the model can answer for, highest first."""
    return (None, *(one for one in _descending(bounds.power_limits_watts) if _known(model, one)))


def shared(load: Load, num_replicas: int) -> Load:
    """One replica's share of the fleet's load."""
    return replace(load, arrival_rate_per_s=load.arrival_rate_per_s / max(num_replicas, 1))


def rounded(load: Load) -> Load:
    """A nearby load that others share: up to 2 % more requests, lengths within 2 %."""
    return Load(
        arrival_rate_per_s=_on_grid(load.arrival_rate_per_s, RATE_GRID, math.ceil),
        prompt_tokens=_on_grid(load.prompt_tokens, LENGTH_GRID, round),
        output_tokens=max(_on_grid(load.output_tokens, LENGTH_GRID, round), 1.0),
    )


def holds(model: FittedModel, point: OperatingPoint, load: Load, slo: SLO) -> bool:
    """Whether the model says that the point serves the load and holds both targets."""
    try:
        return model.predict(point, load, slo).feasible
    except ModelError:
        return False


def fewest_replicas(
    model: FittedModel, load: Load, slo: SLO, bounds: Bounds, limit: Limit = None
) -> int | None:
    """The fewest replicas in bounds that hold the targets with the full batch under the limit; None
    where even the most do not. By bisection: fewer requests per replica are never harder."""
    low, high = max(bounds.min_replicas, 1), max(bounds.max_replicas, bounds.min_replicas, 1)

    def point(num_replicas: int) -> OperatingPoint:
        return OperatingPoint(
            num_replicas=num_replicas,
            max_num_active_seqs=bounds.max_num_seqs,
            power_limit_watts=limit,
        )

    if not holds(model, point(high), load, slo):
        return None
    while low < high:
        middle = (low + high) // 2
        if holds(model, point(middle), load, slo):
            high = middle
        else:
            low = middle + 1
    return high


def backlog_s(one: ReplicaObservation, load: Load, curve: StepCurve) -> float:
    """Seconds of prefill that stand before a request that arrives now."""
    tokens = one.waiting_prompt_tokens
    if tokens is not None and math.isfinite(tokens) and load.prompt_tokens > 0.0:
        prompts = max(tokens, 0.0) / load.prompt_tokens
    else:
        prompts = number(one.num_waiting)
    return prompts * curve.per_prompt


def _sane(view: View) -> View:
    """The view without a load that has overflowed."""
    load = view.load
    if load is None or all(
        math.isfinite(one)
        for one in (load.arrival_rate_per_s, load.prompt_tokens, load.output_tokens)
    ):
        return view
    return replace(view, load=None)


def _inside(point: OperatingPoint, present: OperatingPoint, ask: Ask) -> OperatingPoint:
    context = GuardContext(
        now_s=ask.observation.now_s, settings=ask.settings, free=ask.free, exempt=True
    )
    return guard(point, present, context).point


def _known(model: FittedModel, limit: float) -> bool:
    try:
        model.latency_under(limit)
    except ModelError:
        return False
    return True


def _descending(limits: tuple[float, ...]) -> list[float]:
    return sorted((one for one in limits if math.isfinite(one) and one > 0.0), reverse=True)


def _on_grid(value: float, grid: float, to_whole: Callable[[float], int]) -> float:
    if not value > 0.0:
        return 0.0
    steps = math.log(value) / math.log(grid)
    return float(grid ** to_whole(steps - 1e-9 if to_whole is math.ceil else steps))
